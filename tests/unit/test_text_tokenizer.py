"""fastokens is used where it gives the token ids of `tokenizers`, and only there."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import sys
import unicodedata
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers_known import KNOWN, NAMES, like_gemma2, like_llama3, like_qwen3
from transformers import PreTrainedTokenizerFast

from rm_core import ModelConfig, ModelLoadError, load_encoder
from rm_core.inputs import text_tokenizer, tokenizer_check
from rm_core.inputs.text_tokenizer import TextTokenizer
from rm_core.inputs.tokenizer_check import compile_unchecked
from serve.config.model_settings import ModelSettings

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
Change = Callable[[dict[str, Any]], object]

PIECES = [
    " ", "  ", "\n", "\r\n", "\t", "\u3000", "\u0085", "\u180e", "\u200b", "\x1c", "\0", "a", "the",
    " capital", "'s", "'LL", "'\u017f", "\u212a", "x" * 17, "1", "12", "1234567", "\u0663", "½",
    "é", "e\u0301", "\u0301", "\u0323", "\u1acd", "\u07fd", "\u1112\u1161\u11ab", "中", "国的，",
    "か\u3099", "สวัสดี", "नमस्ते", "😀", "👩\u200d👧", "▁", "!!!\n", "<|im_end|>", "<|im_end", "<s12>",
    "<s1", "\ue000", "\U0001fae9", "\U000e0041", "\U0010ffff",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=30).map("".join)


class FakeLibrary:
    """Stands in for fastokens: the library `tokenizers` on a definition that a test changes.

    Attributes:
        texts: texts that were tokenized since the last check.
        wrong: text whose token ids are wrong.
        failure: raised by every text.
    """

    def __init__(self, change: Change = lambda definition: None) -> None:
        self._change = change
        self.texts: list[str] = []
        self.wrong: str | None = None
        self.failure: BaseException | None = None
        self.Tokenizer = self

    def from_json_str(self, definition: str) -> FakeLibrary:
        changed = json.loads(definition)
        self._change(changed)
        self._inner = Tokenizer.from_str(json.dumps(changed))
        return self

    def no_padding(self) -> None: ...
    def no_truncation(self) -> None: ...

    def encode(self, text: str) -> Any:
        if self.failure:
            raise self.failure
        self.texts.append(text)
        ids = self._inner.encode(text, add_special_tokens=False).ids
        return SimpleNamespace(ids=[0] if text == self.wrong else ids)


@pytest.fixture
def _brief_tokenizer_check() -> None:
    """Override that of `tests/unit/conftest.py`: the check is the subject here."""


@pytest.fixture(autouse=True)
def forget_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_tokenizer, "_validated", {})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    return lambda library: monkeypatch.setitem(sys.modules, "fastokens", library)  # type: ignore[arg-type]


@pytest.fixture
def short_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_check, "build_texts", lambda *_: iter(("the capital", "é")))


def load(make: Any, interval: int = 0) -> TextTokenizer:
    backend = make().backend_tokenizer
    return TextTokenizer(backend, backend.to_str(), check_interval=interval)


def ids_of(make: Any, text: str) -> list[int]:
    ids: list[int] = make().backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.hypothesis
@pytest.mark.parametrize("make", KNOWN, ids=NAMES)
def test_fastokens_gives_ids_of_tokenizers(make: Any) -> None:
    pytest.importorskip("fastokens")
    tokenizer = load(make)
    assert tokenizer.choice.name == "fastokens", tokenizer.choice.reason

    @given(TEXTS)
    @example("")
    @example("<|im_start|><|im_end|> <|im_end|>\n<s1>2")
    def holds(text: str) -> None:
        assert tokenizer.tokenize(text) == ids_of(make, text)

    holds()
    assert tokenizer.num_differences == 0


@pytest.mark.usefixtures("short_check")
def test_without_fastokens_tokenizers_is_used(install: Callable[[object], None]) -> None:
    install(None)
    tokenizer = load(like_qwen3)
    assert tokenizer.choice.name == "tokenizers"
    assert "fastokens is not installed" in tokenizer.choice.reason
    assert tokenizer.tokenize("the capital") == ids_of(like_qwen3, "the capital")


@functools.cache
def sensitive() -> Any:
    """A tokenizer with Qwen's expression, and merges that show each of its classes."""
    merges = [
        ("T", "I"),
        *itertools.product("'", "sSTdl"),
        ("Ċ", "Ċ"),
        ("č", "č"),
        ("č", "Ċ"),
        ("Ġ", "Ġ"),
        *[(left, right) for left in "Ġ1" for right in ("x", "1", "â", "Ã", "Ù")],
    ]
    tokens = [*pre_tokenizers.ByteLevel.alphabet(), *map("".join, merges)]
    tokenizer = like_qwen3().backend_tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.model = models.BPE({token: i for i, token in enumerate(sorted(tokens))}, merges)
    return PreTrainedTokenizerFast(tokenizer_object=copy)


def strip(side: str) -> dict[str, Any]:
    return {"type": "Strip", "strip_left": side == "left", "strip_right": side == "right"}


