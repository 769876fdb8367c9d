"""RM-Bench's chat items scored by a running service, a sample compared with plain transformers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import BENCHMARK_DATA, ROOT
from peer_service import Served

from rm_core import seeds_dir

DATA = BENCHMARK_DATA / "rm-bench" / "chat_filtered.json"


def load_bench() -> ModuleType:
    path: Path = ROOT / "tests" / "bench" / "rm_bench_parity.py"
    spec = importlib.util.spec_from_file_location("rm_bench_parity", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason=f"the file {DATA} of RM-Bench is missing")
def test_rewards_of_rm_bench_match_plain_transformers(served: Served) -> None:
    # A sample of the items; the script compares all of them, which takes minutes.
    outcome = load_bench().run(DATA, served.url, "demo", seeds_dir() / "demo", every=8)
    assert outcome.items == 129
    assert outcome.pairs == 387
    assert outcome.conversations == 2 * 49
    assert outcome.errors == 0
    assert outcome.largest_difference <= 1e-4
