"""Images that nobody should send: is each refused clearly, and does memory stay flat?

What is checked, on a service of its own without Ray and a small random vision-language model:
bodies with damaged files, bombs, many frames, wrong data URIs and wrong parts. None may be answered
with a 5xx, none may take 30 s, every refusal is our JSON. Then many requests at once whose small
files decode to the largest images that the model takes: the memory of the process at its peak stays
within `max_queued_image_bytes` and what it had before. Afterwards an image is scored as before.
Drawn from `--seed`: two runs send the same. The last line is one JSON object.

    python tests/stress/attack_images.py [--mutants 2000]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from attack_bodies import memory_mib
from fuzz import Found, wrong_with
from service import parser_of, service_of
from stress_result import finish, percentiles

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from image_files import answer, ask, encode_image, make_image, to_uri
from image_mutations import add_chunk, draw_body
from PIL import Image
from vision import build_vision_model

_TIMEOUT_S = 30.0
_QUEUED_MIB = 64
_FLOOD = 12
_MAX_PIXELS = 1280 * 28 * 28
_HEADERS = {"Content-Type": "application/json"}
# A service keeps freed blocks for its batches; here they go back, so that memory shows leaks.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
# Of decoding one image of 12 Mpixel, of batches in flight, and of allocators.
_SLACK_MIB = 300


def send_all(url: str, seed: int, number: int, workers: int) -> Found:
    """Send every body, from several threads."""
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
                path, body, how = draw_body(seed, place)
                started = time.perf_counter()
                statuses, wrong = [], ""
                try:
                    response = http.post(path, content=body, headers=_HEADERS)
                    statuses, wrong = [response.status_code], wrong_with(response)
                except httpx.HTTPError as error:
                    wrong = f"{type(error).__name__}: {error}"
                told = f"{wrong} <- {place} {how}" if wrong else ""
                found.add(how, statuses, time.perf_counter() - started, told)

    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(work) for _ in range(workers)]:
            future.result()
    return found


def flood(url: str) -> Counter[int]:
    """Send requests at once, each with sixteen different small files of 12 Mpixel."""
    file = encode_image(Image.new("L", (4_000, 3_000)))
    statuses: Counter[int] = Counter()

    def post(number: int) -> None:
        sources = [
            to_uri(add_chunk(file, b"tEXt", b"number\0%d" % (16 * number + index)))
            for index in range(16)
        ]
        conversations = [[ask(source), answer()] for source in sources]
        response = httpx.post(
            f"{url}/v1/score", json={"conversations": conversations}, timeout=600, trust_env=False
        )
        statuses[response.status_code] += 1

    with ThreadPoolExecutor(_FLOOD) as pool:
        list(pool.map(post, range(_FLOOD)))
    return statuses


def score(url: str) -> float:
    messages = [ask(to_uri(encode_image(make_image()))), answer()]
    body = {"messages": messages}
    response = httpx.post(f"{url}/v1/score", json=body, timeout=60, trust_env=False)
    return float(response.raise_for_status().json()["results"][0]["reward"])


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--mutants", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=8, help="threads that send")
    options = parser.parse_args()
    if options.url:
        parser.error("only a service of its own is attacked; leave --url out")
    os.environ.update(_MALLOC)
    with tempfile.TemporaryDirectory() as folder:
        options.model = str(build_vision_model(Path(folder) / "vl"))
        # Without caches, which fill up to their limits.
        caches = dict.fromkeys(("cache_bytes", "prefix_cache_bytes", "vision_cache_bytes"), 0)
        model = {**caches, "device": "cpu", "max_pixels": _MAX_PIXELS}
        queued = _QUEUED_MIB * 2**20
        with service_of(options, "--local", model=model, max_queued_image_bytes=queued) as service:
            assert service.pid is not None
            expected = score(service.url)
            send_all(service.url, options.seed + 1, 200, options.workers)  # allocators fill up
            memory = [memory_mib(service.pid, "VmRSS")]
            print(f"before: {memory[0]:.0f} MiB", flush=True)
            founds = []
            for part in range(4):
                founds.append(
                    send_all(
                        service.url, options.seed + 2 + part, options.mutants // 4, options.workers
                    )
                )
                memory.append(memory_mib(service.pid, "VmRSS"))
                print(f"after part {part + 1} of 4: {memory[-1]:.0f} MiB", flush=True)
            Path(f"/proc/{service.pid}/clear_refs").write_text("5")  # the peak begins anew
            flooded = flood(service.url)
            peak = memory_mib(service.pid, "VmHWM")
            print(f"peak of the flood: {peak:.0f} MiB {dict(flooded)}", flush=True)
            afterwards = score(service.url)
    statuses: Counter[int] = sum((found.statuses for found in founds), Counter())
    wrong = [item for found in founds for item in found.wrong]
    decoded_mib = _FLOOD * 16 * 3 * _MAX_PIXELS / 2**20
    checks = {
        "no 5xx, no hang, every refusal clear": not wrong and sum(statuses.values()) > 0,
        "some are scored, some refused": statuses[200] > 0 and statuses[400] > 0,
        "memory is flat over the mutants": memory[-1] - memory[1] <= 100,
        f"the flood of {decoded_mib:.0f} MiB is scored": set(flooded) == {200},
        "and its memory is bounded": peak - memory[-1] <= _QUEUED_MIB + _SLACK_MIB,
        "an image scores as before": afterwards == expected,
    }
    figures = {
        "mutants": options.mutants,
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "latency_ms": percentiles([s for found in founds for s in found.seconds]),
        "memory_mib": [round(value) for value in memory],
        "flood_decoded_mib": round(decoded_mib),
        "flood_peak_mib": round(peak),
        "wrong": wrong[:10],
    }
    return finish(checks, json.loads(json.dumps(figures)))


if __name__ == "__main__":
    sys.exit(main())
