"""Runs every script of this folder one after another, each with a service of its own.

In short form, about 20 minutes on two cores, or with `--full` at the length that the figures in
docs/explanation/reliability.md come from, about an hour. Each prints its own findings, the logs of
their services go to `build/stress`; the last line is one JSON object.

    python tests/stress/run_all.py [--only chaos,keys] [--full]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_LOGS = _FOLDER.parents[1] / "build" / "stress"
# What makes each one short.
SHORT = {
    "keys": [],
    "attack_bodies": [],
    "attack_checkpoints": [],
    "attack_jobs": [],
    "attack_images": ["--mutants", "400"],
    "attack_heads": ["--megabytes", "10", "--rounds", "3", "--posts", "1000"],
    "chaos": ["--seconds", "40", "--every", "8"],
    "rolling": [],
    "sleep": ["--cycles", "60", "--deep", "4"],
    "reload": ["--reloads", "20"],
    "overload": ["--seconds", "20", "--measure", "10"],
    "overhead": ["--seconds", "8", "--big", "3", "--lone", "50"],
    "fairness": ["--conversations", "1000"],
    "health_latency": ["--seconds", "10"],
    "attack_queue": ["--most", "20"],
    "fuzz": ["--mutants", "1500", "--examples", "20"],
    # Allocators are still filling up: so short a run finds gross leaks alone.
    "soak": ["--seconds", "120", "--measure", "10", "--growth", "0.25"],
}


def run(name: str, options: list[str]) -> dict[str, object]:
    """Run one script, let it speak, and return its last line."""
    started = time.perf_counter()
    command = [sys.executable, str(_FOLDER / f"{name}.py"), *options]
    _LOGS.mkdir(parents=True, exist_ok=True)
    last = ""
    with (
        (_LOGS / f"{name}.log").open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            last = line.strip() or last
    code = process.returncode
    try:
        found = json.loads(last)
        passed = found["passed"] is True and code == 0
        failed = found["failed"]
    except (ValueError, KeyError, TypeError):
        passed, failed = False, [f"it ended with exit code {code} and no verdict"]
    return {"passed": passed, "failed": failed, "seconds": round(time.perf_counter() - started)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SHORT), help="names, with commas between")
    parser.add_argument("--full", action="store_true", help="each at its whole length")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := [name for name in names if name not in SHORT]:
        parser.error(f"there is no {unknown[0]}; there are: {', '.join(SHORT)}")
    found = {}
    for name in names:
        print(f"{name}", flush=True)
        found[name] = run(name, [] if options.full else SHORT[name])
    print()
    for name, verdict in found.items():
        print(f"{'passed' if verdict['passed'] else 'FAILED'}  {name}: {verdict['seconds']} s")
    passed = all(verdict["passed"] for verdict in found.values())
    print(json.dumps({"passed": passed, **found}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
