"""A small synchronous client of the native routes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import httpx

from rm_core import Reward, RewardError, ScoreError, Truncation
from rm_core.conversations import Messages

_CONVERSATIONS_PER_POST = 256
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


class ServiceError(RewardError):
    """The service refused the request, could not be reached, or answered something else."""

    code = "service_error"


class ScoringClient:
    """Posts to a running service. A context manager; not for use from several threads.

    Args:
        url: address of the service, such as `http://127.0.0.1:8000`.
        model: which of its models; None if it serves one.

    Raises:
        ServiceError: `url` is no address.
    """

    def __init__(self, url: str, model: str | None = None) -> None:
        self._model = model
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ServiceError(
                f"{url!r} is no address ({error}); give one such as http://127.0.0.1:8000"
            ) from error
        # No proxy stands between a machine and itself, whatever the environment says.
        self._http = httpx.Client(
            base_url=address, timeout=_TIMEOUT, trust_env=address.host not in _LOOPBACK
        )

    def score(
        self, conversations: Sequence[Messages], truncation: Truncation = "error"
    ) -> list[Reward | ScoreError]:
        """A reward or an error for each conversation, in order.

        Raises:
            ServiceError: a whole request failed.
        """
        results: list[Reward | ScoreError] = []
        for some in _parts(conversations):
            answer = self.post("/v1/score", {"conversations": list(some), "truncation": truncation})
            results += [_result(item) for item in answer["results"]]
        if len(results) != len(conversations):
            raise ServiceError(
                f"{len(conversations)} conversations were sent, {len(results)} results came back"
            )
        return results

    def compare(self, pairs: Sequence[Any], truncation: Truncation = "error") -> dict[str, Any]:
        """The answer of `/v1/compare` as it is.

        Raises:
            ServiceError: the request failed.
        """
        return self.post("/v1/compare", {"pairs": list(pairs), "truncation": truncation})

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a body, `model` added, and return the answer.

        Raises:
            ServiceError: the request failed.
        """
        if self._model is not None:
            body = {"model": self._model, **body}
        try:
            # Not httpx's own encoding: it raises on half of a surrogate pair and on NaN, and one
            # bad message must not cost its neighbours their rewards.
            response = self._http.post(
                route,
                content=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
        except httpx.HTTPError as error:
            raise ServiceError(
                f"{self._http.base_url} did not answer: {type(error).__name__}: {error}; is the "
                "service running there?"
            ) from error
        try:
            answer = response.json()
        except ValueError:
            answer = {}
        if response.is_success and isinstance(answer, dict):
            return answer
        said = answer.get("error", {}).get("message") if isinstance(answer, dict) else None
        raise ServiceError(
            f"{self._http.base_url} answered {response.status_code}: {said or response.text[:200]}"
        )

    def __enter__(self) -> ScoringClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()


def _parts(conversations: Sequence[Messages]) -> Iterator[Sequence[Messages]]:
    for start in range(0, len(conversations), _CONVERSATIONS_PER_POST):
        yield conversations[start : start + _CONVERSATIONS_PER_POST]


def _result(item: dict[str, Any]) -> Reward | ScoreError:
    if error := item.get("error"):
        return ScoreError(error["code"], error["message"])
    return Reward(
        reward=item["reward"],
        num_tokens=item["num_tokens"],
        truncated=item["truncated"],
        warnings=tuple(item.get("warnings", ())),
    )
