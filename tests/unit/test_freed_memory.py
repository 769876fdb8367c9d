"""Freed memory stays with a process that scores on a CPU, and is used again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Larger than any block that glibc keeps by default.
NUM_BYTES = 2**27
CODE = f"""
import resource
import torch
from rm_core.model.offload import keep_freed_memory

def fill_and_free():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({NUM_BYTES}, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
print(*[fill_and_free() for _ in range(4)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these parameters")
@pytest.mark.parametrize(
    ("variables", "is_kept"),
    [({}, True), ({"MALLOC_MMAP_THRESHOLD_": "65536"}, False)],
    ids=["default", "set by the user"],
)
def test_freed_block_is_reused_unless_environment_sets_limit(
    variables: dict[str, str], is_kept: bool
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | variables

    def is_reused() -> bool:
        out = subprocess.run(
            [sys.executable, "-c", CODE],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        num_pages = NUM_BYTES // os.sysconf("SC_PAGE_SIZE")
        return int(out.stdout.split()[-1]) < num_pages / 10

    # The kernel places the heap at random, sometimes where it cannot grow so far.
    assert any(is_reused() for _ in range(5 if is_kept else 2)) == is_kept
