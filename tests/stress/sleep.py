"""A model is put to sleep and woken under load: is anything lost, and does memory come back?

What is measured: a service, clients that try again, and cycle after cycle of `sleep` and `wake`,
most of them at level 1, some at level 2. Every request has to be answered in the end, with the
rewards of before to the bit (setting `deterministic`). The memory of the process with the model
must not grow after the first ten cycles; what each level gives back is reported. The score cache is
off. The last line is one JSON object.

    python tests/stress/sleep.py [--cycles 500] [--deep 20] [--clients 8] [--ray]
"""

from __future__ import annotations

import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from chaos import undisturbed
from service import Service, memory_of, parser_of, service_of
from stress_result import finish, percentiles
from workload_mix import Conversation, Writer, picks

from rm_core import Reward
from serve.client import ScoringClient, ServiceError

_MIB = 2**20
_SETTLING_CYCLES = 10
_GROWTH = 0.05
_LONGEST_RETRY_S = 1800.0
# Larger requests would not be answered between two sleeps.
_MAX_CONVERSATIONS = 16
_LONGEST_AWAKE_S = 60.0


@dataclass
class Answers:
    """What clients got.

    Attributes:
        expected: reward of each conversation of the pool before any sleep.
    """

    expected: list[float]
    requests: int = 0
    conversations: int = 0
    retries: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, chosen: list[int], results: list[Any]) -> None:
        """Compare the results of one request."""
        with self.lock:
            self.requests += 1
            self.conversations += len(chosen)
            for index, result in zip(chosen, results, strict=True):
                if not isinstance(result, Reward):
                    self.wrong[result.code] += 1
                elif result.reward != self.expected[index]:
                    self.wrong["another reward"] += 1


def score_until(
    stop: threading.Event, service: Service, pool: list[Conversation], answers: Answers, seed: int
) -> None:
    """Send requests until the end; each is sent again while the model sleeps."""
    with ScoringClient(service.url, retry_timeout_s=_LONGEST_RETRY_S) as client:
        for picked in picks(random.Random(seed), len(pool)):
            chosen = picked[:_MAX_CONVERSATIONS]
            if stop.is_set():
                break
            try:
                answers.add(chosen, client.results([pool[index] for index in chosen]))
            except ServiceError as error:
                with answers.lock:
                    answers.wrong[error.detail[:160]] += 1
        with answers.lock:
            answers.retries += client.num_retries


def run_cycles(
    service: Service, cycles: list[int], answers: Answers, num_between: int
) -> dict[str, Any]:
    """Sleep and wake, at these levels; durations, what was freed, and the memory while awake.

    Between two cycles, so many requests are answered.
    """
    freed: dict[int, list[int]] = {1: [], 2: []}
    seconds: dict[str, list[float]] = {"sleep": [], "wake": []}
    private = []
    with ScoringClient(service.url) as control:
        for number, level in enumerate(cycles):
            (asleep,) = control.sleep(level)  # type: ignore[arg-type]
            seconds["sleep"].append(asleep["seconds"])
            if asleep["freed_bytes"] is not None:
                freed[level].append(asleep["freed_bytes"])
            seconds["wake"].append(control.wake()[0]["seconds"])
            enough, deadline = answers.requests + num_between, time.monotonic() + _LONGEST_AWAKE_S
            while answers.requests < enough and time.monotonic() < deadline:
                time.sleep(0.01)
            found = [memory_of(process.pid) for process in service.scorers()]
            private.append(max(memory.private for memory in found if memory))
            if number % 50 == 0:
                print(f"  cycle {number}: {private[-1] / _MIB:.0f} MiB", flush=True)
    return {"freed": freed, "seconds": seconds, "private": private}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--deep", type=int, default=20, help="cycles at level 2 among them")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--between", type=int, default=2, help="requests between two cycles")
    parser.add_argument("--when-asleep", choices=["refuse", "wait"], default="refuse")
    parser.add_argument("--ray", action="store_true", help="with Ray; by default one process")
    options = parser.parse_args()
    pool = Writer(options.seed).pool()
    every = max(1, options.cycles // max(1, options.deep))
    cycles = [2 if number % every == every - 1 else 1 for number in range(options.cycles)]
    model = {"cache_bytes": 0, "deterministic": True, "when_asleep": options.when_asleep}
    with service_of(options, *([] if options.ray else ["--local"]), model=model) as service:
        answers = Answers(undisturbed(service, pool))
        stop = threading.Event()
        threads = [
            threading.Thread(target=score_until, args=(stop, service, pool, answers, seed))
            for seed in range(options.clients)
        ]
        for thread in threads:
            thread.start()
        try:
            found = run_cycles(service, cycles, answers, options.between)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        after = undisturbed(service, pool)
    private = found["private"]
    early = statistics.median(private[_SETTLING_CYCLES : 3 * _SETTLING_CYCLES] or private)
    late = statistics.median(private[-2 * _SETTLING_CYCLES :])
    checks = {
        "every request was answered": not answers.wrong and answers.requests > 0,
        "requests met a sleeping model": answers.retries > 0 or options.when_asleep == "wait",
        "rewards equal those of before to the bit": not answers.wrong["another reward"]
        and after == answers.expected,
        f"memory grew by less than {_GROWTH:.0%}": late <= (1 + _GROWTH) * early,
        "level 2 gives memory back": not found["freed"][2] or max(found["freed"][2]) > 0,
    }
    figures = {
        "cycles": len(cycles),
        "deep": cycles.count(2),
        "requests": answers.requests,
        "conversations": answers.conversations,
        "client_retries": answers.retries,
        "wrong": dict(answers.wrong.most_common(5)),
        "early_mib": round(early / _MIB, 1),
        "late_mib": round(late / _MIB, 1),
        **{
            f"freed_mib_level_{level}": round(statistics.median(sizes) / _MIB, 1)
            for level, sizes in found["freed"].items()
            if sizes
        },
        "sleep_ms": percentiles(found["seconds"]["sleep"]),
        "wake_ms": percentiles(found["seconds"]["wake"]),
    }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
