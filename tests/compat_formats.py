"""Wire formats of other services: how their clients write conversations and read rewards."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]


class Client:
    """A client with the tokenizer of the reward model.

    It renders conversations as real clients do: with no BOS, one or two of them, in turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._num_texts = 0

    def text(self, messages: Messages) -> str:
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        assert isinstance(text, str)
        bos = self._tokenizer.bos_token
        if bos is None:
            return text
        self._num_texts += 1
        return str(bos) * (self._num_texts % 3) + text.removeprefix(str(bos))

    def ids(self, messages: Messages) -> list[int]:
        encoding: Any = self._tokenizer(self.text(messages), add_special_tokens=False)
        return list(encoding["input_ids"])

    def generation(self, messages: Messages) -> tuple[str, str]:
        """Return the decoded prompt and answer of a policy with the same chat template."""
        prompt = self._tokenizer.apply_chat_template(messages[:-1], tokenize=False)
        text = self.text(messages)
        bare = str(prompt).removeprefix(str(self._tokenizer.bos_token))
        start = text.index(bare) + len(bare)
        return text[:start], text[start:].rstrip("\n")


@dataclass(frozen=True)
class Format:
    """One form of one path.

    Attributes:
        path: path of the requests.
        write: returns the body for some conversations.
        read: returns the rewards in a response.
        batch: maximum number of conversations in a body.
    """

    path: str
    write: Callable[[Client, Sequence[Messages]], dict[str, Any]]
    read: Callable[[Any], list[float]]
    batch: int = 1


def _probs(answer: Any) -> list[float]:
    return [item["probs"][0] for item in answer["data"]]


def _decode_base64(answer: Any) -> list[float]:
    return [struct.unpack("<f", base64.b64decode(i["data"]))[0] for i in answer["data"]]


def _scores_by_index(answer: Any) -> list[float]:
    results = sorted(answer["results"], key=lambda result: result["index"])
    return [result["relevance_score"] for result in results]


def _sides(conversations: Sequence[Messages]) -> tuple[list[str], list[str]]:
    """Return the questions and the answers of conversations of two turns."""
    return [c[0]["content"] for c in conversations], [c[1]["content"] for c in conversations]


def _query(client: Client, conversations: Sequence[Messages], version: int) -> dict[str, Any]:
    generations = [client.generation(c) for c in conversations]
    body: dict[str, Any] = {"query": [prompt + answer for prompt, answer in generations]}
    if version > 1:
        body["prompts"] = [prompt for prompt, _ in generations]
    if version > 2:
        body["labels"] = ["x"] * len(generations)
    return body


def _pairs(first: str, second: str) -> Callable[[Client, Sequence[Messages]], dict[str, Any]]:
    def write(_: Client, conversations: Sequence[Messages]) -> dict[str, Any]:
        queries, documents = _sides(conversations)
        return {first: queries, second: documents}

    return write


FORMATS = {
    "vllm-classify-messages": Format(
        "/classify", lambda _, c: {"messages": c[0], "use_activation": False}, _probs
    ),
    "vllm-classify-texts": Format(
        "/classify", lambda k, c: {"input": [k.text(m) for m in c]}, _probs, 50
    ),
    "vllm-classify-ids": Format(
        "/classify", lambda k, c: {"input": [k.ids(m) for m in c]}, _probs, 50
    ),
    "verl-vllm": Format(
        "/classify", lambda k, c: {"input": k.text(c[0]), "use_activation": False}, _probs
    ),
    "vllm-pooling": Format(
        "/pooling",
        lambda k, c: {"input": [k.text(m) for m in c]},
        lambda answer: [item["data"][0] for item in answer["data"]],
        50,
    ),
    "vllm-pooling-base64": Format(
        "/pooling", lambda k, c: {"messages": c[0], "encoding_format": "base64"}, _decode_base64
    ),
    "sglang-texts": Format(
        "/classify",
        lambda k, c: {"model": "any", "text": [k.text(m) for m in c]},
        lambda answer: [item["embedding"][0] for item in answer],
        50,
    ),
    "sglang-ids": Format(
        "/classify", lambda k, c: {"input_ids": k.ids(c[0])}, lambda answer: answer["embedding"]
    ),
    "verl-sglang": Format(
        "/v1/embeddings",
        lambda k, c: {"model": "any", "input": k.text(c[0])},
        lambda answer: answer["data"][-1]["embedding"],
    ),
    "openrlhf": Format(
        "/get_reward", lambda k, c: _query(k, c, 3), lambda answer: answer["rewards"]
    ),
    "openrlhf-2025": Format(
        "/get_reward", lambda k, c: _query(k, c, 2), lambda answer: answer["rewards"], 50
    ),
    "openrlhf-2024": Format(
        "/get_reward", lambda k, c: _query(k, c, 1), lambda answer: answer["rewards"], 50
    ),
    "tei": Format(
        "/predict",
        lambda k, c: {"inputs": [[k.text(m)] for m in c]},
        lambda answer: [item[0]["score"] for item in answer],
        50,
    ),
    "tei-single": Format(
        "/predict", lambda k, c: {"inputs": k.text(c[0])}, lambda answer: [answer[0]["score"]]
    ),
    "llamafactory": Format(
        "/v1/score/evaluation",
        lambda k, c: {"model": "model", "messages": [k.text(m) for m in c]},
        lambda answer: answer["scores"],
        50,
    ),
    "slime-messages": Format(
        "/remote_rm",
        lambda _, c: {"prompt": c[0][:-1], "response": c[0][-1]["content"], "label": None},
        lambda answer: [answer],
    ),
    "slime-text": Format(
        "/remote_rm",
        lambda k, c: dict(zip(("prompt", "response"), k.generation(c[0]), strict=True)),
        lambda answer: [answer],
    ),
    "nim": Format(
        "/v1/chat/completions",
        lambda _, c: {"messages": c[0]},
        lambda a: [float(a["choices"][0]["message"]["content"].removeprefix("reward:"))],
    ),
    "vllm-score": Format(
        "/score",
        _pairs("queries", "documents"),
        lambda answer: [item["score"] for item in answer["data"]],
        50,
    ),
    "vllm-v1-score": Format(
        "/v1/score",
        _pairs("text_1", "text_2"),
        lambda answer: [item["score"] for item in answer["data"]],
        50,
    ),
    "vllm-rerank": Format(
        "/v1/rerank",
        lambda _, c: {"query": c[0][0]["content"], "documents": [c[0][1]["content"]]},
        _scores_by_index,
    ),
}
