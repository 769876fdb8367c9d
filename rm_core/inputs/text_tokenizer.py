"""Token ids of texts, from the fastest library that gives the ids of `tokenizers`.

`tokenizers` defines the ids, since transformers uses it and rewards are compared with transformers.
fastokens reads the same definition and takes a tenth of the time or less. It is used only

- if it gives the same ids for all texts of `tokenizer_check`, compared when a tokenizer is loaded;
- for texts of characters that these texts cover;
- as long as no text gets other ids, of those that are compared while it is in use.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rm_core.config import TokenizerMode
from rm_core.inputs.tokenizer_check import compile_unchecked, find_difference
from rm_core.text import is_library_error

logger = logging.getLogger(__name__)

DEFAULT_CHECK_INTERVAL = 1_000
"""Number of texts of which one is compared. One in a thousand costs less than a tenth."""

_MAX_SAMPLED_TOKENS = 4_096
_MAX_EXCERPT = 40
_MAX_VALIDATED = 16


@dataclass(frozen=True, slots=True)
class TokenizerChoice:
    """Name of a library, and the reason for the choice."""

    name: Literal["fastokens", "tokenizers"]  # name of the library
    reason: str  # why the library is used, in words


# The last tokenizers that were compared, by the digest of their definition. A tokenizer is loaded
# many times in a process, and is compared once.
_validated: dict[str, tuple[Any, TokenizerChoice]] = {}


class TextTokenizer:
    """Returns the token ids of texts.

    Not thread-safe, since `tokenizers` is not.

    Args:
        definition: the tokenizer as JSON, as `backend.to_str()` gives it.
        check_interval: number of texts of which one is compared with `tokenizers` as well; 0 for
            none.

    Attributes:
        choice: library in use. May change at any text.
        num_differences: number of texts on which fastokens gave other ids, or failed.
    """

    def __init__(
        self,
        backend: Any,
        definition: str,
        mode: TokenizerMode = "auto",
        check_interval: int = DEFAULT_CHECK_INTERVAL,
    ) -> None:
        self._backend = backend
        self._digest = hashlib.sha256(definition.encode()).hexdigest()
        self._check_interval = self._num_until_check = check_interval
        self.num_differences = 0
        self._fast: Any = None
        self.choice = TokenizerChoice("tokenizers", "requested by the setting `tokenizer_mode`")
        if mode == "tokenizers":
            return
        validated = _validated.get(self._digest)
        if validated is None:
            validated = _load_fastokens(backend, definition)
            _remember(self._digest, *validated)
        self._fast, self.choice = validated

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens around it."""
        if self._fast is None or (not text.isascii() and compile_unchecked().search(text)):
            return _tokenize_all(self._backend, [text])[0]
        try:
            input_ids: list[int] = self._fast.encode(text).ids
        except BaseException as error:
            if not is_library_error(error):
                raise
            return self._use_tokenizers(text, f"failed ({type(error).__name__})")
        self._num_until_check -= 1  # is negative from the first text on if the interval is 0
        if self._num_until_check == 0:
            self._num_until_check = self._check_interval
            if input_ids != _tokenize_all(self._backend, [text])[0]:
                return self._use_tokenizers(text, "gave other token ids than tokenizers")
        return input_ids

    def _use_tokenizers(self, text: str, problem: str) -> list[int]:
        """Give fastokens up, and return the token ids of a text."""
        reason = f"fastokens {problem} on a text of {len(text):,} characters while it was in use"
        logger.warning("%s; tokenizers is used from now on", reason)
        self.num_differences += 1
        self._fast, self.choice = None, TokenizerChoice("tokenizers", reason)
        _remember(self._digest, None, self.choice)
        return _tokenize_all(self._backend, [text])[0]


def _remember(digest: str, fast: Any, choice: TokenizerChoice) -> None:
    _validated[digest] = (fast, choice)
    while len(_validated) > _MAX_VALIDATED:
        _validated.pop(next(iter(_validated)), None)


def _tokenize_all(backend: Any, texts: Sequence[str]) -> list[list[int]]:
    # Same ids as from calling the tokenizer, in half the time: no offsets, no wrapper.
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def _load_fastokens(backend: Any, definition: str) -> tuple[Any, TokenizerChoice]:
    """Load a tokenizer into fastokens, and compare it with `tokenizers`.

    Returns:
        The tokenizer of fastokens, or None if it must not be used; and the choice.
    """
    try:
        from fastokens import Tokenizer
    except ImportError as error:
        return None, TokenizerChoice("tokenizers", f"fastokens is not installed ({error})")
    try:
        fast = Tokenizer.from_json_str(definition)
        fast.no_padding()
        fast.no_truncation()
        difference = find_difference(
            lambda texts: [fast.encode(text).ids for text in texts],
            lambda texts: _tokenize_all(backend, texts),
            _sample_tokens(backend),
            [token.content for token in backend.get_added_tokens_decoder().values()],
        )
    except BaseException as error:
        if not is_library_error(error):
            raise
        reason = f"fastokens cannot be compared with tokenizers: {error}"
        return None, TokenizerChoice("tokenizers", reason)
    if difference is not None:
        reason = (
            f"fastokens gave other token ids than tokenizers for {difference[:_MAX_EXCERPT]!r} and "
            f"{max(0, len(difference) - _MAX_EXCERPT):,} more characters"
        )
        logger.warning("%s; tokenizers is used", reason)
        return None, TokenizerChoice("tokenizers", reason)
    reason = "it gave the token ids of tokenizers for all texts of the check"
    return fast, TokenizerChoice("fastokens", reason)


def _sample_tokens(backend: Any) -> list[str]:
    """Return the texts of some tokens, spread evenly over the vocabulary."""
    step = 1 + backend.get_vocab_size() // _MAX_SAMPLED_TOKENS
    input_ids = range(0, backend.get_vocab_size(), step)
    texts: list[str] = backend.decode_batch([[token] for token in input_ids], False)
    return texts
