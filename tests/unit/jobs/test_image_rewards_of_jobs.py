"""Jobs with a real vision-language model: rewards equal those of the scorer and of the service."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from job_runs import run_job, write_lines
from kinds import serving_models
from stub_service import StubService, stub_service
from vision import build_vision_model

from rm_core import Encoded, ModelConfig, Reward, RewardScorer, load_encoder
from rm_core.inputs.sample_image import write_png
from serve.cli.main import main
from serve.client import ScoringClient
from serve.jobs.dry_run import estimate
from serve.jobs.executors.local import LocalExecutor
from serve.jobs.executors.service import ServiceExecutor
from serve.jobs.inputs.source import open_source
from serve.jobs.output import Output
from serve.jobs.progress import Progress
from serve.jobs.spec import JobSpec
from serve.shutdown import GracefulShutdown

WIDE, HIGH = write_png(100, 60), write_png(57, 90)
URI = "data:image/png;base64," + base64.b64encode(WIDE).decode()
SOURCES = {"wide.png": WIDE, "high.png": HIGH, URI: WIDE}


def ask(source: Any, question: str, answer: str) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": source}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vision_model(tmp_path_factory.mktemp("vision") / "model")


@pytest.fixture(scope="module")
def scorer(model: Path) -> RewardScorer:
    return RewardScorer.load(ModelConfig(str(model), device="cpu"))


@pytest.fixture(scope="module")
def service(model: Path, checkpoint_of: Any) -> Iterator[StubService]:
    with serving_models(vl=model, text=checkpoint_of("qwen3")) as app, stub_service(app) as stub:
        yield stub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wide.png").write_bytes(WIDE)
    (tmp_path / "high.png").write_bytes(HIGH)
    return tmp_path


ROWS: list[dict[str, Any]] = [
    {"messages": ask("wide.png", "What is it?", "A cat.")},
    {"messages": ask(URI, "What is it?", "A cat.")},
    {"prompt": "<image>What is it?", "response": "A dog.", "images": ["high.png"]},
    {"prompt": "2+2?", "response": "4"},
    {"prompt": "What?", "chosen": "A cat.", "rejected": "No.", "image": "wide.png"},
    {"prompt": "<image>What?", "responses": ["A cat.", "No.", "A dog."], "images": ["high.png"]},
    {"messages": ask("missing.png", "What?", "A cat.")},
    {"messages": ask("data:image/png;base64,AAAA", "What?", "A cat.")},
]
PLAIN = [
    ask(WIDE, "What is it?", "A cat."),
    ask(WIDE, "What is it?", "A cat."),
    ask(HIGH, "What is it?", "A dog."),
    [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    *(ask(WIDE, "What?", answer) for answer in ("A cat.", "No.")),
    *(ask(HIGH, "What?", answer) for answer in ("A cat.", "No.", "A dog.")),
]


def read_rewards(output: Path) -> list[float]:
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for row, before in zip(rows, ROWS, strict=True):
        assert {name: row[name] for name in before} == before
    assert [row["error"]["code"] for row in rows if "error" in row] == ["invalid_image"] * 2
    names = ("reward", "chosen_reward", "rejected_reward", "rewards")
    found = [row[name] for row in rows if "error" not in row for name in names if name in row]
    return [one for each in found for one in (each if isinstance(each, list) else [each])]


def compute_plain(scorer: RewardScorer) -> list[float]:
    rewards = [result for one in PLAIN for result in scorer.score([one])]
    assert all(isinstance(reward, Reward) for reward in rewards)
    return [reward.reward for reward in rewards if isinstance(reward, Reward)]


def test_rewards_of_local_job_are_those_of_scorer(
    folder: Path, model: Path, scorer: RewardScorer
) -> None:
    source = write_lines(folder / "in.jsonl", ROWS)
    config = ModelConfig(str(model), device="cpu")
    for chunk_rows in (100, 2):
        output = folder / f"out-{chunk_rows}.jsonl"
        summary = run_job(source, output, LocalExecutor(config), chunk_rows=chunk_rows)  # type: ignore[arg-type]
        assert read_rewards(output) == pytest.approx(compute_plain(scorer), abs=1e-4)
        assert summary.errors == {"invalid_image": 2}


def test_rewards_of_job_with_service_are_those_of_scorer(
    folder: Path, scorer: RewardScorer, service: StubService
) -> None:
    source, output = write_lines(folder / "in.jsonl", ROWS), folder / "out.jsonl"
    executor = ServiceExecutor([service.url], "vl", api_key=None, retry_s=0)
    run_job(source, output, executor)  # type: ignore[arg-type]
    assert read_rewards(output) == pytest.approx(compute_plain(scorer), abs=1e-4)


def test_services_and_models_of_text_refuse_rows_with_images(
    folder: Path, service: StubService
) -> None:
    source, output = write_lines(folder / "in.jsonl", ROWS), folder / "out.jsonl"
    executor = ServiceExecutor([service.url], "text", api_key=None, retry_s=0)
    assert run_job(source, output, executor).num_failed == 7  # type: ignore[arg-type]
    for line in output.read_text().splitlines():
        row = json.loads(line)
        if row.get("prompt") != "2+2?":
            assert "this model reads only text" in row["error"]["message"]


def test_settings_of_images_belong_to_identity(model: Path) -> None:
    small = ModelConfig(str(model), device="cpu", max_pixels=4 * 28 * 28)
    identities = [
        LocalExecutor(config).resolve_identity()
        for config in (ModelConfig(str(model), device="cpu"), small)
    ]
    assert identities[0] != identities[1]
    assert identities[0]["max_image_bytes"] == 10 * 2**20


def test_dry_run_counts_tokens_of_images(folder: Path, model: Path, scorer: RewardScorer) -> None:
    source = write_lines(folder / "in.jsonl", ROWS)
    executor = LocalExecutor(ModelConfig(str(model), device="cpu"))
    with Progress(lambda line: None, on_terminal=False) as progress:
        spec = JobSpec(open_source(str(source)), Output.parse(folder / "out.jsonl"))
        dry_run = estimate(spec, executor, progress, GracefulShutdown(""))
    executor.close()
    encoded = scorer.encoder.encode_all(PLAIN)
    num_tokens = [item.num_tokens for item in encoded if isinstance(item, Encoded)]
    assert dry_run.summary.num_tokens == sum(num_tokens)
    assert dry_run.summary.num_failed == 2


def test_render_shows_where_images_are(folder: Path, model: Path) -> None:
    source = write_lines(folder / "in.jsonl", ROWS[:1])
    options = ["render", "--model", str(model)]
    shown = CliRunner().invoke(main, [*options, str(source)])
    assert shown.exit_code == 0, shown.output
    encoder = load_encoder(ModelConfig(str(model)))
    (encoded,) = encoder.encode_all(PLAIN[:1])
    line = json.loads(shown.stdout.splitlines()[-1])
    assert line["num_tokens"] == encoded.num_tokens  # type: ignore[union-attr]
    assert [one["num_tokens"] for one in line["images"]] == [8]
    piped = CliRunner().invoke(main, [*options, "-"], input=source.read_bytes())
    assert piped.exit_code == 3
    assert "not in a file on this machine" in piped.stdout


def test_client_scores_images_of_every_type(
    folder: Path, scorer: RewardScorer, service: StubService
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    (expected,) = [one.reward for one in scorer.score(PLAIN[:1]) if isinstance(one, Reward)]
    near = pytest.approx(expected, abs=1e-4)
    pillow = image_module.open(io.BytesIO(WIDE))
    sources = (WIDE, folder / "wide.png", pillow, {"bytes": WIDE, "path": None}, URI)
    conversations = [ask(source, "What is it?", "A cat.") for source in sources]
    bare = [folder / "wide.png", "What is it?"]
    conversations.append([{"role": "user", "content": bare}, PLAIN[0][1]])
    with ScoringClient(service.url, "vl", retry_timeout_s=0) as client:
        assert client.score(conversations) == [near] * 6
        prompt = conversations[1][:1]
        pair = {"prompt": prompt, "chosen": "A cat.", "rejected": "No."}
        assert client.compare([pair])[0].chosen_reward == near
        assert client.rank(prompt, ["A cat.", "No."]).rewards[0] == near
        (turns,) = client.score_turns(conversations[:1])
        assert [turn.reward for turn in turns.turn_rewards] == [near]  # type: ignore[union-attr]
        (encoded,) = scorer.encoder.encode_all(PLAIN[:1])
        assert client.count_tokens(conversations) == [encoded.num_tokens] * 6  # type: ignore[union-attr]
        path_as_text = ask(str(folder / "wide.png"), "What is it?", "A cat.")
        (refused,) = client.results([path_as_text])
        assert refused.code == "invalid_image"  # type: ignore[union-attr]
