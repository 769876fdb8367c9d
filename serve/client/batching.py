"""One call of a client: its conversations in parts, and what came of each in its place.

Knows neither threads nor event loops: the clients run the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rm_core import ScoreError, drop_nulls
from serve.client.errors import ScoringFailedError, ServiceError
from serve.client.responses import read_comparison, read_count, read_reward
from serve.client.sansio import Sender, Steps, encode_json

R = TypeVar("R")

MAX_ITEMS_PER_REQUEST = 256
# A quarter of what a service takes by default, which also holds several bodies at a time.
MAX_BYTES_PER_REQUEST = 8 * 2**20
_TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class ScoringRoute(Generic[R]):
    """What is posted, where, and how the answer is read.

    Attributes:
        route: of the service.
        field: of the body, in which the items stand.
        read: one result.
        what: one item, in words.
    """

    path: str
    field: str
    read: Callable[[Mapping[str, Any]], R | ScoreError]
    item_name: str


SCORE_ROUTE = ScoringRoute("/v1/score", "conversations", read_reward, "conversation")
COMPARE_ROUTE = ScoringRoute("/v1/compare", "pairs", read_comparison, "pair")
RANK_ROUTE = ScoringRoute("/v1/rank", "responses", read_reward, "response")


@dataclass(frozen=True, slots=True)
class RequestShard:
    """What goes into one post.

    Attributes:
        places: of its items among all.
        items: the items in JSON.
    """

    indices: list[int]
    items: list[str]

    def split(self) -> tuple[RequestShard, RequestShard]:
        """Two parts of it."""
        middle = len(self.indices) // 2
        first = RequestShard(self.indices[:middle], self.items[:middle])
        return first, RequestShard(self.indices[middle:], self.items[middle:])


class BatchCall(Generic[R]):
    """One call.

    Args:
        kind: what is posted.
        items: an error among them stays where it is and is not sent.
        body: the other fields of each body.

    Attributes:
        results: of each item that is done, in its place.
        num_computed_tokens: tokens that went through the model.
        fingerprints: of all answers.
    """

    def __init__(
        self, route: ScoringRoute[R], items: Sequence[object], body: Mapping[str, Any]
    ) -> None:
        self.results: list[R | ScoreError | None] = [None] * len(items)
        self.num_computed_tokens = 0
        self.fingerprints: list[dict[str, Any]] = []
        self._route = route
        self._items = items
        # All but the braces around it, to be put together with the items.
        self._body_prefix = encode_json({**body, route.field: 0}).removesuffix("0}")

    def iter_shards(
        self, max_items: int = MAX_ITEMS_PER_REQUEST, max_bytes: int = MAX_BYTES_PER_REQUEST
    ) -> Iterator[RequestShard]:
        """What can be sent, cut by number and by size."""
        part, num_bytes = RequestShard([], []), 0
        for place, item in enumerate(self._items):
            sent = _encode_item(item)
            if isinstance(sent, ScoreError):
                self.results[place] = sent
                continue
            if part.items and (len(part.items) == max_items or num_bytes + len(sent) > max_bytes):
                yield part
                part, num_bytes = RequestShard([], []), 0
            part.indices.append(place)
            part.items.append(sent)
            num_bytes += len(sent)
        if part.items:
            yield part

    def send_shard(self, shard: RequestShard, sender: Sender) -> Steps[None]:
        """Post a part; one that the service finds too large in halves.

        Raises:
            ServiceError: the request failed.
        """
        content = f"{self._body_prefix}[{','.join(shard.items)}]}}".encode()
        try:
            answer = yield from sender.request("POST", self._route.path, content)
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
            self._store_results(shard, answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServiceError(
                f"the service answered nonsense: {type(error).__name__}: {error}"
            ) from error

    def collect_results(self) -> list[R | ScoreError]:
        """Every result, once all parts are done."""
        results = [result for result in self.results if result is not None]
        assert len(results) == len(self.results)
        return results

    def collect_results_or_raise(self) -> list[R]:
        """Every result, of which none is an error.

        Raises:
            ScoringFailedError: some are.
        """
        results = self.collect_results()
        good = [result for result in results if not isinstance(result, ScoreError)]
        if len(good) < len(results):
            raise ScoringFailedError.from_results(results, self._route.item_name)
        return good

    def _store_results(self, shard: RequestShard, answer: Mapping[str, Any]) -> None:
        items = answer["results"]
        if len(items) != len(shard.indices):
            raise ServiceError(
                f"{len(shard.indices)} {self._route.item_name}s were sent, {len(items)} results came back"
            )
        for place, result in zip(shard.indices, map(self._route.read, items), strict=True):
            self.results[place] = result
        computed = answer.get("usage", {}).get("num_computed_tokens", 0)
        self.num_computed_tokens += read_count(computed)
        self.fingerprints.append(answer.get("fingerprint", {}))

    def _add_item_range(self, error: ServiceError, shard: RequestShard) -> ServiceError:
        if len(shard.indices) < len(self._items):
            where = f"{self._route.item_name}s {shard.indices[0]} to {shard.indices[-1]} of {len(self._items)}"
            named = ServiceError(f"{where}: {error.detail}")
            named.retryable, named.status = error.retryable, error.status
            return named
        return error


def _encode_item(item: object) -> str | ScoreError:
    """An item in JSON: what has no form there must not cost its neighbours their rewards.

    Keys that are null are left out: rows of tables have them for other rows.
    """
    if isinstance(item, ScoreError):
        return item
    try:
        return encode_json(drop_nulls(item))
    except ValueError:
        # Also of a list in itself.
        reason = "a message has NaN or an infinite number, which JSON cannot carry; leave it out"
    except (TypeError, RecursionError) as error:
        reason = f"a message has {error}, which JSON cannot carry; send text and plain values"
    return ScoreError("invalid_conversation", reason)
