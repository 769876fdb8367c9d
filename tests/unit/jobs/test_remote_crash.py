"""A job between two buckets that ends by SIGKILL in each of its phases, and is resumed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from job_runs import FakeExecutor, count_chunks, run_job, write_lines
from object_stores import S3Server, run_s3_server
from waiting import PATIENCE_S, until

from serve.jobs.output import Output

_PART_BYTES = 5 << 20
_JOB = """
import sys
from job_runs import FakeExecutor, run_job
source, output, calls = sys.argv[1:]
executor = FakeExecutor(delay_s=0.05)
def record_call(number):
    with open(calls, "a") as file:
        file.write(f"{number}\\n")
executor.before = record_call
run_job(source, output, executor)
"""


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with run_s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_job_killed_in_each_phase_ends_with_whole_object(s3: S3Server, tmp_path: Path) -> None:
    """No chunk is scored twice, and the object is never seen in another size than its last one."""
    rows = [{"prompt": f"{n}", "response": f"{n} " * 100_000} for n in range(60)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_job(source, tmp_path / "out.jsonl", FakeExecutor())
    content = (tmp_path / "out.jsonl").read_bytes()
    assert len(content) > 3 * _PART_BYTES
    s3.put("input/in.jsonl", source.read_bytes())
    s3.put("output/other.txt", b"")
    calls, script, output = tmp_path / "calls", tmp_path / "job.py", "s3://output/out.jsonl"
    calls.touch()
    script.write_text(_JOB)
    state = Output.parse(output).state_folder
    sizes: set[int | None] = set()
    is_done = threading.Event()

    def look() -> None:
        while not is_done.wait(0.01):
            sizes.add(s3.get_size("output/out.jsonl"))

    def run() -> subprocess.Popen[bytes]:
        parts = ROOT / "tests" / "small_parts.py"
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, parts, str(_PART_BYTES), script, "s3://input/in.jsonl", output]
        return subprocess.Popen([*command, calls], env={**os.environ, "PYTHONPATH": path})

    def is_beyond(num_chunks: int) -> Callable[[], bool]:
        return lambda: count_chunks(output) > num_chunks

    rng = random.Random(5)
    observer = threading.Thread(target=look)
    observer.start()
    try:
        for moment in (
            lambda: (state / "inputs").exists(),
            is_beyond(0),
            is_beyond(2),
            lambda: (state / "output.partial").exists(),
            lambda: s3.count_uploads("output") > 0,
        ):
            process = run()
            until(lambda moment=moment, process=process: moment() or process.poll() is not None)
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
            assert process.wait() == -signal.SIGKILL
            assert s3.get_size("output/out.jsonl") is None
        num_calls = len(calls.read_text().splitlines())
        process = run()
        assert process.wait(PATIENCE_S) == 0
    finally:
        is_done.set()
        observer.join()
    assert s3.get("output/out.jsonl") == content
    assert sizes <= {None, len(content)}
    assert len(calls.read_text().splitlines()) == num_calls
    assert {file.name for file in state.iterdir()} == {"state.sqlite", "lock"}
    assert json.loads(content.splitlines()[-1])["prompt"] == "59"
