"""Chat templates render as in transformers, with limits and a fixed date."""

from __future__ import annotations

import datetime
import gc
import multiprocessing
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SPECS, build_tokenizer
from conftest import ROOT
from reference import CONVERSATIONS, talk
from waiting import PATIENCE_S

from rm_core import ModelConfig, ModelLoadError, RewardScorer, ScoreError, load_encoder
from rm_core.errors import TemplateError
from rm_core.inputs import chat_template as module
from rm_core.inputs.chat_template import ChatTemplate
from rm_core.reference import PlainClassifier

CopyOf = Callable[..., Path]
DAY = datetime.date(2026, 2, 28)
HELLO = talk("Hi", "Hello!")
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.fixture(autouse=True)
def _disable_gc_callbacks() -> Iterator[None]:
    """Python ignores an interrupt in a GC callback, such as hypothesis's, and pytest reports it."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks


def compiled(text: Any, name: str = "qwen3") -> ChatTemplate:
    tokenizer = build_tokenizer(SPECS[name])
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, DAY)


RICH = [
    "{% for m in messages %}{{ m | tojson(indent=2) }}{% endfor %}",
    "{{ bos_token }}{{ eos_token }}{{ tools | tojson if tools else 'none' }}{{ documents }}"
    + PLAIN,
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ '  ' * ns.n }}{{ '%02d' % ns.n }}{{ '%s!' | format(m.role) }}{{ m.content }}{% endfor %}",
    "{%- for m in messages %}\n  {%- if loop.index0 % 2 %}{{ m.content.split('a')[-1] }}\n  "
    "{%- else %}{{ m.content.replace('a', 'bb') | indent(2) }}{%- endif %}\n{%- endfor %}\n",
    "{% macro turn(m) %}<{{ m.role }}>{{ m.content | trim }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
    "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ range(3) | join('-') }}"
    "{{ messages | map(attribute='role') | join(', ') }}{{ 'x'.center(9) }}{{ 2 ** 10 }}",
]


@pytest.mark.parametrize("text", [PLAIN, *RICH])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_render_equals_transformers(text: str, tools: Any) -> None:
    template = compiled(text, "llama-v0.2")
    tokenizer = build_tokenizer(SPECS["llama-v0.2"])
    tokenizer.chat_template = text
    odd = [
        {"role": "user", "content": "a", "name": None},
        {"role": "assistant", "content": "b\na", "thinking": "hm", "number": 1.5, "list": [1]},
    ]
    for conversation in [*CONVERSATIONS, odd]:
        expected = tokenizer.apply_chat_template(conversation, tools=tools, tokenize=False)
        assert template.render(conversation, tools) == expected


@pytest.mark.parametrize("name", SPECS)
def test_render_equals_transformers_for_every_family(name: str) -> None:
    tokenizer = build_tokenizer(SPECS[name])
    template = ChatTemplate(tokenizer, DAY)
    assert template.date is None
    for conversation in CONVERSATIONS:
        expected = tokenizer.apply_chat_template(conversation, tokenize=False)
        assert template.render(conversation) == expected


def test_named_templates_are_selected_as_in_transformers() -> None:
    texts = {"default": "A" + PLAIN, "tool_use": "B" + PLAIN}
    template = compiled(texts)
    assert template.text == texts["default"]
    assert template.render(HELLO).startswith("A")
    assert template.render(HELLO, TOOLS).startswith("B")


NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "nested loops": NESTED,
    "nested loops that write": NESTED.replace("{% for j", "x{% for j"),
    "macros that double": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}"
    "{% endmacro %}{{ f(90) }}",
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS.keys())
def test_endless_rendering_is_interrupted(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CPU_S", 0.6)
    trigger = "{% if 'loop' in messages[0].content %}" + text + "{% endif %}" + PLAIN
    template = compiled(trigger)
    expected = template.render(HELLO)
    with pytest.raises(TemplateError, match=r"did not render this conversation within 0\.6 s"):
        template.render(talk("loop", "?"))
    assert template.render(HELLO) == expected


def test_ignored_interrupt_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CPU_S", 0.6)
    interrupt, ignored = module._interrupt, []

    def ignore_some(thread: int) -> None:
        if len(ignored) == 5:
            interrupt(thread)
        else:
            ignored.append(thread)

    monkeypatch.setattr(module, "_interrupt", ignore_some)
    with pytest.raises(TemplateError, match="did not render"):
        compiled("{% if messages[0].content == 'Hi' %}" + NESTED + "{% endif %}").render(HELLO)
    assert len(ignored) == 5


PROFILED = """
import cProfile
from rm_core.inputs import chat_template as module

