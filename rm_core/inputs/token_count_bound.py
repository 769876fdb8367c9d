"""Lower bound on the number of tokens in a text, from its length.

The bound takes no time, while tokenizing a long text takes seconds. No token is longer than the
longest token of the vocabulary, so a text has at least length / longest tokens. This holds only if
the whole text ends up in tokens, and for the length after the tokenizer's normalizer. The
components of the tokenizer are therefore compared with those that are known to keep all text; any
other component disables the bound. Known are byte-level BPE (Llama 3, Qwen, the demo model), with
lengths in bytes, and BPE with byte fallback (Gemma), with lengths in characters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers.pre_tokenizers import ByteLevel

from rm_core.inputs.text_splitting import is_plain_bpe, list_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Maximum number of bytes of a character in UTF-8.
_MAX_BYTES = 4
# Maximum number of characters to normalize. Normalizing takes many bytes of memory per character,
# and a longer text can be tokenized in parts instead.
_MAX_NORMALIZED = 1 << 20
# Maximum number of characters that NFC composes to one: Unicode's longest canonical decomposition.
_MAX_COMPOSED = 4


class TokenBound:
    """Lower bound on the number of tokens in a text."""

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
        # Tokens with `lstrip` or `rstrip` include any amount of white space, and a combining mark
        # at the start of a token would be composed with the character before it.
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
            # In a byte-level vocabulary, a character represents a byte.
            self._longest = max(map(len, (*vocabulary, *contents)))

    def prove_too_long(self, text: str, limit: int) -> int | None:
        """Return a lower bound of a text's tokens that exceeds the limit.

        None if the text may fit, or if the tokenizer is unknown.
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
    """Return whether a normalizer never shortens a text, or is NFC, which the bound considers."""
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
    """Return whether a pre-tokenizer keeps every character of a text."""
    if pre_tokenizer["type"] == "Split":
        return bool(pre_tokenizer["behavior"] != "Removed")
    return pre_tokenizer["type"] in ("ByteLevel", "Digits")
