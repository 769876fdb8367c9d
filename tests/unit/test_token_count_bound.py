"""Lower bound of the number of tokens: never more than the text has, and close enough to help."""

from __future__ import annotations

import functools
from typing import Any, cast

import pytest
from checkpoints import SPECS, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rm_core import ChatEncoder, seeds_dir
from rm_core.errors import ConversationTooLongError
from rm_core.inputs.token_count_bound import TokenBound

# Texts that are long as one token, or that NFC shortens, in every order.
PIECES = [
    " ", "  ", "\n", "a", "the", " capital", "中", "国", "😀", "e\u0301", "\u0301", "\u0338", ">",
    "\u1100\u1161\u11a8", "\u2126", "\u212a", "\u03b1\u0313\u0300\u0345", "e\u0323\u0301", "▁",
    "\0", "<|im_end|>", "<start_of_turn>", "\ufa10", "\U0002f800", "\ue000", "\U00016d68",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=40).map("".join)


@functools.cache
def like_qwen3() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(SPECS["qwen3"])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@functools.cache
def like_gemma2() -> PreTrainedTokenizerFast:
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    names += ["▁", "a", "b", "t", "h", "e", "th", "the", "▁the", "▁▁", "▁▁▁▁", "中", "国", "中国"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁"), ("▁▁", "▁▁"), ("中", "国")]
    vocabulary = {name: index for index, name in enumerate(names)}
    model = models.BPE(
        vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token=None
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@functools.cache
def demo() -> Any:
    return AutoTokenizer.from_pretrained(seeds_dir() / "demo")


KNOWN = [like_qwen3, like_gemma2, demo, lambda: build_tokenizer(SPECS["llama-v0.1"])]


@pytest.mark.hypothesis
@pytest.mark.parametrize("make", KNOWN, ids=["qwen3", "gemma2", "demo", "llama"])
def test_bound_never_exceeds_the_number_of_tokens(make: Any) -> None:
    tokenizer = make()
    bound = TokenBound(tokenizer)

    @given(TEXTS, st.integers(0, 30))
    def holds(text: str, limit: int) -> None:
        number = len(tokenizer(text, add_special_tokens=False)["input_ids"])
        at_least = bound.prove_too_long(text, limit)
        assert at_least is None or limit < at_least <= number

    holds()


class Untokenizing:
    """A tokenizer with all its components that fails the test if it is called to tokenize."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        assert "encode" not in name, name
        assert "tokenize" not in name or name in ("backend_tokenizer", "pre_tokenizer"), name
        component = getattr(self._inner, name)
        return Untokenizing(component) if name == "backend_tokenizer" else component


@pytest.mark.parametrize("make", KNOWN, ids=["qwen3", "gemma2", "demo", "llama"])
@pytest.mark.parametrize("unit", ["word ", "中国", " ", "e\u0301", "\u212a", "😀"])
def test_bound_proves_long_text_without_tokenizing(make: Any, unit: str) -> None:
    bound = TokenBound(cast(PreTrainedTokenizerFast, Untokenizing(make())))
    text = unit * (5_000_000 // len(unit))
    at_least = bound.prove_too_long(text, 1_000)
    assert at_least is not None
    assert at_least > 1_000


def changed(make: Any, **components: Any) -> PreTrainedTokenizerFast:
    """Copy a tokenizer with other components, some of which may lose text."""
    copy = Tokenizer.from_str(make().backend_tokenizer.to_str())
    for name, component in components.items():
        setattr(copy, name, component)
    return PreTrainedTokenizerFast(tokenizer_object=copy)


def with_added(make: Any, **flags: bool) -> PreTrainedTokenizerFast:
    copy = changed(make)
    copy.backend_tokenizer.add_tokens([AddedToken("<sep>", **flags)])
    return copy


def test_tokenizer_that_may_lose_text_has_no_bound() -> None:
    unknown = {
        "lower case": changed(demo, normalizer=normalizers.Lowercase()),
        "strip": changed(demo, normalizer=normalizers.Strip()),
        "NFKC": changed(demo, normalizer=normalizers.NFKC()),
        "shorter": changed(demo, normalizer=normalizers.Replace("  ", " ")),
        "regex": changed(demo, normalizer=normalizers.Replace(Regex(" +"), " ")),
        "inside": changed(
            demo, normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        ),
        "white space": changed(demo, pre_tokenizer=pre_tokenizers.Whitespace()),
        "removed": changed(demo, pre_tokenizer=pre_tokenizers.Split(" ", "removed")),
        "no bytes": changed(demo, pre_tokenizer=None),
        "words": changed(demo, model=models.WordLevel({"a": 0}, unk_token="a")),
        "takes white space": with_added(demo, lstrip=True),
        "takes what follows": with_added(demo, rstrip=True),
    }
    text = "word " * 1_000_000
    for name, tokenizer in unknown.items():
        assert TokenBound(tokenizer).prove_too_long(text, 10) is None, name
    assert TokenBound(with_added(demo)).prove_too_long(text, 10) is not None
    assert TokenBound(changed(demo)).prove_too_long(text, 10) is not None


def encoder(limit: int = 100) -> ChatEncoder:
    tokenizer = AutoTokenizer.from_pretrained(seeds_dir() / "demo")
    return ChatEncoder(tokenizer, pad_token_id=None, max_length=limit)


def messages_with(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": "4"}]


def test_encoder_refuses_ten_megabytes_without_tokenizing(monkeypatch: pytest.MonkeyPatch) -> None:
    untokenizing = encoder()
    text_tokenizer = Untokenizing(untokenizing.text_tokenizer)
    monkeypatch.setattr(untokenizing, "text_tokenizer", text_tokenizer)
    with pytest.raises(AssertionError, match="tokenize"):
        untokenizing.encode(messages_with("word"))
    with pytest.raises(ConversationTooLongError, match=r"at least \d{5,} tokens"):
        untokenizing.encode(messages_with("word " * 2_000_000))


def test_bound_does_not_change_left_truncation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = [turn for i in range(8) for turn in messages_with(f"{i} is a number, " * 1_000)]
    quick = encoder().encode(history, "left")
    monkeypatch.setattr(TokenBound, "prove_too_long", lambda *_: None)
    assert encoder().encode(history, "left") == quick
    assert quick.truncated
    assert quick.num_tokens <= 100
