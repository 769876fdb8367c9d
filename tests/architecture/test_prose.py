"""Documents, docstrings, comments, help and messages use none of these tics and old names.

As a script it prints every hit: `python tests/architecture/test_prose.py [PATH...]`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What to write instead stands behind each.
TICS = {
    r"\b(?:is|are|was|were|be) no\b(?! longer)": "is not, has no",
    r"\btold\b": "reported, distinguished, passed",
    r"\bwhoever\b": "name the person or the process",
    r"\bbeside\b": "in addition to, next to, with",
    r"\b(?:afresh|anew)\b": "again, from the start",
    r"\breckon": "compute, estimate",
    r"\bfor ever\b": "forever, without limit",
    r"\bof (?:its|their|our|one's) own\b": "its own X",
    r"\bstands? (?:in|at|for|there|behind|first|last)\b": "is in, is at, means",
    r"\bbrings? none\b": "has none",
    r"\bsay aloud\b": "log a warning",
    r"\bfor a while\b": "for N seconds, temporarily",
    r"\bthe same ones?\b": "name it",
    r"\bonce more\b": "again",
    r"\bgives? out\b": "runs out",
}
# Names that other ones have replaced.
GONE = {
    r"\b(?:a|the|each|one|every|of|per|small|large|whole) posts?\b": "request",
    r"\bfigures?\b": "metric, result, number; plot",
    r"\bcarriers?\b": "executor",
    r"\bdoors?\b": "login page, proxy",
    r"\bseats?\b": "actor",
    r"\bdialects?\b": "chat format",
    r"\bpoison": "abandoned, quarantined",
    r"\bmake hold\b": "make stress",
    r"\bserve\.clients\b": "serve.client",
    r"\bnum_posts\b": "max_concurrency",
}
PATTERNS = {
    re.compile(pattern, re.IGNORECASE): instead for pattern, instead in (TICS | GONE).items()
}
# They name what is gone.
EXEMPT = {"docs/changelog.md", "serve/clients/__init__.py"}
FILES = sorted(
    path
    for pattern in ("rm_core/**/*.py", "serve/**/*.py", "docs/**/*.md", "README.md")
    for path in ROOT.glob(pattern)
    if str(path.relative_to(ROOT)) not in EXEMPT
)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that a person reads, with their numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        in_code = False
        for number, line in enumerate(text.splitlines(), 1):
            in_code ^= line.lstrip().startswith("```")
            if not in_code:
                yield number, re.sub(r"`[^`]*`", "``", line)
        return
    for node in ast.walk(ast.parse(text)):
        # A name or a key has no space.
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def hits(path: Path) -> list[str]:
    """Each as `path:line: word (what to write instead): line`."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {found[0]!r} ({instead}): {line.strip()}"
        for number, line in prose(path)
        for pattern, instead in PATTERNS.items()
        if (found := pattern.search(line))
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_has_no_tics_and_no_old_names(path: Path) -> None:
    assert hits(path) == []


if __name__ == "__main__":
    chosen = [Path(name).resolve() for name in sys.argv[1:]]
    found = [
        hit
        for file in FILES
        if not chosen or any(file.is_relative_to(path) for path in chosen)
        for hit in hits(file)
    ]
    print(*found, sep="\n", end="\n" if found else "")
    sys.exit(1 if found else 0)
