"""`skyreward score --url` as it is run: what is kept of an address, and a silent service."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from job_runs import write_lines
from job_service import Service
from waiting import PATIENCE_S, until

from rm_core.inputs.conversations import Messages
from serve.cli.main import main

ROWS = [{"id": n, "prompt": "2+2?", "response": f"answer {n}"} for n in range(20)]


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", ROWS)


def kept_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def score(source: Path, output: Path, url: str, *options: str) -> str:
    arguments = ["score", str(source), "-o", str(output), "--url", url, "--chunk-rows", "5"]
    done = CliRunner().invoke(main, [*arguments, *options])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.output


def test_secrets_of_addresses_are_in_no_file(
    service: Service, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYREWARD_API_KEY", "sk-hunter2-of-the-environment")
    output, report = tmp_path / "out.jsonl", tmp_path / "report.html"
    url = service.url.replace("//", "//me:hunter2@") + "?token=hunter2"

    def is_behind_the_first_chunk(body: bytes) -> bool:
        behind = b"answer 19" in body
        if behind:
            until((tmp_path / "out.jsonl.job" / "chunks" / "000000.json.gz").exists)
        return behind

    service.refuse_body, service.status = is_behind_the_first_chunk, 400
    told = score(source, output, url, "--retry-s", "0", "--report", str(report))
    assert f"{service.url} answered 400" in told
    assert "hunter2" not in told
    assert b"hunter2" not in kept_in(tmp_path)

    # Another password, and the job goes on.
    service.refuse_body = lambda body: False
    told = score(source, output, url.replace("me:hunter2", "me:hunter2b"), "--report", str(report))
    assert "going on behind row" in told
    assert len(output.read_text().splitlines()) == len(ROWS)
    assert "hunter2" not in told
    assert b"hunter2" not in kept_in(tmp_path)
    assert service.url.encode() in kept_in(tmp_path)

    # It is done, so nothing is asked, whatever the password is.
    asked = service.num_asked
    assert "is done already" in score(source, output, service.url)
    assert service.num_asked == asked


def test_secrets_are_in_no_file_of_an_evaluation(service: Service, tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "prompt": "2+2?", "chosen": "4!", "rejected": "5", "subset": "hep-cpp"}
        for n in range(3)
    ]
    data, output = write_lines(tmp_path / "data.jsonl", rows), tmp_path / "out"
    url = service.url.replace("//", "//me:hunter2@") + "?token=hunter2"
    arguments = ["eval", "rewardbench", "--data", str(data), "-o", str(output), "--url", url]
    done = CliRunner().invoke(main, [*arguments, "--api-key", "sk-hunter2", "--timeout-s", "50"])
    assert done.exit_code == 0, done.output
    assert (output / "report.html").exists()
    assert b"hunter2" not in kept_in(output)
    assert "hunter2" not in done.output


@pytest.mark.parametrize("asks", ["/info", "/v1/score"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_a_job_that_waits_for_a_silent_service(
    service: Service,
    source: Path,
    tmp_path: Path,
    asks: str,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, chunks = tmp_path / "out.jsonl", tmp_path / "out.jsonl.job" / "chunks"
    num_kept = 0 if asks == "/info" else 2
    if asks == "/info":
        service.info_gate = service.wait_until_stopped
    else:
        answered = service.score

        def silent_at_third_chunk(conversations: list[Messages]) -> Any:
            if "answer 12" in json.dumps(conversations):
                service.wait_until_stopped()
            return answered(conversations)

        monkeypatch.setattr(service, "score", silent_at_third_chunk)
    command = [sys.executable, "-m", "serve.cli.main", "score", str(source), "-o", str(output)]
    process = subprocess.Popen(
        [*command, "--url", service.url, "--chunk-rows", "5"], stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: service.num_asked and len(list(chunks.glob("*.gz"))) == num_kept)
        process.send_signal(number)
        _, told = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        service.stopped.set()
    assert process.returncode == 128 + number, told
    assert "run the same command again to go on" in told
    assert len(list(chunks.glob("*.gz"))) == num_kept
    posts = len(service.posts)
    score(source, output, service.url)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(20))
    assert len(service.posts) - posts == 4 - num_kept
