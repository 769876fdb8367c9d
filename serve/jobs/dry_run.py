"""Estimate the cost of a job: count rows and tokens and time a sample; write nothing.

Repeated conversations are counted every time, because a dry run has no dedup store.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rm_core import Reward, ScoreError
from serve.errors import JobStoppedError
from serve.jobs.executors.base import Executor
from serve.jobs.inputs.items import ScoringInput
from serve.jobs.manifest import get_kind, get_max_image_bytes
from serve.jobs.progress import Progress
from serve.jobs.runner import Chunk, read_chunks
from serve.jobs.spec import JobSpec, require_fitting_options
from serve.jobs.summary import Line, Summary, format_duration, format_problems
from serve.shutdown import GracefulShutdown

SAMPLE_ROWS = 64


@dataclass(slots=True)
class Estimate:
    """Estimate of a job.

    Attributes:
        summary: summary of the rows that were counted, as far as errors and warnings are known
            before scoring.
        longest: number of tokens of the longest conversation.
        tokens_per_s: throughput measured on the sample.
    """

    summary: Summary = field(default_factory=Summary)
    longest: int = 0
    tokens_per_s: float = 0.0

    def format_lines(self) -> Iterable[Line]:
        """Yield names and values for the summary table."""
        num_tokens = self.summary.num_tokens
        yield "rows", f"{self.summary.num_rows:,}"
        yield from format_problems(self.summary)
        yield "conversations", f"{self.summary.num_conversations:,}"
        yield "tokens", f"{num_tokens:,}"
        yield "longest conversation", f"{self.longest:,} tokens"
        if self.tokens_per_s:
            yield f"tokens/s ({SAMPLE_ROWS} rows scored)", f"{self.tokens_per_s:,.0f}"
            yield "estimated time", format_duration(num_tokens / self.tokens_per_s)


def estimate(
    spec: JobSpec, executor: Executor, progress: Progress, shutdown: GracefulShutdown
) -> Estimate:
    """Count the rows and tokens of a job, and measure the throughput of a sample.

    A signal ends the count; the estimate then covers what was counted so far.

    Raises:
        RewardError: the executor failed.
    """
    result = Estimate()
    total = sum(file.size for file in spec.source.files)
    progress.start_phase("counting", total=total, unit="bytes")
    asks_services = executor.drain_timeout_s is not None
    with contextlib.suppress(JobStoppedError), shutdown.allow_interrupt(asks_services):
        model = executor.resolve_identity()
        kind = get_kind(model)
        require_fitting_options(spec, kind)
        for chunk in read_chunks(spec, kind, max_image_bytes=get_max_image_bytes(model)):
            _count(chunk, spec, executor, result)
            if chunk.first_row == 0:
                result.tokens_per_s = _measure_rate(chunk, spec, executor)
            progress.advance(chunk.num_bytes)
            if shutdown.received_signal is not None:
                break
    return result


def _measure_rate(chunk: Chunk, spec: JobSpec, executor: Executor) -> float:
    """Return the tokens per second of the first rows; 0 if they have no conversations."""
    digests = dict.fromkeys(
        key for _, keys in chunk.rows[:SAMPLE_ROWS] for key in keys if isinstance(key, bytes)
    )
    sample: list[ScoringInput] = [chunk.conversations[digest] for digest in digests]
    if not sample:
        return 0.0
    # The first call also loads the model or connects to the cluster.
    executor.submit(sample[:1], spec.truncation).result()
    started = time.monotonic()
    scored = executor.submit(sample, spec.truncation).result()
    seconds = time.monotonic() - started
    return sum(r.num_tokens for r in scored.results if isinstance(r, Reward)) / seconds


def _count(chunk: Chunk, spec: JobSpec, executor: Executor, result: Estimate) -> None:
    distinct = list(chunk.conversations.values())
    counts = executor.count_tokens(distinct, spec.truncation) if distinct else []
    # Only the number of tokens is known of a reward.
    rewards = [count if isinstance(count, ScoreError) else Reward(0.0, count) for count in counts]
    rows = chunk.fill(dict(zip(chunk.conversations, rewards, strict=True)))
    result.summary.add(chunk.summarize(rows, ()))
    result.longest = max(result.longest, *(c for c in counts if isinstance(c, int)), 0)
