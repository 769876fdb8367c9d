"""Errors at startup without Ray, or before Ray starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from service_process import assert_refused, start
from waiting import PATIENCE_S

NOT_SERVABLE = [
    ("no head", "has no score.weight"),
    ("two labels", "declares 2 labels"),
    ("pickle only", "only safetensors files are loaded"),
]


@pytest.mark.parametrize(("name", "message"), [*NOT_SERVABLE, ("NaN", "contains NaN or infinity")])
def test_invalid_checkpoint_is_refused(tmp_path: Path, name: str, message: str) -> None:
    assert_refused(tmp_path / "checkpoint", name, message, "--local")


@pytest.mark.parametrize(("name", "message"), NOT_SERVABLE)
def test_invalid_checkpoint_is_refused_before_ray_starts(
    tmp_path: Path, name: str, message: str
) -> None:
    assert "starting Ray" not in assert_refused(tmp_path / "checkpoint", name, message)


def test_taken_port_is_refused_before_ray_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start("--port", str(port))
        output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in output
    assert "starting Ray" not in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such/folder"], "folder 'no/such/folder' does not exist"),
        (["--model", "demo", "--model", "demo"], "two models are called 'demo'"),
        (["--port", "99999"], "port: "),
    ],
)
def test_bad_options_end_with_one_message(options: list[str], message: str) -> None:
    process = start(*options)
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 1
    assert message in output
    assert "Traceback" not in output
