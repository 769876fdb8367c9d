"""The least that a post can cost on this machine: its HTTP and its tokens, nothing around them.

`http_ms`: CPU of a uvicorn process whose application reads the body and answers 150 bytes.
`tokenizer_ms`: CPU of the model's own tokenizer for the text of a post, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from load import Post, closed_loop
from service import cpu_s
from tokenizers import Tokenizer

from rm_core import seeds_dir

_ANSWER = b'{"results": [{"index": 0, "reward": 1.25}], "usage": {"num_tokens": 1230}}' * 2


async def app(scope, receive, send):  # type: ignore[no-untyped-def]
    """Reads and answers; what uvicorn is given."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    length = str(len(_ANSWER)).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    await send({"type": "http.response.body", "body": _ANSWER})


@contextmanager
def _bare() -> Iterator[tuple[str, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "floor:app", "--port", str(port)]
    command += [
        "--app-dir",
        __file__.rpartition("/")[0],
        "--log-level",
        "critical",
        "--no-access-log",
    ]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(200):
                try:
                    httpx.get(url, trust_env=False)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()


def floor_of(posts: list[Post], clients: int, seconds: float) -> dict[str, float]:
    """Milliseconds of CPU a post, and their sum."""
    with _bare() as (url, pid):
        before = cpu_s(pid)
        number = len(asyncio.run(closed_loop(url, posts, clients, seconds)))
        http_ms = 1000 * (cpu_s(pid) - before) / number
    tokenizer = Tokenizer.from_file(str(seeds_dir() / "demo" / "tokenizer.json"))
    conversations = [json.loads(post.content)["conversations"][0] for post in posts[:300]]
    texts = ["\n".join(message["content"] for message in one) for one in conversations]
    started = time.thread_time()
    for text in texts:
        tokenizer.encode_batch_fast([text])
    tokenizer_ms = 1000 * (time.thread_time() - started) / len(texts)
    return {
        "http_ms": round(http_ms, 3),
        "tokenizer_ms": round(tokenizer_ms, 3),
        "sum_ms": round(http_ms + tokenizer_ms, 3),
    }
