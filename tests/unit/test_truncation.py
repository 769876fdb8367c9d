"""Truncation: what may be dropped, what stays whole, and that nothing is dropped needlessly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from checkpoints import SPECS, build_tokenizer
from hypothesis import assume, example, given
from hypothesis import strategies as st

from rm_core import ChatEncoder, ConversationTooLongError, ScoreError
from rm_core.inputs.encoder import TemplateError
from rm_core.inputs.truncation import drop_oldest

Messages = list[dict[str, Any]]
CountTokens = Callable[[Messages], int | None]
FAMILIES = ["llama-v0.2", "qwen3", "gemma2"]


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


@functools.cache
def encoder(name: str, max_length: int = 100_000) -> ChatEncoder:
    return ChatEncoder(build_tokenizer(SPECS[name]), pad_token_id=0, max_length=max_length)


def count_tokens(name: str, messages: Messages) -> int | None:
    try:
        return encoder(name).encode(messages).num_tokens
    except TemplateError:
        return None


def candidates(messages: Messages) -> Iterator[Messages]:
    """Yield every allowed truncation of a conversation, longest first.

    The text of the oldest turn is cut from its start down to nothing, and then the turn is dropped.
    System turns are dropped after all others. The last turn is never changed.
    """
    others = [i for i, m in enumerate(messages[:-1]) if m["role"] != "system"]
    systems = [i for i, m in enumerate(messages[:-1]) if m["role"] == "system"]
    dropped: set[int] = set()
    for index in others + systems:
        for start in range(len(messages[index]["content"]) + 1):
            cut = {**messages[index], "content": messages[index]["content"][start:]}
            replaced = {index: cut} if start else {}
            yield [replaced.get(i, m) for i, m in enumerate(messages) if i not in dropped]
        dropped.add(index)
    yield messages[-1:]


def has_emptied_turn(left: Messages, messages: Messages) -> bool:
    """Return whether a turn has lost all of its text."""
    whole = {id(m) for m in messages}
    return any(m["content"] == "" and id(m) not in whole for m in left)


TEXT = st.text(alphabet="ab c.\n中é😀👩\u200d🇫", max_size=14)


@st.composite
def conversations(draw: st.DrawFn, *, system: bool, free: bool = False) -> Messages:
    roles = ["user", "assistant"] * draw(st.integers(1, 4))
    if free:
        roles = [*draw(st.lists(st.sampled_from(["user", "assistant", "tool"]))), "assistant"]
    if system and draw(st.booleans()):
        roles.insert(0, "system")
    return [turn(role, draw(TEXT)) for role in roles]


CASES = st.one_of(
    *(
        st.tuples(st.just(name), conversations(system=name != "gemma2", free=free))
        for name in FAMILIES
        for free in ([False, True] if name != "gemma2" else [False])
    )
)


@given(CASES, st.integers(4, 90))
@example(("qwen3", [turn("user", "😀" * 60), turn("assistant", "ok")]), 40)
def test_left_keeps_newest_turns_and_every_marker(
    case: tuple[str, Messages], max_length: int
) -> None:
    name, messages = case
    whole = encoder(name).encode(messages)
    cut = encoder(name, max_length).encode_all([messages], "left")[0]
    if whole.num_tokens <= max_length:
        assert cut == whole
        return
    if isinstance(cut, ScoreError):
        assert cut.code == "conversation_too_long"
        assert all(
            (count_tokens(name, left) or max_length + 1) > max_length
            for left in candidates(messages)
        )
        return
    assert cut.truncated
    assert cut.num_tokens <= max_length
    assert cut.readout == cut.num_tokens - 1
    rendered = [left for left in candidates(messages) if count_tokens(name, left) is not None]
    texts = [encoder(name).encode(left).text for left in rendered]
    assert cut.text in texts
    index = texts.index(cut.text)
    assert encoder(name).encode(rendered[index]).input_ids == cut.input_ids
    # The next longer candidate is too long. A turn that lost all of its text is dropped as well.
    if index and has_emptied_turn(rendered[index - 1], messages):
        index -= 1
    assert index == 0 or (count_tokens(name, rendered[index - 1]) or 0) > max_length


@given(CASES, st.integers(4, 90))
def test_error_refuses_and_right_keeps_first_tokens(
    case: tuple[str, Messages], max_length: int
) -> None:
    name, messages = case
    whole = encoder(name).encode(messages)
    short = encoder(name, max_length)
    if whole.num_tokens <= max_length:
        assert short.encode(messages) == short.encode(messages, "right") == whole
        return
    with pytest.raises(ConversationTooLongError) as caught:
        short.encode(messages)
    assert f"has {whole.num_tokens} tokens and the limit is {max_length}" in caught.value.detail
    assert '"left" or "right"' in caught.value.detail
    right = short.encode(messages, "right")
    assert right.input_ids == whole.input_ids[:max_length]
    assert right.truncated
    assert right.readout == max_length - 1
    assert right.text.encode()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("truncation", ["error", "left", "right"])
def test_conversation_at_the_limit_is_unchanged(name: str, truncation: Any) -> None:
    messages = [turn("user", "What is the capital of France?"), turn("assistant", "Paris")]
    whole = encoder(name).encode(messages)
    assert not whole.truncated
    assert encoder(name, whole.num_tokens).encode(messages, truncation) == whole


@pytest.mark.parametrize("name", FAMILIES)
def test_left_refuses_last_turn_over_the_limit(name: str) -> None:
    messages = [turn("user", "Hello"), turn("assistant", "word " * 50)]
    with pytest.raises(ConversationTooLongError) as caught:
        encoder(name, 30).encode(messages, "left")
    assert "never cuts the last turn" in caught.value.detail
    assert "the limit is 30" in caught.value.detail


def test_left_drops_system_prompt_last() -> None:
    messages = [
        turn("system", "Be brief."),
        turn("user", "first " * 20),
        turn("assistant", "second " * 20),
        turn("user", "third " * 20),
        turn("assistant", "fourth"),
    ]
    shorter = encoder("qwen3", 60).encode(messages, "left").text
    assert "Be brief." in shorter
    assert "first" not in shorter
    assert shorter.endswith("fourth<|im_end|>\n")
    alone = encoder("qwen3").encode([messages[0], messages[-1]]).num_tokens
    assert "brief" in encoder("qwen3", alone).encode(messages, "left").text
    shortest = encoder("qwen3", alone - 1).encode(messages, "left").text
    assert "Be brief." not in shortest
    assert shortest.endswith("fourth<|im_end|>\n")


@pytest.mark.parametrize("name", FAMILIES)
def test_left_cuts_long_question_at_its_start(name: str) -> None:
    messages = [turn("user", "opening " + "word " * 50 + "end?"), turn("assistant", "Yes.")]
    text = encoder(name, 60).encode(messages, "left").text
    assert "opening" not in text
    assert "word word end?" in text
    assert "Yes." in text


def test_left_never_starts_gemma_with_an_answer() -> None:
    messages = [turn(role, f"{role} {i} " * 5) for i in range(3) for role in ("user", "assistant")]
    for max_length in range(count_tokens("gemma2", messages[-1:-3:-1][::-1]) or 0, 60):
        text = encoder("gemma2", max_length).encode(messages, "left").text
        assert text.startswith("<start_of_turn>user\n")
        assert text.count("<start_of_turn>") % 2 == 0


def fake_count_tokens(overhead: int, default_system: int, alternating: bool) -> CountTokens:
    """Count characters as tokens. Like a template, may add a system prompt or refuse an order."""

    def count(messages: Messages) -> int | None:
        if alternating:
            roles = [m["role"] for m in messages if m["role"] != "system"]
            if any((role == "user") != (i % 2 == 0) for i, role in enumerate(roles)):
                return None
        system = any(m["role"] == "system" for m in messages)
        characters = sum(overhead + len(m["content"]) for m in messages)
        return characters + (0 if system else default_system)

    return count


def longest_that_fits(messages: Messages, count: CountTokens, limit: int) -> Messages | None:
    """Return the first of `candidates` that fits, without an emptied turn if possible."""

    def fits(left: Messages) -> bool:
        tokens = count(left)
        return tokens is not None and tokens <= limit

    every = list(candidates(messages))
    for index, left in enumerate(every):
        if fits(left):
            after = every[min(index + 1, len(every) - 1)]
            return after if has_emptied_turn(left, messages) and fits(after) else left
    return None


@given(
    conversations(system=True),
    st.integers(0, 60),
    st.integers(0, 4),
    st.booleans(),
)
def test_drop_oldest_keeps_as_much_as_fits(
    messages: Messages, limit: int, overhead: int, alternating: bool
) -> None:
    count = fake_count_tokens(overhead, 0, alternating)
    assume((count(messages) or 0) > limit)
    assert drop_oldest(messages, count, limit) == longest_that_fits(messages, count, limit)


@given(
    conversations(system=True, free=True),
    st.integers(0, 60),
    st.integers(0, 4),
    st.integers(0, 30),
    st.booleans(),
)
def test_drop_oldest_result_fits_for_any_template(
    messages: Messages, limit: int, overhead: int, default_system: int, alternating: bool
) -> None:
    count = fake_count_tokens(overhead, default_system, alternating)
    whole = count(messages)
    assume(whole is not None and whole > limit)
    left = drop_oldest(messages, count, limit)
    if left is None:
        return
    tokens = count(left)
    assert tokens is not None
    assert tokens <= limit
    assert left in list(candidates(messages))
    assert left[-1] is messages[-1]
