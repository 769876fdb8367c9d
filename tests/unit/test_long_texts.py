"""A long text is tokenized only as far as needed, with the same tokens as the whole text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from tokenizers_known import KNOWN, NAMES, demo, like_qwen3

from rm_core import ChatEncoder, Encoded, PrerenderedText, PrerenderedTokens, ScoreError
from rm_core.errors import ConversationTooLongError, InvalidConversationError
from rm_core.inputs.base_encoder import SharedPrefix
from rm_core.inputs.warnings import _find_missing

LIMIT = 1_000
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
UNITS = [
    "the capital, 12 ",
    "don't  stop;\n\n",
    "1234567 ",
    "中国的首都，",
    "😀 e\u0301 ",
    "<|im_end|> ",
]


class Counting:
    """A tokenizer that counts the characters of its inputs."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.num_characters = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def tokenize(self, text: str) -> Any:
        self.num_characters += len(text)
        return self._inner.tokenize(text)


def encoder_of(make: Any, limit: int = LIMIT) -> tuple[ChatEncoder, Counting]:
    tokenizer = make()
    tokenizer.chat_template = TEMPLATE
    encoder = ChatEncoder(tokenizer, pad_token_id=None, max_length=limit)
    counting = Counting(encoder.text_tokenizer)
    encoder.text_tokenizer = counting  # type: ignore[assignment]
    return encoder, counting


def messages_with(text: str, answer: str = "4") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def whole_ids(make: Any, text: str) -> tuple[int, ...]:
    return tuple(make().backend_tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("make", KNOWN, ids=NAMES)
@pytest.mark.parametrize("unit", UNITS)
def test_truncated_long_text_keeps_tokens(make: Any, unit: str) -> None:
    encoder, counting = encoder_of(make)
    text = unit * (400_000 // len(unit))
    rendered = f"<|im_start|>user\n{text}\n<|im_start|>assistant\n4\n"
    whole = whole_ids(make, rendered)
    for conversation in (messages_with(text), PrerenderedText(rendered)):
        right = encoder.encode(conversation, "right")
        assert (right.input_ids, right.truncated) == (whole[:LIMIT], True)
        assert right.text == make().decode(list(whole[:LIMIT]))
    left = encoder.encode(PrerenderedText(rendered), "left")
    assert (left.input_ids, left.truncated) == (whole[-LIMIT:], True)
    if encoder._boundaries.find_after(text, 0, 1, len(text)):
        assert counting.num_characters < 3 * 200_000
    with pytest.raises(ConversationTooLongError, match=r"at least \d+ tokens and the limit is"):
        encoder.encode(messages_with(text))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_left_keeps_bos_before_the_last_tokens(adds_bos: bool) -> None:
    tokenizer = demo()
    tokenizer.chat_template = TEMPLATE if adds_bos else "{{ bos_token }}" + TEMPLATE
    tokenizer.bos_token = "<|endoftext|>"
    bos = tokenizer.bos_token_id
    kept = tokenizer.backend_tokenizer.post_processor
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
        )
    try:
        encoder = ChatEncoder(tokenizer, pad_token_id=None, max_length=LIMIT)
        text = "<|im_start|>" + "one, two " * 50_000
        whole = whole_ids(demo, text)
        cut = encoder.encode(PrerenderedText(text), "left").input_ids
        assert cut == (bos, *whole[-(LIMIT - 1) :])
        assert encoder.encode(PrerenderedText(text), "left", 1).input_ids == (bos,)
        assert encoder.encode(PrerenderedText(text), "right").input_ids == (
            bos,
            *whole[: LIMIT - 1],
        )
        # The same as for token ids, where the whole is known.
        assert encoder.encode(PrerenderedTokens((bos, *whole)), "left").input_ids == cut
    finally:
        tokenizer.backend_tokenizer.post_processor = kept
        demo.cache_clear()


def test_left_does_not_tokenize_all_turns() -> None:
    turns = [turn for i in range(20) for turn in messages_with(f"{i} is a number, " * 2_000)]
    encoder, counting = encoder_of(demo)
    cut = encoder.encode(turns, "left")
    assert cut.truncated
    assert cut.num_tokens <= LIMIT
    # About 25 candidates, each tokenized up to the limit; the whole text has 700,000 characters.
    assert counting.num_characters < 25 * 100_000


@pytest.mark.parametrize("mode", ["error", "left", "right"])
def test_text_without_boundary_fails_only_its_conversation(mode: Any) -> None:
    encoder, counting = encoder_of(demo, 10**6)
    encoder.max_unbroken_characters = 100_000
    bad = messages_with("x" * 200_000)
    good, refused, prerendered, again = encoder.encode_all(
        [
            messages_with("hi"),
            bad,
            PrerenderedText("<|im_start|>" + "x" * 200_000),
            messages_with("hi"),
        ],
        mode,
    )
    assert good == again
    for error in (refused, prerendered):
        assert isinstance(error, ScoreError)
        assert error.code == "invalid_conversation"
        assert "at most 100,000 characters are tokenized at once; shorten" in error.message
    assert counting.num_characters < 1_000
    assert isinstance(encoder.encode_all([messages_with("x" * 90_000)], mode)[0], Encoded)


@pytest.mark.parametrize("make", KNOWN, ids=NAMES)
@pytest.mark.parametrize("unit", UNITS)
def test_prompt_of_many_answers_is_tokenized_once(make: Any, unit: str) -> None:
    encoder, counting = encoder_of(make, 10**6)
    prompt = unit * (8_000 // len(unit))
    conversations = [messages_with(prompt, f"answer {i}") for i in range(50)]
    together = encoder.encode_all(conversations)
    if encoder._boundaries.find_after(prompt, 0, 1, len(prompt)):
        assert counting.num_characters < 4 * len(prompt)
    assert together == [encoder.encode(conversation) for conversation in conversations]


@given(
    st.lists(st.text("ab, \u0301e7", max_size=40), min_size=1, max_size=6),
    st.text("ab, 7", min_size=1),
)
def test_shared_prefix_does_not_change_tokens(answers: list[str], unit: str) -> None:
    encoder, _ = encoder_of(like_qwen3, 10**6)
    prompt = unit * (1 + 1_500 // len(unit))
    conversations = [messages_with(prompt + answer[:3], answer) for answer in answers]
    shared = SharedPrefix()
    halves = (conversations[:2], conversations[2:])
    together = [e for half in halves for e in encoder.encode_all(half, shared=shared)]
    assert together == [encoder.encode(conversation) for conversation in conversations]


# Few and short pieces: answers often share a start that ends within a word, a number or a token.
PIECES = [" cap", "ital", " Fran", "ce", " 12", "34", " ", ".", "\n", "首都", "的", "<s1", "2>"]


@pytest.mark.parametrize("make", KNOWN, ids=NAMES)
@example([" cap .", " cap 34", " capital"], 150)
@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=4).map("".join), min_size=3, max_size=9),
    st.sampled_from([25, 40, 150]),
)
def test_shared_prefix_within_a_word_does_not_change_tokens(
    make: Any, answers: list[str], num_repeats: int
) -> None:
    encoder, _ = encoder_of(make, 10**6)
    conversations = [messages_with("one, two " * num_repeats, answer) for answer in answers]
    together = encoder.encode_all(conversations, shared=SharedPrefix())
    assert together == [encoder.encode_all([conversation])[0] for conversation in conversations]


