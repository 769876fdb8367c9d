"""The benchmark of the service in front of a simulated GPU runs, and its numbers fit together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("gateway.py", ["--sizes", "0.6b", "--seconds", "1"]),
        pytest.param("service_cpu.py", ["--rounds", "1"], marks=pytest.mark.slow),
        pytest.param("gateways.py", ["--rounds", "1", "--seconds", "1"], marks=pytest.mark.slow),
    ],
)
def test_benchmark_of_the_gateway(script: str, options: list[str]) -> None:
    command = [sys.executable, str(ROOT / "tests" / "bench" / script), "--kinds", "groups"]
    command += ["--data", "no-such-folder", "--clients", "4", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    record = json.loads(run.stdout.splitlines()[-1])
    if script == "service_cpu.py":
        assert record["groups of 16"]["now_ms"] > 0
        return
    if script == "gateways.py":
        for found in record["groups of 16"].values():
            assert found["conversations_per_s"] > 0
            assert found["gateway_cores"] > 0
        return
    kind = record["0.6b"]["kinds"]["groups of 16"]
    assert kind["device_busy"] > 0
    assert kind["conversations_per_s"] > 0
    # Sixteen answers to a prompt, of equal lengths: little more than half of all tokens.
    assert kind["computed_share"] == pytest.approx(17 / 32, abs=0.06)
    assert kind["stages"].keys() >= {"tokenize", "schedule", "http"}
