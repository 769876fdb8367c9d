"""The section of a data card about a selection; see `serve.jobs.dataset_card`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serve.jobs.dataset_card import (
    CardSection,
    Table,
    describe_model,
    format_code,
    list_file_names,
    publish_name,
    render_section,
)
from serve.jobs.inputs.source import FileSource
from serve.jobs.output import Output
from serve.jobs.store import read_finished_manifest

_MAX_FILES = 20
_COLUMNS = {
    "prompt": "the prompt, text or messages",
    "completion": "the selected answer",
    "chosen": "the answer with the higher reward",
    "rejected": "the answer with the lower reward",
    "reward": "reward of the answer; higher is better",
    "chosen_reward": "reward of the chosen answer",
    "rejected_reward": "reward of the rejected answer",
    "margin": "`chosen_reward` minus `rejected_reward`",
    "tools": "function definitions for the chat template",
}


def build_selection_section(
    report: Mapping[str, Any],
    source: FileSource,
    path: str,
    command: str,
    keep_columns: Sequence[str],
    has_tools: bool,
) -> CardSection:
    """Return the section about a selection.

    Args:
        report: content of the selection's report.
        source: the input.
        path: name of the data file in the repository.
        command: the command line.
        keep_columns: columns of the input that were copied.
        has_tools: whether the output has a column `tools`.
    """
    selected = report["selected"]
    is_pairs = report["choice"]["mode"] == "pairs"
    names = (
        ["prompt", "chosen", "rejected", "chosen_reward", "rejected_reward", "margin"]
        if is_pairs
        else ["prompt", "completion", "reward"]
    )
    names += ["tools"] if has_tools else []
    digests = {
        file.path: source.fetched.fetch(file).compute_sha256() for file in source.files[:_MAX_FILES]
    }
    tables: list[Table] = [
        ("Input", list(_describe_input(source, digests, report))),
        *(("Model", model) for model in _describe_models(digests)),
        ("Options", [(_format_name(n), format_code(v)) for n, v in report["choice"].items()]),
        ("Prompts", list(_describe_prompts(report["prompts"]))),
        ("Selected", list(_describe_selected(selected))),
    ]
    return CardSection(
        path,
        selected["rows"],
        ("skyreward", "reward-model", *(["preference"] if is_pairs else [])),
        render_section(
            path,
            f"{selected['rows']:,} rows, selected by rewards with skyreward.",
            tables,
            [
                *((format_code(n), _COLUMNS[n]) for n in names),
                *((format_code(n), "as in the input") for n in keep_columns),
            ],
            command,
        ),
    )


def _describe_models(digests: Mapping[str, str]) -> list[list[tuple[str, str]]]:
    """Return each model that is known to have scored a file, which is unchanged since then."""
    models: list[list[tuple[str, str]]] = []
    for path, digest in digests.items():
        manifest = read_finished_manifest(Output.parse(path).state_folder)
        if not (manifest and manifest.completion and manifest.completion.sha256 == digest):
            continue
        if (model := list(describe_model(manifest))) not in models:
            models.append(model)
    return models


def _describe_input(
    source: FileSource, digests: Mapping[str, str], report: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    yield "name", format_code(publish_name(source.name))
    for name, digest in zip(list_file_names(list(digests)), digests.values(), strict=True):
        yield format_code(name), f"SHA-256 {format_code(digest)}"
    if len(source.files) > _MAX_FILES:
        yield f"{len(source.files) - _MAX_FILES:,} more files", ""
    for name, count in report["rows"].items():
        yield f"rows {_format_name(name)}", f"{count:,}"
    for name, count in report["answers"].items():
        yield f"answers {_format_name(name)}", f"{count:,}"


def _describe_prompts(prompts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "read", f"{prompts['read']:,}"
    for reason, count in prompts["dropped"].items():
        yield f"dropped: {_format_name(reason)}", f"{count:,}"
    yield "ties", f"{prompts['ties']:,}"


def _describe_selected(selected: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in selected.items():
        if isinstance(value, dict):
            numbers = ", ".join(f"{key} {number:.6g}" for key, number in value.items())
            yield _format_name(name), numbers
        elif isinstance(value, float):
            yield _format_name(name), f"{value:.2%}"
        else:
            yield _format_name(name), f"{value:,}"


def _format_name(name: str) -> str:
    return name.replace("_", " ")
