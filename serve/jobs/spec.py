"""Specification of a job, without where it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rm_core import Aggregation, Truncation
from rm_core.config import Kind
from serve.errors import JobInputError, JobOutputError
from serve.jobs.columns import DEFAULT_COLUMNS, Columns
from serve.jobs.inputs.items import InputKind
from serve.jobs.inputs.source import FileSource
from serve.jobs.output import Output

CHUNK_ROWS = 2_000


@dataclass(frozen=True, slots=True)
class JobSpec:
    """Options of a job.

    Attributes:
        source: the input.
        output: file for the rows with their rewards, and the state of the job.
        truncation: how to handle conversations that are too long.
        columns: columns of the records.
        aggregation: how the rewards of steps become the reward; None for `last`. Only for a step
            model.
        orders: in which orders a judge reads pairs; None for both. Only for a judge.
        inputs: what to score of a record; other inputs than chats are read without `columns`.
        limit: number of rows to score; None for all.
        chunk_rows: maximum number of rows in a chunk.
        fail_fast: whether to stop at the first row with an error.
        overwrite: whether to discard existing output and state.
        retry_errors: whether to score rows with errors again that the job has so far.
        replace_results: whether columns of the input that are named like results are results of an
            earlier run, to be replaced.
        model_spec: how the user specified the model, as JSON data. If it is unchanged, a finished
            job neither opens a model nor contacts a service.
        writes_rows: whether the output has the rows; False for statistics of them.
        follows_protocol: whether `truncation` is that of a benchmark's official runs; models that
            truncate nothing then ignore it.
        reward_cache: file of rewards that is kept across jobs; see `serve.jobs.reward_cache`.
        images: images of the prompts by SHA-256, for rows that refer to them; see
            `serve.jobs.inputs.image_references`.
    """

    source: FileSource
    output: Output
    truncation: Truncation = "error"
    columns: Columns = DEFAULT_COLUMNS
    aggregation: Aggregation | None = None
    orders: Literal["both", "given"] | None = None
    inputs: InputKind = "chats"
    limit: int | None = None
    chunk_rows: int = CHUNK_ROWS
    fail_fast: bool = False
    overwrite: bool = False
    retry_errors: bool = False
    replace_results: bool = False
    model_spec: dict[str, Any] = field(default_factory=dict)
    writes_rows: bool = True
    follows_protocol: bool = False
    reward_cache: Path | None = None
    images: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Options that decide results or chunk boundaries, as JSON data for the manifest."""
        return {
            "truncation": self.truncation,
            "limit": self.limit,
            "chunk_rows": self.chunk_rows,
            "replace_results": self.replace_results,
            **self.columns.as_options(),
            **({} if self.inputs == "chats" else {"inputs": self.inputs}),
            **({} if self.aggregation in (None, "last") else {"aggregation": self.aggregation}),
            **({} if self.orders in (None, "both") else {"orders": self.orders}),
            **({} if self.writes_rows else {"writes_rows": False}),
            **({"output": str(self.output)} if self.output.is_state_elsewhere else {}),
        }

    @property
    def local_paths(self) -> list[Path]:
        """Paths of the output and of the input's files, without those that are at an address."""
        locations = [self.output.location, *(file.location for file in self.source.files)]
        return [location.local_path for location in locations if location.local_path]


def require_fitting_options(spec: JobSpec, kind: Kind) -> None:
    """Check that the options of a job fit the kind of its model."""
    if kind == "judge" and not spec.writes_rows:
        raise JobInputError(
            "the model is a judge, which compares two answers and gives no rewards to calibrate; "
            "name a classifier or a step model"
        )
    truncation = None if spec.follows_protocol or spec.truncation == "error" else spec.truncation
    for option, value, models, needed in (
        (f"--truncation {truncation}", truncation, "classifiers", "classifier"),
        ("--aggregation", spec.aggregation, "step models", "step"),
        ("--orders", spec.orders, "judges", "judge"),
    ):
        if value is not None and kind != needed:
            names = {"classifier": "classifier", "step": "step model", "judge": "judge"}
            raise JobInputError(
                f"{option} is for {models}, and this model is a {names[kind]}; leave the option out"
            )


def require_report_path(report: Path, spec: JobSpec) -> None:
    """Check that a report has a folder, and that it does not replace another kind of file."""
    if not report.parent.is_dir():
        raise JobOutputError(f"the folder {report.parent} does not exist; create it first")
    is_html = True
    if report.is_file():
        with report.open("rb") as file:
            is_html = file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if report.resolve() in {path.resolve() for path in spec.local_paths} or not is_html:
        raise JobOutputError(
            f"the report would replace {report}, which is not an HTML report; give another name, "
            "such as report.html"
        )
