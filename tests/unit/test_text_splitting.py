"""Token boundaries: they are found, and each part has the same tokens as in the whole text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers_known import (
    KNOWN,
    NAMES,
    by_gpt2_expression,
    demo,
    like_gemma2,
    like_llama3,
    like_qwen3,
    trained_with,
)
from transformers import PreTrainedTokenizerFast

from rm_core.inputs import text_splitting
from rm_core.inputs.text_splitting import TokenBoundaries
from rm_core.packing import common_prefix_length

# Difficult texts: white space of all kinds and lengths, marks that compose, digits of several
# scripts, letters that fold into those of contractions, scripts without spaces, added tokens.
PIECES = [
    " ", "  ", "   ", "\n", "\r\n", "\t", "\u3000", "\u00a0", "\u2028", "\u180e", "\u200b",
    "\x1c", "a", "the", " capital", "'s", "'re", "'\u017f", "don't", "x" * 9, "1", "12", "345",
    "1234567", "\u0663", "\u0967", "\u00bd", "\u2460", "é", "e\u0301", "\u0301", "\u0338", ">",
    "\u1100\u1161\u11a8", "\u2126", "\u212a", "中", "国", "中国的首都，", "。", "か\u3099",
    "สวัสดี", "नमस्ते", "😀", "👩‍👧", "▁", "▁▁", ".", ",", ";", "!", "!!!\n", ": ", "\0",
    "<|im_end|>", "<|im_end", "<s12>", "<s1", "_m", "\ue000",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=30).map("".join)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.hypothesis
@pytest.mark.parametrize("make", KNOWN, ids=NAMES)
def test_cut_at_boundary_keeps_tokens(make: Any) -> None:
    tokenizer = make()
    boundaries = TokenBoundaries(tokenizer)

    @given(TEXTS)
    def holds(text: str) -> None:
        whole = ids_of(tokenizer, text)
        for position in range(1, len(text)):
            found = boundaries.find_after(text, 0, position, len(text))
            last = boundaries.find_before(text, 0, position)
            for boundary in {found, last} - {None}:
                assert boundary is not None
                assert (
                    ids_of(tokenizer, text[:boundary]) + ids_of(tokenizer, text[boundary:]) == whole
                )

    holds()


@pytest.mark.hypothesis
@pytest.mark.parametrize("make", KNOWN, ids=NAMES)
def test_split_keeps_tokens(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = make()
    boundaries = TokenBoundaries(tokenizer)

    @given(TEXTS, st.integers(1, 12), st.integers(1, 40))
    def holds(text: str, target_characters: int, max_characters: int) -> None:
        monkeypatch.setattr(text_splitting, "TARGET_CHARACTERS", target_characters)
        for parts in (
            list(boundaries.split(text, 0, max_characters)),
            list(boundaries.split_from_end(text, max_characters))[::-1],
        ):
            assert "".join(text[start:stop] for start, stop in parts) == text
            ids = [i for start, stop in parts for i in ids_of(tokenizer, text[start:stop])]
            assert ids == ids_of(tokenizer, text)

    holds()


@pytest.mark.parametrize(
    ("make", "unit"),
    [
        *((make, "word ") for make in KNOWN),
        *((make, unit) for make in KNOWN if make is not like_gemma2 for unit in ("สวัสดี ", "😀 ")),
        *((make, unit) for make in (like_llama3, like_qwen3, demo) for unit in ("7", "中国，")),
        (like_qwen3, "e\u0301 "),
        (by_gpt2_expression, "line;\n"),
        (like_llama3, "base64,"),
    ],
)
def test_split_divides_long_texts(make: Any, unit: str) -> None:
    boundaries = TokenBoundaries(make())
    text = unit * (300_000 // len(unit))
    for parts in (
        list(boundaries.split(text, 0, 100_000)),
        list(boundaries.split_from_end(text, 1_000)),
    ):
        assert len(parts) > 3
        assert max(stop - start for start, stop in parts) < text_splitting.TARGET_CHARACTERS + 100


@pytest.mark.parametrize("unit", [" ", "\n", "a", "中", "!", "😀"])
def test_split_keeps_text_without_boundary_whole(unit: str) -> None:
    boundaries = TokenBoundaries(like_llama3())
    text = "word " * 100_000 + unit * 300_000 + " end"
    longest = max(stop - start for start, stop in boundaries.split(text, 0, 100_000))
    assert longest > 200_000


def changed(make: Any, **parts: Any) -> Any:
    copy = Tokenizer.from_str(make().backend_tokenizer.to_str())
    for name, part in parts.items():
        setattr(copy, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=copy)


def with_added(make: Any, content: str, **flags: bool) -> Any:
    copy = changed(make)
    copy.backend_tokenizer.add_tokens([AddedToken(content, **flags)])
    return copy


def with_model(make: Any, **state: Any) -> Any:
    whole = json.loads(make().backend_tokenizer.to_str())
    whole["model"] |= state
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(whole)))


def test_unknown_tokenizer_has_no_boundaries() -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    unknown = {
        "lower case": changed(demo, normalizer=normalizers.Lowercase()),
        "NFKC": changed(demo, normalizer=normalizers.NFKC()),
        "prefix space": changed(demo, pre_tokenizer=pre_tokenizers.ByteLevel(True)),
        "metaspace": changed(demo, pre_tokenizer=pre_tokenizers.Metaspace()),
        "another expression": trained_with(r"\p{L}+ \p{L}+|\s+|[^\s\p{L}]+"),
        "two splits": changed(
            demo,
            pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), byte_level]),
        ),
        "prepended": changed(like_gemma2, normalizer=normalizers.Prepend("▁")),
        "words": changed(demo, model=models.WordLevel({"a": 0}, unk_token="a")),
        "dropout": changed(demo, model=models.BPE(dropout=0.5)),
        "takes white space": with_added(demo, "<sep>", lstrip=True),
        "takes what follows": with_added(demo, "<sep>", rstrip=True),
        "looks around": with_added(demo, "<sep>", single_word=True),
        "holds a pair": with_added(demo, "the end"),
        "is not composed": with_added(like_qwen3, "<e\u0301>"),
        "takes whole words": with_model(like_gemma2, ignore_merges=True),
    }
    text = "word, " * 100_000
    for name, tokenizer in unknown.items():
        assert TokenBoundaries(tokenizer).find_after(text, 0, 1, len(text)) is None, name
        assert TokenBoundaries(tokenizer).find_before(text, 0, len(text)) is None, name
    for make in KNOWN:
        assert TokenBoundaries(make()).find_after(text, 0, 1, len(text)), make


@pytest.mark.parametrize(
    ("tokenizer", "text"),
    [
        (with_added(like_llama3, "<x12"), "see <x1234567890123 and 1234567"),
        (
            with_added(
                lambda: with_model(
                    like_gemma2,
                    vocab={c: i for i, c in enumerate("abc▁")},
                    merges=[],
                    byte_fallback=False,
                ),
                "▁▁",
                normalized=True,
            ),
            "a▁ b c▁ a",
        ),
    ],
    ids=["ends in digits", "over what a space becomes"],
)
def test_cut_next_to_added_token_keeps_tokens(tokenizer: Any, text: str) -> None:
    boundaries, whole = TokenBoundaries(tokenizer), ids_of(tokenizer, text)
    found = {
        boundaries.find_after(text, 0, position, len(text)) for position in range(1, len(text))
    } - {None}
    assert found
    for boundary in found:
        assert ids_of(tokenizer, text[:boundary]) + ids_of(tokenizer, text[boundary:]) == whole


@pytest.mark.parametrize("before", [1, 200, 40_000, 65_000])
def test_longest_part_does_not_depend_on_text_before_it(before: int) -> None:
    boundaries, max_characters = TokenBoundaries(demo()), 100_000
    for length in (max_characters, max_characters + 1):
        text = "a " * before + "x" * (length - 1) + " the end"  # a space and the long part
        longest = max(stop - start for start, stop in boundaries.split(text, 0, max_characters))
        assert (longest > max_characters) == (length > max_characters)


def test_added_token_of_digits_disables_boundaries_between_digits() -> None:
    boundaries = TokenBoundaries(with_added(like_qwen3, "42"))
    assert boundaries.find_after("7" * 1_000, 0, 1, 1_000) is None
    assert boundaries.find_after("the end", 0, 1, 7) == 3


@given(TEXTS, TEXTS, TEXTS)
def test_common_prefix_length_of_two_texts(start: str, left: str, right: str) -> None:
    found = common_prefix_length(start + left, start + right)
    assert (start + left)[:found] == (start + right)[:found]
    assert found >= len(start)
    assert (start + left)[found : found + 1] != (start + right)[found : found + 1] or found == min(
        len(start + left), len(start + right)
    )
