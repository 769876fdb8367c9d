"""A million short rows: does memory grow with the input, and what does a row cost beside its score?

What is measured, with a model so small that it costs next to nothing: the peak memory of a job of
1,000,000 different rows against one of 100,000; and the time and CPU of a row that are neither
start nor scoring. The start is that of a job of one row; scoring is what the scorer takes in this
process for the same conversations, 2,000 at a time. Both share the machine with nothing else. The
last line is one JSON object.

    python tests/bench/jobs/scale_1m.py [--rows 1000000]
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from running import Ended, require, run, summary_of, write_rows
from stress_result import finish
from tiny_model import build_tiny

from rm_core import ModelConfig, RewardScorer

GROWTH = 1.3
_CHUNK = 2_000


def rows_of(number: int) -> Iterator[dict[str, Any]]:
    """Short conversations, all different."""
    for index in range(number):
        yield {
            "id": index,
            "messages": [
                {"role": "user", "content": f"What is {index} plus {index % 97}?"},
                {"role": "assistant", "content": f"It is {index + index % 97}."},
            ],
        }


def job_of(number: int, folder: Path, model: str, *flags: str) -> tuple[Ended, dict[str, Any]]:
    """One job, and its figures; its files are removed."""
    source, output = folder / f"{number}.jsonl", folder / f"{number}.scored.jsonl"
    write_rows(source, rows_of(number))
    arguments = [source, "-o", output, "--model", model, *flags]
    ended = require(run(arguments, folder / f"{number}.log"))
    with output.open("rb") as lines:
        written = sum(1 for _ in lines)
    summary = {**summary_of(output), "written": written}
    source.unlink()
    output.unlink()
    return ended, summary


def scoring(model: str, num_chunks: int) -> tuple[float, float]:
    """Seconds and CPU seconds of a row in the scorer alone."""
    scorer = RewardScorer.load(ModelConfig(model))
    # As the command does: else the collector looks through all of torch again and again.
    gc.collect()
    gc.freeze()
    rows = [row["messages"] for row in rows_of(_CHUNK * (num_chunks + 1))]
    scorer.score(rows[:_CHUNK])
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(_CHUNK, len(rows), _CHUNK):
        scorer.score(rows[start : start + _CHUNK])
    number = _CHUNK * num_chunks
    return (time.perf_counter() - wall) / number, (time.process_time() - cpu) / number


def measured(options: argparse.Namespace, folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    model = str(build_tiny(folder / "tiny"))
    small, large = options.rows // 10, options.rows
    start, _ = job_of(1, folder, model)
    figures: dict[str, Any] = {}
    peaks, all_there = [], True
    for number in (small, large):
        report = ("--report", str(folder / "report.html")) if options.report else ()
        ended, summary = job_of(number, folder, model, *report)
        peaks.append(ended.peak_bytes)
        all_there &= summary["written"] == number and not summary["errors"]
        figures[f"{number}_rows"] = {
            "wall_s": round(ended.seconds, 1),
            "cpu_s": round(ended.cpu_s, 1),
            "peak_mib": round(ended.peak_bytes / 2**20, 1),
        }
        print(number, figures[f"{number}_rows"], flush=True)
    wall, cpu = scoring(model, options.chunks)
    figures["start"] = {
        "wall_s": round(start.seconds, 1),
        "peak_mib": round(start.peak_bytes / 2**20, 1),
    }
    figures["memory_growth"] = round(peaks[1] / peaks[0], 3)
    figures["row_us"] = {
        "wall": round(1e6 * (ended.seconds - start.seconds) / large, 1),
        "cpu": round(1e6 * (ended.cpu_s - start.cpu_s) / large, 1),
        "scoring_wall": round(1e6 * wall, 1),
        "scoring_cpu": round(1e6 * cpu, 1),
        "overhead_cpu": round(1e6 * ((ended.cpu_s - start.cpu_s) / large - cpu), 1),
    }
    checks = {
        "every row is there": all_there,
        f"peak memory at most {GROWTH:g} times": peaks[1] <= GROWTH * peaks[0],
    }
    return checks, figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large job")
    parser.add_argument("--chunks", type=int, default=10, help="of 2,000 rows, scored here")
    parser.add_argument("--report", action="store_true", help="with a report")
    options = parser.parse_args()
    # One thread in both: several wait for each other by spinning, which is CPU time too.
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return finish(*measured(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
