r"""Token boundaries: positions where a text can be cut without changing its tokens.

With boundaries, the first tokens of a long text are known without tokenizing the whole text, and
the tokens of a prompt can be reused for each of its answers. A position counts as a boundary only
if the components of the tokenizer, as in `tokenizer.json`, prove it. A tokenizer with unknown
components has no boundaries.

Byte-level BPE (Llama 3, Qwen, the demo model) first splits a text into pre-tokens by a regular
expression. The known expressions match from left to right, have no lookbehind, and look ahead at
one character (`(?!\S)`, after white space). If no alternative can match the two characters around a
position together, a pre-token ends there, whatever else the text contains, and neither side affects
the tokens of the other side. This holds

- between a character that is not white space and a space;
- between a letter or digit and a line feed or a punctuation mark;
- between two digits, if the expression matches one digit at a time, and after each third digit of a
  run of digits, if it matches up to three.

BPE over the whole text (Gemma) has no pre-tokens. A merge across a position creates a token that
contains the two characters around the position. If no token of the vocabulary contains these two
characters next to each other, no merge crosses the position.

Added tokens are matched before the text is split. None may contain one of these pairs or match more
than its content. An added token with digits can end near the end of a run of digits, and one that
ends with a digit would change how a run is divided into groups of three. NFC does not compose any
character listed here with the character before it, so both sides are normalized independently.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGET_CHARACTERS = 65_536
"""Approximate length of a part in characters, which takes a few milliseconds to tokenize."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
# White space in any version of Unicode, in Python and in the tokenizer.
_SPACES = r"\s\x1c-\x1f\x85\u180e\u200b\ufeff"
# Letters that are the same in every version of Unicode: Latin, Cyrillic, Arabic, Han, kana, Hangul.
_LETTERS = r"A-Za-z\u0410-\u044f\u0621-\u063a\u4e00-\u9fa5\u3041-\u3094\u30a1-\u30fa\uac00-\ud7a3"
_MARKS = r"\n,.;:!?\u3001\u3002\uff0c\uff01\uff1f\uff1b\uff1a"
_PAIRS = rf"(?<=[^{_SPACES}])(?= )|(?<=[0-9{_LETTERS}])(?=[{_MARKS}])"
_DIGITS = "0123456789"
_BEFORE_RUN = re.compile(rf"[\x00-\x7f{_LETTERS}]")


