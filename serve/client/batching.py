"""One call of a client: its items are split into shards, and the results are put back in order.

Independent of threads and event loops: the clients run the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, TypeVar

from rm_core import ScoreError, drop_nulls
from serve.client.errors import ScoringFailedError, ServiceError
from serve.client.responses import read_comparison, read_count, read_num_tokens, read_reward
from serve.client.sansio import Sender, Steps, encode_json

R = TypeVar("R")

MAX_ITEMS_PER_REQUEST = 256
# A quarter of a service's default limit, since a service holds several bodies at a time.
MAX_BYTES_PER_REQUEST = 8 * 2**20
_TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class ScoringRoute(Generic[R]):
    """A route of the service that returns a result for each item.

    Attributes:
        path: path of the route.
        field: field of the request body that holds the items.
        read: function that parses one result of the response.
        item_name: name of one item in messages.
    """

    path: str
    field: str
    read: Callable[[Mapping[str, Any]], R | ScoreError]
    item_name: str


SCORE_ROUTE = ScoringRoute("/v1/score", "conversations", read_reward, "conversation")
COMPARE_ROUTE = ScoringRoute("/v1/compare", "pairs", read_comparison, "pair")
RANK_ROUTE = ScoringRoute("/v1/rank", "responses", read_reward, "response")
RENDER_ROUTE = ScoringRoute("/v1/render", "conversations", read_num_tokens, "conversation")


@dataclass(frozen=True, slots=True)
class RequestShard:
    """The items of one request.

    Attributes:
        indices: positions of the items in the call.
        items: the items, JSON-encoded.
    """

    indices: list[int]
    items: list[str]

    def split(self) -> tuple[RequestShard, RequestShard]:
        """Return the two halves of the shard."""
        middle = len(self.indices) // 2
        first = RequestShard(self.indices[:middle], self.items[:middle])
        return first, RequestShard(self.indices[middle:], self.items[middle:])


class BatchCall(Generic[R]):
    """One call of a client, sent as one or more requests.

    Args:
        route: route that takes the items.
        items: items to score; a `ScoreError` among them becomes its own result and is not sent.
        body: the other fields of each request body.

    Attributes:
        results: the result of each item in the order of the items; None until it is known.
        num_computed_tokens: tokens that went through the model.
        fingerprints: fingerprints of all responses with rewards.
    """

    def __init__(
        self, route: ScoringRoute[R], items: Sequence[object], body: Mapping[str, Any]
    ) -> None:
        self.results: list[R | ScoreError | None] = [None] * len(items)
        self.num_computed_tokens = 0
        self.fingerprints: list[dict[str, Any]] = []
        self._route = route
        self._items = items
        # The JSON of the body up to the value of the field that holds the items.
        self._body_prefix = encode_json({**body, route.field: 0}).removesuffix("0}")

    def iter_shards(
        self, max_items: int, max_bytes: int, *, groups_prompts: bool = False
    ) -> Iterator[RequestShard]:
        """Yield shards of the items that can be sent, limited in number of items and bytes.

        Args:
            max_items: maximum number of items in a shard.
            max_bytes: maximum size of a shard with several items, in bytes.
            groups_prompts: whether items with equal beginnings come together, for which all items
                are encoded before the first shard is there.
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
        """Send a shard; if the service rejects it as too large, send its halves.

        Raises:
            ServiceError: the request failed.
        """
        content = f"{self._body_prefix}[{','.join(shard.items)}]}}".encode()
        try:
            response = yield from sender.request("POST", self._route.path, content)
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
        """Return all results in the order of the items.

        Raises:
            ScoringFailedError: some results are errors.
        """
        results = self.collect_results()
        succeeded = [result for result in results if not isinstance(result, ScoreError)]
        if len(succeeded) < len(results):
            raise ScoringFailedError.from_results(results, self._route.item_name)
        return succeeded

    def _store_results(self, shard: RequestShard, response: Mapping[str, Any]) -> None:
        items = response["results"]
        if len(items) != len(shard.indices):
            raise ServiceError(
                f"{len(shard.indices)} {self._route.item_name}s were sent, but the service "
                f"returned {len(items)} results"
            )
        for index, result in zip(shard.indices, map(self._route.read, items), strict=True):
            self.results[index] = result
        num_computed = response.get("usage", {}).get("num_computed_tokens", 0)
        self.num_computed_tokens += read_count(num_computed)
        if self._route is not RENDER_ROUTE:
            self.fingerprints.append(response.get("fingerprint", {}))

    def _add_item_range(self, error: ServiceError, shard: RequestShard) -> ServiceError:
        first, last = min(shard.indices), max(shard.indices)
        if len(shard.indices) == len(self._items):
            return error
        names = f"{self._route.item_name}s"
        item_range = f"{names} {first} to {last} of {len(self._items)}"
        if last - first >= len(shard.indices):
            item_range = f"{len(shard.indices)} of the {names} {first} to {last}"
        return ServiceError(
            f"{item_range}: {error.detail}", retryable=error.retryable, status=error.status
        )


def _encode_item(item: object) -> str | ScoreError:
    """Encode an item as JSON; an item that JSON cannot represent becomes an error of its position.

    Null keys are dropped, because the rows of a table share the columns of all rows.
    """
    if isinstance(item, ScoreError):
        return item
    try:
        return encode_json(drop_nulls(item))
    except ValueError:
        # Also raised for a list that contains itself.
        reason = (
            "a message has NaN or an infinite number, which JSON cannot represent; leave it out"
        )
    except (TypeError, RecursionError) as error:
        reason = f"a message has {error}, which JSON cannot represent; send text and plain values"
    return ScoreError("invalid_conversation", reason)