module.MAX_CPU_S = 0.6

def short():
    return 1

def endless():
    while True:
        pass

for work in (short, endless):
    try:
        module.run_within_limits(work)
    except module.RenderingInterrupt:
        pass
    assert cProfile.Profile().runcall(short) == 1
"""


def test_profiler_works_after_rendering() -> None:
    """Runs in a separate process, since no exception interrupts the hang."""
    subprocess.run([sys.executable, "-c", PROFILED], timeout=PATIENCE_S, check=True, cwd=ROOT)


def test_interrupt_reaches_only_the_rendering_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CPU_S", 0.6)
    errors: list[BaseException] = []

    def render_forever() -> None:
        try:
            compiled(NESTED + PLAIN).render(HELLO)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=render_forever)
    thread.start()
    template, texts = compiled(PLAIN), set()
    while thread.is_alive():
        texts.add(template.render(HELLO))
    thread.join()
    assert texts == {template.render(HELLO)}
    assert [type(error) for error in errors] == [TemplateError]


def test_memory_of_a_rendering_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 64 << 20)
    monkeypatch.setattr(module, "_SUSPICIOUS_S", 0.05)
    monkeypatch.setattr(module, "_POLL_INTERVAL_S", 0.02)
    grows = "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% for j in range(9999) %}"
    text = grows + "{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateError, match="did not render"):
        compiled(text).render(HELLO)


def test_forked_process_renders_while_parent_holds_the_lock() -> None:
    template = compiled(PLAIN)
    expected = template.render(HELLO)

    def render() -> None:
        assert template.render(HELLO) == expected

    child = multiprocessing.get_context("fork").Process(target=render)
    with module._watchdog._lock:
        child.start()
    child.join(PATIENCE_S)
    child.kill()
    assert child.exitcode == 0


TOO_LARGE = {
    "product": "{{ ('a' * 1000 * 1000 * 1000) | length }}",
    "product with a computed number": "{{ 'a' * ('1000000000' | int) }}",
    "product of a list": "{{ ([0] * 1000 * 1000 * 1000) | length }}",
    "power": "{{ 2 ** (2 ** (2 ** 6)) % 7 }}",
    "tower": "{{ 999 ** 99 ** 9 }}",
    "filter center": "{{ 'a' | center(1000 * 1000 * 1000) | length }}",
    "method ljust": "{{ 'a'.ljust(1000 * 1000 * 1000) | length }}",
    "format with a star": "{{ '%*d' % (1000 * 1000 * 100, 1) }}",
    "format of a built text": "{{ ('%' ~ '99999999' ~ 'd') | format(1) }}",
    "format method": "{{ ('{:>' ~ '99999999' ~ '}').format(1) }}",
    "modulo": "{{ ('%' ~ '99999999' ~ 'd') % 1 }}",
    "replace": "{{ ('a' * 1000000) | replace('a', 'b' * 100000) | length }}",
    "replace method": "{{ ('a' * 1000000).replace('a', 'b' * 100000) | length }}",
    "join": "{{ range(99999) | join('a' * 99999) | length }}",
    "join method": "{{ ('a' * 99999).join(range(99999) | map('string') | list) | length }}",
    "indent": "{{ ('a\n' * 1000000) | indent(99999) | length }}",
    "tojson": "{{ ([0] * 1000000) | tojson(indent=99999) | length }}",
}


@pytest.mark.parametrize("text", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_template_with_too_large_values_is_stopped(text: str) -> None:
    with pytest.raises(
        TemplateError, match=r"exceeded a limit on this conversation.*fix the template"
    ):
        compiled(text + PLAIN).render(HELLO)


REFUSED = {
    "a large number": ("{{ 'a' * 3000000000 }}", "contains 3000000000"),
    "a hexadecimal one": ("{{ 'a' * 0xfffffff }}", "contains 0xfffffff"),
    "a wide format": ("{{ '%1000000000d' | format(1) }}", "format widths"),
    "a wide format method": ("{{ '{:>1000000000}'.format(1) }}", "format widths"),
    "random": ("{{ [1, 2] | random }}", "uses `random`"),
    "lipsum": ("{{ lipsum(1) }}", "uses `lipsum`"),
    "syntax": ("{% if %}", "not a valid Jinja template"),
    "no end": ("{% for m in messages %}", "not a valid Jinja template"),
    "deep": ("{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}", "not a valid Jinja template"),
    "unknown tag": ("{% do_it %}", "not a valid Jinja template"),
    "too long": ("x" * (module.MAX_TEMPLATE_CHARACTERS + 1), "is this the right file"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_template_is_refused_at_load(text: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        compiled(text)
    assert "random" not in compiled("{{ messages[0].random }}{{ 'lipsum' }}" + PLAIN).render(HELLO)


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('never') }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages.nothing.at.all }}",
    ],
)
def test_template_that_always_raises_is_refused_at_load(text: str, copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "chat_template.jinja").write_text(text + PLAIN)
    with pytest.raises(ModelLoadError, match=r"renders neither a conversation.*--chat-template"):
        load_encoder(ModelConfig(str(folder)))


def test_endless_template_is_refused_at_load(
    copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CPU_S", 0.6)
    folder = copy_of()
    (folder / "chat_template.jinja").write_text(NESTED + PLAIN)
    with pytest.raises(ModelLoadError, match="did not render"):
        load_encoder(ModelConfig(str(folder)))


def test_template_that_requires_a_system_prompt_loads(copy_of: CopyOf) -> None:
    folder = copy_of()
    requires = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(requires + PLAIN)
    encoder = load_encoder(ModelConfig(str(folder)))
    alone, with_system = encoder.encode_all([HELLO, [{"role": "system", "content": "s"}, *HELLO]])
    assert isinstance(alone, ScoreError)
    assert "system first" in alone.message
    assert not isinstance(with_system, ScoreError)


CLOCKS = {
    "plain": "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}",
    "in a macro": "{% macro d() %}{{ strftime_now('%Y-%m-%d %H:%M:%S') }}{% endmacro %}{{ d() }}",
    "by another name": "{% set now = strftime_now %}{{ now('%Y-%m-%d %H:%M:%S') }}",
    "as a filter's argument": "{{ [strftime_now('%Y-%m-%d %H:%M:%S')] | join('') }}",
    "where it is defined": "{% if not date is defined %}{% if strftime_now is defined %}"
    "{% set date = strftime_now('%Y-%m-%d %H:%M:%S') %}{% endif %}{% endif %}{{ date }}",
}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS.keys())
def test_clock_is_at_midnight_of_the_date(clock: str) -> None:
    template = compiled(clock + PLAIN)
    assert template.date == DAY
    assert template.render(HELLO).startswith("2026-02-28 00:00:00")


def test_template_without_a_clock_has_no_date() -> None:
    assert compiled(PLAIN + "{# strftime_now #}strftime_now{{ 'strftime_now' }}").date is None


def test_template_date_fixes_the_date_and_is_in_the_fingerprint(copy_of: CopyOf) -> None:
    folder = copy_of("llama-v0.2")
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}{{ strftime_now('%d %b %Y') }}" + template.read_text())
    first, again, other = (
        RewardScorer.load(ModelConfig(str(folder), device="cpu", template_date=day))
        for day in ("2024-07-26", "2024-07-26", "2025-01-01")
    )
    assert first.fingerprint.template_date == "2024-07-26"
    assert first.fingerprint.as_dict()["template_date"] == "2024-07-26"
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.encoder.encoding_sha256 != other.encoder.encoding_sha256
    assert first.encoder.encode(HELLO).text.startswith("26 Jul 2024")
    assert first.score([HELLO]) == again.score([HELLO]) != other.score([HELLO])
    plain = PlainClassifier(first, first.loaded_model.model.dtype)
    (reward,) = first.score([HELLO])
    assert plain.compute_outputs(HELLO) == pytest.approx([reward.reward], abs=1e-4)  # type: ignore[union-attr]
    today = load_encoder(ModelConfig(str(folder))).template_date
    assert today is not None
    assert abs(datetime.date.fromisoformat(today) - datetime.date.today()).days <= 1


def test_fingerprint_without_a_clock_has_no_date(scorer_of: Callable[..., RewardScorer]) -> None:
    assert "template_date" not in scorer_of("qwen3").fingerprint.as_dict()
    assert "template_date" not in scorer_of("qwen3").describe().as_dict()


@pytest.mark.parametrize(
    "date", ["today", "2026-1-31", "2026-02-30", "20260131", "", "2026-01-31 "]
)
def test_invalid_template_date_is_refused(date: str) -> None:
    with pytest.raises(ModelLoadError, match=r"template_date is .*; give a day as YYYY-MM-DD"):
        ModelConfig("demo", template_date=date)


GROWING = (
    "{%% set ns = namespace(x='\U0001f600' * 1000) %%}"
    "{%% for i in range(40) %%}%s{%% endfor %%}" + PLAIN
)


@pytest.mark.parametrize(
    "step",
    [
        "{% set ns.x = ns.x ~ ns.x %}",
        "{% set ns.x = ns.x + ns.x %}",
        "{% set ns.x = [ns.x] * 2 %}{% set ns.x = ns.x | join %}",
        "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}",
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns.x = f(ns.x) %}",
        "{% set ns.x = '{0}{0}'.format(ns.x) %}",
        "{% set ns.x = '{a}{a}'.format(a=ns.x) %}",
        "{% set ns.x = '%s%s' % (ns.x, ns.x) %}",
        "{% set ns.x = '%s%s' | format(ns.x, ns.x) %}",
        "{% set ns.x = '%(a)s%(a)s' | format(a=ns.x) %}",
        "{% set ns.x = ns.x.replace('\U0001f600', '\U0001f600\U0001f600') %}",
        "{% set ns.x = ns.x | replace('\U0001f600', '\U0001f600\U0001f600') %}",
        "{% set ns.x = (ns.x | urlencode).replace('%', '\U0001f600') %}",
        "{% set ns.x = ns.x | tojson | tojson %}",
        "{% set ns.x = (ns.x | list) + (ns.x | list) %}",
        "{{ ns.x }}{% for j in range(9999) %}{{ ns.x }}{% endfor %}",
    ],
)
def test_template_that_grows_a_text_is_stopped_early(step: str) -> None:
    """The limit is low because the conversation is short, so the text takes little memory."""
    template = compiled(GROWING.replace("%%", "%").replace("%s", step, 1))
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError, match="is allowed for a conversation of this length"):
            template.render(HELLO)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 << 20


def test_length_limit_grows_with_the_conversation() -> None:
    template = compiled("{% set x %}" + "{{ messages[0].content }}" * 20 + "{% endset %}{{ x }}")
    content = "x" * 1_000_000
    assert template.render(talk(content, "y")) == content * 20
    assert len(template.render(talk(content[:100_000], "y"))) == 2_000_000
    tools = [{"type": "function", "function": {"name": content}}]
    many = compiled("{% set x %}" + "{{ tools[0].function.name }}" * 20 + "{% endset %}{{ x }}")
    assert len(many.render(HELLO, tools)) == 20_000_000
