"""`read_turns` parses the whole text of a policy's template, or refuses the text."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import TEMPLATES, render, turn

from rm_core.errors import InvalidConversationError
from rm_core.inputs.chat_formats import _CHAT_FORMATS, ChatFormatName, read_turns
from rm_core.inputs.conversations import Messages

# These characters cannot form a marker or a header.
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
def test_read_turns_restores_the_rendered_messages(name: str, drawn: Any) -> None:
    messages = conversation(drawn)
    text, prompt = render(name, messages)
    parsed = read_turns(text, prompt, TEMPLATES[name][0])
    chat_format = _CHAT_FORMATS[TEMPLATES[name][0]]
    expected = [
        {**m, "content": m["content"].strip() if chat_format.trims else m["content"]}
        for m in messages
    ]
    if name == "qwen2.5" and expected[0]["role"] != "system":
        expected.insert(0, turn("system", "You are a helper."))
    if name == "llama3.1" and expected[0] == turn("system", ""):
        del expected[0]  # the template writes the same text without a system prompt
    assert parsed == expected


@pytest.mark.parametrize("name", TEMPLATES)
@given(drawn=TURNS, data=st.data())
def test_inserted_text_is_in_a_turn_or_refused(name: str, drawn: Any, data: Any) -> None:
    text, prompt = render(name, conversation(drawn))
    position = data.draw(st.integers(0, len(prompt)) | st.integers(0, len(text)))
    inserted = data.draw(st.sampled_from(["Q", "QQ Q", " name=Q", "\nQ\n", "Q<|im_end|>"]))
    changed = text[:position] + inserted + text[position:]
    prompt = changed[: len(prompt) + len(inserted)] if position <= len(prompt) else prompt
    try:
        parsed = read_turns(changed, prompt, TEMPLATES[name][0])
    except InvalidConversationError:
        return
    kept = "".join(m["content"] for m in parsed)
    assert kept.count("Q") == inserted.count("Q")
    # Other text is not lost either, except for white space.
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


@pytest.mark.parametrize(
    ("chat_format", "first", "expected_text"), REFUSED.values(), ids=REFUSED.keys()
)
def test_text_outside_turns_is_refused_with_its_position(
    chat_format: ChatFormatName, first: str, expected_text: str
) -> None:
    prompt = first + LAST[chat_format]
    with pytest.raises(InvalidConversationError) as caught:
        read_turns(prompt + "4", prompt, chat_format)
    assert expected_text in caught.value.detail
    assert len(caught.value.detail) < 300


@pytest.mark.parametrize("chat_format", LAST)
@pytest.mark.parametrize("padding", ["", "<pad>", "<|endoftext|>" * 3, "<s>", "</s></s><s>"])
def test_padding_and_bos_are_dropped(chat_format: ChatFormatName, padding: str) -> None:
    prompt = padding + LAST[chat_format]
    assert read_turns(prompt + "4", prompt, chat_format) == HELLO
    assert (
        read_turns(prompt + "4" + _CHAT_FORMATS[chat_format].ends[0] + padding, prompt, chat_format)
        == HELLO
    )
    # Padding in the prompt only, as if prompts were padded for a batch.
    assert read_turns(LAST[chat_format] + "4", prompt, chat_format) == HELLO


def test_windows_line_ends_are_accepted_and_kept_in_content() -> None:
    prompt = LAST["chatml"].replace("\n", "\r\n").replace("2+2?", "2+\r\n2?")
    parsed = read_turns(prompt + "4<|im_end|>\r\n", prompt, "chatml")
    assert parsed == [turn("user", "2+\r\n2?"), turn("assistant", "4")]


def test_answer_with_several_turns_is_parsed() -> None:
    answer = (
        "<tool_call>\n{}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>4"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    )
    parsed = read_turns(LAST["chatml"] + answer, LAST["chatml"], "chatml")
    assert [m["role"] for m in parsed] == ["user", "assistant", "user", "assistant"]
    assert parsed[1]["content"] == "<tool_call>\n{}\n</tool_call>"
    assert parsed[3] == turn("assistant", "4")
    for more in ("4<|im_end|>\nMore.", "4<|im_end|>\n<|im_start|>user name=a\nThanks<|im_end|>"):
        with pytest.raises(InvalidConversationError, match="at character"):
            read_turns(LAST["chatml"] + more, LAST["chatml"], "chatml")
    stopped = LAST["chatml"] + "4<|im_end|>\n<|im_start|>"
    assert read_turns(stopped, LAST["chatml"], "chatml") == HELLO


def test_prompt_without_generation_header_is_accepted() -> None:
    bare = LAST["chatml"].removesuffix("<|im_start|>assistant\n")
    assert read_turns(bare + "4<|im_end|>", bare, "chatml") == HELLO
    assert read_turns(LAST["chatml"] + "4", bare, "chatml") == HELLO
    cut = LAST["chatml"].removesuffix("\n")
    assert read_turns(cut + "\n4", cut, "chatml") == HELLO
    ended = LAST["chatml"] + "5<|im_end|>\n"
    assert [m["content"] for m in read_turns(ended + "4", ended, "chatml")] == ["2+2?", "5", "4"]


def test_prompt_of_another_chat_format_is_refused() -> None:
    for chat_format in ("llama3", "gemma", "mistral"):
        with pytest.raises(InvalidConversationError, match="no turn in the format chatml"):
            read_turns(LAST[chat_format] + "4", LAST[chat_format], "chatml")
    with pytest.raises(InvalidConversationError, match=re.escape("the prompt contains <|im_end|>")):
        read_turns("2+2?<|im_end|>4", "2+2?<|im_end|>", "chatml")
    with pytest.raises(InvalidConversationError, match="does not begin with its prompt"):
        read_turns("<s>4", "<s>", "chatml")


def test_only_date_header_of_the_template_is_dropped() -> None:
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
        parsed = read_turns(prompt + "4", prompt, "llama3")
        assert parsed[0] == turn("system", content.strip() if kept is None else kept)


def test_long_padding_is_parsed_fast() -> None:
    prompt = "<|endoftext|>" * 100_000 + " " * 100_000 + LAST["chatml"]
    assert read_turns(prompt + "4", prompt, "chatml") == HELLO
