"""Requests that nobody should send: is each refused clearly, and does nothing break?

What is checked: schemathesis over every operation of the service's OpenAPI document, with bodies
that fit it and others; then mutated bodies of every route that takes one, every twentieth sent as
raw bytes with a broken frame. None may be answered with a 5xx (a 503 with `Retry-After` is load,
and allowed), none may take 30 s, every refusal is our JSON, no answer holds NaN. The service's
processes must be the same before and after, and the sample pairs score as before. Drawn from
`--seed`: two runs send the same. The score cache is off. The last line is one JSON object.

    python tests/stress/fuzz.py [--mutants 10000] [--examples 100] [--local]
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
from mutations import Mutant, by_kind, mutant
from openapi_operations import Operation, controls_models, operations_of
from raw_http import Hang, send_raw
from schema_conformance import conform
from service import Service, parser_of, service_of
from stress_result import finish, percentiles

from rm_core import seeds_dir

TOLERANCE = 1e-4
_TIMEOUT_S = 30.0
_RAW_EVERY = 20


@dataclass
class Found:
    """What came back, from all threads."""

    statuses: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kinds: Sequence[str], statuses: Sequence[int], took: float, wrong: str) -> None:
        """One request."""
        with self.lock:
            self.kinds.update(kinds)
            self.statuses.update(statuses)
            self.seconds.append(took)
            if wrong:
                self.wrong.append(wrong)
                print(f"  {wrong}", flush=True)


def no_constant(name: str) -> None:
    raise ValueError(f"{name} in an answer")


def wrong_with(answer: httpx.Response) -> str:
    """What an answer has no right to be; nothing if it is as it should be."""
    polite = answer.status_code == 503 and "retry-after" in answer.headers
    if answer.status_code >= 500 and not polite:
        return f"{answer.status_code} {answer.text[:200]}"
    try:
        body = json.loads(answer.content, parse_constant=no_constant)
    except ValueError as error:
        return f"{answer.status_code} without JSON ({error}): {answer.text[:200]}"
    if answer.status_code >= 400 and not told_by(body):
        return f"{answer.status_code} without a reason: {answer.text[:200]}"
    return ""


def told_by(body: Any) -> Any:
    """Why a request was refused, in the shape of whichever client the route is for."""
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    if isinstance(error, dict):  # ours, vLLM's, OpenAI's
        return error.get("message")
    return error or body.get("message") or body.get("detail")  # TEI's, SGLang's, FastAPI's


def send(http: httpx.Client, sent: Mutant, found: Found) -> None:
    """Send one mutant and judge the answer."""
    started = time.perf_counter()
    statuses, wrong = [], ""
    try:
        answer = http.post(sent.path, content=sent.content, headers=sent.headers)
        statuses, wrong = [answer.status_code], wrong_with(answer)
    except httpx.TimeoutException:
        wrong = f"no answer within {_TIMEOUT_S:g} s"
    except httpx.HTTPError as error:
        wrong = f"{type(error).__name__}: {error}"
    took = time.perf_counter() - started
    told = f"{wrong} <- mutant {sent.number} {sent.how}: {sent.shown()}" if wrong else ""
    found.add(sent.how, statuses, took, told)


def send_broken(url: str, sent: Mutant, seed: int, found: Found) -> None:
    """The same with a broken frame; the end of the connection is an answer too."""
    started = time.perf_counter()
    statuses, wrong, way = [], "", "frame"
    try:
        way, statuses = send_raw(
            url, sent.path, sent.content, random.Random(f"{seed}/{sent.number}")
        )
        if any(status >= 500 and status not in (501, 505) for status in statuses):
            wrong = f"{statuses} to {way}"
    except Hang as hang:
        wrong = f"hang: {hang}"
    except OSError as error:
        wrong = f"{type(error).__name__}: {error}"
    told = f"{wrong} <- mutant {sent.number}: {sent.shown()}" if wrong else ""
    found.add([way], statuses, time.perf_counter() - started, told)


def send_all(url: str, seed: int, number: int, operations: list[Operation], workers: int) -> Found:
    """Every mutant, from several threads."""
    found = Found()
    numbers: Iterator[int] = iter(range(number))
    lock = threading.Lock()

    def work() -> None:
        with httpx.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False) as http:
            while True:
                with lock:
                    place = next(numbers, None)
                if place is None:
                    return
                sent = mutant(seed, place, operations)
                if place % _RAW_EVERY == 0:
                    send_broken(url, sent, seed, found)
                else:
                    send(http, sent, found)

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work) for _ in range(workers)]:
            future.result()
    return found


def golden(service: Service) -> list[tuple[float, float]]:
    """Rewards of the sample pairs."""
    lines = (seeds_dir() / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [{k: p[k] for k in ("prompt", "chosen", "rejected")} for p in map(json.loads, lines)]
    answer = httpx.post(
        f"{service.url}/v1/compare", json={"pairs": pairs}, timeout=120, trust_env=False
    )
    results = answer.raise_for_status().json()["results"]
    return [(result["chosen_reward"], result["rejected_reward"]) for result in results]


def difference(before: list[tuple[float, float]], after: list[tuple[float, float]]) -> float:
    pairs = zip(before, after, strict=True)
    return max(abs(b - a) for old, new in pairs for b, a in zip(old, new, strict=True))


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--examples", type=int, default=100, help="of each operation and mode")
    parser.add_argument("--workers", type=int, default=8, help="threads that send")
    options = parser.parse_args()
    flags = ("--local",) if options.local else ()
    with service_of(options, *flags, model={"cache_bytes": 0}, body_timeout_s=5) as service:
        document = service.get("/openapi.json").json()
        scoring = [o for o in operations_of(document) if not controls_models(o.path)]
        operations = [o for o in scoring if o.example is not None]
        without = [o.path for o in scoring if o.takes_body and o.example is None]
        before, pids = golden(service), {p.pid for p in service.scorers() + service.gateways()}
        unlike = conform(service.url, options.examples, options.seed)
        print(f"schemathesis: {len(unlike)} findings; now {options.mutants} mutants", flush=True)
        started = time.perf_counter()
        found = send_all(service.url, options.seed, options.mutants, operations, options.workers)
        took = time.perf_counter() - started
        after = golden(service)
        same = {p.pid for p in service.scorers() + service.gateways()} == pids
    checks = {
        "schemathesis: every answer as documented, none a 5xx": not unlike,
        "every route that takes a body has an example to mutate": not without and bool(operations),
        "mutants: no 5xx, no hang, every refusal clear": not found.wrong,
        "the processes are the same as before": same,
        "the sample pairs score as before": difference(before, after) <= TOLERANCE,
    }
    figures: dict[str, Any] = {
        "mutants": options.mutants,
        "seconds": round(took, 1),
        "statuses": {str(status): n for status, n in sorted(found.statuses.items())},
        "latency_ms": percentiles(found.seconds),
        "kinds": by_kind(found.kinds),
        "unlike": unlike[:10],
        "num_wrong": len(found.wrong),
        "wrong": found.wrong[:10],
        "golden_difference": difference(before, after),
    }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
