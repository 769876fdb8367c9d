"""Run jobs on small inputs with an executor whose rewards are known."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import shutil
import sqlite3
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rm_core import Fingerprint, Reward, ScoreError, Truncation
from rm_core.inputs.conversations import Messages
from rm_core.inputs.judge_items import JudgePair
from rm_core.inputs.step_items import StepItem
from serve.jobs.executors.base import ScoreBatchResult, ScoringModel
from serve.jobs.inputs.source import open_source
from serve.jobs.job import Job
from serve.jobs.output import Output
from serve.jobs.progress import Progress
from serve.jobs.report import Report
from serve.jobs.spec import JobSpec
from serve.jobs.store import STATE_FILE, open_store
from serve.jobs.summary import Summary
from serve.shutdown import GracefulShutdown

WORDS = [f"word{number}" for number in range(300)]


class FakeExecutor:
    """Scores with a reward computed from the text, on its own thread.

    Args:
        delay_s: duration of a call in seconds.
        fail_at: index of the first call that fails with `failure`; all later calls fail too.
        max_image_bytes: maximum size of an image's file; None for a model that reads only text.
    """

    def __init__(
        self,
        delay_s: float = 0.0,
        fail_at: int | None = None,
        max_image_bytes: int | None = None,
    ) -> None:
        self.drain_timeout_s: float | None = None
        self.calls: list[list[Messages]] = []
        self.model: dict[str, Any] = {"revision": "r1", "dtype": "float32"}
        if max_image_bytes is not None:
            self.model["max_image_bytes"] = max_image_bytes
        self.scoring_model = ScoringModel(
            "fake",
            Fingerprint("r1", "t1", "float32", "sdpa"),
            100,
            reward_settings={"encoding_sha256": "e1", "deterministic": False},
        )
        self.num_asked = 0
        self.failure: Exception = RuntimeError("the executor failed")
        self.before: Callable[[int], None] = lambda number: None
        self.gate = threading.Event()
        self.gate.set()
        self._delay_s, self._fail_at = delay_s, fail_at
        self._threads = ThreadPoolExecutor(1)

    def resolve_identity(self) -> dict[str, Any]:
        self.num_asked += 1
        return self.model

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        if not (fetch or self.calls):
            return None
        return self.scoring_model

    @property
    def capacity(self) -> int:
        return 3

    def submit(
        self, conversations: Sequence[Messages], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        assert conversations
        texts = [json.dumps(one, default=_to_json) for one in conversations]
        assert len(set(texts)) == len(texts)
        self.calls.append(list(conversations))
        return self._threads.submit(self._score, len(self.calls) - 1, conversations, texts)

    def count_tokens(
        self, conversations: Sequence[Messages], truncation: Truncation
    ) -> list[int | ScoreError]:
        return [reward_of(json.dumps(c)).num_tokens for c in conversations]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _score(
        self, number: int, conversations: Sequence[object], texts: list[str]
    ) -> ScoreBatchResult:
        self.gate.wait()
        self.before(number)
        if self._fail_at is not None and number >= self._fail_at:
            raise self.failure
        time.sleep(self._delay_s)
        results = [
            ScoreError("conversation_too_long", "too long")
            if "HUGE" in text
            else add_steps(reward_of(text), conversation)
            for conversation, text in zip(conversations, texts, strict=True)
        ]
        return ScoreBatchResult(
            results, sum(r.num_tokens for r in results if isinstance(r, Reward))
        )


def _to_json(value: Any) -> Any:
    """Return an image as text, or a dataclass as a list."""
    return value.hex() if isinstance(value, bytes) else dataclasses.astuple(value)


def reward_of(text: str) -> Reward:
    """Return a float32 reward that depends on every character."""
    digest = hashlib.sha256(text.encode()).digest()
    (number,) = struct.unpack("<f", struct.pack("<f", int.from_bytes(digest[:4], "big") / 2**31))
    truncated, warnings = digest[4] < 20, ("system_prompt",) if digest[5] < 20 else ()
    return Reward(number, len(text) // 4, truncated, warnings)


def add_steps(reward: Reward, conversation: object) -> Reward:
    """Give each step of a solution its own reward, and each pair a label mass."""
    if isinstance(conversation, JudgePair):
        return dataclasses.replace(reward, label_mass=0.5)
    if not isinstance(conversation, StepItem):
        return reward
    steps = [reward_of(f"{conversation.prompt}{step}").reward for step in conversation.steps or ()]
    return dataclasses.replace(reward, step_rewards=tuple(steps))


def records(num_rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of all shapes, some with errors, some with repeated conversations."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for index in range(num_rows):
        question, answer = " ".join(rng.choices(WORDS, k=6)), rng.choice(WORDS[:40])
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        kind = rng.randrange(6)
        record: dict[str, Any] = {"messages": turns}
        if kind == 1:
            record = {"prompt": question, "chosen": answer, "rejected": "no"}
        elif kind == 2:
            record = {"prompt": "2+2?", "responses": [answer, "4", 5 if index % 7 == 0 else "5"]}
        elif kind == 3:
            record = {"prompt": "2+2?", "response": answer}
        elif kind == 4 and index % 3 == 0:
            record = {"text": "no shape"} if index % 2 else {"prompt": "HUGE", "response": answer}
        rows.append({"id": index, **record})
    return rows


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run_job(
    source: Path | str,
    output: Path | str,
    executor: FakeExecutor,
    *,
    notices: list[str] | None = None,
    shutdown: GracefulShutdown | None = None,
    report: Report | None = None,
    state: Path | None = None,
    **options: Any,
) -> Summary:
    """Run a job once, by default with chunks of ten rows."""
    notify = (notices if notices is not None else []).append
    place = Output.parse(output, state)
    opened = open_source(str(source), exclude=place.location, fetched=place.fetched_files)
    spec = JobSpec(opened, place, **{"chunk_rows": 10, **options})
    try:
        with Progress(notify, on_terminal=False) as progress, open_store(spec) as store:
            shutdown = shutdown or GracefulShutdown("")
            return Job(spec, store, executor, notify, progress, shutdown, report).run()
    finally:
        executor.close()


def count_chunks(output: Path | str) -> int:
    """Return the number of chunks that a job has saved, also while it runs or after a kill."""
    folder = Output.parse(output).state_folder
    with tempfile.TemporaryDirectory() as copy:
        # The log first: what is moved from it into the file meanwhile is then in both.
        for ending in ("-wal", ""):
            with contextlib.suppress(FileNotFoundError):
                name = STATE_FILE + ending
                shutil.copyfile(folder / name, Path(copy) / name)
        with (
            contextlib.closing(sqlite3.connect(Path(copy) / STATE_FILE)) as connection,
            contextlib.suppress(sqlite3.DatabaseError),  # not created yet
        ):
            (number,) = connection.execute("SELECT count(*) FROM chunks").fetchone()
            return int(number)
    return 0


def comparable(summary: Summary) -> dict[str, Any]:
    """Return a summary without its seconds."""
    return {**summary.as_json(), "seconds": 0}
