r"""Where a text can be cut so that each part has the tokens that it has in the whole.

So the first tokens of a long text are known without tokenizing all of it, and the tokens of a
prompt are known for each of its answers. A place is such a border only if that is proved, from the
parts of the tokenizer, as `tokenizer.json` has them; with unknown parts there is none.

Byte-level BPE (Llama 3, Qwen, the demo model) splits a text by a regular expression first. Those
known here match from left to right, look behind nothing and ahead at one character (`(?!\S)`,
after white space). So if no alternative can match the two characters around a place together, a
piece ends there, whatever else the text holds, and what is on one side changes nothing on the other
side. That is so

- between anything but white space and a space;
- between a letter or digit and a line feed or a punctuation mark;
- between two digits, where the expression takes one at a time, and after each third digit of a run,
  where it takes up to three.

BPE over the whole text (Gemma) has no such pieces. There a merge over a place makes a token with
the two characters around it: where no token of the vocabulary has them next to each other, none
does.

An added token is found before all that. None may hold one of these pairs, or take in more than
itself; one with digits in it ends near the end of a run of them, and one that ends in a digit would
change how a run falls into threes. NFC composes no character listed here with the one before it, so
it is the same on both sides.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rm_core.inputs.tokenizer_pipeline import is_plain_bpe, list_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGET_CHARACTERS = 65_536
"""Characters of a part, about: some milliseconds of tokenizing."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
# White space in any version of Unicode, for Python as well as for the tokenizer.
_SPACES = r"\s\x1c-\x1f\x85\u180e\u200b\ufeff"
# Of scripts whose letters are the same in all of them: Latin, Cyrillic, Arabic, Han, kana, Hangul.
_LETTERS = r"A-Za-z\u0410-\u044f\u0621-\u063a\u4e00-\u9fa5\u3041-\u3094\u30a1-\u30fa\uac00-\ud7a3"
_MARKS = r"\n,.;:!?\u3001\u3002\uff0c\uff01\uff1f\uff1b\uff1a"
_PAIRS = rf"(?<=[^{_SPACES}])(?= )|(?<=[0-9{_LETTERS}])(?=[{_MARKS}])"
_DIGITS = "0123456789"
_BEFORE_RUN = re.compile(rf"[\x00-\x7f{_LETTERS}]")


