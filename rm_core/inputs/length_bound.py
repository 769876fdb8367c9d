"""How many tokens a text has at least, from its length: at once, where tokenizing takes seconds.

No token covers more than the longest one does, so a text has at least length / longest tokens.
That is true only where all of a text ends up in tokens, and of its length after the tokenizer's
normalizer. So the parts of a tokenizer are compared with those that are known to keep everything,
and with any other there is no bound. Known: byte-level BPE (Llama 3, Qwen, the demo model), whose
lengths are bytes, and BPE with bytes for unknown characters (Gemma), whose lengths are characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers.pre_tokenizers import ByteLevel

from rm_core.inputs.tokenizer_pipeline import is_plain_bpe, list_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Of UTF-8, of any character.
_MAX_BYTES = 4
# Normalizing takes many bytes a character, so a longer text may well be tokenized in parts instead.
_MAX_NORMALIZED = 1 << 20
# NFC makes one character of so many at most: Unicode's longest canonical decomposition.
_MAX_COMPOSED = 4


class TokenBound:
    """Tells of a text that it certainly has more tokens than allowed.

    Args:
        tokenizer: of the checkpoint.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        fast = getattr(tokenizer, "backend_tokenizer", None)
        steps = [] if fast is None else list_steps(fast.normalizer, "normalizers")
        self._normalizer = fast and fast.normalizer
        self._composes = any(step["type"] == "NFC" for step in steps)
        self._in_bytes = False
        self._longest: int | None = None
        if fast is not None and all(map(_keeps_length, steps)) and is_plain_bpe(fast.model):
            self._measure(fast)

    def _measure(self, fast: Any) -> None:
        added = list(fast.get_added_tokens_decoder().values())
        contents = [token.content for token in added]
        # Such a token takes white space with it, any amount of it; and a mark at its start would
        # be composed with what stands before it.
        if any(token.lstrip or token.rstrip or not token.content.isascii() for token in added):
            return
        steps = list_steps(fast.pre_tokenizer, "pretokenizers")
        vocabulary = fast.get_vocab(with_added_tokens=False)
        self._in_bytes = any(step["type"] == "ByteLevel" for step in steps)
        all_bytes = (
            ByteLevel.alphabet() if self._in_bytes else {f"<0x{byte:02X}>" for byte in range(256)}
        )
        bytes_are_known = self._in_bytes or fast.model.byte_fallback
        if bytes_are_known and all(map(_keeps_all, steps)) and vocabulary.keys() >= set(all_bytes):
            # In a byte-level vocabulary a character stands for a byte.
            self._longest = max(map(len, (*vocabulary, *contents)))

    def prove_too_long(self, text: str, limit: int) -> int | None:
        """A number of tokens over the limit that the text has at least, if that is certain.

        Args:
            text: what would be tokenized.
            limit: most tokens that are allowed.

        Returns:
            None if it may fit, or if nothing is known of the tokenizer.
        """
        if self._longest is None or len(text) * _MAX_BYTES <= limit * self._longest:
            return None
        at_least = self._min_tokens(text)
        if self._composes and at_least > limit and not text.isascii():
            at_least = -(-len(text) // (_MAX_COMPOSED * self._longest))
            if len(text) > _MAX_NORMALIZED:
                return at_least if at_least > limit else None
            if at_least <= limit and self._normalizer is not None:
                at_least = self._min_tokens(self._normalizer.normalize_str(text))
        return at_least if at_least > limit else None

    def _min_tokens(self, text: str) -> int:
        assert self._longest is not None
        size = len(text.encode()) if self._in_bytes else len(text)
        return -(-size // self._longest)


def _keeps_length(normalizer: dict[str, Any]) -> bool:
    """Whether a text is not shorter afterwards, or it is NFC, which is reckoned with."""
    if normalizer["type"] == "Replace":
        pattern = normalizer["pattern"].get("String")
        content = normalizer["content"]
        return (
            pattern is not None
            and len(content) >= len(pattern)
            and len(content.encode()) >= len(pattern.encode())
        )
    return normalizer["type"] in ("NFC", "Prepend")


def _keeps_all(pre_tokenizer: dict[str, Any]) -> bool:
    """Whether every character of a text is in one of the pieces that it is split into."""
    if pre_tokenizer["type"] == "Split":
        return bool(pre_tokenizer["behavior"] != "Removed")
    return pre_tokenizer["type"] in ("ByteLevel", "Digits")
