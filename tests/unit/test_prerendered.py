"""Prerendered text and token ids: BOS is normalized, and foreign templates are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checkpoints import SPECS, build_tokenizer
from examples import limit_examples
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_core import (
    ChatEncoder,
    ConversationTooLongError,
    ForeignTemplateError,
    InvalidConversationError,
    PrerenderedText,
    PrerenderedTokens,
    ScoreError,
    read_turns,
    strip_end,
)

EncoderOf = Callable[[str], ChatEncoder]
TOKENIZERS = {name: build_tokenizer(spec) for name, spec in SPECS.items()}
HAVE_BOS = [name for name, spec in SPECS.items() if spec.tokenizer_bos or spec.template_bos]
HELLO = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]

contents = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)
conversations = st.lists(st.tuples(contents, contents), min_size=1, max_size=3).map(
    lambda turns: [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
)


def bare(name: str, messages: list[dict[str, str]]) -> str:
    """Return the rendered text without BOS."""
    text = TOKENIZERS[name].apply_chat_template(messages, tokenize=False)
    assert isinstance(text, str)
    return text.removeprefix("<bos>")


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=limit_examples(40))
@given(messages=conversations, times=st.integers(0, 3))
def test_bos_is_normalized_in_text_and_ids(
    name: str, encoder_of: EncoderOf, messages: list[dict[str, str]], times: int
) -> None:
    encoder = encoder_of(name)
    expected = encoder.encode(messages)
    if name not in HAVE_BOS:
        times = 0  # without such a token, it would be ordinary text
    text = encoder.encode(PrerenderedText("<bos>" * times + bare(name, messages)))
    assert (text.input_ids, text.readout) == (expected.input_ids, expected.readout)
    bos = TOKENIZERS[name].bos_token_id
    without = expected.input_ids[1:] if name in HAVE_BOS else expected.input_ids
    ids = encoder.encode(PrerenderedTokens((bos,) * times + without))
    assert (ids.input_ids, ids.readout) == (expected.input_ids, expected.readout)
    suffix = {0: ":bos-added", 1: ":bos-kept"}.get(times, ":bos-stripped")
    suffix = suffix if name in HAVE_BOS else ""
    assert (text.input_format, ids.input_format) == ("text" + suffix, "tokens" + suffix)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=limit_examples(40))
@given(messages=conversations, times=st.integers(0, 2), end=st.sampled_from(["cut", "pad", "eos"]))
def test_close_ends_text_as_the_template_does(
    name: str, encoder_of: EncoderOf, messages: list[dict[str, str]], times: int, end: str
) -> None:
    messages = [{**m, "content": m["content"].strip() or "x"} for m in messages]
    tokenizer = TOKENIZERS[name]
    marker = {"llama": "<|eot_id|>", "qwen3": "<|im_end|>", "gemma2": "<end_of_turn>"}
    text = bare(name, messages).rstrip().removesuffix(marker[SPECS[name].family])
    text += {"cut": "", "pad": "<pad><pad>", "eos": tokenizer.eos_token}[end]
    text = "<pad>" * times + ("<bos>" if name in HAVE_BOS else "") + text
    if SPECS[name].pad != "<pad>":
        text = text.replace("<pad>", SPECS[name].pad)
    encoded = encoder_of(name).encode(PrerenderedText(text, close=True))
    assert encoded.input_ids == encoder_of(name).encode(messages).input_ids


FOREIGN = {
    "chatml": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n4<|eot_id|>",
    "gemma": "<bos><start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n4<end_of_turn>\n",
    "mistral": "<s>[INST] 2+2? [/INST] 4</s>",
}


@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
@pytest.mark.parametrize("chat_format", FOREIGN)
def test_text_of_another_template_is_refused(
    name: str, chat_format: str, encoder_of: EncoderOf
) -> None:
    own = {"llama-v0.2": "llama3", "qwen3": "chatml", "gemma2": "gemma"}[name]
    first, second, third = encoder_of(name).encode_all(
        [HELLO, PrerenderedText(FOREIGN[chat_format]), HELLO]
    )
    assert first == third
    if chat_format == own:
        assert not isinstance(second, ScoreError)
        return
    assert isinstance(second, ScoreError)
    assert second.code == "foreign_template" == ForeignTemplateError.code
    assert "Render it with this model's tokenizer, or send messages" in second.message


@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_foreign_markers_in_an_answer_are_accepted(name: str, encoder_of: EncoderOf) -> None:
    about = [HELLO[0], {"role": "assistant", "content": "".join(FOREIGN.values())}]
    text = bare(name, about)
    assert encoder_of(name).encode(PrerenderedText(text)).input_ids == (
        encoder_of(name).encode(about).input_ids
    )


@pytest.mark.parametrize("name", SPECS)
def test_text_without_template_is_reported_in_input_format(
    name: str, encoder_of: EncoderOf
) -> None:
    plain = PrerenderedText("The capital of France is Paris.")
    encoded = encoder_of(name).encode(plain)
    suffix = ",bos-added" if name in HAVE_BOS else ""
    assert encoded.input_format == "text:no-template" + suffix
    tokenizer = TOKENIZERS[name]
    expected = tokenizer(plain.text, add_special_tokens=False).input_ids
    assert list(encoded.input_ids) == [tokenizer.bos_token_id] * (name in HAVE_BOS) + expected


def test_thinking_block_does_not_make_foreign_text_acceptable(encoder_of: EncoderOf) -> None:
    text = "<start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n<think>\n</think>4"
    with pytest.raises(ForeignTemplateError):
        encoder_of("qwen3").encode(PrerenderedText(text))


@pytest.mark.parametrize("name", ["llama-v0.1", "llama-v0.2", "qwen3"])
@pytest.mark.parametrize("as_ids", [False, True])
def test_prerendered_input_over_the_limit_is_refused_or_truncated(
    name: str, as_ids: bool, encoder_of: EncoderOf
) -> None:
    encoder = encoder_of(name)
    whole = encoder.encode([HELLO[0], {"role": "assistant", "content": "word " * 30}])
    sent = PrerenderedTokens(whole.input_ids) if as_ids else PrerenderedText(whole.text)
    limit, bos = 20, int(name in HAVE_BOS)
    with pytest.raises(ConversationTooLongError, match=f"{whole.num_tokens} tokens .* is 20"):
        encoder.encode(sent, max_length=limit)
    left = encoder.encode(sent, "left", limit)
    assert left.input_ids == whole.input_ids[:bos] + whole.input_ids[bos - limit :]
    right = encoder.encode(sent, "right", limit)
    assert right.input_ids == whole.input_ids[:limit]
    assert left.truncated
    assert right.truncated
    shortest = encoder.encode(sent, "left", 1)
    assert shortest.num_tokens == 1
    assert not encoder.encode(sent, "left", whole.num_tokens).truncated


def test_max_length_of_a_call_applies_to_conversations(encoder_of: EncoderOf) -> None:
    long = [{"role": "user", "content": "word " * 50}, HELLO[1]]
    encoder = encoder_of("qwen3")
    with pytest.raises(ConversationTooLongError, match="the limit is 40"):
        encoder.encode(long, max_length=40)
    assert encoder.encode(long, "left", 40).num_tokens <= 40
    assert encoder.encode(long, "right", 40).num_tokens == 40
    assert encoder.encode(long, max_length=10**9) == encoder.encode(long)


def test_far_too_long_text_is_refused_without_tokenizing(encoder_of: EncoderOf) -> None:
    with pytest.raises(ConversationTooLongError, match="at least"):
        encoder_of("qwen3").encode(PrerenderedText("<|im_start|>" + "a b" * 500_000))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (PrerenderedText(""), "the text is empty"),
        (PrerenderedText("<bos> \n"), "the text is empty"),
        (PrerenderedText("\ud83d"), "surrogate"),
        (PrerenderedTokens(()), "list of token ids is empty"),
        (PrerenderedTokens((1,)), "only token id is BOS"),
        (PrerenderedTokens((5, -1)), "token id 1 is -1"),
        (PrerenderedTokens((5, 10**6)), "another model's tokenizer"),
        (PrerenderedTokens((5, True)), "token id 1 is True"),
        (PrerenderedTokens((5, 1.5)), "token id 1 is 1.5"),  # type: ignore[arg-type]
    ],
)
def test_invalid_text_or_token_ids_are_refused(
    sent: PrerenderedText | PrerenderedTokens, message: str, encoder_of: EncoderOf
) -> None:
    assert TOKENIZERS["llama-v0.1"].bos_token_id == 1
    with pytest.raises(InvalidConversationError, match=message):
        encoder_of("llama-v0.1").encode(sent)


@pytest.mark.parametrize("chat_format", FOREIGN)
def test_read_turns_parses_text_of_a_policy(chat_format: str) -> None:
    text = FOREIGN[chat_format]
    prompt = text[: text.rindex("4")]
    assert read_turns(text, prompt, chat_format) == HELLO  # type: ignore[arg-type]
    cut = text[: text.rindex("4") + 1]
    assert read_turns(cut, prompt, chat_format) == HELLO  # type: ignore[arg-type]


def test_read_turns_parses_several_turns() -> None:
    turns = [("system", "Be brief."), ("user", "a\n\nb "), ("assistant", "c"), ("user", "d")]
    prompt = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    prompt += "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    messages = read_turns(f"<|endoftext|>{prompt} e \n<|im_end|><|endoftext|>", prompt, "chatml")
    assert [(m["role"], m["content"]) for m in messages] == [
        *turns, ("assistant", "<think>\n\n</think>\n\n e \n"),
    ]  # fmt: skip


def test_read_turns_takes_prompt_without_markers_as_user_turn() -> None:
    assert read_turns("2+2?4<|im_end|>", "2+2?", "chatml") == HELLO


@pytest.mark.parametrize("prompt", ["", "another", "<|im_start|>bard\nx<|im_end|>\n"])
def test_read_turns_refuses_text_without_its_prompt(prompt: str) -> None:
    text = prompt + "4" if "bard" in prompt else FOREIGN["chatml"]
    with pytest.raises(InvalidConversationError, match=r"begin with its prompt|role 'bard'"):
        read_turns(text, prompt, "chatml")


def test_strip_end_removes_only_markers() -> None:
    assert strip_end("4 \n<|im_end|>\n<|endoftext|> ") == "4 \n"
    assert strip_end("4 \n") == "4 \n"
    assert strip_end("<|im_end|> 4") == "<|im_end|> 4"
