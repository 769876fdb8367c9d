"""One key holder who asks for too much, and another one who posts one small conversation.

Each attack runs beside small posts of another key, whose answers are timed: a request of 5,000
conversations (also with a priority), a body of 32 MB that is to be cut, many rankings of a prompt
that is too long. Then a conversation that one key had scored is scored for the other. The last line
is one JSON object.

    python tests/stress/attack_queue.py [--conversations 5000] [--megabytes 31]
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from service import Service, parser_of, service_of
from stress_result import finish, percentiles

KEYS = {"A": "alpha-key-0123456789", "B": "beta-key-0123456789"}
_WORDS = [
    "".join(random.Random(seed).choices("abcdefghij", k=6)) for seed in range(3_000)
]  # each of several tokens


def post(service: Service, who: str, route: str, body: Any, timeout_s: float) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        service.url + route,
        content=content,
        headers={
            "Content-Type": "application/json",
            "Authorization": f"Bearer {KEYS[who]}",
            "X-Request-Timeout-Seconds": str(timeout_s),
        },
        timeout=timeout_s + 60,
        trust_env=False,
    )


def talk(question: str, answer: str = "yes") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def large(number: int, seed: int) -> list[list[dict[str, str]]]:
    """Distinct conversations of about 1,000 tokens."""
    draw = random.Random(seed)
    return [talk(f"{seed} {i} " + " ".join(draw.choices(_WORDS, k=150))) for i in range(number)]


def small(service: Service, timeout_s: float = 20.0) -> tuple[int, float]:
    """Status and seconds of a small post of the other key."""
    started = time.perf_counter()
    body = {"conversations": [talk(f"hi {time.time_ns()}")]}
    status = post(service, "B", "/v1/score", body, timeout_s).status_code
    return status, time.perf_counter() - started


def beside(
    service: Service, attacks: list[Callable[[], httpx.Response]], first_s: float, every_s: float
) -> tuple[list[httpx.Response], list[tuple[int, float]]]:
    """What attacks were answered, and small posts of another key meanwhile."""
    found = []
    with ThreadPoolExecutor(len(attacks)) as threads:
        running: list[Future[httpx.Response]] = [threads.submit(attack) for attack in attacks]
        time.sleep(first_s)
        while not all(future.done() for future in running):
            found.append(small(service))
            time.sleep(every_s)
        return [future.result() for future in running], found


def told(found: list[tuple[int, float]]) -> dict[str, Any]:
    statuses = [status for status, _ in found]
    counts = {str(status): statuses.count(status) for status in sorted(set(statuses))}
    return {"statuses": counts, "ms": percentiles(seconds for _, seconds in found)}


def good(found: list[tuple[int, float]], most_s: float) -> bool:
    return bool(found) and all(status == 200 and s <= most_s for status, s in found)


def highest_mb(service: Service) -> float:
    """Most memory that the process ever had."""
    status = Path(f"/proc/{service.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cut(service: Service, kind: str, num_bytes: int) -> tuple[float, float, int, Any]:
    """Seconds, MB by which the highest memory rose, status and result of a body under `right`."""
    unit = "7" if kind == "digits" else "the quick brown fox jumps over a lazy dog "
    text = (unit * (num_bytes // len(unit) + 1))[:num_bytes]
    content = json.dumps({"conversations": [talk(text)], "truncation": "right"}).encode()
    before, started = highest_mb(service), time.perf_counter()
    answer = post(service, "A", "/v1/score", content, 300)
    seconds = time.perf_counter() - started
    result = answer.json().get("results", [answer.json()])[0]
    return seconds, highest_mb(service) - before, answer.status_code, result


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--conversations", type=int, default=5_000, help="of the large request")
    parser.add_argument("--megabytes", type=float, default=31, help="of the body that is cut")
    parser.add_argument("--most", type=float, default=30, help="seconds of each attack")
    options = parser.parse_args()
    checks: dict[str, bool] = {}
    figures: dict[str, Any] = {}
    with service_of(options, "--local", api_keys=list(KEYS.values())) as service:
        alone = [small(service) for _ in range(10)]
        figures["alone"] = told(alone)

        for name, number, priority in (
            ("large", options.conversations, 0),
            ("priority", 1_500, -1_000),
        ):
            body = {"conversations": large(number, priority), "priority": priority}
            content = json.dumps(body).encode()

            def attack(content: bytes = content) -> httpx.Response:
                return post(service, "A", "/v1/score", content, options.most)

            _, found = beside(service, [attack], 3, 1)
            figures[name] = told(found)
            checks[f"{name}: B is answered within 2 s while A's request waits"] = good(found, 2)

        prompt = "the quick brown fox jumps over a lazy dog " * 1_740  # 73 KB, too long by itself
        ranking = json.dumps({"prompt": prompt, "responses": ["a"] * 2_000}).encode()
        attacks = [lambda: post(service, "A", "/v1/rank", ranking, 15)] * 40
        answers, found = beside(service, attacks, 1.5, 0.2)
        figures["rank"] = told(found) | {"attack": told([(a.status_code, 0.0) for a in answers])}
        # On a machine that is busy with other things, a lone post takes longer than that.
        most_ms = max(100, 4 * figures["alone"]["ms"]["p50"])
        checks["rank: half of B's posts are answered within 0.1 s, or 4 times one alone"] = (
            bool(found) and figures["rank"]["ms"]["p50"] <= most_ms
        )
        checks["rank: B is always answered"] = good(found, 20)

        secret = {"conversations": [talk("Draft it", f"It is {options.seed} million.")]}
        first = post(service, "A", "/v1/score", secret, 20).json()
        other = post(service, "B", "/v1/score", secret, 20).json()
        again = post(service, "B", "/v1/score", secret, 20).json()
        figures["cached_tokens"] = {
            "other_key": other["usage"]["num_cached_tokens"],
            "same_key": again["usage"]["num_cached_tokens"],
        }
        checks["A's rewards are not told to B"] = other["usage"]["num_cached_tokens"] == 0
        checks["a key's own rewards are kept"] = again["usage"]["num_cached_tokens"] > 0
        checks["both get the same reward"] = (
            len({answer["results"][0]["reward"] for answer in (first, other, again)}) == 1
        )

    # Memory: a service of its own, so that what others took is not counted.
    for kind in ("digits", "words"):
        model = {"max_length": 2_048}  # what a longer forward pass takes is another matter
        with service_of(options, "--local", model=model, api_keys=list(KEYS.values())) as service:
            small(service)
            seconds, mb, status, result = cut(service, kind, int(options.megabytes * 2**20))
        figures[kind] = {"s": round(seconds, 2), "mb": round(mb), "status": status}
        figures[kind]["reward"] = result.get("reward", result)
        checks[f"{kind}: cut on the right"] = status == 200 and result.get("truncated") is True
        checks[f"{kind}: within 5 s, body and answer and all"] = seconds <= 5
        checks[f"{kind}: memory rose by at most 10 bodies"] = mb <= 10 * options.megabytes
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
