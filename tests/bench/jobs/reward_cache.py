"""`--reward-cache`: what a row costs without it, when it is filled, and when it has all rewards.

Three jobs over the same short rows, all different, with a model so small that it costs next to
nothing. The start is that of a job of one row, whose rewards are in the file too. The last line is
one JSON object; `file_mb_per_million` extrapolates the size of the file.

    python tests/bench/jobs/reward_cache.py [--rows 100000]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from running import Ended
from scale_1m import job_of
from stress_result import finish
from tiny_model import build_tiny


def measured(number: int, folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    model = str(build_tiny(folder / "tiny"))
    cache = folder / "cache.sqlite"
    with_cache = ("--reward-cache", str(cache))
    jobs = {"without": (), "filling": with_cache, "hitting": with_cache}
    ended: dict[str, Ended] = {}
    figures: dict[str, Any] = {}
    reused, computed = {}, {}
    for name, flags in jobs.items():
        (folder / name).mkdir()
        ended[name], summary = job_of(number, folder / name, model, *flags)
        reused[name], computed[name] = summary["num_reused_rewards"], summary["num_computed_tokens"]
    start, _ = job_of(1, folder, model, *with_cache)
    for name, one in ended.items():
        figures[name] = {
            "row_cpu_us": round(1e6 * (one.cpu_s - start.cpu_s) / number, 1),
            "row_wall_us": round(1e6 * (one.seconds - start.seconds) / number, 1),
            "peak_mib": round(one.peak_bytes / 2**20, 1),
        }
    figures["file_mb_per_million"] = round(cache.stat().st_size / number, 1)
    checks = {
        "the second job scores nothing": reused["hitting"] == number and not computed["hitting"],
        "the first job finds nothing": not reused["filling"],
    }
    return checks, figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        return finish(*measured(options.rows, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
