"""The command `skyreward plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from serve.capacity.devices import DEVICES
from serve.cli.main import main
from serve.config.settings import Settings

MODEL = "Skywork-Reward-V2-Llama-3.1-8B"


def run_plan(*arguments: str) -> str:
    result = CliRunner().invoke(main, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def run_plan_as_json(*arguments: str) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(run_plan(*arguments, "--json"))
    return plan


def test_plan_prints_all_tables() -> None:
    printed = run_plan("--model", MODEL, "--conversations-per-s", "500")
    for text in (
        "7.505 billion", "NVIDIA H200", "max_batch_tokens", "inferred", "52.8 (31.9 to 74.3)",
        "30,000 per minute", "serve deploy plan.yaml", "make gpu-check",
    ):  # fmt: skip
        assert text in printed


def test_plan_without_load_has_one_replica() -> None:
    plan = run_plan_as_json("--model", MODEL, "--utilization", "0.5")
    assert plan["fleet"]["num_replicas"] == 1
    one = plan["conversations_per_s_per_replica"]
    assert plan["load"]["conversations_per_s"] == pytest.approx(one / 2)
    assert plan["command"] == f"skyreward serve --model Skywork/{MODEL}"


def test_plan_writes_command_and_config(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    plan = run_plan_as_json("--model", MODEL, "--conversations-per-s", "100", "-o", str(file))
    replicas, gateways = plan["fleet"]["num_replicas"], plan["fleet"]["num_gateways"]
    assert plan["command"] == (
        f"SKYREWARD_NUM_GATEWAYS={gateways} skyreward serve --model Skywork/{MODEL} "
        f"--replicas {replicas}"
    )
    (application,) = yaml.safe_load(file.read_text())["applications"]
    settings = Settings.load(**application["args"])
    assert (settings.num_gateways, settings.models[0].num_replicas) == (gateways, replicas)
    assert settings.models[0].name == f"Skywork/{MODEL}"  # an id that a service can load


def test_measured_rates_replace_inferred_rates() -> None:
    plan = run_plan_as_json("--model", MODEL, "--matrix-tflops", "700", "--mfu", "0.5")
    assert plan["rate"]["status"] == "given"
    assert plan["rate"]["low"] == plan["rate"]["high"]
    assert "inferred from data sheets" not in run_plan(
        "--model", MODEL, "--matrix-tflops", "700", "--mfu", "0.5"
    )


@pytest.mark.parametrize("gpu", ["h200", "l4"])
def test_plan_for_other_gpus(gpu: str) -> None:
    assert run_plan_as_json("--model", MODEL, "--gpu", gpu)["device"] == DEVICES[gpu].name


def test_measure_uses_local_device() -> None:
    plan = run_plan_as_json(
        "--model", "demo", "--measure", "--prompt-tokens", "40", "--response-tokens", "20"
    )
    assert plan["rate"]["status"] == "measured"
    assert plan["rate"]["tokens_per_s"] > 100
    assert plan["memory"]["weights_bytes"] > 1_000_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", MODEL, "--measure", "--gpu", "h100"], 2, "leave out --gpu"),
        (["--model", MODEL, "--prompt-tokens", "20000"], 1, "takes at most 16384"),
        (["--model", "Skywork-Reward-Gemma-2-27B-v0.2", "--gpu", "l40s"], 1, "it fits on 2"),
        (["--model", "./no/such"], 1, "does not exist"),
        ([], 2, "--model"),
    ],
)
def test_impossible_plan_raises_error(arguments: list[str], code: int, message: str) -> None:
    result = CliRunner().invoke(main, ["plan", *arguments])
    assert result.exit_code == code
    assert message in result.output
