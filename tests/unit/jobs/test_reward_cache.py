"""`--reward-cache`: what another job scored is not scored again, and nothing else changes."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
import small_chunks
from command_line import invoke, run
from job_runs import FakeExecutor, count_chunks, records, run_job, write_lines
from job_service import Service
from kinds import build_judge, build_step_model, serving_models
from stub_service import StubService, stub_service
from waiting import PATIENCE_S, until

from rm_core import Fingerprint
from rm_core.inputs.conversations import Messages
from serve.errors import BadRowError, JobError, JobOutputError, JobRefusedError
from serve.jobs import command, reward_cache
from serve.jobs.executors.base import ScoringModel, collect_reward_settings
from serve.jobs.output import get_job_folder
from serve.jobs.spec import JobSpec
from serve.jobs.store import STATE_FILE, read_finished_manifest
from serve.jobs.summary import Summary, format_summary

QUESTION = "What is the capital of France?"
ANSWERS = ["Paris.", "The capital of France is Paris, a city on the Seine.", "I am sorry."]
ROWS: list[dict[str, Any]] = [
    *({"prompt": QUESTION, "response": answer} for answer in ANSWERS),
    {"prompt": QUESTION, "chosen": ANSWERS[0], "rejected": ANSWERS[2]},
    {"prompt": QUESTION, "responses": ANSWERS},
    {"prompt": QUESTION, "steps": ANSWERS},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", records(95))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite"


def read_summary(output: Path) -> Summary:
    manifest = read_finished_manifest(get_job_folder(output))
    assert manifest
    assert manifest.completion
    return manifest.completion.summary


def list_submitted(executor: FakeExecutor) -> list[Messages]:
    return [conversation for call in executor.calls for conversation in call]


def test_second_job_scores_nothing_and_writes_same_bytes(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    plain, first, second = (tmp_path / f"{name}.jsonl" for name in ("plain", "first", "second"))
    expected = run_job(source, plain, FakeExecutor())
    scored = run_job(source, first, FakeExecutor(), reward_cache=cache)
    executor = FakeExecutor()
    # Other chunks, and another order.
    summary = run_job(source, second, executor, reward_cache=cache, chunk_rows=17)
    assert plain.read_bytes() == first.read_bytes() == second.read_bytes()
    assert scored.num_reused_rewards == 0
    # Errors are not kept, since a retry may succeed.
    assert list_submitted(executor)
    assert all("HUGE" in json.dumps(one) for one in list_submitted(executor))
    assert summary.num_computed_tokens == 0
    assert summary.num_reused_tokens == scored.num_computed_tokens
    assert summary.num_reused_tokens + summary.num_repeated_tokens == expected.num_tokens
    lines = dict(format_summary(summary))
    assert f"  {summary.num_reused_rewards:,} rewards in the reward cache" in lines
    assert not any("in the reward cache" in name for name, _ in format_summary(scored))


def test_only_new_conversations_are_scored(source: Path, cache: Path, tmp_path: Path) -> None:
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache, limit=40)
    plain, whole, rest = FakeExecutor(), FakeExecutor(), FakeExecutor()
    run_job(source, tmp_path / "b.jsonl", plain, limit=40)
    run_job(source, tmp_path / "c.jsonl", whole)
    summary = run_job(source, tmp_path / "d.jsonl", rest, reward_cache=cache)
    known = [one for one in list_submitted(plain) if "HUGE" not in json.dumps(one)]
    assert summary.num_reused_rewards == len(known)
    assert list_submitted(rest) == [one for one in list_submitted(whole) if one not in known]


FINGERPRINT = Fingerprint("r1", "t1", "float32", "sdpa")
MODEL = FakeExecutor().scoring_model


@pytest.mark.parametrize(
    "other",
    [
        replace(MODEL, fingerprint=replace(FINGERPRINT, revision="r2")),
        replace(MODEL, fingerprint=replace(FINGERPRINT, template_sha256="t2")),
        replace(MODEL, fingerprint=replace(FINGERPRINT, dtype="bfloat16+int8")),
        replace(MODEL, fingerprint=replace(FINGERPRINT, attention="eager")),
        replace(MODEL, fingerprint=replace(FINGERPRINT, template_date="2026-01-01")),
        replace(MODEL, fingerprint=replace(FINGERPRINT, version="step-100")),
        replace(MODEL, max_length=50),
        replace(MODEL, kind="step", step_format="skywork"),
        replace(MODEL, kind="step", step_format="qwen-math"),
        replace(MODEL, reward_settings={**MODEL.reward_settings, "encoding_sha256": "e2"}),
        replace(MODEL, reward_settings={**MODEL.reward_settings, "deterministic": True}),
    ],
)
def test_another_model_scores_again(
    source: Path, cache: Path, tmp_path: Path, other: ScoringModel
) -> None:
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache)
    executor = FakeExecutor()
    executor.scoring_model = other
    summary = run_job(source, tmp_path / "b.jsonl", executor, reward_cache=cache)
    assert summary.num_reused_rewards == 0
    # The rewards of both are kept.
    for model in (MODEL, other):
        executor = FakeExecutor()
        executor.scoring_model = model
        output = tmp_path / f"again-{model is other}.jsonl"
        summary = run_job(source, output, executor, reward_cache=cache)
        assert summary.num_computed_tokens == 0


def test_another_truncation_scores_again_unless_the_model_truncates_nothing(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    for kind, is_reused in (("classifier", False), ("step", True)):
        for truncation in ("error", "left"):
            executor = FakeExecutor()
            executor.scoring_model = replace(MODEL, kind=kind)
            summary = run_job(
                source,
                tmp_path / f"{kind}-{truncation}.jsonl",
                executor,
                reward_cache=cache,
                truncation=truncation,
            )
            assert bool(summary.num_reused_rewards) == (is_reused and truncation == "left")


def test_settings_of_a_reward_are_those_of_info() -> None:
    info = {"device": "cuda:0, cuda:1", "deterministic": True, "encoding_sha256": "e", "x": 1}
    settings = collect_reward_settings(info)
    assert settings["device"] == "cuda"
    assert settings["deterministic"] is True
    assert "x" not in settings


def test_resumed_job_sends_same_calls_although_cache_grew(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache, limit=20)
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(cache.read_bytes())
    whole, begun, rest = FakeExecutor(), FakeExecutor(fail_at=4), FakeExecutor()
    run_job(source, tmp_path / "whole.jsonl", whole, reward_cache=copy)
    output, notices = tmp_path / "out.jsonl", []
    with pytest.raises(RuntimeError):
        run_job(source, output, begun, reward_cache=cache)
    # Another job adds all rewards before this one resumes.
    run_job(source, tmp_path / "b.jsonl", FakeExecutor(), reward_cache=cache)
    run_job(source, output, rest, reward_cache=cache, notices=notices)
    assert [*begun.calls[:4], *rest.calls] == whole.calls
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not any("last bits" in line for line in notices)


def test_job_that_resumes_with_another_file_says_so(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    for name, second in (("gone", None), ("other", tmp_path / "other.sqlite")):
        output, notices = tmp_path / f"{name}.jsonl", []
        with pytest.raises(RuntimeError):
            run_job(source, output, FakeExecutor(fail_at=4), reward_cache=cache)
        run_job(source, output, FakeExecutor(), reward_cache=second, notices=notices)
        assert sum("may differ in their last bits" in line for line in notices) == 1


def test_rewards_of_chunks_are_kept_when_a_job_fails(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadRowError):
        run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache, fail_fast=True)
    summary = run_job(source, tmp_path / "b.jsonl", FakeExecutor(), reward_cache=cache)
    assert summary.num_reused_rewards > 0


def test_finished_job_opens_no_cache(source: Path, cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    run_job(source, output, FakeExecutor(), reward_cache=cache)
    cache.write_text("no database")
    run_job(source, output, FakeExecutor(), reward_cache=cache)


def test_two_jobs_at_once_share_a_file(source: Path, cache: Path, tmp_path: Path) -> None:
    """Each call of one job ends only when the other job has one more call."""
    executors = [FakeExecutor(), FakeExecutor()]
    barrier = threading.Barrier(2)

    def meet(number: int) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(PATIENCE_S)

    failures: list[BaseException] = []

    def run_one(index: int) -> None:
        executors[index].before = meet
        try:
            run_job(source, tmp_path / f"{index}.jsonl", executors[index], reward_cache=cache)
        except BaseException as error:
            failures.append(error)
        finally:
            barrier.abort()

    threads = [threading.Thread(target=run_one, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (tmp_path / "0.jsonl").read_bytes() == (tmp_path / "1.jsonl").read_bytes()
    summary = run_job(source, tmp_path / "2.jsonl", FakeExecutor(), reward_cache=cache)
    assert summary.num_computed_tokens == 0
    with contextlib.closing(sqlite3.connect(cache)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def change(cache: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(cache)) as connection, connection:
        assert connection.execute(statement).rowcount != 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rewards SET value = CAST(replace(value, '0', '1') AS BLOB)",
        "UPDATE rewards SET value = 'text'",
        "UPDATE rewards SET addition = 0",
        "UPDATE rewards SET model = 2",
        "UPDATE rewards SET checksum = checksum + 1",
    ],
)
def test_damaged_reward_is_reported_and_not_used(
    source: Path, cache: Path, tmp_path: Path, statement: str
) -> None:
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache)
    change(cache, statement)
    if "model" in statement:
        change(cache, "UPDATE models SET id = 2")
    output = tmp_path / "b.jsonl"
    with pytest.raises(JobError, match=r"cache\.sqlite is damaged .* delete it or put back a copy"):
        run_job(source, output, FakeExecutor(), reward_cache=cache)
    cache.unlink()
    run_job(source, output, FakeExecutor(), reward_cache=cache)
    assert output.read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_log_of_a_deleted_file_is_not_read(source: Path, cache: Path, tmp_path: Path) -> None:
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache, limit=10)
    log = cache.with_name("cache.sqlite-wal")
    with contextlib.closing(sqlite3.connect(cache)) as connection:
        connection.execute("UPDATE file SET num_additions = 1000000")
        connection.commit()
        content = log.read_bytes()
    cache.unlink()
    log.write_bytes(content)  # as a killed job leaves it
    summary = run_job(source, tmp_path / "b.jsonl", FakeExecutor(), reward_cache=cache)
    assert summary.num_reused_rewards == 0
    with contextlib.closing(sqlite3.connect(cache)) as connection:
        assert connection.execute("SELECT num_additions FROM file").fetchone() == (10,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_truncated_file_is_reported(source: Path, cache: Path, tmp_path: Path) -> None:
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache)
    cache.write_bytes(cache.read_bytes()[: cache.stat().st_size // 2])
    with pytest.raises(JobError, match=r"cache\.sqlite is damaged"):
        run_job(source, tmp_path / "b.jsonl", FakeExecutor(), reward_cache=cache)


def write_text(path: Path) -> None:
    path.write_text("dear diary, " * 100)


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (a)")


@pytest.mark.parametrize("write", [write_text, write_nothing, write_database])
def test_other_files_are_refused_and_left_alone(
    source: Path, cache: Path, tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(cache)
    content = cache.read_bytes()
    with pytest.raises(JobRefusedError, match=r"is not a reward cache.*name of another file"):
        run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache)
    assert cache.read_bytes() == content


def test_other_format_is_refused(source: Path, cache: Path, tmp_path: Path) -> None:
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache)
    with contextlib.closing(sqlite3.connect(cache)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(JobRefusedError, match=r"has format 2, and this version .* format 1"):
        run_job(source, tmp_path / "b.jsonl", FakeExecutor(), reward_cache=cache)


def test_files_of_the_job_and_missing_folders_are_refused(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    for cache in (source, output):
        with pytest.raises(JobOutputError, match="is a file of the job"):
            run_job(source, output, FakeExecutor(), reward_cache=cache)
    with pytest.raises(JobOutputError, match="does not exist; create it first"):
        run_job(source, output, FakeExecutor(), reward_cache=tmp_path / "none" / "cache.sqlite")


def test_network_file_system_is_refused(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(reward_cache, "MOUNTS", str(mounts))
    folder = str(tmp_path.resolve()).replace(" ", r"\040")
    local = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    shared = f"36 22 0:40 / {folder} rw,relatime shared:1 - nfs4 server:/x rw\n"
    covered = f"37 36 0:41 / {folder} rw - tmpfs tmpfs rw\n"
    mounts.write_text(local + shared)
    with pytest.raises(JobOutputError, match=r"network file system \(nfs4\)"):
        run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache)
    assert not cache.exists()
    mounts.write_text(local + shared + covered)
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache)


def test_locked_file_is_reported(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(source, tmp_path / "a.jsonl", FakeExecutor(), reward_cache=cache, limit=10)
    monkeypatch.setattr(reward_cache, "WAIT_S", 0.0)
    with contextlib.closing(sqlite3.connect(cache, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(JobRefusedError, match="is locked by another program"):
            run_job(source, tmp_path / "b.jsonl", FakeExecutor(), reward_cache=cache)


@pytest.fixture
def services() -> Iterator[list[Service]]:
    both = [Service(), Service()]
    yield both
    for service in both:
        service.stop()


def test_services_share_a_cache_and_services_that_differ_are_refused(
    services: list[Service], cache: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "2+2?", "response": f"answer {n}"} for n in range(20)]
    source = write_lines(tmp_path / "in.jsonl", rows)

    def score(name: str, *urls: str) -> str:
        options = [option for url in urls for option in ("--url", url)]
        output = tmp_path / f"{name}.jsonl"
        done = invoke("score", source, "-o", output, *options, "--reward-cache", cache)
        return " ".join(done.stderr.split())

    score("first", services[0].url)
    assert "20 rewards in the reward cache" in score("second", *(s.url for s in services))
    assert services[1].requests == []
    services[1].more_info = {"deterministic": True}
    assert "the services differ" in score("third", *(s.url for s in services))
    assert "reward cache" not in score("fourth", services[1].url)
    assert services[1].requests == [20]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    judge = {"name": str(build_judge(folder / "judge")), "kind": "judge"}
    step_model = {"name": str(build_step_model(folder / "prm"))}
    return {"judge": judge, "prm": step_model, "demo": {"name": "demo"}}


@pytest.fixture(scope="module")
def service(models: dict[str, Any]) -> Iterator[StubService]:
    with serving_models(**models) as app, stub_service(app) as stub:
        yield stub


@pytest.mark.parametrize("alias", ["demo", "prm", "judge"])
@pytest.mark.parametrize("is_local_first", [True, False], ids=["local", "service"])
def test_local_model_and_service_share_rewards(
    models: dict[str, Any],
    service: StubService,
    cache: Path,
    tmp_path: Path,
    alias: str,
    is_local_first: bool,
) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    kind = ["--kind", "judge"] if alias == "judge" else []
    places = {
        "local": ["--model", models[alias]["name"], *kind],
        "service": ["--url", service.url, "--model", alias],
    }
    names = ["local", "service"] if is_local_first else ["service", "local"]
    aggregations = ["min", "product"] if alias == "prm" else [None, None]
    for name, aggregation in zip(names, aggregations, strict=True):
        options = ["--aggregation", aggregation] if aggregation else []
        output = tmp_path / f"{name}.jsonl"
        arguments = [source, "-o", output, *places[name], *options, "--reward-cache", cache]
        assert invoke("score", *arguments).exit_code in (0, 3)
    first, second = (tmp_path / f"{name}.jsonl" for name in names)
    summary = read_summary(second)
    assert read_summary(first).num_computed_tokens > 0
    assert summary.num_computed_tokens == 0
    assert summary.num_reused_rewards > 0
    if alias != "prm":
        assert first.read_bytes() == second.read_bytes()
        return
    both = zip(*(path.read_text().splitlines() for path in (first, second)), strict=True)
    for one, other in ((json.loads(a), json.loads(b)) for a, b in both):
        assert one.get("step_rewards") == other.get("step_rewards")
        if "step_rewards" in one:
            assert one["reward"] == min(one["step_rewards"])
            assert other["reward"] <= one["reward"]


def test_evaluations_and_calibrations_use_rewards_of_each_other(
    cache: Path, tmp_path: Path
) -> None:
    data = write_lines(tmp_path / "rows.jsonl", benchmark_files.rewardbench())
    for name in ("first", "second"):
        arguments = ["--data", data, "--model", "demo", "-o", tmp_path / name]
        done = invoke("eval", "rewardbench", *arguments, "--reward-cache", cache)
        assert done.exit_code == 0, done.output
    assert read_summary(tmp_path / "second" / "rewards.jsonl").num_computed_tokens == 0
    summaries = [(tmp_path / name / "summary.json").read_bytes() for name in ("first", "second")]
    assert summaries[0] == summaries[1]
    score = ["score", data, "-o", tmp_path / "scored.jsonl", "--truncation", "left"]
    assert invoke(*score, "--reward-cache", cache).exit_code == 0
    output = tmp_path / "calibration.json"
    calibrate = ["calibrate", data, "-o", output, "--truncation", "left"]
    assert invoke(*calibrate, "--reward-cache", cache).exit_code == 0
    state_path = get_job_folder(output) / STATE_FILE
    with contextlib.closing(sqlite3.connect(state_path)) as state:
        (progress,) = state.execute("SELECT value FROM meta WHERE key = 'progress'").fetchone()
    assert json.loads(progress)["summary"]["num_computed_tokens"] == 0


def test_killed_job_leaves_a_cache_that_others_use(cache: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n}+{n}? " + "word " * 300, "response": f"It is {2 * n}."} for n in range(120)
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    killed, other = tmp_path / "killed.jsonl", tmp_path / "other.jsonl"
    program = [sys.executable, small_chunks.__file__, "4", "score", str(source)]
    process = subprocess.Popen(
        [*program, "-o", str(killed), "--reward-cache", str(cache)], stderr=subprocess.DEVNULL
    )
    until(lambda: count_chunks(killed) >= 2 or process.poll() is not None)
    process.kill()
    assert process.wait() == -9
    num_kept = 4 * count_chunks(killed)
    run(*["score", source, "-o", other, "--reward-cache", cache])
    summary = read_summary(other)
    assert num_kept <= summary.num_reused_rewards < 120
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "JobSpec", partial(JobSpec, chunk_rows=4))
        done = invoke("score", source, "-o", killed, "--reward-cache", cache)
        plain = invoke("score", source, "-o", tmp_path / "plain.jsonl")
    assert done.exit_code == plain.exit_code == 0
    # The killed job reads only what the cache had when it began, which is nothing.
    assert killed.read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_dry_run_does_not_touch_the_cache(source: Path, cache: Path) -> None:
    assert invoke("score", source, "--dry-run", "--reward-cache", cache).exit_code in (0, 3)
    assert not os.path.exists(cache)
