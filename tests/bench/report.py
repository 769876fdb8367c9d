"""The table of one workload, and which ways are held against each other."""

from __future__ import annotations

import statistics

from rounds import Measured
from ways import BATCH, IN_PROCESS, ONE_BY_ONE

EAGER = f"{ONE_BY_ONE}, eager"
PADDED = f"padded batches of {BATCH}"
SORTED = f"{PADDED}, sorted"
ONE_POST = "skyreward over HTTP, one post"
OUR_CLIENTS = "skyreward over HTTP, many clients"
WITHOUT_CACHE = f"{OUR_CLIENTS}, no prefix cache"
VLLM_CLIENTS = "vLLM over HTTP, many clients"

_HELD_AGAINST = (
    (IN_PROCESS, ONE_BY_ONE),
    (IN_PROCESS, EAGER),
    (IN_PROCESS, PADDED),
    (IN_PROCESS, SORTED),
    (ONE_POST, IN_PROCESS),
    (OUR_CLIENTS, WITHOUT_CACHE),
    (OUR_CLIENTS, VLLM_CLIENTS),
)


def pairs_of(measured: Measured) -> list[tuple[str, str]]:
    """The ways whose ratio is of interest, of those that were measured."""
    ways = measured.seconds
    return [(way, other) for way, other in _HELD_AGAINST if way in ways and other in ways]


def show(name: str, measured: Measured) -> None:
    """Print the table of a workload."""
    need = measured.need
    print(
        f"\n{name}: {need.conversations} conversations, {need.tokens:,} tokens "
        f"({need.distinct_tokens:,} distinct, the longest conversation {need.longest:,})"
    )
    print(
        f"  {'':50} {'tokens/s':>9} {'computed':>9} {'of distinct':>12} {'of the matrix rate':>19}"
        f" {'rewards differ by':>18}"
    )
    for way in measured.seconds:
        computed = measured.computed_tokens(way)
        told, ratio = "-", "-"
        if computed is not None:
            told, ratio = f"{computed:,}", f"{computed / need.distinct_tokens:.2f}x"
        print(
            f"  {way:50} {measured.tokens_per_s(way):9,.0f} {told:>9} {ratio:>12}"
            f" {measured.matrix_share(way):19.0%} {measured.differences[way]:18.1e}"
        )
    for way, other in pairs_of(measured):
        ratios = measured.ratios(way, other)
        print(
            f"  {way} / {other}: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )
