"""`make gpu-check`: every check that needs CUDA, in one table.

Needs torch, transformers and pytest, nothing else; installs nothing. Where there is no CUDA device
it says so and exits 0.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Table:
    """A pytest plugin that keeps one row a test."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, float, str]] = []

    def pytest_runtest_logreport(self, report: object) -> None:
        when, outcome = report.when, report.outcome  # type: ignore[attr-defined]
        if when == "call" or outcome != "passed":
            name = report.nodeid.rpartition("::")[2]  # type: ignore[attr-defined]
            reason = ""
            if outcome == "skipped" and isinstance(report.longrepr, tuple):  # type: ignore[attr-defined]
                reason = report.longrepr[2]  # type: ignore[attr-defined]
            self.rows.append((name, outcome, report.duration, reason))  # type: ignore[attr-defined]

    def print(self) -> None:
        width = max((len(name) for name, *_ in self.rows), default=0)
        for name, outcome, seconds, reason in self.rows:
            print(f"{name:{width}}  {outcome:8}  {seconds:6.1f} s  {reason}")


def main() -> int:
    for package in ("torch", "transformers", "pytest"):
        if importlib.util.find_spec(package) is None:
            print(f"gpu-check: {package} is not installed for {sys.executable}; nothing checked")
            return 0
    import pytest
    import torch
    import transformers

    if not torch.cuda.is_available():
        print(f"gpu-check: torch {torch.__version__} sees no CUDA device; nothing checked")
        return 0
    device = torch.cuda.get_device_name()
    print(f"{device}, torch {torch.__version__}, transformers {transformers.__version__}")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    table = Table()
    options = ["--quiet", "--no-header", "-p", "no:cacheprovider", "-c", "/dev/null"]
    code = pytest.main([*options, "--noconftest", str(ROOT / "tests" / "gpu")], plugins=[table])
    table.print()
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
