"""A template that prints today's date gets one fixed date per job and per service."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import serve.jobs.command
import serve.worker.backends
from rm_core import ModelConfig, ModelLoadError, RewardError, RewardScorer
from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings
from serve.jobs.command import ExecutorOptions, run
from serve.jobs.inputs.source import open_source
from serve.jobs.output import Output
from serve.jobs.spec import JobSpec
from serve.jobs.store import open_store
from serve.worker.backends import pin_settings
from serve.worker.worker import Worker

CopyOf = Callable[..., Path]
FIRST, SECOND = "2026-03-01", "2026-03-02"
MESSAGES = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


class Calendar:
    """Replaces the `datetime` module in another module."""

    def __init__(self, day: str) -> None:
        self.date = self
        self._day = day

    def today(self) -> datetime.date:
        return datetime.date.fromisoformat(self._day)


@pytest.fixture
def dated_checkpoint(copy_of: CopyOf) -> Path:
    folder = copy_of("llama-v0.2")
    template = folder / "chat_template.jinja"
    text = "{{ bos_token }}{{ strftime_now('%d %b %Y') }}" + template.read_text()
    template.write_text(text.replace("{% if true %}{{ bos_token }}{% endif %}", ""))
    return folder


@pytest.fixture
def set_today(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that sets today's date."""

    def set_day(day: str) -> None:
        for module in (serve.jobs.command, serve.worker.backends):
            monkeypatch.setattr(module, "datetime", Calendar(day))

    return set_day


def score(source: Path, output: Path, model: dict[str, Any], **options: Any) -> list[float]:
    options = {"overwrite": False, "truncation": "error", "chunk_rows": 1} | options
    executor_options = ExecutorOptions({"template_date": None} | model)
    columns = dict.fromkeys(
        ("messages", "prompt", "response", "responses", "chosen", "rejected", "system")
    )
    columns["responses"] = ()  # type: ignore[assignment]
    run(
        str(source), output, executor_options, notify=lambda _: None, dry_run=False, report=None,
        split=None, columns=columns, **options,
    )  # fmt: skip
    return [json.loads(line)["reward"] for line in output.read_text().splitlines()]


def get_reward_on(folder: Path, day: str) -> float:
    scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu", template_date=day))
    (result,) = scorer.score([MESSAGES])
    return result.reward  # type: ignore[union-attr]


def test_job_resumed_on_another_day_keeps_date(
    dated_checkpoint: Path,
    tmp_path: Path,
    set_today: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"messages": MESSAGES}) + "\n" for _ in range(3)))
    model = {"model": str(dated_checkpoint)}
    set_today(FIRST)
    first = score(source, output, model)
    assert first == pytest.approx([get_reward_on(dated_checkpoint, FIRST)] * 3, abs=1e-4)
    set_today(SECOND)
    with open_store(JobSpec(open_source(str(source)), Output.parse(output))) as store:
        assert store.manifest
        assert store.manifest.model["template_date"] == FIRST
        identity = ExecutorOptions(model).build_executor(store).resolve_identity()
        assert identity["template_date"] == FIRST
    assert ExecutorOptions(model).build_executor(None).resolve_identity()["template_date"] == SECOND
    assert score(source, output, model) == first
    with pytest.raises(RewardError, match=r"template-date was .2026-03-01. and is .2026-03-02."):
        score(source, output, model | {"template_date": SECOND})
    again = score(source, output, model, overwrite=True)
    assert again == pytest.approx([get_reward_on(dated_checkpoint, SECOND)] * 3, abs=1e-4)
    assert again != first


def test_job_without_date_in_template_is_not_pinned_to_date(
    checkpoint_of: Callable[[str], Path], set_today: Callable[[str], None]
) -> None:
    set_today(FIRST)
    identity = (
        ExecutorOptions({"model": str(checkpoint_of("qwen3"))})
        .build_executor(None)
        .resolve_identity()
    )
    assert "template_date" not in identity


def test_template_file_with_date_pins_job(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, set_today: Callable[[str], None]
) -> None:
    set_today(FIRST)
    template = tmp_path / "t.jinja"
    template.write_text("{{ strftime_now('%d') }}{{ messages }}")
    model = {"model": str(checkpoint_of("qwen3")), "chat_template": str(template)}
    assert ExecutorOptions(model).build_executor(None).resolve_identity()["template_date"] == FIRST


def test_service_pins_date_once(dated_checkpoint: Path, set_today: Callable[[str], None]) -> None:
    set_today(FIRST)
    settings = pin_settings(ModelSettings(name=str(dated_checkpoint), alias="rm"))
    assert settings.template_date == FIRST
    set_today(SECOND)
    assert pin_settings(settings) == settings  # replicas and gateways receive pinned settings
    scorer = RewardScorer.load(settings.to_model_config())
    assert scorer.fingerprint.template_date == FIRST
    assert Worker(scorer).info.template_date == FIRST
    chosen = pin_settings(
        ModelSettings(name=str(dated_checkpoint), alias="rm", template_date="2024-07-26")
    )
    assert chosen.template_date == "2024-07-26"


def test_invalid_template_date_setting_is_refused() -> None:

    with pytest.raises(ModelLoadError, match="give a day as YYYY-MM-DD"):
        Settings.load(models=[{"name": "demo", "template_date": "tomorrow"}])
