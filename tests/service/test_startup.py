"""Errors at startup without Ray, or before Ray starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from checkpoints import SPECS, build_checkpoint
from command_line import invoke
from conftest import find_free_port
from service_process import assert_refused, damage


@pytest.mark.parametrize("options", [["--local"], []], ids=["local", "on Ray"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no head", "has no score.weight"),
        ("two labels", "declares 2 labels"),
        ("pickle only", "pickle files are read only if"),
    ],
)
def test_invalid_checkpoint_is_refused_before_ray_or_loading_starts(
    tmp_path: Path, name: str, message: str, options: list[str]
) -> None:
    folder = build_checkpoint(tmp_path / "checkpoint", SPECS["qwen3"])
    damage(folder, name)
    result = invoke("serve", "--model", folder, "--port", find_free_port(), *options)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    for later in ("starting Ray", "loading", "ready: POST"):
        assert later not in result.output


@pytest.mark.parametrize(
    ("name", "message", "options"),
    [
        ("NaN", "contains NaN or infinity", ["--local"]),
        ("no head", "has no score.weight", []),
    ],
)
def test_service_with_invalid_checkpoint_ends_without_being_ready(
    tmp_path: Path, name: str, message: str, options: list[str]
) -> None:
    assert "starting Ray" not in assert_refused(tmp_path / "checkpoint", name, message, *options)


def test_taken_port_is_refused_before_ray_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = invoke("serve", "--port", port)
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "starting Ray" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such/folder"], "folder 'no/such/folder' does not exist"),
        (["--model", "demo", "--model", "demo"], "two models are called 'demo'"),
        (["--port", "99999"], "port: "),
    ],
)
def test_bad_options_end_with_one_message(options: list[str], message: str) -> None:
    result = invoke("serve", *options)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
