"""`read_turns` reads the text of a policy's template whole, or refuses it."""

from __future__ import annotations

import re
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_core.errors import InvalidConversationError
from rm_core.inputs.chat_formats import _CHAT_FORMATS, ChatFormatName, read_turns
from rm_core.inputs.conversations import Messages

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen2.5 writes a system prompt where there is none, which its policy has read.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helper.<|im_end|>\n"
    "{% endif %}" + CHATML
)
LLAMA_TURNS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA = "<|begin_of_text|>" + LLAMA_TURNS
# Llama 3.1 and later: always a system turn, with dates that the template writes by itself.
DATED = (
    "<|begin_of_text|>{% if messages[0].role == 'system' %}{% set system = messages[0].content | "
    "trim %}{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n{{ system }}<|eot_id|>" + LLAMA_TURNS
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'system' %}[SYSTEM_PROMPT] {{ m.content | trim }}[/SYSTEM_PROMPT]"
    "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
TEMPLATES: dict[str, tuple[ChatFormatName, str]] = {
    "chatml": ("chatml", CHATML),
    "qwen2.5": ("chatml", DEFAULT_SYSTEM),
    "llama3": ("llama3", LLAMA),
    "llama3.1": ("llama3", DATED),
    "gemma": ("gemma", GEMMA),
    "mistral": ("mistral", MISTRAL),
}
JINJA = jinja2.Environment(keep_trailing_newline=True)


def render(name: str, messages: Messages) -> tuple[str, str]:
    """Text and prompt as a policy reads and writes them."""
    template = JINJA.from_string(TEMPLATES[name][1])
    prompt = template.render(messages=messages[:-1], add_generation_prompt=True)
    text = template.render(messages=messages)
    if name == "mistral":
        assert text.startswith(prompt)
        return text, prompt
    end = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}
    content = messages[-1]["content"]
    return prompt + content + end[TEMPLATES[name][0]], prompt


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


# No marker has all of its characters from here, nor does a header.
WORDS = st.text(alphabet="ab Z.\n\t\r<>|[]/_:é😀", min_size=0, max_size=12)
TURNS = st.tuples(st.none() | WORDS, st.lists(st.tuples(WORDS, WORDS), max_size=2), WORDS, WORDS)


def conversation(drawn: Any) -> Messages:
    system, earlier, question, answer = drawn
    messages = [] if system is None else [turn("system", system)]
    for asked, answered in earlier:
        messages += [turn("user", asked), turn("assistant", answered)]
    return [*messages, turn("user", question), turn("assistant", answer)]


@pytest.mark.parametrize("name", TEMPLATES)
@given(drawn=TURNS)
def test_what_a_template_wrote_is_read_back(name: str, drawn: Any) -> None:
    messages = conversation(drawn)
    text, prompt = render(name, messages)
    found = read_turns(text, prompt, TEMPLATES[name][0])
    dialect = _CHAT_FORMATS[TEMPLATES[name][0]]
    expected = [
        {**m, "content": m["content"].strip() if dialect.trims else m["content"]} for m in messages
    ]
    if name == "qwen2.5" and expected[0]["role"] != "system":
        expected.insert(0, turn("system", "You are a helper."))
    if name == "llama3.1" and expected[0] == turn("system", ""):
        del expected[0]  # as the template itself, which writes the same text for none
    assert found == expected


@pytest.mark.parametrize("name", TEMPLATES)
@given(drawn=TURNS, data=st.data())
def test_inserted_text_is_in_a_turn_or_refused(name: str, drawn: Any, data: Any) -> None:
    text, prompt = render(name, conversation(drawn))
    place = data.draw(st.integers(0, len(prompt)) | st.integers(0, len(text)))
    inserted = data.draw(st.sampled_from(["Q", "QQ Q", " name=Q", "\nQ\n", "Q<|im_end|>"]))
    changed = text[:place] + inserted + text[place:]
    prompt = changed[: len(prompt) + len(inserted)] if place <= len(prompt) else prompt
    try:
        found = read_turns(changed, prompt, TEMPLATES[name][0])
    except InvalidConversationError:
        return
    kept = "".join(m["content"] for m in found)
    assert kept.count("Q") == inserted.count("Q")
    # Nor is other text lost, white space aside.
    for message in conversation(drawn):
        bare = "".join(message["content"].split())
        if "Q" not in kept:
            assert bare in "".join(kept.split())


REFUSED = {
    "a name": ("chatml", "<|im_start|>system name=rules\nBe brief.<|im_end|>\n", "character 0"),
    "a plugin": ("chatml", "<|im_start|>environment name=<|plugin|>\n4<|im_end|>\n", "header"),
    "before": ("chatml", "Be brief.\n", "text before the first turn"),
    "between": ("chatml", "<|im_start|>system\na<|im_end|>\nBe brief.\n", "after <|im_end|>"),
    "unknown role": ("chatml", "<|im_start|>bard\nx<|im_end|>\n", "the role 'bard'"),
    "llama name": (
        "llama3", "<|start_header_id|>system b<|end_header_id|>\n\na<|eot_id|>", "header",
    ),
    "llama before": ("llama3", "Be brief.", "text before the first turn"),
    "llama between": (
        "llama3", "<|start_header_id|>system<|end_header_id|>\n\na<|eot_id|>b", "after <|eot_id|>",
    ),
    "gemma name": ("gemma", "<start_of_turn>user b\na<end_of_turn>\n", "header"),
    "gemma before": ("gemma", "Be brief.\n", "text before the first turn"),
    "gemma between": ("gemma", "<start_of_turn>user\na<end_of_turn>\nb", "after <end_of_turn>"),
    "mistral before": ("mistral", "Be brief.", "text before the first turn"),
    "mistral tools": ("mistral", "[AVAILABLE_TOOLS] [{}][/AVAILABLE_TOOLS]", "before the first"),
    "mistral between": ("mistral", "[INST] a [/INST] b</s>c", "after </s>"),
}  # fmt: skip
LAST = {
    "chatml": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "gemma": "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "[INST] 2+2? [/INST]",
}
HELLO = [turn("user", "2+2?"), turn("assistant", "4")]


