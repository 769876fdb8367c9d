"""Many conversations through each wire format, in parallel: exactly the native rewards.

The service caches rewards by token ids: a reward from the cache proves that the token ids equal
those of the native request, and other token ids would be computed, which the test detects.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from checkpoints import SPECS, PathOf, build_tokenizer
from compat_formats import FORMATS, Client, Format, Messages
from preloaded import run_service
from waiting import PATIENCE_S

CLIENTS = 32
SPEC = "llama-v0.2"


def conversations(number: int) -> list[Messages]:
    rng = random.Random(7)
    words = ["Paris", "12", "北京", "apples\n", "def x:", "<think>", "because", "no,", "😀", "é"]
    return [
        [
            {"role": "user", "content": f"{i} " + " ".join(rng.choices(words, k=3))},
            {"role": "assistant", "content": " ".join(rng.choices(words, k=1 + i % 7))},
        ]
        for i in range(number)
    ]


@pytest.fixture(scope="module")
def url(checkpoint_of: PathOf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service without Ray."""
    model = {"name": str(checkpoint_of(SPEC)), "alias": "llama"}
    config = tmp_path_factory.mktemp("config") / "service.yaml"
    config.write_text(json.dumps({"models": [model], "log_level": "WARNING"}))
    with run_service("--config", str(config)) as url:
        yield url


@pytest.fixture(scope="module", params=[200, pytest.param(1_000, marks=pytest.mark.slow)])
def native(request: pytest.FixtureRequest, url: str) -> list[float]:
    """Rewards of so many conversations."""
    body = {"conversations": conversations(request.param)}
    answer = httpx.post(f"{url}/v1/score", json=body, timeout=300, trust_env=False).json()
    rewards = [result["reward"] for result in answer["results"]]
    assert len(set(rewards)) > 0.99 * request.param
    return rewards


def num_computed(url: str) -> float:
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=PATIENCE_S).text
    (value,) = re.findall(r'^skyreward_tokens_total{kind="computed",.*} (\S+)$', text, re.MULTILINE)
    return float(value)


async def post_all(url: str, form: Format, bodies: list[dict[str, Any]]) -> list[Any]:
    answers: list[Any] = [None] * len(bodies)
    waiting = iter(enumerate(bodies))
    async with httpx.AsyncClient(base_url=url, timeout=300, trust_env=False) as http:

        async def client() -> None:
            for index, body in waiting:
                response = await http.post(form.path, json=body)
                assert response.status_code == 200, response.text
                answers[index] = response.json()

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return answers


@pytest.mark.parametrize("name", FORMATS)
def test_compat_rewards_equal_native_rewards_exactly(
    name: str, url: str, native: list[float]
) -> None:
    computed = num_computed(url)
    form, client = FORMATS[name], Client(build_tokenizer(SPECS[SPEC]))
    items = conversations(len(native))
    chunks = [items[i : i + form.batch] for i in range(0, len(items), form.batch)]
    answers = asyncio.run(post_all(url, form, [form.write(client, chunk) for chunk in chunks]))
    rewards = [reward for answer in answers for reward in form.read(answer)]
    assert rewards == native
    assert num_computed(url) == computed
