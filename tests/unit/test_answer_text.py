"""A prompt is rendered once for all its answers, with the text that rendering each would give."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from checkpoints import GEMMA2_TEMPLATE, LLAMA_TEMPLATE, QWEN3_TEMPLATE, Spec, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from rm_core import ChatEncoder, Encoded
from rm_core.inputs.answer_text import write_answer
from rm_core.inputs.chat_rendering import ChatRenderer
from rm_core.inputs.chat_template import ChatTemplate
from rm_core.inputs.conversations import Chat

LAST = "messages[-1].content"
# Thinking is moved, as in the templates of reasoning models.
THINKING = """{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for m in messages[::-1] %}
    {%- if not ns.found and m.role == 'user' and not m.content.startswith('<tool_response>') %}
        {%- set ns.found = true %}
        {%- set ns.last = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set content = m.content if m.content is string else '' %}
    {%- set thought = '' %}
    {%- if m.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if m.role == 'assistant' and loop.index0 > ns.last %}
        {{- '<|im_start|>' + m.role + '\\n<think>\\n' + thought.strip('\\n') }}
        {{- '\\n</think>\\n\\n' }}
        {{- content.lstrip('\\n') + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
    {%- for call in m.tool_calls or [] %}{{ call.name }}{{ call.arguments | tojson }}{% endfor %}
{%- endfor %}"""
TEMPLATES = {
    "llama": LLAMA_TEMPLATE.replace("write_bos", "true"),
    "qwen": QWEN3_TEMPLATE,
    "gemma": GEMMA2_TEMPLATE,
    "thinking": THINKING,
    "tools": "{% if tools %}{{ tools|tojson }}{% endif %}" + QWEN3_TEMPLATE,
    "date": "{{ strftime_now('%d %b %Y') }}" + QWEN3_TEMPLATE,
}
# The same for every answer, or for every answer with which the template's conditions are the same.
PROVEN = [
    "{{ 'a' ~ ANSWER ~ 'b' }}",
    "{{ 'a' + ANSWER.rstrip('\\n') + 'b' }}",
    "{{ ANSWER|trim|default('') }}",
    "{% set x %}{{ ANSWER }}{% endset %}{{ x|trim }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}<{{ f(ANSWER)|trim }}>",
    "{% set ns = namespace(x=ANSWER) %}{{ ns.x }}",
    "{% set x = ANSWER %}{% if x %}x{% endif %}{{ x }}",
    "{% set x = ANSWER %}{% if x == '' or x != 'ab' %}x{% endif %}{{ x }}",
    "{% set x = ANSWER %}{% if 'a' not in x %}y{% endif %}{{ x }}",
    "{% set x = ANSWER %}{% if x|trim in ['a', 'b'] %}y{% endif %}{{ x }}",
    "{% set x = ANSWER %}{% if x.startswith('a') or x.endswith('b') %}y{% endif %}{{ x }}",
    "{% filter trim %}{{ ANSWER }}{% endfilter %}",
    "{% for k, v in messages[-1].items() %}{{ k }}{{ v }}{% endfor %}{#ANSWER#}",
]
UNPROVEN = [
    "no answer {#ANSWER#}",
    "{{ ANSWER }}{{ messages[-1].content }}",
    "{{ ANSWER|length }}{{ messages[-1].content }}",
    "{{ ANSWER[:3] }}",
    "{{ ANSWER|upper }}",
    "{{ ANSWER|replace('a', 'b') }}",
    "{{ 'abc'|replace('a', ANSWER) }}",
    "{{ ANSWER|e }}",
    "{{ ANSWER|indent }}",
    "{{ ANSWER|first }}",
    "{{ ANSWER * 2 }}",
    "{{ ANSWER.split('x')[0] }}",
    "{{ ANSWER.removeprefix('a') }}",
    "{{ ANSWER.format(1) }}",
    "{{ '{}'.format(ANSWER) }}",
    "{{ 'a %s' % ANSWER }}",
    "{{ ', '.join([ANSWER]) }}",
    "{{ [ANSWER]|join }}",
    "{{ [ANSWER]|string }}",
    "{{ [ANSWER] }}",
    "{{ messages|map(attribute='content')|join }}{#ANSWER#}",
    "{{ messages|tojson }}{#ANSWER#}",
    "{{ messages[-1] }}{#ANSWER#}",
    "{{ messages[-1].values()|join }}{#ANSWER#}",
    "{% for c in ANSWER %}{{ c }}{% endfor %}",
    "{% set x = ANSWER %}{% if x in 'abc' %}y{% endif %}{{ x }}",
    "{% set x = ANSWER %}{% if x is in 'abc' %}y{% endif %}{{ x }}",
    "{% set x = ANSWER %}{% if x in {'a': 1} %}y{% endif %}{{ x }}",
    "{% set x = ANSWER %}{% if x > 'a' %}y{% endif %}{{ x }}",
    "{% set x = ANSWER %}{% if x is upper %}y{% endif %}{{ x }}",
    "{% set x = ANSWER %}{{ {'a': 1}[x] }}{{ x }}",
    "{% set x = ANSWER %}{{ {'a': 1}.get(x) }}{{ x }}",
    "{% set x = ANSWER %}{{ x|int }}{{ x }}",
    "{{ (ANSWER + 'a')|trim }}",
    "{{ (ANSWER ~ 'a')|length }}{{ messages[-1].content }}",
    "{% set x %}a{{ ANSWER }}{% endset %}{{ x|trim }}",
    "{{ raise_exception(ANSWER) }}",
]
PROMPTS: list[Any] = [
    [{"role": "user", "content": " q\n"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "<think>x</think>q"}],
    [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>x</think>q"},
        {"role": "user", "content": "q"},
    ],
    [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]},
        {"role": "tool", "content": "4"},
    ],
]
PIECES = ["a", "b", "4", " ", "\n", "\u3000", "\x1c", "<think>", "</think>", "<|im_end|>", "é", "<"]
ANSWERS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | st.text(max_size=5)


def create_renderer(template: str) -> ChatRenderer:
    tokenizer = build_tokenizer(Spec(template_bos=True))
    tokenizer.chat_template = template
    return ChatRenderer(ChatTemplate(tokenizer, datetime.date(2026, 1, 2)), "")


def answer(prompt: Any, text: str) -> list[dict[str, Any]]:
    return [*prompt, {"role": "assistant", "content": text}]


@pytest.mark.parametrize("template", PROVEN)
@given(text=ANSWERS)
def test_proven_template_writes_what_it_renders(template: str, text: str) -> None:
    renderer = create_renderer(template.replace("ANSWER", LAST))
    messages = answer(PROMPTS[0], text)
    around = renderer._template.render_around(answer(PROMPTS[0], "4"))
    assert around is not None
    assert write_answer(around, text) in (None, renderer.render(Chat(messages)))
    assert write_answer(around, "4") == renderer.render(Chat(answer(PROMPTS[0], "4")))


@pytest.mark.parametrize("template", UNPROVEN)
def test_template_that_reads_the_answer_is_unproven(template: str) -> None:
    renderer = create_renderer(template.replace("ANSWER", LAST))
    assert renderer._template.render_around(answer(PROMPTS[0], "4")) is None
    renderer.check_shared_prompts()
    assert not renderer.shares_prompts


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_model_families_share_prompts(name: str) -> None:
    renderer = create_renderer(TEMPLATES[name])
    renderer.check_shared_prompts()
    assert renderer.shares_prompts


ENCODERS: dict[str, ChatEncoder] = {}


def encoder_for(name: str) -> ChatEncoder:
    if name not in ENCODERS:
        tokenizer = build_tokenizer(Spec(template_bos=True))
        tokenizer.chat_template = TEMPLATES[name]
        ENCODERS[name] = ChatEncoder(tokenizer, pad_token_id=None, max_length=4_096)
    return ENCODERS[name]


@pytest.mark.parametrize("name", TEMPLATES)
@given(items=st.lists(st.tuples(st.integers(0, 3), st.booleans(), ANSWERS), min_size=2, max_size=9))
def test_together_conversations_are_encoded_as_alone(name: str, items: Any) -> None:
    encoder = encoder_for(name)
    tools = [{"type": "function", "function": {"name": "f"}}]
    conversations = [
        {"messages": answer(PROMPTS[i], text), "tools": tools}
        if has_tools
        else answer(PROMPTS[i], text)
        for i, has_tools, text in sorted(items, key=lambda item: item[:2])
    ]
    alone = [encoder.encode_all([conversation])[0] for conversation in conversations]
    assert encoder.encode_all(conversations) == alone


def test_prompt_is_rendered_once() -> None:
    encoder = encoder_for("thinking")
    template, number = encoder._renderer._template, 0
    render = template._render

    def count(*arguments: Any, **options: Any) -> str:
        nonlocal number
        number += 1
        return render(*arguments, **options)

    template._render = count  # type: ignore[method-assign]
    try:
        encoded = encoder.encode_all([answer(PROMPTS[0], str(i)) for i in range(16)])
        assert number == 1
        encoder.encode_all([answer(PROMPTS[0], "</think>"), answer(PROMPTS[0], "4")])
        assert number == 3
    finally:
        del template._render
    assert all(isinstance(item, Encoded) for item in encoded)


@pytest.mark.parametrize(
    ("one", "two"), [(1, True), (0.0, -0.0), ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
)
def test_prompts_that_python_calls_equal_are_told_apart(one: Any, two: Any) -> None:
    encoder = encoder_for("thinking")
    conversations = [
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": value}]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "4"},
        ]
        for value in (one, two)
    ]
    assert one == two
    together = encoder.encode_all(conversations)
    assert together == [encoder.encode(conversation) for conversation in conversations]
    assert together[0] != together[1]


def test_difference_in_use_ends_sharing(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = build_tokenizer(Spec())
    encoder = ChatEncoder(tokenizer, pad_token_id=None, max_length=512, tokenizer_check_interval=3)
    renderer = encoder._renderer
    write = renderer._write
    renderer._write = lambda chat, prompt: f"{write(chat, prompt)}x"  # type: ignore[method-assign]
    conversations = [answer(PROMPTS[0], str(i)) for i in range(6)]
    encoded = [item.text for item in encoder.encode_all(conversations) if isinstance(item, Encoded)]
    assert [text.endswith("x") for text in encoded] == [True, True, False, False, False, False]
    assert "prompts are not shared now" in caplog.text
    assert not renderer.shares_prompts


def test_template_that_writes_another_text_is_found_at_load(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renderer = create_renderer(f"{{{{ 'x' if {LAST} == 'a' else '' }}}}{{{{ {LAST} }}}}")
    monkeypatch.setattr("rm_core.inputs.answer_text._require_alone", lambda text, argument: None)
    monkeypatch.setattr(
        "rm_core.inputs.chat_rendering.write_answer", lambda around, text: around._before + text
    )
    renderer.check_shared_prompts()
    assert not renderer.shares_prompts
    assert "writes the answer 'a' in another way" in caplog.text


def test_lone_surrogate_beside_the_answer_is_refused_alike() -> None:
    encoder = encoder_for("thinking")
    conversation = answer(PROMPTS[0], "4")
    conversation[-1]["tool_calls"] = [{"name": "\ud800", "arguments": {}}]
    together = encoder.encode_all([conversation, conversation])
    assert together == [encoder.encode_all([conversation])[0]] * 2
    assert not isinstance(together[0], Encoded)