@pytest.mark.parametrize(("dialect", "first", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_text_of_no_turn_is_refused_with_its_place(
    dialect: ChatFormatName, first: str, says: str
) -> None:
    prompt = first + LAST[dialect]
    with pytest.raises(InvalidConversationError) as caught:
        read_turns(prompt + "4", prompt, dialect)
    assert says in caught.value.detail
    assert len(caught.value.detail) < 300


@pytest.mark.parametrize("dialect", LAST)
@pytest.mark.parametrize("padding", ["", "<pad>", "<|endoftext|>" * 3, "<s>", "</s></s><s>"])
def test_padding_and_bos_are_dropped_wherever_they_stand(
    dialect: ChatFormatName, padding: str
) -> None:
    prompt = padding + LAST[dialect]
    assert read_turns(prompt + "4", prompt, dialect) == HELLO
    assert (
        read_turns(prompt + "4" + _CHAT_FORMATS[dialect].ends[0] + padding, prompt, dialect)
        == HELLO
    )
    # Padding that only one of the two has, as where prompts are padded for a batch.
    assert read_turns(LAST[dialect] + "4", prompt, dialect) == HELLO


def test_line_ends_of_windows_are_read_and_kept_in_the_text() -> None:
    prompt = LAST["chatml"].replace("\n", "\r\n").replace("2+2?", "2+\r\n2?")
    found = read_turns(prompt + "4<|im_end|>\r\n", prompt, "chatml")
    assert found == [turn("user", "2+\r\n2?"), turn("assistant", "4")]


def test_an_answer_of_several_turns_is_read_as_turns() -> None:
    answer = (
        "<tool_call>\n{}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>4"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    found = read_turns(LAST["chatml"] + answer, LAST["chatml"], "chatml")
    assert [m["role"] for m in found] == ["user", "assistant", "user", "assistant"]
    assert found[1]["content"] == "<tool_call>\n{}\n</tool_call>"
    assert found[3] == turn("assistant", "4")
    for more in ("4<|im_end|>\nMore.", "4<|im_end|>\n<|im_start|>user name=a\nThanks<|im_end|>"):
        with pytest.raises(InvalidConversationError, match="at character"):
            read_turns(LAST["chatml"] + more, LAST["chatml"], "chatml")
    stopped = LAST["chatml"] + "4<|im_end|>\n<|im_start|>"
    assert read_turns(stopped, LAST["chatml"], "chatml") == HELLO


def test_a_prompt_without_a_generation_header() -> None:
    bare = LAST["chatml"].removesuffix("<|im_start|>assistant\n")
    assert read_turns(bare + "4<|im_end|>", bare, "chatml") == HELLO
    assert read_turns(LAST["chatml"] + "4", bare, "chatml") == HELLO
    cut = LAST["chatml"].removesuffix("\n")
    assert read_turns(cut + "\n4", cut, "chatml") == HELLO
    ended = LAST["chatml"] + "5<|im_end|>\n"
    assert [m["content"] for m in read_turns(ended + "4", ended, "chatml")] == ["2+2?", "5", "4"]


def test_a_prompt_of_another_family_is_refused() -> None:
    for dialect in ("llama3", "gemma", "mistral"):
        with pytest.raises(InvalidConversationError, match="no turn in the format chatml"):
            read_turns(LAST[dialect] + "4", LAST[dialect], "chatml")
    with pytest.raises(InvalidConversationError, match=re.escape("the prompt has <|im_end|>")):
        read_turns("2+2?<|im_end|>4", "2+2?<|im_end|>", "chatml")
    with pytest.raises(InvalidConversationError, match="does not begin with its prompt"):
        read_turns("<s>4", "<s>", "chatml")


def test_dates_that_are_not_the_templates_own_are_kept() -> None:
    header = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    for content, kept in (
        (header + "Be brief.", "Be brief."),
        ("Environment: ipython\n" + header + "Be brief.", None),
        ("Be brief. " + header + "Now.", None),
        ("Today Date: 26 Jul 2024\n\nNow.", None),
    ):
        prompt = (
            f"<|start_header_id|>system<|end_header_id|>\n\n{content}<|eot_id|>" + LAST["llama3"]
        )
        found = read_turns(prompt + "4", prompt, "llama3")
        assert found[0] == turn("system", content.strip() if kept is None else kept)


def test_long_padding_takes_no_long_time() -> None:
    prompt = "<|endoftext|>" * 100_000 + " " * 100_000 + LAST["chatml"]
    assert read_turns(prompt + "4", prompt, "chatml") == HELLO
