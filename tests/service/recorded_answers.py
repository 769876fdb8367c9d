"""Requests on every route and wire format, and the recorded responses of the demo model.

`test_recorded_answers.py` compares a running service with the file. After an intended change of a
response, record again and review the difference:

    python tests/service/recorded_answers.py --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

FILE = Path(__file__).with_suffix(".jsonl")
USER = {"role": "user", "content": "What is the capital of France?"}
GOOD = {"role": "assistant", "content": "The capital of France is Paris."}
BAD = {"role": "assistant", "content": "asdf asdf"}
CHAT = [USER, GOOD]
TEXT = (
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\nThe capital of France is Paris.<|im_end|>\n"
)
OTHER = "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
LONG = [{"role": "user", "content": "word " * 17_000}, GOOD]
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}},
}
PAIR = {"prompt": "2+2?", "chosen": "It is 4.", "rejected": "fish"}
# Fields that differ from run to run: ids, times, and messages, which may be reworded.
_VOLATILE = {
    "id", "created", "message", "detail", "num_computed_tokens", "num_cached_tokens", "warnings",
    "e2e_latency",
}  # fmt: skip
_HEADERS = re.compile("x-skyreward-(?!warn)|www-authenticate|retry-after|content-type|allow$")


def requests() -> Iterator[tuple[str, str, Any]]:
    """Yield method, path and JSON body of each request; a text is sent unchanged."""
    post = "POST"
    for body in (
        {"conversations": [CHAT]},
        {"conversations": [CHAT, [USER, BAD], CHAT]},
        {"model": "demo", "conversations": [CHAT], "truncation": "error"},
        {"conversations": [LONG]},
        {"conversations": [LONG], "truncation": "left"},
        {"conversations": [LONG], "truncation": "right"},
        {"conversations": [CHAT, [], [USER], LONG, [{"role": "x", "content": "y"}], 7, None]},
        {"conversations": []},
        {"conversations": [CHAT], "truncation": "both"},
        {"conversations": [CHAT], "surprise": 1},
        {"model": "other", "conversations": [CHAT]},
        {"messages": CHAT},
        {"messages": CHAT, "tools": [TOOL]},
        {"conversations": [{"messages": CHAT, "tools": [TOOL]}]},
        {"conversations": [CHAT], "priority": 5},
        {"conversations": [[{"role": "user", "content": None}, GOOD]]},
        {
            "conversations": [
                [USER, {"role": "assistant", "content": [{"type": "text", "text": "Paris."}]}]
            ]
        },
        {"conversations": [TEXT]},
        "{",
        '{"conversations": [], "conversations": []}',
        '{"conversations": NaN}',
        {},
        [],
    ):
        yield post, "/v1/score", body
    for body in (
        {"pairs": [PAIR]},
        {"pairs": [PAIR, {"chosen": CHAT, "rejected": [USER, BAD]}, {"prompt": "x"}]},
        {"pairs": [{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}]},
        {"pairs": []},
    ):
        yield post, "/v1/compare", body
    for body in (
        {"prompt": "2+2?", "responses": ["4", "5", "4"]},
        {"prompt": [USER], "responses": [GOOD["content"], BAD["content"], ""]},
        {"prompt": "2+2?", "responses": []},
        {"prompt": 3, "responses": ["4"]},
    ):
        yield post, "/v1/rank", body
    yield post, "/v1/render", {"conversations": [CHAT, [], LONG]}
    for body in (
        {"input": TEXT},
        {"input": [TEXT, TEXT]},
        {"input": "no template at all"},
        {"input": OTHER},
        {"input": []},
        {"messages": CHAT},
        {"messages": CHAT, "use_activation": True},
        {"model": "other", "input": TEXT},
        {"text": TEXT},
        {"text": [TEXT, TEXT]},
        {"text": ""},
        {"input_ids": [[1, 2, 3]]},
        {"input_ids": [[999_999]]},
        {},
    ):
        yield post, "/classify", body
    for body in (
        {"input": TEXT},
        {"messages": CHAT},
        {"input": TEXT, "encoding_format": "base64"},
        {"input": TEXT, "task": "embed"},
    ):
        yield post, "/pooling", body
    for body in ({"prompt": TEXT}, {"messages": CHAT}, {"prompt": 5}):
        yield post, "/tokenize", body
    for body in (
        {"text_1": "2+2?", "text_2": ["4", "fish"]},
        {"queries": "2+2?", "documents": ["4", "fish"]},
        {"text_1": [], "text_2": []},
    ):
        yield post, "/score", body
        yield post, "/v1/score", body
    for body in (
        {"query": "2+2?", "documents": ["4", "fish"]},
        {"query": "2+2?", "documents": ["4", "fish"], "top_n": 1},
        {"query": "2+2?", "texts": ["4", "fish"]},
        {"query": ["2+2?"], "documents": ["4"]},
    ):
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            yield post, path, body
    for body in (
        {"input": TEXT, "model": "demo"},
        {"input": [TEXT, TEXT], "model": "demo"},
        {"input": []},
    ):
        yield post, "/v1/embeddings", body
    for body in (
        {"query": [TEXT], "prompts": ["What is the capital of France?"]},
        {"query": TEXT},
        {"query": []},
    ):
        yield post, "/get_reward", body
    for body in (
        {"inputs": TEXT},
        {"inputs": [[TEXT], [TEXT]]},
        {"inputs": [["2+2?", "4"]]},
        {"inputs": TEXT, "raw_scores": False},
        {"inputs": 5},
    ):
        yield post, "/predict", body
    for body in ({"messages": [TEXT]}, {"messages": []}, {"messages": 1}):
        yield post, "/v1/score/evaluation", body
    for body in (
        {"prompt": "2+2?", "response": "4"},
        {"prompt": [USER], "response": "Paris."},
        {"prompt": 3},
    ):
        yield post, "/remote_rm", body
    for body in (
        {"model": "demo", "messages": CHAT},
        {"messages": [USER]},
        {"model": "demo", "messages": []},
    ):
        yield post, "/v1/chat/completions", body
    for path in ("/health", "/ready", "/v1/models", "/nothing", "/v1/score", "/openapi.json"):
        yield "GET", path, None
    yield "PUT", "/v1/score", {}


def plain(value: Any) -> Any:
    """Return JSON data without the fields that differ from run to run."""
    if isinstance(value, dict):
        return {
            key: plain(item)
            for key, item in value.items()
            if key not in _VOLATILE and not (key == "error" and isinstance(item, str))
        }
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str) and value.endswith("=="):
        # Rewards in base64, whose last bits depend on the processor.
        return [number for (number,) in struct.iter_unpack("<f", base64.b64decode(value))]
    return value


def ask(client: httpx.Client, method: str, path: str, body: Any) -> dict[str, Any]:
    """Send a request; return status, headers and body of the response, as recorded."""
    content = None if body is None else body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    response = client.request(method, path, content=content, headers=headers)
    try:
        answer = response.json()
    except ValueError:
        answer = response.text
    if path == "/openapi.json":
        answer = sorted(f"{m} {p}" for p, methods in answer["paths"].items() for m in methods)
    kept = {n: v for n, v in response.headers.items() if _HEADERS.match(n)}
    return {"status": response.status_code, "headers": kept, "body": plain(answer)}


def main() -> None:
    """Ask a running service, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("-o", "--output", type=Path, default=FILE)
    arguments = parser.parse_args()
    with (
        httpx.Client(base_url=arguments.url, timeout=60) as client,
        arguments.output.open("w") as out,
    ):
        for method, path, body in requests():
            answer = {"request": f"{method} {path}", **ask(client, method, path, body)}
            out.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
