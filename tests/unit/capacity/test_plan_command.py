"""`skyreward plan` as a person uses it."""

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


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.capacity.fleet._SIMULATED_CONVERSATIONS", 1_200)


def plan(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["plan", *arguments])
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def as_json(*arguments: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(plan(*arguments, "--json"))
    return made


def test_what_a_person_sees() -> None:
    shown = plan("--model", MODEL, "--conversations-per-s", "500")
    for text in (
        "7.505 billion", "NVIDIA H200", "max_batch_tokens", "inferred", "What gives out first",
        "Latency of a post", "30,000 a minute", "serve deploy plan.yaml", "make gpu-check",
    ):  # fmt: skip
        assert text in shown


def test_one_replica_without_a_load() -> None:
    made = as_json("--model", MODEL, "--utilization", "0.5")
    assert made["fleet"]["num_replicas"] == 1
    one = made["conversations_per_s_per_replica"]
    assert made["load"]["conversations_per_s"] == pytest.approx(one / 2)
    assert made["command"] == f"skyreward serve --model Skywork/{MODEL}"


def test_its_command_and_its_config(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    made = as_json("--model", MODEL, "--conversations-per-s", "100", "-o", str(file))
    replicas, gateways = made["fleet"]["num_replicas"], made["fleet"]["num_gateways"]
    assert made["command"] == (
        f"SKYREWARD_NUM_GATEWAYS={gateways} skyreward serve --model Skywork/{MODEL} "
        f"--replicas {replicas}"
    )
    (application,) = yaml.safe_load(file.read_text())["applications"]
    settings = Settings.load(**application["args"])
    assert (settings.num_gateways, settings.models[0].num_replicas) == (gateways, replicas)
    assert settings.models[0].name == f"Skywork/{MODEL}"  # a name that can be loaded


def test_what_gpu_check_measured_takes_the_place_of_what_was_inferred() -> None:
    made = as_json("--model", MODEL, "--matrix-tflops", "700", "--mfu", "0.5")
    assert made["rate"]["status"] == "given"
    assert made["rate"]["low"] == made["rate"]["high"]
    assert "inferred from data sheets" not in plan(
        "--model", MODEL, "--matrix-tflops", "700", "--mfu", "0.5"
    )


@pytest.mark.parametrize("gpu", ["h200", "l4"])
def test_the_other_gpus(gpu: str) -> None:
    assert as_json("--model", MODEL, "--gpu", gpu)["device"] == DEVICES[gpu].name


def test_measured_on_the_device_at_hand() -> None:
    made = as_json(
        "--model", "demo", "--measure", "--prompt-tokens", "40", "--response-tokens", "20"
    )
    assert made["rate"]["status"] == "measured"
    assert made["rate"]["tokens_per_s"] > 100
    assert 0 < made["rate"]["batch_floor_s"] < 5
    assert made["memory"]["weights_bytes"] > 1_000_000


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--model", MODEL, "--measure", "--gpu", "h100"], 2, "leave --gpu"),
        (["--model", MODEL, "--prompt-tokens", "20000"], 1, "takes 16384"),
        (["--model", "Skywork-Reward-Gemma-2-27B-v0.2", "--gpu", "l40s"], 1, "it fits 2"),
        (["--model", "./no/such"], 1, "does not exist"),
        ([], 2, "--model"),
    ],
)
def test_what_cannot_be_planned(arguments: list[str], code: int, says: str) -> None:
    done = CliRunner().invoke(main, ["plan", *arguments])
    assert done.exit_code == code
    assert says in done.output
