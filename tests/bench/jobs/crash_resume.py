"""A job killed again and again: is its output what it would have been, and what is done twice?

What is measured: a job of random rows (conversations, pairs and groups, duplicates and bad rows
among them) runs undisturbed; then the same job is killed with SIGKILL at moments drawn at random,
a quarter of them while it starts and the others while it scores, and started again each time, until
it was killed often enough and is done. Each
start has to go on behind the last chunk that was whole when the one before was killed, and the
output has to be the same to the last byte. What is repeated then is at most what was in flight,
whatever it is: the CPU time of all starts together says how much that was, with what starting costs
apart. The last line is one JSON object.

    python tests/bench/jobs/crash_resume.py [--kills 20] [--rows 20000]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from running import Ended, Running, chunks_in, require, run, summary_of, write_rows
from stress_result import finish
from tiny_model import build_tiny

_EARLY = 0.25
_WORDS = [f"word{number}" for number in range(500)]


def rows_of(number: int, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Rows of every shape; one in ten is like an earlier one, one in fifty cannot be scored."""
    earlier: list[dict[str, Any]] = []

    def text() -> str:
        return " ".join(chance.choices(_WORDS, k=chance.randint(5, 60)))

    for index in range(number):
        prompt = text()
        row: dict[str, Any] = chance.choice(
            (
                {"messages": [_turn("user", prompt), _turn("assistant", text())]},
                {"prompt": prompt, "chosen": text(), "rejected": text()},
                {"prompt": prompt, "responses": [text() for _ in range(4)]},
            )
        )
        if earlier and chance.random() < 0.1:
            row = chance.choice(earlier)
        elif chance.random() < 0.02:
            row = {"messages": [_turn("user", "nobody answers")]}
        elif len(earlier) < 2_000:
            earlier.append(row)
        yield {"number": index, **row}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def went_on_behind(ended: Ended) -> int:
    """The row that a start said it goes on behind; 0 if it said nothing."""
    found = re.search(r"resuming at row ([\d,]+)", ended.said)
    return int(found.group(1).replace(",", "")) if found else 0


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def killed(
    arguments: list[str | Path],
    output: Path,
    starting_s: float,
    scoring_s: float,
    options: argparse.Namespace,
) -> tuple[list[Ended], int, int]:
    """Start, kill, and start again.

    Returns:
        Every start; how many were killed; how often one went on elsewhere than it should.
    """
    chance = random.Random(options.seed)
    starts: list[Ended] = []
    kills = astray = behind = 0
    while kills < options.kills:
        job = Running([*arguments, "-o", output], output.with_suffix(".log"), options.chunk_rows)
        if chance.random() < _EARLY:
            alive = job.kill_after(chance.uniform(0, starting_s), lambda: True)
        else:
            whole = behind // options.chunk_rows
            moment = chance.uniform(0, 2 * scoring_s / options.kills)
            alive = job.kill_after(moment, lambda whole=whole: chunks_in(output) > whole)
        ended = job.wait()
        starts.append(ended)
        kills += alive
        at = went_on_behind(ended)
        astray += at not in (0, behind)
        done = chunks_in(output)
        behind = done * options.chunk_rows
        print(f"  kill {kills}: after {ended.seconds:.1f} s, went on at {at}, {done} chunks")
        if output.exists() and not alive:
            require(ended)
            print("  done before it was killed often enough: once more from the start", flush=True)
            output.unlink()
            shutil.rmtree(output.parent / f"{output.name}.job")
            behind = 0
    log = output.with_suffix(".log")
    starts.append(require(run([*arguments, "-o", output], log, options.chunk_rows)))
    return starts, kills, astray


def measured(options: argparse.Namespace, folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    source, output = folder / "rows.jsonl", folder / "killed.jsonl"
    model = options.model or str(build_tiny(folder / "tiny"))
    write_rows(source, rows_of(options.rows, random.Random(options.seed)))
    arguments = [source, "--model", model]
    undisturbed = folder / "undisturbed.jsonl"
    whole = require(
        run([*arguments, "-o", undisturbed], folder / "undisturbed.log", options.chunk_rows)
    )
    scoring_s = summary_of(undisturbed)["seconds"]
    starting_s = whole.seconds - scoring_s
    print(f"undisturbed: {whole.seconds:.1f} s, {scoring_s:.1f} s of it scoring", flush=True)
    starts, kills, astray = killed(arguments, output, starting_s, scoring_s, options)
    again = require(run([*arguments, "-o", output], folder / "again.log", options.chunk_rows))
    checks = {
        f"{options.kills} kills": kills >= options.kills,
        "output is the same to the last byte": digest(output) == digest(undisturbed),
        "every start went on behind the last whole chunk": astray == 0,
        "nothing but the state and the lock is kept": {
            path.name for path in (folder / "killed.jsonl.job").iterdir()
        }
        == {"state.sqlite", "lock"},
    }
    return checks, {
        "rows": options.rows,
        "chunk_rows": options.chunk_rows,
        "kills": kills,
        "undisturbed": {"wall_s": round(whole.seconds, 1), "cpu_s": round(whole.cpu_s, 1)},
        "killed": {
            "starts": len(starts),
            "wall_s": round(sum(start.seconds for start in starts), 1),
            "cpu_s": round(sum(start.cpu_s for start in starts), 1),
        },
        "chunk_s": round(scoring_s * options.chunk_rows / options.rows, 2),
        "start_when_done_s": round(again.seconds, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="by default one that costs next to nothing")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--chunk-rows", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return finish(*measured(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
