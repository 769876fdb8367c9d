"""`make gpu-check`: everything that needs CUDA, in one command, one table and one JSON line.

The pytest tests of this folder, then four reward models at their true sizes with random weights:
parity with plain transformers, speed, memory. Needs torch and transformers, the tests pytest as
well; installs nothing and takes under ten minutes. Without a CUDA device it says so and exits 0;
`--dry-run` goes through all of it on the CPU with tiny models, and its figures mean nothing.
Each part runs in a process of its own, so that one that fails or hangs takes nothing with it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STARTED = time.monotonic()
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

Row = dict[str, Any]
ROW = "ROW "  # what a line of a part's output starts with, if it is a row
TESTS = "tests"
# Parts in their order, and how much of the time that is left each may take beside those behind it.
WEIGHTS = {TESTS: 6, "Qwen3-0.6B": 3, "Llama-3.1-8B": 4, "Gemma-2-27B": 6, "Qwen3-8B": 4}
_DRY_DIVISOR = 128
# For a part to end by itself after its time is over.
_GRACE_S = 10


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dry-run", action="store_true", help="on the CPU, with tiny models")
    add("--seconds", type=float, help="for all of it; default: 480, and an hour for a dry run")
    add("--rows", type=Path, help="file to which every row is appended as it comes, in JSON lines")
    add("--parts", default=",".join(WEIGHTS), help="which, with commas; default: all")
    add("--part", choices=WEIGHTS, help=argparse.SUPPRESS)  # in the process of a part
    options = parser.parse_args()
    unknown = set(options.parts.split(",")) - set(WEIGHTS)
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(WEIGHTS)}")
    options.seconds = options.seconds or (3600.0 if options.dry_run else 480.0)
    return options


def main() -> int:
    options = arguments()
    if options.part:
        run_part(options.part, options.seconds, options.dry_run, print_row)
        return 0
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(f"gpu-check: {package} is not installed for {sys.executable}; nothing checked")
            return 0
    import torch
    import transformers
    from gpu.report import is_bad, record, table

    if not options.dry_run and not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} sees no CUDA device; nothing checked")
        return 0
    rows = all_parts(options)
    seconds = time.monotonic() - _STARTED
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    dry = "; a dry run on the CPU, figures mean nothing" if options.dry_run else ""
    print(f"\n{told}, {seconds:.0f} s{dry}")
    print(table(rows, _DRY_DIVISOR if options.dry_run else 1))
    bad = sum(map(is_bad, rows))
    summary = {"dry_run": options.dry_run, "seconds": round(seconds), "bad": bad}
    print(json.dumps(versions | summary | record(rows)))
    return int(bool(bad))


def all_parts(options: argparse.Namespace) -> list[Row]:
    """Every part in its own process, one after another, each with its share of the time."""
    from gpu.report import progress

    rows: list[Row] = []

    def take(row: Row) -> None:
        rows.append(row)
        print(progress(row), flush=True)
        if options.rows is not None:  # at once: the process may be killed before the table
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    end = _STARTED + options.seconds  # imports count
    wanted = [part for part in WEIGHTS if part in options.parts.split(",")]
    for index, part in enumerate(wanted):
        share = WEIGHTS[part] / sum(WEIGHTS[later] for later in wanted[index:])
        seconds = max(1.0, (end - time.monotonic()) * share - _GRACE_S)
        command = [sys.executable, __file__, "--part", part, "--seconds", str(round(seconds))]
        command += ["--dry-run"] if options.dry_run else []
        why = collect(command, seconds + _GRACE_S, take)
        if why:
            take({"model": part, "way": "", "what": "part", "failed": why})
    return rows


def collect(command: list[str], seconds: float, take: Callable[[Row], None]) -> str:
    """Run a part, hand on its rows as they come, and end it when its time is over.

    Returns:
        Why it ended badly; empty if it did not.
    """
    last: deque[str] = deque(maxlen=30)
    number = 0
    start = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            row = read_row(line)
            if row is not None:
                number += 1
                take(row)
            elif line.strip():
                last.append(line.rstrip())
        code = process.wait()
        timer.cancel()
    if not code and number:
        return ""
    print(*last, sep="\n", flush=True)
    if time.monotonic() - start >= seconds:
        return f"ended after {seconds:.0f} s, its share of the time"
    end = last[-1] if last else "no output"
    return f"exit code {code}: {end}" if code else f"it printed no rows: {end}"


def print_row(row: Row) -> None:
    """Print a row on a line that holds nothing else.

    pytest and libraries print without ending their lines, hence the line break before the row.
    """
    print(f"\n{ROW}{json.dumps(row)}", flush=True)


def read_row(line: str) -> Row | None:
    """Return the row that a line of output holds; None for any other line.

    The last line of a process that was killed may be cut anywhere.
    """
    if not line.startswith(ROW):
        return None
    try:
        row: Row = json.loads(line.removeprefix(ROW))
    except ValueError:
        return None
    return row


def run_part(part: str, seconds: float, dry_run: bool, emit: Callable[[Row], None]) -> None:
    """One part, in this process.

    Args:
        part: of `WEIGHTS`.
        seconds: since the start of the process, after which nothing new is begun.
        dry_run: on the CPU, with a tiny model.
        emit: takes each row.
    """
    from gpu.memory_meter import Clock, Meter

    clock = Clock(seconds - (time.monotonic() - _STARTED))
    if part == TESTS:
        run_tests(dry_run, clock, emit)
        return
    import torch
    from gpu.figures import Figures
    from gpu.models import SHAPES
    from gpu.sequences import Scale

    from rm_core.attention import eager

    if dry_run:
        eager.BLOCK = 4  # of the size of its conversations
        torch.set_num_threads(1)
    meter = Meter(torch.device("cpu" if dry_run else "cuda"))
    scale = Scale(_DRY_DIVISOR if dry_run else 1)
    Figures(SHAPES[part], meter, clock, emit, scale).run()


class Outcomes:
    """A pytest plugin that makes one row of each test, and skips those that no time is left for.

    Args:
        clock: the time there is.
        emit: takes the rows.
    """

    def __init__(self, clock: Any, emit: Callable[[Row], None]) -> None:
        self._clock = clock
        self._emit = emit
        self.num_failed = 0

    def pytest_collection_finish(self, session: Any) -> None:
        self._emit({"model": TESTS, "way": "", "what": "tests", "collected": len(session.items)})

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self._fail(report.nodeid, last_line(str(report.longrepr)))

    def pytest_internalerror(self, excinfo: Any) -> None:
        self._fail("pytest", f"internal error: {excinfo.exconly()}")

    def pytest_runtest_setup(self, item: object) -> None:
        import pytest

        if self._clock.left <= 0:
            pytest.skip("no time left")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.rpartition("::")[2]
            if report.outcome == "failed":
                crash = getattr(report.longrepr, "reprcrash", None)
                message = str(getattr(crash, "message", "") or report.longrepr)
                self._fail(name, message.partition("\n")[0], report.duration)
                return
            row: Row = {"model": TESTS, "way": name, "what": "test", "outcome": report.outcome}
            row |= {"seconds": report.duration, "reason": ""}
            if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
                row["reason"] = report.longrepr[2].removeprefix("Skipped: ")
            self._emit(row)

    def _fail(self, name: str, reason: str, seconds: float = 0.0) -> None:
        self.num_failed += 1
        row: Row = {"model": TESTS, "way": name, "what": "test", "outcome": "failed"}
        self._emit(row | {"seconds": seconds, "reason": reason[:200], "ok": False})


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def run_tests(dry_run: bool, clock: Any, emit: Callable[[Row], None], folder: Path = HERE) -> None:
    """Run the pytest tests of a folder where pytest is installed; a dry run only collects them."""
    if importlib.util.find_spec("pytest") is None:
        emit({"model": TESTS, "way": "", "what": "tests", "skipped": "pytest is not installed"})
        return
    import pytest

    options = ["--quiet", "--no-header", "-p", "no:cacheprovider", "-c", "/dev/null"]
    options += ["--rootdir", str(folder), "--noconftest", "--import-mode", "importlib"]
    # The tests of the check itself need no GPU, and take time from those that do.
    options += ["--collect-only"] if dry_run else ["--ignore", str(folder / "test_dry_run.py")]
    outcomes = Outcomes(clock, emit)
    code = pytest.main([*options, str(folder)], plugins=[outcomes])
    if code and not outcomes.num_failed:
        reason = f"pytest ended with exit code {int(code)}, and no test is reported as failed"
        emit({"model": TESTS, "way": "", "what": "tests", "failed": reason})


if __name__ == "__main__":
    sys.exit(main())
