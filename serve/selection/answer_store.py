"""All scored answers of an input on disk, grouped by their prompt, in bounded memory.

Texts are in an unnamed file in the folder of OUTPUT, numbers in an unnamed SQLite database, which
sorts on disk. Both vanish with the process, however it ends. SQLite's own files are in the folder
that the environment variable SQLITE_TMPDIR or TMPDIR names.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Self

from rm_core.inputs.conversations import Messages
from serve.errors import JobInputError
from serve.jobs.writers import encode_line
from serve.selection.choices import Answer
from serve.selection.scored_rows import ScoredRow, measure_answer

MAX_ANSWERS = 10_000
"""Maximum number of answers to one prompt: they are compared in memory."""
_CACHE_KIB = 64 << 10
_BATCH = 1000
_SCHEMA = """
CREATE TABLE read (
    number INTEGER PRIMARY KEY, prompt BLOB, answer BLOB, reward REAL, length INTEGER,
    prompt_start INTEGER, answer_start INTEGER, answer_size INTEGER
);
CREATE TABLE answers (
    number INTEGER PRIMARY KEY, prompt BLOB, reward REAL, length INTEGER,
    prompt_start INTEGER, answer_start INTEGER, answer_size INTEGER
);
CREATE TABLE chosen (chosen INTEGER, rejected INTEGER);
"""
_KEEP_FIRST = """
INSERT INTO answers
SELECT MIN(number), prompt, reward, length, prompt_start, answer_start, answer_size
FROM read GROUP BY prompt, answer ORDER BY 1
"""
_GROUPED = """
SELECT MIN(number) OVER (PARTITION BY prompt) AS first, number, reward, length
FROM answers ORDER BY first, number
"""
_SELECTED = """
SELECT c.reward, c.prompt_start, c.answer_start, c.answer_size,
       r.reward, r.answer_start, r.answer_size
FROM chosen JOIN answers c ON c.number = chosen
LEFT JOIN answers r ON r.number = rejected ORDER BY chosen.rowid
"""


class SelectedRow(NamedTuple):
    """A selected answer, and in a pair the rejected one.

    Attributes:
        prompt: messages of the prompt.
        tools: function definitions of the prompt; None without them.
        kept: columns of the chosen answer's row to keep.
        chosen: messages of the chosen answer.
        chosen_reward: its reward.
        rejected: messages of the rejected answer; None without one.
        rejected_reward: its reward.
        size: size of the texts in bytes.
    """

    prompt: Messages
    tools: Any
    kept: dict[str, Any]
    chosen: Messages
    chosen_reward: float
    rejected: Messages | None
    rejected_reward: float | None
    size: int


class AnswerStore(contextlib.AbstractContextManager["AnswerStore"]):
    """Collects answers, groups them by prompt, and holds which ones are selected.

    Args:
        folder: folder for the texts.
    """

    def __init__(self, folder: Path) -> None:
        self._texts = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._size = self._num_read = 0
        self._pending: list[tuple[Any, ...]] = []
        self._database = sqlite3.connect("", isolation_level=None)
        for pragma in (f"cache_size = -{_CACHE_KIB}", "temp_store = FILE", "journal_mode = OFF"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.executescript(_SCHEMA)
        self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._texts.close()

    def add(self, row: ScoredRow, kept: dict[str, Any]) -> None:
        """Add the answers of a row, and the columns to keep of the row."""
        prompt = encode_line({"prompt": row.prompt, "tools": row.tools})
        digest = _digest(prompt)
        prompt_start = self._append(encode_line({"kept": kept}) + prompt)
        for answer, reward in row.answers:
            line = encode_line({"answer": answer})
            self._num_read += 1
            start = self._append(line)
            self._pending.append(
                (self._num_read, digest, _digest(line), reward, measure_answer(answer),
                 prompt_start, start, len(line))
            )  # fmt: skip
        if len(self._pending) >= _BATCH:
            self._insert()

    def finish_reading(self) -> int:
        """Drop answers that repeat an earlier one to the same prompt; return their number."""
        self._insert()
        self._database.execute(_KEEP_FIRST)
        self._database.execute("DROP TABLE read")
        return self._num_read - self.num_answers

    @property
    def num_answers(self) -> int:
        """Number of different answers, once all are read."""
        return int(self.query("SELECT COUNT(*) FROM answers")[0])

    def iter_groups(self) -> Iterator[list[Answer]]:
        """Yield the answers to each prompt, ordered by the first answer to each prompt.

        Raises:
            JobInputError: a prompt has more than `MAX_ANSWERS` answers.
        """
        rows = self._database.execute(_GROUPED)
        for _, group in itertools.groupby(rows, key=lambda row: row[0]):
            answers = [Answer(*row[1:]) for row in itertools.islice(group, MAX_ANSWERS + 1)]
            if len(answers) > MAX_ANSWERS:
                raise JobInputError(
                    f"a prompt has more than {MAX_ANSWERS:,} answers, which are compared in "
                    "memory; split the input, or name the prompt's column with --prompt-column"
                )
            yield answers

    def select(self, pairs: Iterable[tuple[Answer, Answer | None]]) -> None:
        """Select answers, each with a rejected one or None, in the order of the output."""
        self._database.executemany(
            "INSERT INTO chosen VALUES (?, ?)",
            ((chosen.number, rejected and rejected.number) for chosen, rejected in pairs),
        )

    def select_top(self, top: int | Fraction) -> int:
        """Select the answers with the highest rewards, of equal ones the first; at least one.

        Returns:
            Number of the answers that are not selected and have the lowest selected reward.
        """
        count = max(1, int(top * self.num_answers)) if isinstance(top, Fraction) else top
        self._database.execute(
            "INSERT INTO chosen SELECT number, NULL FROM (SELECT number FROM answers "
            "ORDER BY reward DESC, number LIMIT ?) ORDER BY number",
            (count,),
        )
        lowest = "(SELECT MIN(reward) FROM answers JOIN chosen ON number = chosen)"
        (equal,) = self.query(f"SELECT COUNT(*) FROM answers WHERE reward >= {lowest}")
        return int(equal) - int(self.query("SELECT COUNT(*) FROM chosen")[0])

    def query(self, statement: str) -> tuple[Any, ...]:
        """Return the first row of a query over the tables `answers` and `chosen`."""
        row: tuple[Any, ...] = self._database.execute(statement).fetchone()
        return row

    def iter_selected(self) -> Iterator[SelectedRow]:
        """Yield the selected answers with their texts, in the order of selection."""
        for row in self._database.execute(_SELECTED):
            reward, prompt_start, start, size, rejected_reward, rejected_start, rejected_size = row
            self._texts.seek(prompt_start)
            kept, prompt = self._texts.readline(), self._texts.readline()
            chosen = self._read(start, size)
            rejected = b"" if rejected_start is None else self._read(rejected_start, rejected_size)
            start_of_row = json.loads(prompt)
            yield SelectedRow(
                start_of_row["prompt"],
                start_of_row["tools"],
                json.loads(kept)["kept"],
                json.loads(chosen)["answer"],
                reward,
                json.loads(rejected)["answer"] if rejected else None,
                rejected_reward,
                len(kept) + len(prompt) + len(chosen) + len(rejected),
            )

    def _append(self, line: bytes) -> int:
        start = self._size
        self._texts.write(line)
        self._size += len(line)
        return start

    def _read(self, start: int, size: int) -> bytes:
        self._texts.seek(start)
        return self._texts.read(size)

    def _insert(self) -> None:
        self._database.executemany(
            "INSERT INTO read VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._pending
        )
        self._pending = []


def _digest(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()
