"""Evaluations with services, whose settings the command reads and cannot change."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import benchmark_files
import pytest
from job_service import Service

from rm_core.benchmarks.registry import build_benchmark
from serve.errors import EvaluationError
from serve.evaluation.command import EvalRequest, evaluate_models
from serve.jobs.command import ExecutorOptions


@pytest.fixture
def service() -> Iterator[Service]:
    created = Service()
    yield created
    created.stop()


def evaluate(
    name: str,
    service: Service,
    output: Path,
    notify: Callable[[str], None] = print,
    **variant: str,
) -> dict[str, Any]:
    data = benchmark_files.write(output.parent / f"{name}-rows", benchmark_files.EVERY[name])
    request = EvalRequest(build_benchmark(name, **variant), str(data), None, output, notify)
    executor_options = [ExecutorOptions({}, (service.url,), retry_s=0)]
    evaluate_models(request, executor_options, truncation=None, overwrite=False)
    return dict(json.loads((output / "summary.json").read_text()))


@pytest.mark.usefixtures("reports")
def test_service_with_another_step_format_is_refused(service: Service, tmp_path: Path) -> None:
    """Before anything is scored or written, and again when there are rewards to resume."""
    service.kind, service.step_format = "step", "skywork"
    message = "needs a service with --step-format skywork-prmbench, and .* has the .* skywork;"
    with pytest.raises(EvaluationError, match=message):
        evaluate("prmbench", service, tmp_path / "out", preparation="prmbench")
    assert not service.requests
    assert not (tmp_path / "out").exists()
    used = evaluate("prmbench", service, tmp_path / "out")["used"]
    assert (used["preparation"], used["step_format"]) == ("model", "skywork")
    service.stop()
    with pytest.raises(EvaluationError, match=message):
        evaluate("prmbench", service, tmp_path / "out", preparation="prmbench")


@pytest.mark.usefixtures("reports")
def test_step_format_of_prmbench_is_for_its_variant(service: Service, tmp_path: Path) -> None:
    service.kind, service.step_format = "step", "skywork-prmbench"
    for name in ("prmbench", "processbench"):
        with pytest.raises(EvaluationError, match="--variant preparation=prmbench"):
            evaluate(name, service, tmp_path / "out")
    assert not service.requests
    used = evaluate("prmbench", service, tmp_path / "out", preparation="prmbench")["used"]
    assert (used["preparation"], used["step_format"]) == ("prmbench", "skywork-prmbench")


@pytest.mark.parametrize(
    ("kind", "truncation", "effect"),
    [
        ("classifier", "left", "longer conversations may get other rewards"),
        ("judge", "error", "a judge truncates nothing, so longer items are not scored"),
    ],
)
@pytest.mark.usefixtures("reports")
def test_other_maximum_length_is_described_by_kind(
    kind: str, truncation: str, effect: str, service: Service, tmp_path: Path
) -> None:
    service.kind = kind
    lines: list[str] = []
    summary = evaluate("rewardbench", service, tmp_path / "out", lines.append)
    start = "demo takes at most 9 tokens, but the official runs take at most 2048: "
    assert [line for line in lines if line.startswith(start)] == [start + effect]
    assert summary["used"]["truncation"] == truncation


@pytest.mark.usefixtures("reports")
def test_images_are_sent_as_data_uris(service: Service, tmp_path: Path) -> None:
    sent: list[Any] = []

    def keep(body: bytes) -> bool:
        sent.extend(json.loads(body)["conversations"])
        return False

    service.refuse_body = keep
    service.reads_images = True
    assert evaluate("vl-rewardbench", service, tmp_path / "out")["num_items"] == 8
    rows = benchmark_files.vl_rewardbench()
    by_answer = {text: row for row in rows for text in row["response"]}
    assert len(sent) == 16
    for user, assistant in sent:
        row = by_answer[assistant["content"]]
        url = f"data:image/png;base64,{row['image']}"
        assert user["content"] == [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": row["query"].removeprefix("<image>\n")},
        ]
