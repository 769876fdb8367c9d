"""Jobs as processes: `skyreward score` as a person starts it, and what it took."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.jobs.output import get_job_folder
from serve.jobs.spec import CHUNK_ROWS
from serve.jobs.store import read_finished_manifest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "stress")]


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended.

    Attributes:
        code: its exit code; negative for a signal.
        seconds: from its start to its end.
        cpu_s: CPU time of all its threads.
        peak_bytes: the most memory it held.
        said: what it wrote on standard error.
    """

    code: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    said: str


class Running:
    """A job that runs.

    Args:
        arguments: of the command.
        log: where its standard error goes.
        chunk_rows: rows in a chunk.
        command: command of `skyreward`.
        part_bytes: bytes in a part of an upload to S3; None as usual.
    """

    def __init__(
        self,
        arguments: Iterable[str | Path],
        log: Path,
        chunk_rows: int = CHUNK_ROWS,
        command: str = "score",
        part_bytes: int | None = None,
    ) -> None:
        program = [ROOT / "tests" / "small_chunks.py", str(chunk_rows)]
        if part_bytes:
            program = [ROOT / "tests" / "small_parts.py", str(part_bytes), *program]
        words = [sys.executable, *map(str, program), command, *map(str, arguments)]
        self._log = log
        self._started = time.perf_counter()
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
        with log.open("wb") as said:
            self._process = subprocess.Popen(words, stderr=said, env=environment, cwd=ROOT)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        # It is not waited for yet, so the id is its own even if it has ended.
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is None

    def kill_after(self, seconds: float, begun: Callable[[], bool]) -> bool:
        """SIGKILL at a moment.

        Args:
            seconds: after which it is killed.
            begun: from when on they count.

        Returns:
            False if it has ended by then.
        """
        while self.is_alive and not begun():
            time.sleep(0.02)
        time.sleep(seconds)
        alive = self.is_alive
        # `Popen.kill` would take the exit code, and what it took with it.
        os.kill(self._process.pid, signal.SIGKILL)
        return alive

    def wait(self) -> Ended:
        """Until it ends."""
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Ended(
            code=self._process.returncode,
            seconds=time.perf_counter() - self._started,
            cpu_s=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
            said=self._log.read_text(errors="replace"),
        )


def run(
    arguments: Iterable[str | Path],
    log: Path,
    chunk_rows: int = CHUNK_ROWS,
    command: str = "score",
) -> Ended:
    """A job from its start to its end."""
    return Running(arguments, log, chunk_rows, command).wait()


def require(ended: Ended) -> Ended:
    """Only one that went well counts."""
    if ended.code not in (0, 3):
        raise SystemExit(f"exit code {ended.code}: {ended.said[-2000:]}")
    return ended


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """One JSON object a line; returns how many."""
    number = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
    return number


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote, or a job."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def chunks_in(output: Path | str) -> int:
    """Chunks that a job has saved, also while it runs."""
    from job_runs import count_chunks

    return count_chunks(output)


def summary_of(output: Path) -> dict[str, Any]:
    """The figures that a finished job keeps."""
    manifest = read_finished_manifest(get_job_folder(output))
    assert manifest
    assert manifest.completion
    return manifest.completion.summary.as_json()
