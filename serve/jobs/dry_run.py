"""What a job would cost: rows and tokens counted, a few rows scored for their time; writes nothing.

Conversations that occur again are not known in advance: the store that finds them is not made.
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
from serve.jobs.chunks import Chunk, parse_chunk, split_into_chunks
from serve.jobs.executors.base import Executor
from serve.jobs.progress import Progress, format_duration
from serve.jobs.shutdown import GracefulShutdown
from serve.jobs.spec import JobSpec
from serve.jobs.summary_table import Line

SAMPLE_ROWS = 64


@dataclass(slots=True)
class Estimate:
    """What a job would be.

    Attributes:
        num_rows: to score.
        errors: rows that would have an error, by its code, as far as that is known in advance.
        warnings: rows with a warning about how they were read, by its code.
        num_conversations: that can be scored.
        num_tokens: of all of them.
        longest: tokens of the longest.
        tokens_per_s: of the sample.
    """

    num_rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    num_conversations: int = 0
    num_tokens: int = 0
    longest: int = 0
    tokens_per_s: float = 0.0

    def format_lines(self) -> Iterable[Line]:
        """Names and values for people."""
        yield "rows", f"{self.num_rows:,}"
        yield "with an error", f"{sum(self.errors.values()):,}"
        for code, number in self.errors.most_common():
            yield f"  {code}", f"{number:,}"
        if self.warnings:
            yield "rows with a warning", ""
        for code, number in self.warnings.most_common():
            yield f"  {code}", f"{number:,}"
        yield "conversations", f"{self.num_conversations:,}"
        yield "tokens", f"{self.num_tokens:,}"
        yield "longest conversation", f"{self.longest:,} tokens"
        if self.tokens_per_s:
            yield f"tokens/s ({SAMPLE_ROWS} rows scored)", f"{self.tokens_per_s:,.0f}"
            yield "would take about", format_duration(self.num_tokens / self.tokens_per_s)


def estimate(
    spec: JobSpec, executor: Executor, progress: Progress, shutdown: GracefulShutdown
) -> Estimate:
    """Count what a job has to score, and time a sample of it.

    Args:
        plan: of the job.
        carrier: counts and scores.
        progress: is told.
        stopping: where it asks to stop, what was counted so far is the answer.

    Raises:
        RewardError: the carrier failed.
    """
    found = Estimate()
    progress.start_phase(
        "counting", total=sum(file.size for file in spec.source.files), unit="bytes"
    )
    asks_services = executor.drain_timeout_s is not None
    with contextlib.suppress(JobStoppedError), shutdown.allow_interrupt(asks_services):
        _count_all(spec, executor, progress, shutdown, found)
    return found


def _count_all(
    spec: JobSpec,
    executor: Executor,
    progress: Progress,
    shutdown: GracefulShutdown,
    found: Estimate,
) -> None:
    rows = islice(spec.source.iter_rows(), spec.limit)
    for number, some in enumerate(split_into_chunks(rows, spec.chunk_rows)):
        chunk = parse_chunk(number, some, spec.columns)
        if number == 0:
            sample = list(parse_chunk(0, some[:SAMPLE_ROWS], spec.columns).conversations.values())
            found.tokens_per_s = _measure_rate(sample, spec, executor) if sample else 0.0
        _count(chunk, spec, executor, found)
        progress.advance(sum(row.size for row in some))
        if shutdown.received_signal is not None:
            break


def _measure_rate(sample: list[ChatJson], spec: JobSpec, executor: Executor) -> float:
    # The first call also loads the model, or wakes a cluster.
    executor.submit(sample[:1], spec.truncation).result()
    started = time.monotonic()
    scored = executor.submit(sample, spec.truncation).result()
    seconds = time.monotonic() - started
    return sum(r.num_tokens for r in scored.results if isinstance(r, Reward)) / seconds


def _count(chunk: Chunk, spec: JobSpec, executor: Executor, found: Estimate) -> None:
    distinct = list(chunk.conversations.values())
    counted = executor.count_tokens(distinct, spec.truncation) if distinct else []
    counts = dict(zip(chunk.conversations, counted, strict=True))
    for row in chunk.rows:
        found.num_rows += 1
        results = [c if isinstance(c, ScoreError) else counts[c] for c in row.conversations]
        failures = [r for r in [row.error, *results] if isinstance(r, ScoreError)]
        if failures:
            found.errors[failures[0].code] += 1
        found.warnings.update({warning.partition(":")[0] for warning in row.warnings})
        tokens = [r for r in results if isinstance(r, int)]
        found.num_conversations += len(tokens)
        found.num_tokens += sum(tokens)
        found.longest = max(found.longest, *tokens, 0)