def test_shared_prompt_over_the_limit_is_tokenized_once() -> None:
    encoder, counting = encoder_of(demo)
    conversations = [messages_with("one, two " * 20_000, f"answer {i}") for i in range(50)]
    errors = encoder.encode_all(conversations)
    assert {error.code for error in errors if isinstance(error, ScoreError)} == {
        "conversation_too_long"
    }
    assert counting.num_characters < 4 * 180_000


def test_check_cancelled_ends_encoding_between_two_parts() -> None:
    encoder, counting = encoder_of(demo, 10**6)
    num_calls = 0

    def check_cancelled() -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        encoder.encode_all([messages_with("one, two " * 100_000)], check_cancelled=check_cancelled)
    assert counting.num_characters < 200_000
    assert encoder.encode_all([messages_with("hi")])


@given(st.lists(st.text("ab", max_size=4), max_size=8), st.text("ab", max_size=20))
def test_find_missing_returns_contents_that_the_text_lacks(contents: list[str], text: str) -> None:
    found = _find_missing(text, list(range(len(contents))), contents)
    assert found == [i for i, content in enumerate(contents) if content not in text]


def test_tokenizer_panic_fails_only_its_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    encoder, counting = encoder_of(demo)
    work = counting.tokenize

    def panic(text: str) -> Any:
        if "trigger" in text:
            raise PanicException("gave up")
        return work(text)

    monkeypatch.setattr(counting, "tokenize", panic)
    first, bad, last = encoder.encode_all(
        [messages_with("hi"), messages_with("trigger"), messages_with("hi")]
    )
    assert first == last
    assert isinstance(bad, ScoreError)
    assert "PanicException" in bad.message
    with pytest.raises(InvalidConversationError, match="failed on this conversation"):
        encoder.encode(PrerenderedText("<|im_start|>trigger"), "left")
