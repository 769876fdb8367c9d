"""`make real-weights`: the engine against plain transformers on real pre-trained weights.

Fetches SmolLM2-135M-Instruct into a folder outside the project, builds a reward model with a
random head of it, and prints one row a check. Exits with 1 if one fails, with 0 where the weights
cannot be fetched, after saying so. Not part of `make test`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from real_weights.fetch import UnavailableError, fetch_checkpoint  # noqa: E402

from rm_core.model.quantization import silence_torchao  # noqa: E402


def default_folder() -> Path:
    """Where downloads of this user belong."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "skyreward" / "real-weights"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--folder", type=Path, default=default_folder(), help="where the weights are kept")
    add("--data", type=Path, help="folder of published benchmarks; scores rows of RM-Bench too")
    add("--rows", type=int, default=7, help="prompts of --data, two responses each (default 7)")
    add("--checks", help="which, with commas (default: all)")
    options = parser.parse_args(arguments)
    if ROOT in (options.folder.resolve(), *options.folder.resolve().parents):
        parser.error("--folder is inside the project; the weights are to stay outside of it")
    silence_torchao()
    try:
        checkpoint = fetch_checkpoint(options.folder)
    except UnavailableError as error:
        print(f"real-weights: {error}; nothing checked")
        return 0
    # They import torch and transformers, which must not happen before `gguf` can be found.
    from real_weights import checks, conversations

    names = list(checks.CHECKS) if options.checks is None else options.checks.split(",")
    if unknown := set(names) - set(checks.CHECKS):
        parser.error(
            f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(checks.CHECKS)}"
        )
    groups = conversations.own_groups()
    if options.data is not None:
        try:
            groups |= conversations.published_groups(options.data, options.rows)
        except FileNotFoundError as error:
            parser.error(str(error))
    subject = checks.Subject(checkpoint, groups, conversations.own_singles())
    started = time.monotonic()
    findings = []
    for finding in run_checks(subject, names):
        findings.append(finding)
        print(f"{finding.check}: {finding.figure}", file=sys.stderr, flush=True)
    print_table(findings)
    num_failed = sum(finding.passed is False for finding in findings)
    print(f"{len(findings)} checks, {num_failed} failed, {time.monotonic() - started:.0f} s")
    return int(num_failed > 0)


def run_checks(subject: checks.Subject, names: Sequence[str]) -> Iterator[checks.Finding]:  # noqa: F821
    """The findings of each check; one that raises is a failed one, and the others go on."""
    from real_weights.checks import CHECKS, Finding

    for name in names:
        try:
            yield from CHECKS[name](subject)
        # The border of a check: whatever it raises fails it alone.
        except Exception as error:
            yield Finding(name, "-", "-", False, f"{type(error).__name__}: {error}")


def print_table(findings: Sequence[checks.Finding]) -> None:  # noqa: F821
    """One row a finding."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Real weights: SmolLM2-135M-Instruct", title_justify="left")
    for header in ("check", "found", "allowed", "", "about"):
        table.add_column(header)
    words = {True: "ok", False: "FAILED", None: "told"}
    for finding in findings:
        word = words[finding.passed]
        table.add_row(finding.check, finding.figure, finding.allowed, word, finding.about)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