class TokenBoundaries:
    """Finds the boundaries of texts for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pattern: re.Pattern[str] | None = None
        self._takes_three_digits = False
        # Digits required on both sides of a boundary between digits; 0 if there are none.
        self._margin = 0
        self._space = " "
        # Pairs of characters that occur in tokens, for BPE over the whole text.
        self._adjacent_pairs: frozenset[str] | None = None
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is None or not is_plain_bpe(fast.model) or fast.model.dropout:
            return
        added = list(fast.get_added_tokens_decoder().values())
        group_size = self._find_digit_group_size(fast)
        if group_size is None or any(map(self._may_be_split, added)):
            return
        pattern = _PAIRS
        contents = [token.content for token in added]
        forbidden_ends = _DIGITS if group_size == 3 else ()
        if group_size and not any(c.isdigit() or c[-1:] in forbidden_ends for c in contents):
            runs = [run for content in contents for run in re.findall("[0-9]+", content)]
            self._margin = max(map(len, runs), default=1)
            self._takes_three_digits = group_size == 3
            if group_size == 1:
                digits = f"[0-9]{{{self._margin}}}"
                pattern += f"|(?<={digits})(?={digits})"
        self._pattern = re.compile(pattern)

    def get_lookahead(self, text: str, boundary: int) -> int:
        """Return how many characters after a boundary must stay the same to keep the boundary."""
        return max(1, self._margin) if text[boundary : boundary + 1] in _DIGITS else 1

    def _find_digit_group_size(self, fast: Any) -> int | None:
        """Return how many digits form a group; 0 if unknown, None for an unknown tokenizer."""
        splits = list_steps(fast.pre_tokenizer, "pretokenizers")
        normalizers = list_steps(fast.normalizer, "normalizers")
        kinds = [step["type"] for step in splits]
        if kinds[-1:] == ["ByteLevel"] and all(step["type"] == "NFC" for step in normalizers):
            if splits[-1]["add_prefix_space"]:
                return None
            uses_default_regex = splits[-1]["use_regex"]
            if kinds == ["ByteLevel"] and uses_default_regex:
                return 0
            if kinds == ["Digits", "ByteLevel"] and uses_default_regex:
                return int(splits[0]["individual_digits"])
            if kinds == ["Split", "ByteLevel"] and not uses_default_regex:
                expression = splits[0]["pattern"].get("Regex")
                is_isolated = splits[0]["behavior"] == "Isolated" and not splits[0]["invert"]
                return {_LLAMA3: 3, _QWEN2: 1}.get(expression) if is_isolated else None
            return None
        return 1 if self._reads_whole(fast, splits, normalizers) else None

    def _reads_whole(
        self, fast: Any, splits: list[dict[str, Any]], normalizers: list[dict[str, Any]]
    ) -> bool:
        """Return whether BPE gets the text between added tokens unchanged except for spaces."""
        replaces = [
            (step["pattern"].get("String"), step["content"])
            for step in normalizers
            if step["type"] == "Replace"
        ]
        # Gemma splits at spaces, but its normalizer replaces all spaces.
        is_whole = not splits or (
            [(s["type"], s.get("pattern")) for s in splits] == [("Split", {"String": " "})]
            and bool(replaces)
        )
        if not is_whole or len(replaces) != len(normalizers) or len(replaces) > 1:
            return False
        if fast.model.ignore_merges:  # a part may be a token although the whole text is not
            return False
        if replaces:
            old, self._space = replaces[0]
            if old != " " or len(self._space) != 1:
                return False
        vocabulary = fast.get_vocab(with_added_tokens=False)
        # In the form in which a normalized added token is matched in a text.
        added = fast.get_added_tokens_decoder().values()
        contents = [token.content.replace(" ", self._space) for token in added]
        # A character that is not a token itself becomes other tokens.
        self._tokens = frozenset(token for token in vocabulary if len(token) == 1)
        self._adjacent_pairs = frozenset(
            left + right
            for token in (*vocabulary, *contents)
            for left, right in itertools.pairwise(token)
        )
        return True

    def _may_be_split(self, token: Any) -> bool:
        """Return whether a cut may divide an added token, or change tokens next to it."""
        content = token.content
        return bool(
            token.lstrip
            or token.rstrip
            or token.single_word
            or content != unicodedata.normalize("NFC", content)
            or any(re.search(_PAIRS, t) for t in (content, content.replace(self._space, " ")))
        )

    def find_after(self, text: str, start: int, position: int, stop: int) -> int | None:
        """Return the first known boundary from `position` to `stop`, or None.

        Args:
            text: the whole text.
            start: 0, or a boundary before `position`.
            position: first position to consider, greater than `start`.
            stop: last position to consider.
        """
        if self._pattern is None:
            return None
        stop = min(stop, len(text) - 1)
        if self._takes_three_digits and (
            group_end := self._find_digit_group_end(text, start, position)
        ):
            return group_end if group_end <= stop else None
        while position <= stop:
            # The lookahead needs the character at `stop`.
            match = self._pattern.search(text, position, stop + 1)
            if match is None:
                return None
            position = match.start()
            if self._is_boundary(text, position):
                return position
            position += 1
        return None

    def find_before(self, text: str, start: int, stop: int) -> int | None:
        """Return the last boundary after `start` and up to `stop` given by adjacent characters."""
        if self._pattern is None:
            return None
        high = min(stop, len(text) - 1)
        size = 64
        while high > start:
            low = max(start + 1, high - size)
            matches = [m.start() for m in self._pattern.finditer(text, low, high + 1)]
            for position in reversed(matches):
                if self._is_boundary(text, position):
                    return position
            high, size = low - 1, 4 * size
        return None

    def split(self, text: str, start: int, max_characters: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of the parts of `text[start:]`, in order.

        Args:
            text: the whole text.
            start: 0 or a boundary.
            max_characters: maximum length of a part, more than `TARGET_CHARACTERS`. A longer part
                has no boundary within that many characters.
        """
        while start < len(text):
            stop = len(text)
            if stop - start > TARGET_CHARACTERS:
                boundary = self.find_after(
                    text, start, start + TARGET_CHARACTERS, start + max_characters
                )
                stop = boundary or self.find_before(text, start, start + TARGET_CHARACTERS) or stop
            yield start, stop
            start = stop

    def split_from_end(self, text: str, max_characters: int) -> Iterator[tuple[int, int]]:
        """Like `split` for the whole text, but from its end."""
        stop = len(text)
        while stop > 0:
            start, size = 0, TARGET_CHARACTERS
            while stop > size:
                boundary = self.find_after(text, 0, stop - size, stop - 1)
                if boundary is not None:
                    start = boundary
                    break
                if size >= max_characters:
                    break
                size = min(4 * size, max_characters)
            yield start, stop
            stop = start

    def _is_boundary(self, text: str, position: int) -> bool:
        """Return whether no merge crosses a position that the pattern matches."""
        if self._adjacent_pairs is None:
            return True
        left, right = text[position - 1], text[position]
        right = self._space if right == " " else right
        are_tokens = left in self._tokens and right in self._tokens
        return are_tokens and left + right not in self._adjacent_pairs

    def _find_digit_group_end(self, text: str, start: int, position: int) -> int | None:
        """Return the end of the group of three digits at a position inside a run of digits."""
        begin = position - len(text[start:position]) + len(text[start:position].rstrip(_DIGITS))
        # A run begins a pre-token if the character before it is not a digit of any script.
        if begin > start and not _BEFORE_RUN.match(text, begin - 1):
            return None
        stop = position + (begin - position) % 3
        surroundings = text[max(begin, stop - self._margin) : stop + self._margin]
        is_inside = len(surroundings) == 2 * self._margin and not surroundings.strip(_DIGITS)
        return stop if is_inside else None


def list_steps(component: Any, name: str) -> list[dict[str, Any]]:
    """Return the steps of a component in order, of a sequence those under `name`; none for None."""

    def flatten(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if state["type"] == "Sequence":
            for step in state[name]:
                yield from flatten(step)
        else:
            yield state

    return [] if component is None else list(flatten(json.loads(component.__getstate__())))


def is_plain_bpe(model: Any) -> bool:
    """Return whether a model is BPE that marks neither the starts nor the ends of words."""
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return type(model).__name__ == "BPE" and not any(getattr(model, name) for name in affixes)
