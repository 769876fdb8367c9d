"""Warnings for messages that contain turns as text. Ordinary text gives no warnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from reference import Reference

from rm_core import ChatEncoder, Encoded
from rm_core.inputs.chat_formats import KNOWN_MARKERS, find_markers, find_transcript
from rm_core.inputs.conversations import parse_chat
from rm_core.inputs.warnings import WarningFinder

EncoderOf = Callable[[str], ChatEncoder]

HH = "\n\nHuman: What is 2+2?\n\nAssistant: 4\n\nHuman: And 3+3?\n\nAssistant:"
TRANSCRIPTS = {
    "hh": HH,
    "nectar": HH + " ",
    "helpsteer2": "What is 2+2?\n<extra_id_1>Assistant\n4\n<extra_id_1>User\nAnd 3+3?",
    "nemotron": "<extra_id_0>System\nBe brief.\n<extra_id_1>User\n2+2?\n<extra_id_1>Assistant\n",
    "hh of Windows": HH.replace("\n", "\r\n"),
    "one line end": "User: 2+2?\nAssistant: 4\nUser: 3+3?\nAssistant:",
    "helpsteer2 of Windows": "2+2?\r\n<extra_id_1>Assistant\r\n4",
    "guanaco": "### Human: 2+2?### Assistant: 4",
    "vicuna without spaces": "USER:2+2?\nASSISTANT:4",
    "alpaca": "Below is an instruction.\n\n### Instruction:\n2+2?\n\n### Response:\n",
    "vicuna": "A chat with an assistant. USER: 2+2? ASSISTANT: 4</s>USER: 3+3? ASSISTANT:",
}
ORDINARY = (
    "Assistant professors teach; a human asks.",
    "The roles are Human: a person, Assistant: a program.",
    "# Heading\n\n### Instructions\n\nRead.\n\n### Responses\n\nNone.",
    "<html><s>old</s><b>new</b>[1] [INSTALL] <|> |im_start| <start> a[i] < b[j]</html>",
    "<think>\nWhat?\n</think>\n\n4",
    "USER_ID: 7",
    "",
    '[{"role": "admin"}]',
    "[{}]",
    "[" * 500,
    "a\n\nHuman: b",
)


def chat(question: str, answer: str = "4") -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def kinds(encoded: Encoded) -> list[str]:
    return [warning.partition(":")[0] for warning in encoded.warnings]


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript_in_message_warns(name: str, encoder_of: EncoderOf) -> None:
    assert find_transcript(TRANSCRIPTS[name])
    for messages, index in ((chat(TRANSCRIPTS[name]), 0), (chat("2+2?", TRANSCRIPTS[name]), 1)):
        encoded = encoder_of("qwen3").encode(messages)
        (warning,) = [w for w in encoded.warnings if w.startswith("transcript_in_message: ")]
        assert f"message(s) {index} contain turns" in warning
        assert "send each turn as a message" in warning


@pytest.mark.parametrize("text", ORDINARY)
@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_ordinary_text_gives_no_warning(text: str, name: str, encoder_of: EncoderOf) -> None:
    for messages in (chat(text), chat("2+2?", text)):
        assert encoder_of(name).encode(messages).warnings == ()


@pytest.mark.parametrize("marker", KNOWN_MARKERS)
def test_template_markers_warn_as_own_or_foreign(marker: str, encoder_of: EncoderOf) -> None:
    assert marker in find_markers(f"a {marker} b")
    own = {"<|im_start|>", "<|im_end|>"}
    encoded = encoder_of("qwen3").encode(chat("2+2?", f"4{marker}\nThanks!"))
    kind = "template_markers_in_message" if marker in own else "foreign_template_markers"
    assert kinds(encoded) == [kind]
    assert f"message(s) 1 contain {marker}" in encoded.warnings[0]


@pytest.mark.parametrize("around", ["[{}]", "<{}>", "[<{}>]", "<a[{}", "a<|{}|>"])
def test_own_markers_within_other_brackets_are_found(around: str) -> None:
    for marker in ("<|im_end|>", "[INST]", "</s>", "two words"):
        finder = WarningFinder([marker], False)
        whole = parse_chat(chat(around.format(marker)))
        text = whole.messages[0]["content"] + "4"
        (warning,) = finder.find_warnings(whole, text, lambda _: None)
        assert f"contain {marker}, which the tokenizer" in warning


@pytest.mark.parametrize(
    ("name", "marker"),
    [("llama-v0.2", "<|eot_id|>"), ("gemma2", "<end_of_turn>"), ("gemma2", "<bos>"),
     ("llama-v0.2", "<bos>"), ("qwen3", "<|im_end|>"), ("gemma2", "<eos>")],
)  # fmt: skip
def test_own_special_tokens_warn_and_score_as_transformers(
    name: str, marker: str, encoder_of: EncoderOf, scorer_of: Any, checkpoint_of: Any
) -> None:
    messages = chat("2+2?", f"4{marker}\n{marker}Thanks!")
    (result,) = scorer_of(name).score([messages])
    (warning,) = result.warnings
    assert warning.startswith(f"template_markers_in_message: message(s) 1 contain {marker}, which")
    right = Reference(checkpoint_of(name)).reward(messages)
    assert result.reward == pytest.approx(right, abs=1e-4)


def test_messages_as_json_text_warn(encoder_of: EncoderOf) -> None:
    encoded = encoder_of("qwen3").encode(chat(" " + json.dumps(chat("2+2?"))))
    assert kinds(encoded) == ["messages_as_text"]
    assert "message(s) 0 are JSON text" in encoded.warnings[0]


def test_warnings_have_bounded_length(encoder_of: EncoderOf) -> None:
    messages = [m for _ in range(200) for m in chat("".join(KNOWN_MARKERS) + HH, "x")]
    for warning in encoder_of("qwen3").encode(messages, "right").warnings:
        assert len(warning) < 600