class TokenBoundaries:
    """Finds the borders of texts for one tokenizer.

    Args:
        tokenizer: of the checkpoint.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._pattern: re.Pattern[str] | None = None
        self._takes_three_digits = False
        self._margin = 0  # digits on both sides of a border between digits; 0 for no such borders
        self._space = " "
        self._neighbours: frozenset[str] | None = None  # of BPE over the whole text
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is None or not is_plain_bpe(fast.model) or fast.model.dropout:
            return
        added = list(fast.get_added_tokens_decoder().values())
        digits_by = self._find_digit_group_size(fast)
        if digits_by is None or any(map(self._may_be_split, added)):
            return
        between = _PAIRS
        contents = [token.content for token in added]
        ends = _DIGITS if digits_by == 3 else ()
        if digits_by and not any(c.isdigit() or c[-1:] in ends for c in contents):
            runs = [run for content in contents for run in re.findall("[0-9]+", content)]
            self._margin = max(map(len, runs), default=1)
            self._takes_three_digits = digits_by == 3
            if digits_by == 1:
                digits = f"[0-9]{{{self._margin}}}"
                between += f"|(?<={digits})(?={digits})"
        self._pattern = re.compile(between)

    def get_lookahead(self, text: str, boundary: int) -> int:
        """Characters behind a border that make it one: with others there, it may be none."""
        return max(1, self._margin) if text[boundary : boundary + 1] in _DIGITS else 1

    def _find_digit_group_size(self, fast: Any) -> int | None:
        """How many digits are a piece, 0 if that is not known; None if there are no borders."""
        splits = list_steps(fast.pre_tokenizer, "pretokenizers")
        normalizers = list_steps(fast.normalizer, "normalizers")
        kinds = [step["type"] for step in splits]
        if kinds[-1:] == ["ByteLevel"] and all(step["type"] == "NFC" for step in normalizers):
            if splits[-1]["add_prefix_space"]:
                return None
            own_expression = splits[-1]["use_regex"]
            if kinds == ["ByteLevel"] and own_expression:
                return 0
            if kinds == ["Digits", "ByteLevel"] and own_expression:
                return int(splits[0]["individual_digits"])
            if kinds == ["Split", "ByteLevel"] and not own_expression:
                expression = splits[0]["pattern"].get("Regex")
                is_isolated = splits[0]["behavior"] == "Isolated" and not splits[0]["invert"]
                return {_LLAMA3: 3, _QWEN2: 1}.get(expression) if is_isolated else None
            return None
        return 1 if self._reads_whole(fast, splits, normalizers) else None

    def _reads_whole(
        self, fast: Any, splits: list[dict[str, Any]], normalizers: list[dict[str, Any]]
    ) -> bool:
        """Whether the text between added tokens goes to BPE as it is, but for its spaces."""
        replaces = [
            (step["pattern"].get("String"), step["content"])
            for step in normalizers
            if step["type"] == "Replace"
        ]
        # Gemma splits at spaces, of which its normalizer leaves none.
        is_whole = not splits or (
            [(s["type"], s.get("pattern")) for s in splits] == [("Split", {"String": " "})]
            and bool(replaces)
        )
        if not is_whole or len(replaces) != len(normalizers) or len(replaces) > 1:
            return False
        if fast.model.ignore_merges:  # a part may be a token although the whole is none
            return False
        if replaces:
            old, self._space = replaces[0]
            if old != " " or len(self._space) != 1:
                return False
        vocabulary = fast.get_vocab(with_added_tokens=False)
        # As a normalized one is looked for in a text.
        added = fast.get_added_tokens_decoder().values()
        contents = [token.content.replace(" ", self._space) for token in added]
        # A character that is no token itself becomes others.
        self._tokens = frozenset(token for token in vocabulary if len(token) == 1)
        self._neighbours = frozenset(
            left + right
            for token in (*vocabulary, *contents)
            for left, right in itertools.pairwise(token)
        )
        return True

    def _may_be_split(self, token: Any) -> bool:
        """Whether a border may be inside of an added token, or next to it and still no border."""
        content = token.content
        return bool(
            token.lstrip
            or token.rstrip
            or token.single_word
            or content != unicodedata.normalize("NFC", content)
            or any(re.search(_PAIRS, t) for t in (content, content.replace(self._space, " ")))
        )

    def find_after(self, text: str, start: int, position: int, stop: int) -> int | None:
        """The first border that is found from `place` on, at most at `stop`.

        Args:
            text: the whole text.
            start: 0, or a border before `place`.
            place: from where on; more than `start`.
            stop: up to where.
        """
        if self._pattern is None:
            return None
        stop = min(stop, len(text) - 1)
        if self._takes_three_digits and (
            found := self._find_digit_group_end(text, start, position)
        ):
            return found if found <= stop else None
        while position <= stop:
            # Up to the character behind it, so that it can be looked at.
            match = self._pattern.search(text, position, stop + 1)
            if match is None:
                return None
            position = match.start()
            if self._is_boundary(text, position):
                return position
            position += 1
        return None

    def find_before(self, text: str, start: int, stop: int) -> int | None:
        """The last border behind `start` and up to `stop` that is found by characters alone."""
        if self._pattern is None:
            return None
        high = min(stop, len(text) - 1)
        size = 64
        while high > start:
            low = max(start + 1, high - size)
            matches = [m.start() for m in self._pattern.finditer(text, low, high + 1)]
            for place in reversed(matches):
                if self._is_boundary(text, place):
                    return place
            high, size = low - 1, 4 * size
        return None

    def split(self, text: str, start: int, max_characters: int) -> Iterator[tuple[int, int]]:
        """Start and end of parts of a text, from a border on, in order.

        Args:
            text: the whole text.
            start: 0 or a border.
            most: characters of a part, more than `PIECE`; one that is longer has no border in so
                many characters.
        """
        while start < len(text):
            stop = len(text)
            if stop - start > TARGET_CHARACTERS:
                found = self.find_after(
                    text, start, start + TARGET_CHARACTERS, start + max_characters
                )
                stop = found or self.find_before(text, start, start + TARGET_CHARACTERS) or stop
            yield start, stop
            start = stop

    def split_from_end(self, text: str, max_characters: int) -> Iterator[tuple[int, int]]:
        """As `parts` for the whole text, from its end on."""
        stop = len(text)
        while stop > 0:
            start, size = 0, TARGET_CHARACTERS
            while stop > size:
                found = self.find_after(text, 0, stop - size, stop - 1)
                if found is not None:
                    start = found
                    break
                if size >= max_characters:
                    break
                size = min(4 * size, max_characters)
            yield start, stop
            stop = start

    def _is_boundary(self, text: str, position: int) -> bool:
        """Whether no merge goes over a place, which the pattern has found."""
        if self._neighbours is None:
            return True
        left, right = text[position - 1], text[position]
        right = self._space if right == " " else right
        is_known = left in self._tokens and right in self._tokens
        return is_known and left + right not in self._neighbours

    def _find_digit_group_end(self, text: str, start: int, position: int) -> int | None:
        """The end of the group of three digits that a place is in, in the middle of a run."""
        begin = position - len(text[start:position]) + len(text[start:position].rstrip(_DIGITS))
        # A run begins a piece, if what stands before it is certainly no digit of another script.
        if begin > start and not _BEFORE_RUN.match(text, begin - 1):
            return None
        stop = position + (begin - position) % 3
        around = text[max(begin, stop - self._margin) : stop + self._margin]
        is_inside = len(around) == 2 * self._margin and not around.strip(_DIGITS)
        return stop if is_inside else None
