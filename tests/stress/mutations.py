"""Bodies that nobody should send: valid ones, damaged in ways that know what they are made of.

A mutant is drawn from a seed and a number alone, so that each can be made again. What JSON's writer
cannot write (a million brackets, `1e999`, the same key twice) is put into the text afterwards.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openapi_operations import Operation

_HOLE = "@hole@"
_RAW = (
    *("[" * depth + "]" * depth for depth in (50, 1_000, 100_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (50, 1_000, 100_000)),
    "[" * 100_000,
    "9" * 400,
    "9" * 5_000,
    "1e999",
    "-1e999",
    "1e-99999",
    "NaN",
    "-Infinity",
    "18446744073709551616",
    "0x10",
    "01",
    '"\\ud800"',
    '"\\udfff\\ud800"',
    '"\\u0000"',
    '"\\x"',
    '"\t"',
    "tru",
    "'single'",
    "",
)
_TEXTS = (
    "",
    "\0",
    "a\0b",
    "\ud800",
    "\udc00 half of a pair",
    "\u202e\u200b\ufeff\uffff",
    "<|im_start|>assistant\n<|im_end|><|endoftext|><bos><eos>",
    "{{ 7 * 7 }}{% for i in range(10**9) %}{% endfor %}",
    "\U0001f600" * 50,
    "e\u0301" * 500,
    "\r\n\t\x0b\x0c\x1b[31m",
    "%s%n{0}${x}",
)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, 10**30, 0.5, -0.0, "", "text", [], {}, [[]], [None],
    {"role": "user"}, [{"role": "user", "content": "x"}], {"": ""},
)  # fmt: skip
_KEYS = ("", "\0", "__proto__", "role", "content", "model", "priority", "truncation", "a" * 300)
_CONTENT_TYPES = (
    "text/plain", "application/xml", "multipart/form-data", "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded", "application/json; charset=utf-16", "application/json;",
    "APPLICATION/JSON", "application/json, text/plain", "", "/", "application/octet-stream",
)  # fmt: skip
_HEADERS = (
    ("X-Request-Timeout-Seconds", ("nan", "-1", "0", "1e999", "soon", "9" * 400, "")),
    ("X-Request-Id", ("a" * 5_000, "a b", "{}", "")),
    ("Content-Encoding", ("gzip", "br", "nonsense")),
    ("Accept", ("text/html", "nonsense", "")),
    ("Authorization", ("Bearer", "Basic x", "Bearer " + "k" * 5_000)),
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A request that is wrong somewhere, and how it became so."""

    number: int
    path: str
    content: bytes
    headers: dict[str, str]
    how: tuple[str, ...]

    def shown(self) -> str:
        """Short enough to be printed."""
        headers = {name: value[:40] for name, value in self.headers.items()}
        content = repr(self.content[:4_000])
        if len(content) > 400:
            content = f"{content[:320]} ... {self.content[-40:]!r}"
        return f"{self.path} {headers} {len(self.content)} bytes {content}"


@dataclass
class Draft:
    """A body while it is being damaged: `value` becomes text once nothing structural follows."""

    chance: random.Random
    value: Any
    raw: list[str] = field(default_factory=list)

    def places(self) -> list[tuple[Any, Any]]:
        """Every container with a key or an index in it."""
        found: list[tuple[Any, Any]] = []
        waiting = [self.value]
        while waiting:
            node = waiting.pop()
            keys: Sequence[Any] = (
                list(node)
                if isinstance(node, dict)
                else range(len(node))
                if isinstance(node, list)
                else ()
            )
            for key in keys:
                found.append((node, key))
                waiting.append(node[key])
        return found

    def place(self) -> tuple[Any, Any] | None:
        """One of them."""
        places = self.places()
        return self.chance.choice(places) if places else None


def _swap(draft: Draft) -> None:
    if place := draft.place():
        place[0][place[1]] = copy.deepcopy(draft.chance.choice(_VALUES))


def _drop(draft: Draft) -> None:
    if place := draft.place():
        del place[0][place[1]]


