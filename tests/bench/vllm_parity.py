"""The same bodies to vLLM and to this service: which fields answer, and how far rewards differ.

What is compared: a random Qwen3 and a random Llama checkpoint in float32, each served by both, one
after the other; every body is posted to both. Printed is a table of the answers' fields, ours
beside theirs, the status of each bad body, and the largest difference of a raw reward. The last
line is one JSON object; `passed` means that no field is missing here and no reward differs by more
than 1e-3.

    python tests/bench/vllm_parity.py --vllm path/to/vllm-cpu.sh --venv FOLDER
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from checkpoints import SPECS, build_tokenizer

from serve.cli.demo import run_service

MAX_LENGTH = 8_192
TOLERANCE = 1e-3
START_S = 900
Messages = list[dict[str, str]]
CONVERSATIONS: list[Messages] = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in [
        ("2+2?", "4"),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("首都在哪里?", "北京 😀 é"),
        ("Count to three hundred.", " ".join(map(str, range(300)))),
    ]
]


def build(folder: Path, family: str) -> PreTrainedTokenizerFast:
    """Write a random checkpoint whose heads have a size that vLLM knows."""
    tokenizer = build_tokenizer(SPECS["qwen3" if family == "qwen3" else "llama-v0.2"])
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 64, "max_position_embeddings": MAX_LENGTH, "num_labels": 1,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.06,
        "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(0)
    model: PreTrainedModel
    if family == "qwen3":
        model = Qwen3ForSequenceClassification(Qwen3Config(**common))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(**common))
    with torch.no_grad():
        model.score.weight.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def good_bodies(tokenizer: PreTrainedTokenizerFast) -> dict[str, tuple[str, dict[str, Any]]]:
    """Bodies that both answer with rewards: name, path and body."""
    texts = [str(tokenizer.apply_chat_template(c, tokenize=False)) for c in CONVERSATIONS]
    bos = str(tokenizer.bos_token or "")
    bare = [text.removeprefix(bos) for text in texts]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in ("/classify", "/pooling"):
        raw = {"use_activation": False}
        for i, conversation in enumerate(CONVERSATIONS):
            found[f"{path} messages {i}"] = (path, {"messages": conversation, **raw})
        found |= {
            f"{path} texts without BOS": (path, {"input": bare, **raw}),
            f"{path} text alone": (path, {"input": bare[0], **raw}),
            f"{path} texts as rendered": (
                path, {"input": texts, "add_special_tokens": False, **raw},
            ),
            f"{path} ids": (path, {"input": ids, **raw}),
            f"{path} ids alone": (path, {"input": ids[1], **raw}),
            f"{path} sigmoid": (path, {"input": bare, "use_activation": True}),
            f"{path} keeps the first 9": (
                path,
                {"input": ids, "truncate_prompt_tokens": 9, "truncation_side": "right", **raw},
            ),
        }  # fmt: skip
    packed = {"encoding_format": "base64", "use_activation": False}
    found["/pooling base64"] = ("/pooling", {"input": bare, **packed})
    return found


def bad_bodies() -> dict[str, tuple[str, Any]]:
    """Bodies that both refuse."""
    return {
        "empty list": ("/classify", {"input": []}),
        "wrong type": ("/classify", {"input": {"a": 1}}),
        "nothing": ("/classify", {}),
        "unknown model": ("/classify", {"model": "nope", "input": "a"}),
        "too long": ("/classify", {"input": "a b " * MAX_LENGTH}),
        "list of lists of messages": ("/classify", {"messages": [CONVERSATIONS[0]]}),
        "removed field": ("/classify", {"input": "a", "normalize": True}),
        "another task": ("/pooling", {"input": "a", "task": "token_embed"}),
        "pooling: empty list": ("/pooling", {"input": []}),
    }


def fields_of(value: Any, place: str = "") -> set[str]:
    """Names of all fields, those of list items under `[]`."""
    if isinstance(value, dict):
        inner = (fields_of(v, f"{place}.{k}" if place else k) for k, v in value.items())
        return {f"{place}.{k}" if place else k for k in value}.union(*inner)
    if isinstance(value, list):
        return set().union(*(fields_of(item, f"{place}[]") for item in value))
    return set()


def rewards_of(answer: Any) -> list[float]:
    """Of `/classify` or `/pooling`."""
    found = []
    for item in answer["data"]:
        value = item.get("probs", item.get("data"))
        if isinstance(value, str):
            value = struct.unpack("<f", base64.b64decode(value))
        found.append(float(value[0]))
    return found


def ask(url: str, bodies: dict[str, tuple[str, Any]]) -> dict[str, tuple[int, Any]]:
    """Status and answer to each body."""
    found = {}
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as http:
        for name, (path, body) in bodies.items():
            response = http.post(path, json=body)
            found[name] = (response.status_code, response.json())
    return found


@contextlib.contextmanager
def vllm(script: Path, venv: Path, model: Path) -> Iterator[str]:
    """The address of vLLM on a model, in a process group of its own that ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (model.parent / "vllm.log").open("wb") as log:
        command = ["bash", str(script), str(venv), str(model), str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + START_S
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    raise SystemExit(f"vLLM ended:\n{(model.parent / 'vllm.log').read_text()}")
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/health", trust_env=False).is_success:
                        break
                time.sleep(1)
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def compare(family: str, script: Path, venv: Path) -> dict[str, Any]:
    """Both services on one checkpoint; prints the tables."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / family
        tokenizer = build(model, family)
        good, bad = good_bodies(tokenizer), bad_bodies()
        with run_service("--local", "--model", f"{family}={model}") as url:
            ours = ask(url, good | bad)
        with vllm(script, venv, model) as url:
            theirs = ask(url, good | bad)
    print(f"\n## {family}\n\n| body | largest difference |\n|---|--:|")
    largest = 0.0
    for name in good:
        if ours[name][0] != 200 or theirs[name][0] != 200:
            raise SystemExit(f"{name}: ours {ours[name]}, theirs {theirs[name]}")
        pairs = zip(rewards_of(ours[name][1]), rewards_of(theirs[name][1]), strict=True)
        difference = max(abs(one - other) for one, other in pairs)
        largest = max(largest, difference)
        print(f"| {name} | {difference:.1e} |")
    missing = set()
    print("\n| path | field | vLLM | ours |\n|---|---|---|---|")
    for path in ("/classify", "/pooling"):
        name = f"{path} texts without BOS"
        mine, other = fields_of(ours[name][1]), fields_of(theirs[name][1])
        missing |= {f"{path} {field}" for field in other - mine}
        for field in sorted(mine | other):
            print(f"| `{path}` | `{field}` | {_mark(field in other)} | {_mark(field in mine)} |")
    print("\n| bad body | vLLM | ours |\n|---|---|---|")
    for name in bad:
        print(f"| {name} | {_told(theirs[name])} | {_told(ours[name])} |")
    same = sum(ours[name][0] == theirs[name][0] for name in bad)
    return {
        "largest_difference": largest,
        "missing_fields": sorted(missing),
        "bad_bodies": len(bad),
        "same_status": same,
        "rewards": sum(len(rewards_of(ours[name][1])) for name in good),
    }


def _mark(there: bool) -> str:
    return "yes" if there else "no"


def _told(answer: tuple[int, Any]) -> str:
    status, body = answer
    error = body.get("error")
    if isinstance(error, dict):
        error = {key: value for key, value in error.items() if key != "message"}
    return f"{status} `{json.dumps(error)}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", type=Path, required=True, help="script: VENV MODEL PORT")
    parser.add_argument("--venv", type=Path, required=True, help="where vLLM is, or is put")
    parser.add_argument("--family", choices=("qwen3", "llama"), help="only one of them")
    options = parser.parse_args()
    families = (options.family,) if options.family else ("qwen3", "llama")
    found = {name: compare(name, options.vllm, options.venv) for name in families}
    passed = all(
        not one["missing_fields"] and one["largest_difference"] <= TOLERANCE
        for one in found.values()
    )
    print(json.dumps({"passed": passed, **found}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
