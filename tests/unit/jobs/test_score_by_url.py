"""`skyreward score --url` from the command line: secrets in URLs, and a silent service."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import preloaded
import pytest
from click.testing import CliRunner
from job_runs import count_chunks, write_lines
from job_service import Service
from waiting import PATIENCE_S, until

from rm_core.inputs.conversations import Messages
from serve.cli.main import main
from serve.jobs import command
from serve.jobs.spec import JobSpec

ROWS = [{"id": n, "prompt": "2+2?", "response": f"answer {n}"} for n in range(20)]


@pytest.fixture
def service() -> Iterator[Service]:
    result = Service()
    yield result
    result.stop()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", ROWS)


def read_all_files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def score(source: Path, output: Path, url: str, *options: str) -> str:
    arguments = ["score", str(source), "-o", str(output), "--url", url]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "JobSpec", partial(JobSpec, chunk_rows=5))
        done = CliRunner().invoke(main, [*arguments, *options])
    assert isinstance(done.exception, SystemExit | None), done.exception
    return done.output


def test_secrets_of_urls_are_in_no_file(
    service: Service, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYREWARD_API_KEY", "sk-hunter2-of-the-environment")
    output, report = tmp_path / "out.jsonl", tmp_path / "report.html"
    url = service.url.replace("//", "//me:hunter2@") + "?token=hunter2"

    def is_after_first_chunk(body: bytes) -> bool:
        is_last = b"answer 19" in body
        if is_last:
            until(lambda: count_chunks(output))
        return is_last

    service.refuse_body, service.status = is_after_first_chunk, 400
    output_text = score(source, output, url, "--retry-s", "0", "--report", str(report))
    assert f"{service.url} answered 400" in output_text
    assert "hunter2" not in output_text
    assert b"hunter2" not in read_all_files(tmp_path)

    # The job resumes with another password.
    service.refuse_body = lambda body: False
    output_text = score(
        source, output, url.replace("me:hunter2", "me:hunter2b"), "--report", str(report)
    )
    assert "resuming at row" in output_text
    assert len(output.read_text().splitlines()) == len(ROWS)
    assert "hunter2" not in output_text
    assert b"hunter2" not in read_all_files(tmp_path)
    assert service.url.encode() in read_all_files(tmp_path)

    # A finished job does not contact the service.
    num_asked = service.num_asked
    assert "is complete already" in score(source, output, service.url)
    assert service.num_asked == num_asked


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
    assert b"hunter2" not in read_all_files(output)
    assert "hunter2" not in done.output


@pytest.mark.parametrize("silent_path", ["/info", "/v1/score"])
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_job_waiting_for_silent_service(
    service: Service,
    source: Path,
    tmp_path: Path,
    silent_path: str,
    signal_number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out.jsonl"
    num_kept = 0 if silent_path == "/info" else 2
    if silent_path == "/info":
        service.info_gate = service.wait_until_stopped
    else:
        answered = service.score

        def silent_at_third_chunk(conversations: list[Messages]) -> Any:
            if "answer 12" in json.dumps(conversations):
                service.wait_until_stopped()
            return answered(conversations)

        monkeypatch.setattr(service, "score", silent_at_third_chunk)
    errors = tmp_path / "errors"
    process = preloaded.start(("score", source, "-o", output, "--url", service.url), errors, 5)
    try:
        until(lambda: service.num_asked and count_chunks(output) == num_kept)
        process.send_signal(signal_number)
        code = process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        service.stopped.set()
    assert code == 128 + signal_number, errors.read_text()
    assert "run the same command again to resume" in errors.read_text()
    assert count_chunks(output) == num_kept
    num_requests = len(service.requests)
    score(source, output, service.url)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == list(range(20))
    assert len(service.requests) - num_requests == 4 - num_kept


def test_reload_during_a_job_ends_it_with_a_message_for_the_command(
    service: Service, source: Path, tmp_path: Path
) -> None:
    def reload_before(number: int) -> bool:
        if number == 3:
            service.fingerprint["revision"] = "r2"
        return False

    service.refuse, output = reload_before, tmp_path / "out.jsonl"
    text = " ".join(score(source, output, service.url).split())
    assert f"the model at {service.url} changed while the job ran" in text
    assert "(its revision was r and is r2)" in text
    assert "run the same command again to resume" in text
    assert "new client" not in text
    # The former model goes on, as the message says.
    service.fingerprint["revision"] = "r"
    service.refuse = lambda number: False
    resumed = score(source, output, service.url)
    # How many chunks were written before the reload depends on the machine's speed.
    assert ("resuming at row" in resumed) == ("are scored and kept in" in text)
    assert len(output.read_text().splitlines()) == len(ROWS)
