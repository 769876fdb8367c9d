"""A million scored rows: how much memory and time do best-of-n and pairs take?

What is measured: the peak memory and the time of `skyreward select` over rows of one answer each,
with four answers to a prompt that lie far apart in the file; and of a tenth of the rows, as memory
must not grow with the input. Pairs are drawn at random, twice, and have to be equal to the last
byte. The last line is one JSON object.

    python tests/bench/jobs/select_1m.py [--rows 1000000]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from running import Ended, require, run, write_rows
from stress_result import finish

_ANSWERS = 4
_MAX_MIB = 1024
_WORDS = [f"word{number}" for number in range(500)]


def rows_of(number: int) -> Iterator[dict[str, Any]]:
    """Scored rows: all prompts with their first answer, then all with their second, and so on."""
    chance = random.Random(0)
    for index in range(number):
        prompt = index % (number // _ANSWERS)
        yield {
            "id": index,
            "prompt": f"Write about {prompt} with {_WORDS[prompt % 500]}.",
            "response": " ".join(chance.choices(_WORDS, k=chance.randint(20, 80))),
            "reward": chance.gauss(0, 5),
        }


def select(source: Path, output: Path, *flags: str) -> tuple[Ended, str]:
    """Select once; return what it took, and the digest of the output."""
    log = source.with_suffix(".log")
    ended = require(run([source, "-o", output, *flags], log, command="select"))
    with output.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ended, digest


def main() -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    figures: dict[str, Any] = {"rows": rows}
    within = equal = True
    with tempfile.TemporaryDirectory() as folder:
        for number in (rows // 10, rows):
            source = Path(folder) / f"{number}.jsonl"
            write_rows(source, rows_of(number))
            drawn = ("--pairs", "--against", "random", "--seed", "7")
            digests = []
            for name, suffix, flags in (
                ("best", ".jsonl", ("--best-of-n",)),
                ("pairs", ".jsonl", drawn),
                ("pairs_again", ".jsonl", drawn),
                ("top", ".parquet", ("--top", "10%")),
            ):
                ended, digest = select(source, source.with_name(f"out{suffix}"), *flags)
                digests.append(digest)
                mib = ended.peak_bytes / 2**20
                figures[f"{name}_{number}"] = {
                    "peak_mib": round(mib),
                    "wall_s": round(ended.seconds, 1),
                }
                print(name, number, figures[f"{name}_{number}"], flush=True)
                within = within and mib <= _MAX_MIB
            equal = equal and digests[1] == digests[2]
            source.unlink()
    checks = {f"at most {_MAX_MIB:,} MiB": within, "equal seeds give equal bytes": equal}
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
