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
from serve.client.sansio import Sender, Steps, encoded

R = TypeVar("R")

MOST_PER_POST = 256
# A quarter of what a service takes by default, which also holds several bodies at a time.
MOST_BYTES_PER_POST = 8 * 2**20
_TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class Kind(Generic[R]):
    """What is posted, where, and how the answer is read.

    Attributes:
        route: of the service.
        field: of the body, in which the items stand.
        read: one result.
        what: one item, in words.
    """

    route: str
    field: str
    read: Callable[[Mapping[str, Any]], R | ScoreError]
    what: str


CONVERSATIONS = Kind("/v1/score", "conversations", read_reward, "conversation")
PAIRS = Kind("/v1/compare", "pairs", read_comparison, "pair")
RESPONSES = Kind("/v1/rank", "responses", read_reward, "response")


@dataclass(frozen=True, slots=True)
class Part:
    """What goes into one post.

    Attributes:
        places: of its items among all.
        items: the items in JSON.
    """

    places: list[int]
    items: list[str]

    def halves(self) -> tuple[Part, Part]:
        """Two parts of it."""
        middle = len(self.places) // 2
        first = Part(self.places[:middle], self.items[:middle])
        return first, Part(self.places[middle:], self.items[middle:])


class Work(Generic[R]):
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

    def __init__(self, kind: Kind[R], items: Sequence[object], body: Mapping[str, Any]) -> None:
        self.results: list[R | ScoreError | None] = [None] * len(items)
        self.num_computed_tokens = 0
        self.fingerprints: list[dict[str, Any]] = []
        self._kind = kind
        self._items = items
        # All but the braces around it, to be put together with the items.
        self._rest = encoded({**body, kind.field: 0}).removesuffix("0}")

    def parts(
        self, most: int = MOST_PER_POST, most_bytes: int = MOST_BYTES_PER_POST
    ) -> Iterator[Part]:
        """What can be sent, cut by number and by size."""
        part, num_bytes = Part([], []), 0
        for place, item in enumerate(self._items):
            sent = _sendable(item)
            if isinstance(sent, ScoreError):
                self.results[place] = sent
                continue
            if part.items and (len(part.items) == most or num_bytes + len(sent) > most_bytes):
                yield part
                part, num_bytes = Part([], []), 0
            part.places.append(place)
            part.items.append(sent)
            num_bytes += len(sent)
        if part.items:
            yield part

    def steps(self, part: Part, sender: Sender) -> Steps[None]:
        """Post a part; one that the service finds too large in halves.

        Raises:
            ServiceError: the request failed.
        """
        content = f"{self._rest}[{','.join(part.items)}]}}".encode()
        try:
            answer = yield from sender.ask("POST", self._kind.route, content)
        except ServiceError as error:
            if error.status != _TOO_LARGE:
                raise self._named(error, part) from None
            if len(part.places) == 1:
                self.results[part.places[0]] = ScoreError("body_too_large", error.detail)
                return
            for half in part.halves():
                yield from self.steps(half, sender)
            return
        try:
            self._read(part, answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServiceError(
                f"the service answered nonsense: {type(error).__name__}: {error}"
            ) from error

    def done(self) -> list[R | ScoreError]:
        """Every result, once all parts are done."""
        results = [result for result in self.results if result is not None]
        assert len(results) == len(self.results)
        return results

    def all_good(self) -> list[R]:
        """Every result, of which none is an error.

        Raises:
            ScoringFailedError: some are.
        """
        results = self.done()
        good = [result for result in results if not isinstance(result, ScoreError)]
        if len(good) < len(results):
            raise ScoringFailedError.of(results, self._kind.what)
        return good

    def _read(self, part: Part, answer: Mapping[str, Any]) -> None:
        items = answer["results"]
        if len(items) != len(part.places):
            raise ServiceError(
                f"{len(part.places)} {self._kind.what}s were sent, {len(items)} results came back"
            )
        for place, result in zip(part.places, map(self._kind.read, items), strict=True):
            self.results[place] = result
        computed = answer.get("usage", {}).get("num_computed_tokens", 0)
        self.num_computed_tokens += read_count(computed)
        self.fingerprints.append(answer.get("fingerprint", {}))

    def _named(self, error: ServiceError, part: Part) -> ServiceError:
        if len(part.places) < len(self._items):
            where = (
                f"{self._kind.what}s {part.places[0]} to {part.places[-1]} of {len(self._items)}"
            )
            named = ServiceError(f"{where}: {error.detail}")
            named.may_pass, named.status = error.may_pass, error.status
            return named
        return error


def _sendable(item: object) -> str | ScoreError:
    """An item in JSON: what has no form there must not cost its neighbours their rewards.

    Keys that are null are left out: rows of tables have them for other rows.
    """
    if isinstance(item, ScoreError):
        return item
    try:
        return encoded(drop_nulls(item))
    except ValueError:
        # Also of a list in itself.
        reason = "a message has NaN or an infinite number, which JSON cannot carry; leave it out"
    except (TypeError, RecursionError) as error:
        reason = f"a message has {error}, which JSON cannot carry; send text and plain values"
    return ScoreError("invalid_conversation", reason)