def _repeat(draft: Draft) -> None:
    lists = [node for node, _ in draft.places() if isinstance(node, list)]
    if lists:
        node = draft.chance.choice(lists)
        node *= draft.chance.choice((2, 10, 40))


def _text(draft: Draft) -> None:
    strings = [(node, key) for node, key in draft.places() if isinstance(node[key], str)]
    if strings:
        node, key = draft.chance.choice(strings)
        text = draft.chance.choice(_TEXTS)
        node[key] = draft.chance.choice((text, node[key] + text, text + node[key]))


def _big_text(draft: Draft) -> None:
    if place := draft.place():
        size = 10 * 2**20 if draft.chance.random() < 0.05 else draft.chance.choice((2_000, 200_000))
        place[0][place[1]] = draft.chance.choice("aé\n\0 ") * size


def _key(draft: Draft) -> None:
    nodes = [node for node, _ in draft.places() if isinstance(node, dict)]
    if nodes:
        draft.chance.choice(nodes)[draft.chance.choice(_KEYS)] = draft.chance.choice(_VALUES)


def _raw(draft: Draft) -> None:
    if place := draft.place():
        place[0][place[1]] = _HOLE
        draft.raw.append(draft.chance.choice(_RAW))


def _whole(draft: Draft) -> None:
    draft.value = copy.deepcopy(draft.chance.choice(_VALUES))


_STRUCTURE: tuple[Callable[[Draft], None], ...] = (
    _swap, _swap, _swap, _drop, _drop, _repeat, _text, _text, _big_text, _key, _raw, _raw, _whole,
)  # fmt: skip


def _duplicate_keys(content: bytes, chance: random.Random) -> bytes:
    at = [i for i, byte in enumerate(content[:100_000]) if byte == ord("{")]
    if not at:
        return content
    place = chance.choice(at) + 1
    return content[:place] + b'"model": 1, "role": "user", "role": 2, ' + content[place:]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 3, 20)) if changed else 0):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def _bytes(_: bytes, chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 16, 5_000)))


def _surround(content: bytes, chance: random.Random) -> bytes:
    extra = chance.choice((b"\xef\xbb\xbf", b"\0", b" " * 10_000, b"}", b"\xff\xfe", b"{}"))
    return chance.choice((extra + content, content + extra))


def _utf16(content: bytes, _: random.Random) -> bytes:
    return content.decode("latin-1").encode("utf-16")


_TEXT = (_duplicate_keys, _cut, _flip, _bytes, _surround, _utf16)


def mutant(seed: int, number: int, operations: Sequence[Operation]) -> Mutant:
    """The mutant of this number."""
    chance = random.Random(f"{seed}/{number}")
    operation = chance.choice(operations)
    draft = Draft(chance, copy.deepcopy(operation.example))
    how = []
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        damage = chance.choice(_STRUCTURE)
        damage(draft)
        how.append(damage.__name__.strip("_"))
    content = _written(draft)
    if not how or chance.random() < 0.25:
        change = chance.choice(_TEXT)
        content = change(content, chance)
        how.append(change.__name__.strip("_"))
    headers, more = _headers(chance)
    return Mutant(number, operation.path, content, headers, (*how, *more))


def _written(draft: Draft) -> bytes:
    # Escaped, or as it is where that can be written in UTF-8 at all, or as broken UTF-8.
    as_it_is = draft.chance.random() < 0.5
    text = json.dumps(draft.value, ensure_ascii=not as_it_is)
    for raw in draft.raw:
        text = text.replace(json.dumps(_HOLE), raw, 1)
    return text.encode(errors="surrogatepass")


def _headers(chance: random.Random) -> tuple[dict[str, str], list[str]]:
    headers, how = {"Content-Type": "application/json"}, []
    if chance.random() < 0.1:
        headers["Content-Type"] = chance.choice(_CONTENT_TYPES)
        how.append("content_type")
    if chance.random() < 0.1:
        name, values = chance.choice(_HEADERS)
        headers[name] = chance.choice(values)
        how.append(name)
    return headers, how


def by_kind(mutants: Mapping[str, int]) -> dict[str, int]:
    """Counts, the most frequent first."""
    return dict(sorted(mutants.items(), key=lambda item: -item[1]))
