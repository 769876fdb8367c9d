"""`make gpu-check`: all checks that need CUDA, in one command, with a table and a JSON line.

The check runs the pytest tests of this folder, then measures four reward models in their true sizes
with random weights: parity with plain transformers, speed, memory. It needs torch and transformers,
and pytest for the tests, installs nothing and takes less than ten minutes. Without a CUDA device it
prints a message and exits with 0. `--dry-run` runs everything on the CPU with tiny models; its
results are meaningless. Each part runs in a separate process, so that a part that fails or hangs
does not affect the others.
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
ROW = "ROW "  # prefix of the rows in a part's output
TESTS = "tests"
# Parts in order, and their weights: a part gets its share of the remaining time by weight, compared
# with the parts that follow.
WEIGHTS = {TESTS: 6, "Qwen3-0.6B": 3, "Llama-3.1-8B": 4, "Gemma-2-27B": 6, "Qwen3-8B": 4}
_DRY_DIVISOR = 128
# Time for a part to end by itself after its deadline.
_GRACE_S = 10


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--dry-run", action="store_true", help="run on the CPU with tiny models")
    add("--seconds", type=float, help="time for all parts; default: 480, for a dry run 3600")
    add("--rows", type=Path, help="file to which every row is appended at once, as JSON lines")
    add("--parts", default=",".join(WEIGHTS), help="parts to run, comma-separated; default: all")
    add("--part", choices=WEIGHTS, help=argparse.SUPPRESS)  # set in the process of a part
    options = parser.parse_args()
    unknown = set(options.parts.split(",")) - set(WEIGHTS)
    if unknown:
        parser.error(f"unknown part: {', '.join(unknown)}; known: {', '.join(WEIGHTS)}")
    options.seconds = options.seconds or (3600.0 if options.dry_run else 480.0)
    return options


def main() -> int:
    options = parse_arguments()
    if options.part:
        run_part(options.part, options.seconds, options.dry_run, print_row)
        return 0
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(f"gpu-check: {package} is not installed for {sys.executable}; nothing checked")
            return 0
    import torch
    import transformers
    from gpu.report import build_json, build_table, is_bad

    if not options.dry_run and not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} finds no CUDA device; nothing checked")
        return 0
    rows = run_parts(options)
    seconds = time.monotonic() - _STARTED
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    dry = "; a dry run on the CPU, results are meaningless" if options.dry_run else ""
    print(f"\n{packages}, {seconds:.0f} s{dry}")
    print(build_table(rows, _DRY_DIVISOR if options.dry_run else 1))
    bad = sum(map(is_bad, rows))
    summary = {"dry_run": options.dry_run, "seconds": round(seconds), "bad": bad}
    print(json.dumps(versions | summary | build_json(rows)))
    return int(bool(bad))


def run_parts(options: argparse.Namespace) -> list[Row]:
    """Run every part in its own process, one after another, each with its share of the time."""
    from gpu.report import format_progress

    rows: list[Row] = []

    def add_row(row: Row) -> None:
        rows.append(row)
        print(format_progress(row), flush=True)
        if options.rows is not None:  # at once: the process may be killed before the table
            with options.rows.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    end = _STARTED + options.seconds  # includes imports
    parts = [part for part in WEIGHTS if part in options.parts.split(",")]
    for index, part in enumerate(parts):
        share = WEIGHTS[part] / sum(WEIGHTS[later] for later in parts[index:])
        seconds = max(1.0, (end - time.monotonic()) * share - _GRACE_S)
        command = [sys.executable, __file__, "--part", part, "--seconds", str(round(seconds))]
        command += ["--dry-run"] if options.dry_run else []
        failure = collect(command, seconds + _GRACE_S, add_row)
        if failure:
            add_row({"model": part, "way": "", "what": "part", "failed": failure})
    return rows


def collect(command: list[str], seconds: float, add_row: Callable[[Row], None]) -> str:
    """Run a part, pass on its rows as they are printed, and kill it when its time is over.

    Returns:
        Reason of the failure; empty if the part succeeded.
    """
    last_lines: deque[str] = deque(maxlen=30)
    num_rows = 0
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
                num_rows += 1
                add_row(row)
            elif line.strip():
                last_lines.append(line.rstrip())
        code = process.wait()
        timer.cancel()
    if not code and num_rows:
        return ""
    print(*last_lines, sep="\n", flush=True)
    if time.monotonic() - start >= seconds:
        return f"killed after {seconds:.0f} s, its share of the time"
    end = last_lines[-1] if last_lines else "no output"
    return f"exit code {code}: {end}" if code else f"the part printed no rows: {end}"


def print_row(row: Row) -> None:
    """Print a row on a separate line.

    pytest and libraries print without ending their lines, hence the line break before the row.
    """
    print(f"\n{ROW}{json.dumps(row)}", flush=True)


def read_row(line: str) -> Row | None:
    """Return the row in a line of output; None for any other line.

    The last line of a killed process may be truncated anywhere.
    """
    if not line.startswith(ROW):
        return None
    try:
        row: Row = json.loads(line.removeprefix(ROW))
    except ValueError:
        return None
    return row


def run_part(part: str, seconds: float, dry_run: bool, emit: Callable[[Row], None]) -> None:
    """Run one part in this process.

    Args:
        part: a key of `WEIGHTS`.
        seconds: time since the start of the process after which no new step starts.
        dry_run: whether to run on the CPU with a tiny model.
        emit: function that receives each row.
    """
    from gpu.memory_meter import Clock, Meter

    clock = Clock(seconds - (time.monotonic() - _STARTED))
    if part == TESTS:
        run_tests(dry_run, clock, emit)
        return
    import torch
    from gpu.measurements import ModelMeasurement
    from gpu.models import SHAPES
    from gpu.sequences import Scale

    from rm_core.attention import eager

    if dry_run:
        eager.BLOCK = 4  # for short conversations
        torch.set_num_threads(1)
    meter = Meter(torch.device("cpu" if dry_run else "cuda"))
    scale = Scale(_DRY_DIVISOR if dry_run else 1)
    ModelMeasurement(SHAPES[part], meter, clock, emit, scale).run()


class RowPlugin:
    """A pytest plugin that emits a row for each test, and skips tests when no time is left.

    Args:
        clock: the remaining time.
        emit: function that receives the rows.
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
    """Run the pytest tests of a folder if pytest is installed; a dry run only collects them."""
    if importlib.util.find_spec("pytest") is None:
        emit({"model": TESTS, "way": "", "what": "tests", "skipped": "pytest is not installed"})
        return
    import pytest

    options = ["--quiet", "--no-header", "-p", "no:cacheprovider", "-c", "/dev/null"]
    options += ["--rootdir", str(folder), "--noconftest", "--import-mode", "importlib"]
    # The tests of the check itself need no GPU, and would take time from the GPU tests.
    options += ["--collect-only"] if dry_run else ["--ignore", str(folder / "test_dry_run.py")]
    plugin = RowPlugin(clock, emit)
    code = pytest.main([*options, str(folder)], plugins=[plugin])
    if code and not plugin.num_failed:
        reason = f"pytest ended with exit code {int(code)}, but no test is reported as failed"
        emit({"model": TESTS, "way": "", "what": "tests", "failed": reason})


if __name__ == "__main__":
    sys.exit(main())
