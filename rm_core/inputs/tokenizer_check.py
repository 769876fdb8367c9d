r"""Texts that show whether two implementations of a tokenizer give the same token ids.

Implementations differ in rare places: in the version of Unicode that decides what a letter, a
digit or white space is and how characters compose; at added tokens next to white space or next to
each other; in long words and runs. The texts here have all of these, for any vocabulary. They are
the same in every process, and both implementations tokenize them in a fraction of a second.

The texts have each character that Python's version of Unicode knows, but only one of 64 ideographs
and Hangul syllables, whose blocks have neither cases nor digits nor marks. `compile_unchecked`
gives the pattern of all others.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

Tokenize: TypeAlias = Callable[[Sequence[str]], list[list[int]]]
"""Return the token ids of each text."""

# All other characters are private, or unknown to every version of Unicode.
_ASSIGNED = (range(0x40000), range(0xE0000, 0xE0200))
_IDEOGRAPHS = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\U00017000-\U00018cff\U00020000-\U0003ffff]"
)
_IDEOGRAPH_STEP = 64
# After a letter or digit, and only there, `'s` is one token. The space before the character is part
# of its token unless it is a digit or white space.
_CHARACTER = "a {}'s\n"
_CHARACTERS_PER_TEXT = 256

_SPACES = (" ", "\t", "\n", "\r\n", "\r", "\x0b", "\x85", "\xa0", "\u2028", "\u200b", "\u3000")
_DIGITS = ("7", "٣", "๓", "²", "Ⅷ", "½", "𝟙")
_CONTRACTIONS = ("'s", "'T", "'re", "'VE", "'m", "'LL", "'d", "’s", "'ſ", "'ſS", "'K", "''s", "'x")
_RUNS = (
    *("a", "Z", "ab", "1", "12", ".", "=", "-", "_", "' ", "!?"),
    *(" ", "\n", "\r\n", "\t", " \n", "\0", "\xa0", "\u200d", "\ufeff"),
    *("é", "e\u0301", "\u0301\u0323", "\u1112\u1161\u11ab", "字", "の", "ж", "😀", "👍🏽"),
)
_LENGTHS = (*range(1, 34), 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 1_025)
_PROSE = (
    "The quick brown fox doesn't jump over 13 lazy dogs; it's 3.50 € (or $4), isn't it?",
    "Größe, naïve Façade, Łódź, İstanbul ve ışık, Việt Nam, čeština, ﬁnal ﬂow, Ångström, ſtraße",
    "Съешь ещё этих мягких булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Հայերեն, ქართული",
    "العَرَبِيَّةُ وَالْفَارْسِي ۱۲۳، עִבְרִית שָׁלוֹם",
    "हिन्दी में क्षत्रिय १२३ বাংলা ਪੰਜਾਬੀ தமிழ் తెలుగు മലയാളം සිංහල",
    "ภาษาไทยไม่มีช่องว่าง ພາສາລາວ မြန်မာဘာသာ ខ្មែរ བོད་སྐད་ አማርኛ ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ",
    "今天天气很好，我们去公园散步吧。「日本語」カタカナ・ｶﾀｶﾅ、か\u3099き\u309a",
    "한국어와 조선말 \u1112\u1161\u11ab\u1100\u1161 ㄱㄴㄷ ﾡ",
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🏳\ufe0f\u200d🌈 🇫🇷🇩🇪 1\ufe0f\u20e3",
    "❤\ufe0f ☕\ufe0e 🧑🏿\u200d🚀 🫶🏻",
    "😀😀😀 🏴\U000e0067\U000e0062\U000e007f",
    "e\u0301 E\u0323\u0302 a\u0302\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \u2126 \uf900",
    "\u0f71\u0f72\u0f74 \u0344 \u2adc \U0001d15e \u06e0\u07fd \u1acd\u05b0 ﷺ ㎏ ① ﬃ ǆ",
    "https://example.org/a_b-c?d=%20&e[]=1#f me@x.io C:\\dir\\a.txt ../.. 2024-01-31T12:00Z",
    "-1.5e-10 0xFF 1,234,567.89 50% №5 #1 @you a/b A.B.C. ... ??? !!! ~~ `x` **b** $$x^2$$",
    'def f(x: int = 0) -> str:\n\t"""Doc."""\n    return f\'{x!r}\'  # a\n\n\nprint(f(1_0))\n',
    "int main(void) {\r\n  for (int i=0;i<10;++i) {\r\n    puts(a[i]&&!b);\r\n\r\n  }\r\n}",
    "const f = async (x) => { await g(`${x}`); return x?.y ?? null; };\n// ok\n</script>\n",
    "fn main() -> Result<(), Box<dyn Error>> { let v: Vec<_> = x.iter().map(|c| c * 2); Ok(()) }",
    "SELECT a, COUNT(*) FROM t WHERE b <> 'x''y';\n<p class=\"a\">&nbsp;</p>\n{\"k\": [1, null]}\n",
    "\\frac{1}{2} &= \\int_0^1 x\\,dx \\\\\n- [ ] item\n\n    code\n\n| a | b |\n|---|--:|\n",
)
# The first texts show most differences; the others are then not tokenized.
_TEXTS_PER_COMPARISON = 64
_NUM_MIXTURES = 400
_MIXTURE_LENGTH = 30
_NUM_LONG_WORDS = 24
# Maximum number of added tokens that are tried in every surrounding, and next to each other.
_MAX_CLOSE_MARKERS = 24


def find_difference(
    tokenize: Tokenize, expected: Tokenize, vocabulary: Iterable[str], markers: Sequence[str]
) -> str | None:
    """Return the first text whose token ids differ from those expected; None if there is none.

    The texts are made of those of the vocabulary's tokens and of added tokens, `markers`.
    """
    texts = build_texts(vocabulary, markers)
    while some := list(itertools.islice(texts, _TEXTS_PER_COMPARISON)):
        for text, ids, right in zip(some, tokenize(some), expected(some), strict=True):
            if ids != right:
                return text
    return None


def build_texts(vocabulary: Iterable[str], markers: Sequence[str]) -> Iterator[str]:
    """Yield the texts; see `find_difference`."""
    yield from _PROSE
    yield "\n".join(_PROSE)
    yield from (unicodedata.normalize(form, text) for form in ("NFD", "NFKC") for text in _PROSE)
    yield from ("", *_SPACES, *(f"{space}x{space}" for space in _SPACES))
    for number in (1, 2, 3):
        combinations = map("".join, itertools.product(_SPACES, repeat=number))
        yield "".join(f"x{spaces}y{spaces}." for spaces in combinations)
    yield "".join(
        f"{digit * length}a{digit * length} .{digit * length}"
        for digit in _DIGITS
        for length in range(1, 14)
    )
    yield "".join(f"it{end} {end}IT{end}{end}1{end}.{end}x{end}IT{end}x" for end in _CONTRACTIONS)
    for run in _RUNS:
        yield "".join(f"{run * length}x" for length in _LENGTHS)
    characters = [
        character
        for character in list_characters()
        if not (_IDEOGRAPHS.match(character) and ord(character) % _IDEOGRAPH_STEP)
    ]
    for start in range(0, len(characters), _CHARACTERS_PER_TEXT):
        yield "".join(map(_CHARACTER.format, characters[start : start + _CHARACTERS_PER_TEXT]))
    # Marks are ordered by their class, and compose with the letter before them.
    marks = [character for character in characters if unicodedata.combining(character)]
    yield "".join(f"e{mark}\u0323\u0301e\u0323\u0301{mark}" for mark in marks)
    yield from _build_marker_texts(list(dict.fromkeys(markers)))
    yield from _build_random_texts(markers)
    tokens = list(vocabulary)
    for start in range(0, len(tokens), _CHARACTERS_PER_TEXT):
        yield "\n".join(tokens[start : start + _CHARACTERS_PER_TEXT])


def _build_marker_texts(markers: Sequence[str]) -> Iterator[str]:
    yield "".join(markers)
    yield "".join(f" {marker} x{marker}1\n{marker}\n\n" for marker in markers)
    close = markers[:: -(-len(markers) // _MAX_CLOSE_MARKERS)] if markers else []
    yield "".join(left + right for left in close for right in close)
    yield "".join(left + " " + right for left in close for right in close)
    for marker in close:
        parts = [marker[:cut] + gap + marker[cut:] for cut in range(len(marker)) for gap in " x\n"]
        yield "".join((*parts, marker.upper(), marker[:-1], marker, marker[1:], marker, marker[:1]))


def _build_random_texts(markers: Sequence[str]) -> Iterator[str]:
    generator = random.Random(0)
    pieces = (*_SPACES, *_DIGITS, *_CONTRACTIONS, *_RUNS, *markers[:_MAX_CLOSE_MARKERS])
    pieces = (*pieces, "The", " word", "don", "ing", "中国", "한국", "!", "(", "<|", "|>", "</")
    for _ in range(_NUM_MIXTURES):
        yield "".join(generator.choices(pieces, k=_MIXTURE_LENGTH))
    for length in range(_NUM_LONG_WORDS):
        yield "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=16 << (length % 6)))


def list_characters() -> list[str]:
    """Return the characters that Python's version of Unicode knows, in order."""
    characters = map(chr, itertools.chain(*_ASSIGNED))
    return [c for c in characters if unicodedata.category(c) not in ("Cn", "Co", "Cs")]


@functools.cache
def compile_unchecked() -> re.Pattern[str]:
    """Compile a pattern that finds a character about which the texts say nothing."""
    characters = list_characters()
    gaps = [
        (chr(ord(before) + 1), chr(ord(after) - 1))
        for before, after in itertools.pairwise(characters)
        if ord(after) > ord(before) + 1
    ]
    gaps.append((chr(ord(characters[-1]) + 1), chr(sys.maxunicode)))
    unknown = "".join(f"{first}-{last}" for first, last in gaps)
    # `re` has a table for the characters of the basic plane, 6 ns each, and searches all others.
    suspects = "".join(f"{first}-{last}" for first, last in gaps if last < "\U00010000")
    return re.compile(f"[{suspects}\U00010000-\U0010ffff](?<=[{unknown}])")
