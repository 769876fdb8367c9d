"""A small synchronous client of the native routes, which tries again what may go away by itself."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from rm_core import Reward, RewardError, ScoreError, Truncation
from rm_core.conversations import Messages
from serve.clients.retries import Retries, is_ours, may_go_away

logger = logging.getLogger(__name__)

_CONVERSATIONS_PER_POST = 256
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_TIMEOUT_S = 600.0
# For the answer that the deadline has passed to arrive.
_GRACE_S = 30.0


class ServiceError(RewardError):
    """The service refused the request, could not be reached, or answered something else.

    Attributes:
        may_pass: whether the same request may succeed later, or at another address.
    """

    code = "service_error"
    may_pass = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back of one request.

    Attributes:
        results: a reward or an error for each conversation, in order.
        num_computed_tokens: tokens that went through the model for it.
        fingerprint: what makes rewards comparable, as the service tells it.
    """

    results: list[Reward | ScoreError]
    num_computed_tokens: int
    fingerprint: dict[str, Any]


_NO_JSON = ScoreError(
    "invalid_conversation",
    "a message has NaN or an infinite number, which JSON cannot carry; leave it out",
)


class ScoringClient:
    """Posts to a running service. A context manager; not for use from several threads.

    A request that is refused for a while, or lost with its connection, is sent again, under the
    same `X-Request-Id`; each time is logged as a warning. Scoring twice is harmless.

    Args:
        url: address of the service, such as `http://127.0.0.1:8000`.
        model: which of its models; None if it serves one.
        api_key: sent as `Authorization: Bearer`.
        retry_s: seconds after a request's first failure in which it is tried again; 0: never.
        timeout_s: deadline of each try, kept by the service; None: the service's own.

    Attributes:
        num_retries: times that something was sent again.

    Raises:
        ServiceError: `url` is no address, or `api_key` no key.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        retry_s: float = 300.0,
        timeout_s: float | None = None,
    ) -> None:
        self.num_retries = 0
        self._model = model
        self._retry_s = retry_s
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ServiceError(
                f"{url!r} is no address ({error}); give one such as http://127.0.0.1:8000"
            ) from error
        # Told in errors and logs: a password in the address must not be.
        self._place = str(address.copy_with(username=None, password=None))
        headers = {"Content-Type": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {_checked(api_key)}"
        if timeout_s is not None:
            headers["X-Request-Timeout-Seconds"] = f"{timeout_s:g}"
        read_s = _TIMEOUT_S if timeout_s is None else timeout_s + _GRACE_S
        # No proxy stands between a machine and itself, whatever the environment says.
        self._http = httpx.Client(
            base_url=address,
            headers=headers,
            timeout=httpx.Timeout(read_s, connect=10.0),
            trust_env=address.host not in _LOOPBACK,
        )

    def score(
        self, conversations: Sequence[Messages], truncation: Truncation = "error"
    ) -> list[Reward | ScoreError]:
        """A reward or an error for each conversation, in order.

        Raises:
            ServiceError: a whole request failed.
        """
        parts = [self.ask(some, truncation) for some in _parts(conversations)]
        return [result for part in parts for result in part.results]

    def ask(self, conversations: Sequence[Messages], truncation: Truncation = "error") -> Answer:
        """Score conversations in a single request.

        Raises:
            ServiceError: it failed.
        """
        # NaN is no JSON. A place is kept, since one bad message must not cost its neighbours
        # their rewards.
        sent = [None if _has_nan(conversation) else conversation for conversation in conversations]
        answer = self.post("/v1/score", {"conversations": sent, "truncation": truncation})
        items = answer["results"]
        if len(items) != len(sent):
            raise ServiceError(
                f"{len(sent)} conversations were sent, {len(items)} results came back"
            )
        results = [
            _NO_JSON if conversation is None else _result(item)
            for conversation, item in zip(sent, items, strict=True)
        ]
        computed = answer.get("usage", {}).get("num_computed_tokens", 0)
        return Answer(results, computed, answer.get("fingerprint", {}))

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
        # Not httpx's own encoding, which raises on half of a surrogate pair.
        return self._object(self._send("POST", route, json.dumps(body).encode()))

    def get(self, route: str) -> dict[str, Any]:
        """What the service tells at a route.

        Raises:
            ServiceError: the request failed.
        """
        return self._object(self._send("GET", route))

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServiceError(f"{self._place} answered no JSON object: {response.text[:200]}")
        return answer

    def _send(self, method: str, route: str, content: bytes | None = None) -> httpx.Response:
        """The answer of success, of as many tries as it takes."""
        retries = Retries(self._retry_s)
        identifier = f"client-{uuid.uuid4().hex}"
        while True:
            failure: httpx.Response | httpx.HTTPError
            try:
                failure = self._http.request(
                    method, route, content=content, headers={"X-Request-Id": identifier}
                )
                if failure.is_success:
                    return failure
            except httpx.HTTPError as error:
                failure = error
            wait = retries.wait(failure)
            if wait is None:
                tried = f" ({retries.tries} tries, request {identifier})"
                told = ServiceError(self._told(failure) + tried)
                told.may_pass = may_go_away(failure)
                raise told
            logger.warning("%s; trying again in %.1f s", self._told(failure), wait)
            self.num_retries += 1
            time.sleep(wait)

    def _told(self, failure: httpx.Response | httpx.HTTPError) -> str:
        if isinstance(failure, httpx.HTTPError):
            return (
                f"{self._place} did not answer: {type(failure).__name__}: {failure}; is the "
                "service running there?"
            )
        said = failure.json()["error"].get("message") if is_ours(failure) else None
        return f"{self._place} answered {failure.status_code}: {said or failure.text[:200]}"

    def __enter__(self) -> ScoringClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _checked(api_key: str) -> str:
    # Else the HTTP library refuses it, with an error that quotes it.
    if not api_key.isascii() or not api_key.isprintable() or not api_key.strip():
        raise ServiceError(
            "the API key is empty or has characters that no HTTP header can carry; give it as one "
            "line of ASCII"
        )
    return api_key.strip()


def _has_nan(conversation: Messages) -> bool:
    try:
        json.dumps(conversation, allow_nan=False)
    except ValueError:
        return True
    return False


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