def edit_split(old: str, new: str) -> Change:
    def change(definition: dict[str, Any]) -> None:
        pattern = definition["pre_tokenizer"]["pretokenizers"][0]["pattern"]
        assert old in pattern["Regex"]
        pattern["Regex"] = pattern["Regex"].replace(old, new)

    return change


def edit_tokens(**flags: bool) -> Change:
    def change(definition: dict[str, Any]) -> None:
        for token in definition["added_tokens"]:
            token.update(flags)

    return change


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (like_qwen3, lambda d: d.update(normalizer=None)),
        (like_llama3, lambda d: d.update(normalizer={"type": "NFC"})),
        (like_qwen3, lambda d: d.update(normalizer={"type": "NFKC"})),
        (like_qwen3, lambda d: d.update(normalizer={"type": "Lowercase"})),
        (like_qwen3, lambda d: d.update(normalizer=strip("left"))),
        (like_qwen3, lambda d: d.update(normalizer=strip("right"))),
        (like_qwen3, lambda d: d.update(added_tokens=d["added_tokens"][1:])),
        (sensitive, edit_tokens(lstrip=True)),
        (sensitive, edit_tokens(rstrip=True)),
        (sensitive, edit_tokens(single_word=True)),
        (sensitive, edit_split("(?i:", "(?:")),
        (sensitive, edit_split(r"\p{N}", r"\p{Nd}")),
        (sensitive, edit_split(r"\p{N}|", r"\p{N}{1,3}|")),
        (sensitive, edit_split(r"\p{L}", r"\p{L}\p{M}")),
        (sensitive, edit_split(r"\p{L}", "[[:alpha:]]")),
        (sensitive, edit_split(r"\s+(?!\S)|", "")),
        (sensitive, edit_split(r"\s", " ")),
        (sensitive, edit_split(r"[\r\n]", r"\n")),
        (like_qwen3, lambda d: d["model"].update(merges=d["model"]["merges"][:-1])),
        (like_gemma2, lambda d: d["model"].update(byte_fallback=False)),
        (like_gemma2, lambda d: d.update(normalizer={"type": "Prepend", "prepend": "▁"})),
    ],
)  # fmt: skip
def test_difference_at_load_keeps_tokenizers(
    make: Any, change: Change, install: Callable[[object], None]
) -> None:
    install(FakeLibrary(change))
    tokenizer = load(make)
    assert tokenizer.choice.name == "tokenizers"
    assert "fastokens gave other token ids than tokenizers for" in tokenizer.choice.reason
    for text in ("the capital", "x é e\u0301 12345 <|im_end|> \n\n don'T"):
        assert tokenizer.tokenize(text) == ids_of(make, text)


@pytest.mark.usefixtures("short_check")
def test_unsupported_component_keeps_tokenizers(install: Callable[[object], None]) -> None:
    library = FakeLibrary()
    library.failure = ValueError("normalizer error: unsupported")
    install(library)
    tokenizer = load(like_qwen3)
    assert tokenizer.choice.name == "tokenizers"
    assert "normalizer error: unsupported" in tokenizer.choice.reason


