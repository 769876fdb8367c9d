"""Estimate the cost of a job: count rows and tokens and time a sample; write nothing.

Repeated conversations are counted every time, because a dry run has no dedup store.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from rm_core import Reward, ScoreError
from rm_core.inputs.conversations import ChatJson
from serve.errors import JobStoppedError
from serve.jobs.executors.base import Executor
from serve.jobs.progress import Progress
from serve.jobs.runner import Chunk, parse_chunk, split_into_chunks
from serve.jobs.spec import JobSpec
from serve.jobs.summary import Line, format_duration
from serve.shutdown import GracefulShutdown

SAMPLE_ROWS = 64


@dataclass(slots=True)
class Estimate:
    """Estimate of a job.

    Attributes:
        num_rows: number of rows to score.
        errors: number of rows that would have an error, by error code, as far as errors are known
            before scoring.
        warnings: number of rows with a warning about how they were read, by warning code.
        num_conversations: number of conversations that can be scored.
        num_tokens: number of tokens of all these conversations.
        longest: number of tokens of the longest conversation.
        tokens_per_s: throughput measured on the sample.
    """

    num_rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    num_conversations: int = 0
    num_tokens: int = 0
    longest: int = 0
    tokens_per_s: float = 0.0

    def format_lines(self) -> Iterable[Line]:
        """Yield names and values for the summary table."""
        yield "rows", f"{self.num_rows:,}"
        yield "with an error", f"{sum(self.errors.values()):,}"
        for code, count in self.errors.most_common():
            yield f"  {code}", f"{count:,}"
        if self.warnings:
            yield "rows with a warning", ""
        for code, count in self.warnings.most_common():
            yield f"  {code}", f"{count:,}"
        yield "conversations", f"{self.num_conversations:,}"
        yield "tokens", f"{self.num_tokens:,}"
        yield "longest conversation", f"{self.longest:,} tokens"
        if self.tokens_per_s:
            yield f"tokens/s ({SAMPLE_ROWS} rows scored)", f"{self.tokens_per_s:,.0f}"
            yield "estimated time", format_duration(self.num_tokens / self.tokens_per_s)


def estimate(
    spec: JobSpec, executor: Executor, progress: Progress, shutdown: GracefulShutdown
) -> Estimate:
    """Count the rows and tokens of a job, and measure the throughput of a sample.

    Args:
        spec: specification of the job.
        executor: counts tokens and scores the sample.
        progress: receives the progress.
        shutdown: ends the count when a signal was received; the estimate then covers what was
            counted so far.

    Raises:
        RewardError: the executor failed.
    """
    result = Estimate()
    progress.start_phase(
        "counting", total=sum(file.size for file in spec.source.files), unit="bytes"
    )
    asks_services = executor.drain_timeout_s is not None
    with contextlib.suppress(JobStoppedError), shutdown.allow_interrupt(asks_services):
        _count_all(spec, executor, progress, shutdown, result)
    return result


def _count_all(
    spec: JobSpec,
    executor: Executor,
    progress: Progress,
    shutdown: GracefulShutdown,
    result: Estimate,
) -> None:
    rows = islice(spec.source.iter_rows(), spec.limit)
    for chunk_rows in split_into_chunks(rows, spec.chunk_rows):
        chunk = parse_chunk(chunk_rows, spec.columns)
        if chunk.first_row == 0:
            sample = list(
                parse_chunk(chunk_rows[:SAMPLE_ROWS], spec.columns).conversations.values()
            )
            result.tokens_per_s = _measure_rate(sample, spec, executor) if sample else 0.0
        _count(chunk, spec, executor, result)
        progress.advance(sum(row.size for row in chunk_rows))
        if shutdown.received_signal is not None:
            break


def _measure_rate(sample: list[ChatJson], spec: JobSpec, executor: Executor) -> float:
    # The first call also loads the model or connects to the cluster.
    executor.submit(sample[:1], spec.truncation).result()
    started = time.monotonic()
    scored = executor.submit(sample, spec.truncation).result()
    seconds = time.monotonic() - started
    return sum(r.num_tokens for r in scored.results if isinstance(r, Reward)) / seconds


def _count(chunk: Chunk, spec: JobSpec, executor: Executor, result: Estimate) -> None:
    distinct = list(chunk.conversations.values())
    counted = executor.count_tokens(distinct, spec.truncation) if distinct else []
    counts = dict(zip(chunk.conversations, counted, strict=True))
    for row in chunk.rows:
        result.num_rows += 1
        results = [c if isinstance(c, ScoreError) else counts[c] for c in row.conversations]
        failures = [r for r in [row.error, *results] if isinstance(r, ScoreError)]
        if failures:
            result.errors[failures[0].code] += 1
        result.warnings.update({warning.partition(":")[0] for warning in row.warnings})
        tokens = [r for r in results if isinstance(r, int)]
        result.num_conversations += len(tokens)
        result.num_tokens += sum(tokens)
        result.longest = max(result.longest, *tokens, 0)
