"""Scoring over HTTP, with the very same client code for every service.

`post_all` is the client: so many posts at a time over one connection pool, the next body taken
from one list in order whenever an answer is there. What differs between services is a route, how
a conversation is written into a body, and where the rewards stand in an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
from ways import Scored
from workloads import Conversations

from serve.cli.demo import run_service


class Skyreward:
    """Our service; posts to `/v1/score`."""

    def __init__(self, url: str, clients: int) -> None:
        self._url = url
        self._clients = clients

    def one_post(self, conversations: Conversations) -> Scored:
        """All conversations in a single post."""
        return self._post([conversations], 1)

    def one_each(self, conversations: Conversations) -> Scored:
        """As many clients as wanted at a time, one conversation a post."""
        return self._post([[conversation] for conversation in conversations], self._clients)

    def _post(self, parts: Sequence[Conversations], clients: int) -> Scored:
        bodies = [{"conversations": list(part)} for part in parts]
        rewards: list[float] = []
        num_computed_tokens = 0
        for answer in asyncio.run(post_all(self._url, "/v1/score", bodies, clients)):
            # A reward that another conversation has had is no work done.
            if answer["usage"]["num_cached_tokens"]:
                raise SystemExit(
                    "the service answers from its score cache: start it with `cache_bytes: 0`"
                )
            for result in answer["results"]:
                if "error" in result:
                    raise SystemExit(f"{self._url}: {result['error']}")
                rewards.append(result["reward"])
            num_computed_tokens += answer["usage"]["num_computed_tokens"]
        return Scored(rewards, num_computed_tokens)


class Vllm:
    """vLLM started with `--runner pooling`; posts to `/classify`, where it applies the template."""

    def __init__(self, url: str, clients: int) -> None:
        self._url = url
        self._clients = clients
        self._model = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"]

    def one_each(self, conversations: Conversations) -> Scored:
        """As many clients as wanted at a time, one conversation a post."""
        bodies = [
            {
                "model": self._model,
                "messages": conversation,
                "use_activation": False,  # the raw reward instead of its sigmoid
            }
            for conversation in conversations
        ]
        answers = asyncio.run(post_all(self._url, "/classify", bodies, self._clients))
        return Scored([answer["data"][0]["probs"][0] for answer in answers])


async def post_all(
    url: str, route: str, bodies: Sequence[dict[str, Any]], clients: int
) -> list[dict[str, Any]]:
    """Answers in the order of the bodies, at most `clients` of them under way at a time."""
    answers: list[dict[str, Any]] = [{}] * len(bodies)
    waiting = iter(enumerate(bodies))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(
        base_url=url, limits=limits, timeout=None, trust_env=False
    ) as http:

        async def client() -> None:
            for place, body in waiting:
                response = await http.post(route, json=body)
                if not response.is_success:
                    raise SystemExit(f"{url}{route}: {response.status_code} {response.text[:300]}")
                answers[place] = response.json()

        await asyncio.gather(*(client() for _ in range(min(clients, len(bodies)))))
    return answers


@contextlib.contextmanager
def our_service(model: str, local: bool, **chosen: Any) -> Iterator[str]:
    """The address of a service of our own on the model, on Ray or in one process without.

    As a user gets it, but without its score cache, so that every conversation is work; `chosen`
    are further settings of the model.
    """
    os.environ.setdefault("SKYREWARD_LOG_LEVEL", "WARNING")
    settings = {"models": [{"name": model, "alias": "bench", "cache_bytes": 0, **chosen}]}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(json.dumps(settings))  # which is YAML as well
        file.flush()
        options = ("--local",) if local else ()
        with run_service("--config", file.name, *options) as url:
            yield url