@pytest.mark.usefixtures("short_check")
def test_comparison_runs_once_in_a_process(
    install: Callable[[object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = FakeLibrary()
    install(library)
    first = load(like_qwen3)
    library.texts.clear()
    assert load(like_qwen3).choice == first.choice
    assert library.texts == []
    load(like_llama3)
    assert library.texts
    monkeypatch.setattr(text_tokenizer, "_MAX_VALIDATED", 1)
    load(like_gemma2)
    assert len(text_tokenizer._validated) == 1


def test_unchecked_characters_are_those_that_python_does_not_know() -> None:
    # Between and behind these planes, no version of Unicode assigns characters.
    positions = (
        *range(0xD800),
        *range(0xE000, 0x40010),
        *range(0xDFFF0, 0xE1000),
        *range(0xFFFF0, 0x100010),
    )
    characters = [*map(chr, positions), chr(sys.maxunicode)]
    expected = {c for c in characters if unicodedata.category(c) in ("Cn", "Co")}
    found = set(compile_unchecked().findall("".join(characters)))
    assert found == expected
    assert {"\u0378", "\ue000", "\U0001fffe", "\U000e0000", "\U0010ffff"} <= found


@pytest.mark.parametrize("character", ["\u0378", "\ue000", "\U0001fffe", "\U00050000"])
@pytest.mark.usefixtures("short_check")
def test_text_with_unchecked_character_goes_to_tokenizers(
    character: str, install: Callable[[object], None]
) -> None:
    library = FakeLibrary()
    install(library)
    tokenizer = load(like_qwen3)
    library.texts.clear()
    known, unknown = "é 中国 😀 \u07fd", f"é {character} 中国"
    assert tokenizer.tokenize(known) == ids_of(like_qwen3, known)
    assert tokenizer.tokenize(unknown) == ids_of(like_qwen3, unknown)
    assert tokenizer.tokenize("ascii") == ids_of(like_qwen3, "ascii")
    assert library.texts == [known, "ascii"]
    assert tokenizer.choice.name == "fastokens"


@pytest.mark.usefixtures("short_check")
def test_difference_in_use_ends_use_of_fastokens(
    install: Callable[[object], None], caplog: pytest.LogCaptureFixture
) -> None:
    library = FakeLibrary()
    install(library)
    tokenizer = load(like_qwen3, interval=3)
    library.wrong = "the capital"
    right = ids_of(like_qwen3, "the capital")
    with caplog.at_level(logging.WARNING):
        found = [tokenizer.tokenize("the capital") for _ in range(4)]
    assert found == [[0], [0], right, right]  # the third is compared
    assert tokenizer.num_differences == 1
    assert tokenizer.choice.name == "tokenizers"
    assert "other token ids than tokenizers on a text of 11 characters" in tokenizer.choice.reason
    assert [record.message for record in caplog.records] == [
        f"{tokenizer.choice.reason}; tokenizers is used from now on"
    ]
    assert load(like_qwen3, interval=3).choice == tokenizer.choice


@pytest.mark.usefixtures("short_check")
def test_equal_ids_keep_fastokens(install: Callable[[object], None]) -> None:
    library = FakeLibrary()
    install(library)
    tokenizer = load(like_qwen3, interval=1)
    for text in ("the capital", "é", "\u0378"):
        assert tokenizer.tokenize(text) == ids_of(like_qwen3, text)
    assert (tokenizer.choice.name, tokenizer.num_differences) == ("fastokens", 0)


@pytest.mark.usefixtures("short_check")
def test_interval_of_zero_compares_nothing(install: Callable[[object], None]) -> None:
    library = FakeLibrary()
    install(library)
    tokenizer = load(like_qwen3, interval=0)
    library.wrong = "the capital"
    assert [tokenizer.tokenize("the capital") for _ in range(3)] == [[0]] * 3


class PanicException(BaseException):
    """What a panic in Rust raises, by its name."""


@pytest.mark.parametrize("failure", [ValueError("limit"), PanicException("index")])
@pytest.mark.usefixtures("short_check")
def test_failure_in_use_ends_use_of_fastokens(
    failure: BaseException, install: Callable[[object], None]
) -> None:
    library = FakeLibrary()
    install(library)
    tokenizer = load(like_qwen3)
    library.failure = failure
    assert tokenizer.tokenize("the capital") == ids_of(like_qwen3, "the capital")
    assert tokenizer.num_differences == 1
    assert f"failed ({type(failure).__name__})" in tokenizer.choice.reason


@pytest.mark.usefixtures("short_check")
def test_interrupt_is_no_failure(install: Callable[[object], None]) -> None:
    library = FakeLibrary()
    install(library)
    tokenizer = load(like_qwen3)
    library.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        tokenizer.tokenize("the capital")
    assert tokenizer.choice.name == "fastokens"


@pytest.mark.usefixtures("short_check")
def test_interval_reaches_encoder(install: Callable[[object], None]) -> None:
    library = FakeLibrary()
    install(library)
    settings = ModelSettings(name="demo", tokenizer_check_interval=2)
    encoder = load_encoder(settings.to_model_config())
    right = encoder.encode(CONVERSATION)
    library.wrong = right.text
    assert encoder.encode(CONVERSATION) == right
    assert encoder.text_tokenizer.choice.name == "tokenizers"


@pytest.mark.usefixtures("short_check")
def test_mode_tokenizers_loads_no_other_library(install: Callable[[object], None]) -> None:
    library = FakeLibrary()
    install(library)
    settings = ModelSettings(name="demo", tokenizer_mode="tokenizers")
    encoder = load_encoder(settings.to_model_config())
    assert encoder.text_tokenizer.choice.name == "tokenizers"
    assert encoder.text_tokenizer.choice.reason == "requested by the setting `tokenizer_mode`"
    assert encoder.encode(CONVERSATION) == load_encoder(ModelConfig("demo")).encode(CONVERSATION)
    with pytest.raises(ModelLoadError, match="tokenizer_mode is 'slow'; allowed: auto, tokenizers"):
        ModelConfig("demo", tokenizer_mode="slow")  # type: ignore[arg-type]


def test_negative_interval_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="tokenizer_check_interval is -1; give a number of"):
        ModelConfig("demo", tokenizer_check_interval=-1)


def test_check_covers_every_script_and_marker() -> None:
    markers = ["<|im_start|>", "<|im_end|>", "<s1>"]
    texts = "".join(tokenizer_check.build_texts(["rare token"], markers))
    assert texts == "".join(tokenizer_check.build_texts(["rare token"], markers))
    scripts = {unicodedata.name(c, "").partition(" ")[0] for c in tokenizer_check.list_characters()}
    assert scripts <= {unicodedata.name(c, "").partition(" ")[0] for c in texts}
    for marker in markers:
        assert all(part in texts for part in (marker * 2, f" {marker} ", marker[:-1], marker[1:]))
    assert "rare token" in texts
