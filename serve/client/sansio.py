"""The I/O-free core of the clients: how a call is split, what to send, when to wait and retry.

A generator yields requests and pauses. The client that runs the generator, on a thread or in an
event loop, sends back each response or exception. Both clients share all decisions in this way.
A request that failed for good raises `ServiceError`.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from rm_core import InputError, ScoreError, drop_nulls
from serve.client.endpoints import EndpointPool, get_error_field, is_retryable
from serve.client.errors import ScoringFailedError, ServiceError
from serve.client.images import to_wire
from serve.client.responses import (
    RankedResponse,
    Ranking,
    excerpt,
    parse_json_object,
    read_comparison,
    read_count,
    read_model_rewards,
    read_num_tokens,
    read_ranked_response,
    read_reward,
    read_step_rewards,
    read_turn_rewards,
    read_verdict,
)
from serve.escaping import escape_line

logger = logging.getLogger("serve.client")

R = TypeVar("R")
T = TypeVar("T")

MAX_ITEMS_PER_REQUEST = 256
# A quarter of a service's default limit, since a service holds several bodies at a time.
MAX_BYTES_PER_REQUEST = 8 * 2**20
_TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """A step: send this request, and return the response or the exception of the connection."""

    method: str
    url: httpx.URL
    headers: dict[str, str] = field(repr=False)
    content: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pause:
    """A step: wait for this time before the generator continues."""

    seconds: float


Steps: TypeAlias = Generator[OutgoingRequest | Pause, httpx.Response | httpx.HTTPError | None, T]


@dataclass(frozen=True, slots=True)
class Sender:
    """Sends requests to the endpoints of a client, with retries."""

    endpoints: EndpointPool  # endpoints of the service
    retry_timeout_s: float  # seconds after a request's first failure in which it is retried
    on_retry: Callable[[], None]  # called before each retry

    def request(
        self, method: str, route: str, content: bytes | None = None
    ) -> Steps[dict[str, Any]]:
        """Return the JSON object of the final response."""
        response, display_url = yield from self._send(method, route, content)
        body = parse_json_object(response)
        if body is None:
            raise ServiceError(
                f"{display_url} did not answer with a JSON object of a service: {excerpt(response)}"
            )
        return body

    def _send(
        self, method: str, route: str, content: bytes | None
    ) -> Steps[tuple[httpx.Response, str]]:
        request_id = f"client-{uuid.uuid4().hex}"
        headers = {"X-Request-Id": request_id}
        num_tries = 0
        deadline: float | None = None
        while True:
            endpoint = self.endpoints.acquire()
            sent_at = time.monotonic()
            num_tries += 1
            try:
                url = endpoint.url.join(route.lstrip("/"))
                outcome = yield OutgoingRequest(
                    method, url, {**headers, **endpoint.headers}, content
                )
            finally:
                self.endpoints.release(endpoint)
            assert outcome is not None
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                self.endpoints.mark_healthy(endpoint)
                return outcome, endpoint.display_url
            delay_s = None
            if is_retryable(outcome):
                self.endpoints.mark_failed(endpoint, outcome, sent_at)
                now = time.monotonic()
                # Counted from the first failure: the first try may itself have taken long.
                deadline = now + self.retry_timeout_s if deadline is None else deadline
                delay_s = self.endpoints.compute_wait()
                if now + delay_s > deadline:
                    delay_s = None
            if delay_s is None:
                raise ServiceError(
                    f"{endpoint.describe_failure(outcome)} "
                    f"(tries: {num_tries}, request {request_id})",
                    retryable=is_retryable(outcome),
                    status=outcome.status_code if isinstance(outcome, httpx.Response) else None,
                    error_code=get_error_field(outcome, "code"),
                )
            reason = escape_line(endpoint.describe_failure(outcome))
            logger.warning("%s; trying again in %.1f s", reason, delay_s)
            self.on_retry()
            if delay_s:
                yield Pause(delay_s)


def control_model(
    senders: Sequence[Sender], model: str | None, action: str, body: Mapping[str, Any]
) -> Steps[list[dict[str, Any]]]:
    """Send a command for a model to each address; return the answers in the order of addresses.

    The action is `sleep`, `wake` or `reload`; `model` may be None if the service has one model.
    """
    content = encode_json(body).encode()
    answers = []
    for sender in senders:
        alias = model
        if alias is None:
            served = (yield from sender.request("GET", "/v1/models"))["data"]
            if len(served) != 1:
                names = ", ".join(item["id"] for item in served)
                raise ServiceError(f"several models are served ({names}); name one of them")
            alias = served[0]["id"]
        route = f"/v1/models/{quote(alias)}/{action}"
        answers.append((yield from sender.request("POST", route, content)))
    return answers


@dataclass(frozen=True, slots=True)
class ScoringRoute(Generic[R]):
    """A route of the service that returns a result for each item."""

    path: str  # path of the route
    field: str  # field of the request body that holds the items
    # Function that parses one result of the response.
    read: Callable[[Mapping[str, Any]], R | ScoreError]
    item_name: str  # name of one item in messages
    # Whether the result of an item may depend on the others, so that the items are sent in one
    # request if they fit.
    is_group: bool = False


SCORE_ROUTE = ScoringRoute("/v1/score", "conversations", read_reward, "conversation")
MODELS_ROUTE = ScoringRoute("/v1/score", "conversations", read_model_rewards, "conversation")
TURNS_ROUTE = ScoringRoute("/v1/score", "conversations", read_turn_rewards, "conversation")
STEPS_ROUTE = ScoringRoute("/v1/steps", "items", read_step_rewards, "item")
COMPARE_ROUTE = ScoringRoute("/v1/compare", "pairs", read_comparison, "pair")
JUDGE_ROUTE = ScoringRoute("/v1/compare", "pairs", read_verdict, "pair")
RANK_ROUTE = ScoringRoute("/v1/rank", "responses", read_ranked_response, "response", is_group=True)
RENDER_ROUTE = ScoringRoute("/v1/render", "conversations", read_num_tokens, "conversation")


@dataclass(frozen=True, slots=True)
class RequestShard:
    """The items of one request."""

    indices: list[int]  # positions of the items in the call
    items: list[str]  # the items, JSON-encoded

    def split(self) -> tuple[RequestShard, RequestShard]:
        """Return the two halves of the shard."""
        middle = len(self.indices) // 2
        first = RequestShard(self.indices[:middle], self.items[:middle])
        return first, RequestShard(self.indices[middle:], self.items[middle:])


class BatchCall(Generic[R]):
    """One call of a client, sent as one or more requests.

    A `ScoreError` among the items becomes its own result and is not sent. `body` has the other
    fields of each request.

    Attributes:
        results: the result of each item in the order of the items; None until it is known.
        num_computed_tokens: tokens that went through the model.
        num_cached_tokens: tokens of the conversations whose rewards came from the service's cache.
        fingerprints: fingerprints of all responses with rewards, each with the name of its model if
            the request named several, else None.
        route: route that takes the items.
        num_responses: number of responses with results.
        num_restarts: number of times that the call was sent before.
    """

    def __init__(
        self, route: ScoringRoute[R], items: Sequence[object], body: Mapping[str, Any]
    ) -> None:
        self.results: list[R | ScoreError | None] = [None] * len(items)
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.fingerprints: list[tuple[str | None, dict[str, Any]]] = []
        self.route = route
        self.num_responses = 0
        self.num_restarts = 0
        self._items = items
        self._body = body
        # The JSON of the body up to the value of the field that holds the items.
        self._body_prefix = encode_json({**body, route.field: 0}).removesuffix("0}")

    def restart(self) -> BatchCall[R]:
        """Return the same call, to be sent again."""
        call = BatchCall(self.route, self._items, self._body)
        call.num_restarts = self.num_restarts + 1
        return call

    def iter_shards(
        self, max_items: int, max_bytes: int, *, groups_prompts: bool = False
    ) -> Iterator[RequestShard]:
        """Yield shards of the items that can be sent; `max_bytes` is for shards with several items.

        With `groups_prompts`, items with equal beginnings come together, for which all items are
        encoded before the first shard is there.
        """
        shard, num_bytes = RequestShard([], []), 0
        items = self._encode_items()
        if groups_prompts:
            items = iter(sorted(items, key=itemgetter(1)))
        for index, encoded in items:
            is_full = len(shard.items) == max_items or num_bytes + len(encoded) > max_bytes
            if shard.items and is_full:
                yield shard
                shard, num_bytes = RequestShard([], []), 0
            shard.indices.append(index)
            shard.items.append(encoded)
            num_bytes += len(encoded)
        if shard.items:
            yield shard

    def _encode_items(self) -> Iterator[tuple[int, str]]:
        """Yield index and JSON of each item; store an error for those that cannot be sent."""
        for index, item in enumerate(self._items):
            encoded = _encode_item(item)
            if isinstance(encoded, ScoreError):
                self.results[index] = encoded
            else:
                yield index, encoded

    def send_shard(self, shard: RequestShard, sender: Sender) -> Steps[None]:
        """Send a shard; if the service rejects it as too large, send its halves."""
        content = f"{self._body_prefix}[{','.join(shard.items)}]}}".encode()
        try:
            response = yield from sender.request("POST", self.route.path, content)
        except ServiceError as error:
            if error.status != _TOO_LARGE:
                raise self._add_item_range(error, shard) from None
            if len(shard.indices) == 1:
                self.results[shard.indices[0]] = ScoreError("body_too_large", error.detail)
                return
            for half in shard.split():
                yield from self.send_shard(half, sender)
            return
        try:
            self._store_results(shard, response)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServiceError(
                f"the service returned an unexpected response: {type(error).__name__}: {error}"
            ) from error

    def collect_results(self) -> list[R | ScoreError]:
        """Return all results in the order of the items, once all shards are done."""
        results = [result for result in self.results if result is not None]
        assert len(results) == len(self.results)
        return results

    def collect_results_or_raise(self) -> list[R]:
        """Return all results in order, or raise `ScoringFailedError` if some are errors."""
        results = self.collect_results()
        succeeded = [result for result in results if not isinstance(result, ScoreError)]
        if len(succeeded) < len(results):
            raise ScoringFailedError.from_results(results, self.route.item_name)
        return succeeded

    def build_ranking(self: BatchCall[RankedResponse]) -> Ranking:
        """Return the ranking of the items, once all shards are done."""
        answers = self.collect_results_or_raise()
        if self.num_responses > 1 and any(answer.num_comparisons is not None for answer in answers):
            raise ServiceError(
                f"a judge compares each of {len(answers)} answers with all others, but they did "
                f"not fit into one request ({self.num_responses} were sent); rank fewer answers, "
                "or allow larger requests (max_items, max_bytes)"
            )
        return Ranking.from_responses(answers)

    def _store_results(self, shard: RequestShard, response: Mapping[str, Any]) -> None:
        items = response["results"]
        if len(items) != len(shard.indices):
            raise ServiceError(
                f"{len(shard.indices)} {self.route.item_name}s were sent, but the service "
                f"returned {len(items)} results"
            )
        for index, result in zip(shard.indices, map(self.route.read, items), strict=True):
            self.results[index] = result
        self.num_responses += 1
        usages = [response.get("usage", {})]
        if self.route is MODELS_ROUTE:
            usages = list(response["usage"].values())
            self.fingerprints += response["fingerprints"].items()
        elif self.route is not RENDER_ROUTE:
            self.fingerprints.append((None, response.get("fingerprint", {})))
        for usage in usages:
            self.num_computed_tokens += read_count(usage.get("num_computed_tokens", 0))
            self.num_cached_tokens += read_count(usage.get("num_cached_tokens", 0))

    def _add_item_range(self, error: ServiceError, shard: RequestShard) -> ServiceError:
        first, last = min(shard.indices), max(shard.indices)
        if len(shard.indices) == len(self._items):
            return error
        names = f"{self.route.item_name}s"
        item_range = f"{names} {first} to {last} of {len(self._items)}"
        if last - first >= len(shard.indices):
            item_range = f"{len(shard.indices)} of the {names} {first} to {last}"
        return ServiceError(
            f"{item_range}: {error.detail}",
            retryable=error.retryable,
            status=error.status,
            error_code=error.error_code,
        )


def encode_json(value: object) -> str:
    """Encode a value as strict JSON; numpy arrays and scalars become lists and numbers."""
    # Not httpx's encoding, which raises on half of a surrogate pair.
    return json.dumps(value, allow_nan=False, default=_encode_array)


def _encode_array(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")


def _encode_item(item: object) -> str | ScoreError:
    """Encode an item as JSON; an item that JSON cannot represent becomes an error of its position.

    Null keys are dropped, because the rows of a table share the columns of all rows.
    """
    if isinstance(item, ScoreError):
        return item
    try:
        return encode_json(to_wire(drop_nulls(item)))
    except InputError as error:
        return ScoreError.from_exception(error)
    except ValueError:
        # Also raised for a list that contains itself.
        reason = (
            "a message has NaN or an infinite number, which JSON cannot represent; leave it out"
        )
    except (TypeError, RecursionError) as error:
        reason = f"a message has {error}, which JSON cannot represent; send text and plain values"
    return ScoreError("invalid_conversation", reason)
