"""Response bodies, read within limits, and the results in them.

A body is read incrementally, compressed or not, so that a hostile service cannot fill the memory.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from rm_core import AGGREGATIONS, Aggregation, Reward, ScoreError
from serve.client.errors import ServiceError

MAX_ANSWER_BYTES = 64 * 2**20
"""The results of 20,000 conversations take about 3 MiB, and 20 MiB with several warnings each."""
_MAX_CONTAINERS = 2_000_000
_EXCERPT_CHARS = 200
_MAX_TOKENS = 2**53


@dataclass(frozen=True, slots=True)
class ResultsWithUsage:
    """The results of one call, and their cost."""

    results: list[Reward | ScoreError]  # a reward or an error for each conversation, in order
    # Tokens that went through the model for this call; shared prefixes count once.
    num_computed_tokens: int
    # Tokens of the conversations whose rewards the service had computed before.
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class OrderVerdict:
    """What a judge says of two answers in one order.

    Attributes:
        log_odds: log-odds that the chosen answer is better.
        label_mass: probability of the two labels together.
    """

    log_odds: float
    label_mass: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rewards of one pair, or a judge's verdict on it.

    Attributes:
        chosen_reward: raw logit of the chosen answer; None from a judge.
        rejected_reward: raw logit of the rejected answer; None from a judge.
        margin: `chosen_reward` minus `rejected_reward`; of a judge, the mean log-odds over the
            orders that the chosen answer is better.
        probability: sigmoid of the margin.
        truncated: whether either conversation was truncated.
        warnings: warnings about either conversation.
        orders: a judge's verdict with the chosen answer first, then second; empty without a judge.
        consistent: whether a judge prefers the same answer in both orders; None without a judge,
            and if it read one order.
        num_tokens: number of tokens that a judge read, of all orders; 0 without a judge.
    """

    chosen_reward: float | None
    rejected_reward: float | None
    margin: float
    probability: float
    truncated: bool = False
    warnings: tuple[str, ...] = ()
    orders: tuple[OrderVerdict, ...] = ()
    consistent: bool | None = None
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StepRewards:
    """The rewards of the steps of one solution.

    Attributes:
        step_rewards: reward of each step, between 0 and 1.
        reward: the aggregate of `step_rewards`.
        aggregation: how the rewards were aggregated.
        num_tokens: tokens of the problem and its solution.
        warnings: warnings about the texts.
    """

    step_rewards: tuple[float, ...]
    reward: float
    aggregation: Aggregation
    num_tokens: int
    warnings: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.step_rewards)


@dataclass(frozen=True, slots=True)
class TurnReward:
    """The reward of a conversation up to one of the assistant's messages.

    Attributes:
        message: index of that message.
        reward: raw logit; None if this part cannot be scored.
        error: why it cannot be scored.
    """

    message: int
    reward: float | None
    error: ScoreError | None = None


@dataclass(frozen=True, slots=True)
class TurnRewards:
    """The rewards of a conversation after each of the assistant's messages.

    Attributes:
        turn_rewards: in the order of the messages; the last is that of the whole conversation.
        truncated: whether the whole conversation was truncated.
        warnings: warnings about the whole conversation.
    """

    turn_rewards: tuple[TurnReward, ...]
    truncated: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def reward(self) -> float | None:
        """Raw logit of the whole conversation; None if it cannot be scored."""
        return self.turn_rewards[-1].reward


@dataclass(frozen=True, slots=True)
class ModelRewards:
    """The rewards of several models for one conversation.

    Attributes:
        results: a reward or an error by model.
        calibrated_rewards: calibrated reward by model, of those with a calibration.
        reward: the weighted sum of `combine`; None without it, or if a model in it has no reward.
        turn_rewards: by model: the reward after each message of the assistant, if requested.
    """

    results: Mapping[str, Reward | ScoreError]
    calibrated_rewards: Mapping[str, float] = field(default_factory=dict)
    reward: float | None = None
    turn_rewards: Mapping[str, tuple[TurnReward, ...]] = field(default_factory=dict)

    @property
    def rewards(self) -> dict[str, float]:
        """Raw reward by model; without those that failed."""
        return {n: r.reward for n, r in self.results.items() if isinstance(r, Reward)}

    @property
    def errors(self) -> dict[str, ScoreError]:
        """Error by model, of those that failed."""
        return {n: r for n, r in self.results.items() if isinstance(r, ScoreError)}


@dataclass(frozen=True, slots=True)
class RankedResponse:
    """One of several answers to a prompt.

    Attributes:
        reward: raw logit; the aggregate of a step model; a judge's mean margin against the others.
        step_rewards: rewards of the steps; empty unless the model is a step model.
        num_comparisons: number of answers with which a judge compared it; None without a judge.
        warnings: warnings about the answer.
    """

    reward: float
    step_rewards: tuple[float, ...] = ()
    num_comparisons: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rewards and ranks of the answers to one prompt, in the order of the answers.

    Attributes:
        rewards: raw logits; of a judge, each answer's mean margin against the others.
        ranks: 1 is the best; equal rewards share a rank.
        responses: the answers with further results, such as the rewards of their steps.
    """

    rewards: list[float]
    ranks: list[int]
    responses: list[RankedResponse] = field(default_factory=list)

    @property
    def best_index(self) -> int:
        """Index of the (first) best answer."""
        return self.ranks.index(1)

    @classmethod
    def from_responses(cls, responses: Sequence[RankedResponse]) -> Ranking:
        """Return the ranking of answers by their rewards."""
        rewards = [response.reward for response in responses]
        ranks: dict[float, int] = {}
        for rank, reward in enumerate(sorted(rewards, reverse=True), 1):
            ranks.setdefault(reward, rank)
        return cls(rewards, [ranks[reward] for reward in rewards], list(responses))


def read_reward(item: Mapping[str, Any]) -> Reward | ScoreError:
    """Parse a result of `/v1/score`."""
    return read_error(item) or Reward(
        reward=_read_number(item["reward"]),
        num_tokens=read_count(item["num_tokens"]),
        truncated=bool(item["truncated"]),
        warnings=_read_texts(item.get("warnings", [])),
        step_rewards=_read_numbers(item.get("step_rewards", [])),
    )


def read_turn_rewards(item: Mapping[str, Any]) -> TurnRewards | ScoreError:
    """Parse a result of `/v1/score` with `"turns": "all"`."""
    if "turn_rewards" not in item and (error := read_error(item)):
        return error
    turns = _read_turns(item["turn_rewards"])
    if not turns:
        raise ValueError("a result has no turns")
    return TurnRewards(turns, bool(item.get("truncated")), _read_texts(item.get("warnings", [])))


def _read_turns(items: Sequence[Mapping[str, Any]]) -> tuple[TurnReward, ...]:
    turns = []
    for turn in items:
        error = read_error(turn)
        reward = None if error else _read_number(turn["reward"])
        turns.append(TurnReward(read_count(turn["message"]), reward, error))
    return tuple(turns)


def read_model_rewards(item: Mapping[str, Any]) -> ModelRewards:
    """Parse a result of `/v1/score` with `models`."""
    results: dict[str, Reward | ScoreError] = {
        name: read_reward({**item["details"][name], "reward": reward})
        for name, reward in item["rewards"].items()
    }
    for name, error in item.get("errors", {}).items():
        results[name] = ScoreError(*_read_texts([error["code"], error["message"]]))
    combined = item.get("reward")
    return ModelRewards(
        results,
        {n: _read_number(value) for n, value in item.get("calibrated_rewards", {}).items()},
        None if combined is None else _read_number(combined),
        {
            name: _read_turns(details["turn_rewards"])
            for name, details in item["details"].items()
            if "turn_rewards" in details
        },
    )


def fill_models(result: ModelRewards | ScoreError, models: Sequence[str]) -> ModelRewards:
    """Return the result of a conversation; the error of one that was not sent is each model's."""
    return ModelRewards(dict.fromkeys(models, result)) if isinstance(result, ScoreError) else result


def read_step_rewards(item: Mapping[str, Any]) -> StepRewards | ScoreError:
    """Parse a result of `/v1/steps`."""
    if error := read_error(item):
        return error
    if item["aggregation"] not in AGGREGATIONS:
        raise ValueError(f"{str(item['aggregation'])[:40]!r} is not an aggregation")
    return StepRewards(
        step_rewards=_read_numbers(item["step_rewards"]),
        reward=_read_number(item["reward"]),
        aggregation=item["aggregation"],
        num_tokens=read_count(item["num_tokens"]),
        warnings=_read_texts(item.get("warnings", [])),
    )


def read_ranked_response(item: Mapping[str, Any]) -> RankedResponse | ScoreError:
    """Parse a result of `/v1/rank`."""
    num_comparisons = item.get("num_comparisons")
    return read_error(item) or RankedResponse(
        reward=_read_number(item["reward"]),
        step_rewards=_read_numbers(item.get("step_rewards", [])),
        num_comparisons=None if num_comparisons is None else read_count(num_comparisons),
        warnings=_read_texts(item.get("warnings", [])),
    )


def read_num_tokens(item: Mapping[str, Any]) -> int | ScoreError:
    """Parse a result of `/v1/render`."""
    error = read_error(item)
    return read_count(item["num_tokens"]) if error is None else error


def read_comparison(item: Mapping[str, Any]) -> Comparison | ScoreError:
    """Parse a result of `/v1/compare`."""
    if "orders" in item:
        return read_verdict(item)
    return read_error(item) or Comparison(
        chosen_reward=_read_number(item["chosen_reward"]),
        rejected_reward=_read_number(item["rejected_reward"]),
        margin=_read_number(item["margin"]),
        probability=_read_number(item["probability"]),
        truncated=bool(item["truncated"]),
        warnings=_read_texts(item.get("warnings", [])),
    )


def read_verdict(item: Mapping[str, Any]) -> Comparison | ScoreError:
    """Parse a result of `/v1/compare` of a judge."""
    if error := read_error(item):
        return error
    if "orders" not in item:
        raise ServiceError(
            "the model gives each answer a reward and is not a judge; compare its rewards with "
            "`compare`, or name a judge"
        )
    return Comparison(
        chosen_reward=None,
        rejected_reward=None,
        margin=_read_number(item["margin"]),
        probability=_read_number(item["probability"]),
        warnings=_read_texts(item.get("warnings", [])),
        orders=tuple(
            OrderVerdict(_read_number(order["log_odds"]), _read_number(order["label_mass"]))
            for order in item["orders"]
        ),
        consistent=None if item["consistent"] is None else bool(item["consistent"]),
        num_tokens=read_count(item["num_tokens"]),
    )


def read_error(item: Mapping[str, Any]) -> ScoreError | None:
    """Return the error of a result, if it has one."""
    error = item.get("error")
    return ScoreError(*_read_texts([error["code"], error["message"]])) if error else None


def read_count(value: Any) -> int:
    """Return a number of tokens, an integer from 0 to 2**53."""
    if type(value) is not int or not 0 <= value <= _MAX_TOKENS:
        raise ValueError(f"{str(value)[:40]!r} is not a number of tokens")
    return value


def _read_texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("an error or a warning is not text")
    return tuple(values)


def _read_number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a reward")
    return float(value)


def _read_numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list):
        raise ValueError("rewards are not a list")
    return tuple(map(_read_number, values))


class UnreadableAnswerError(httpx.HTTPError):
    """A response is too large, takes too long or has an encoding that was not requested."""


class ResponseBody:
    """Collects the body of one response, which has to arrive within `timeout_s` from now.

    `max_bytes` limits its size, uncompressed.

    Raises:
        UnreadableAnswerError: the body has an encoding other than gzip.
    """

    def __init__(self, response: httpx.Response, max_bytes: int, timeout_s: float) -> None:
        self._response = response
        self._max_bytes = max_bytes
        self._deadline = time.monotonic() + timeout_s
        self._content = bytearray()
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", ""):
            raise UnreadableAnswerError(
                f"it is encoded as {encoding[:80]!r}, but gzip was requested"
            )
        self._decompressor = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == "gzip" else None

    def feed(self, data: bytes) -> None:
        """Add the next bytes, as received; refuse a body that is too large or too slow."""
        num_remaining = self._max_bytes - len(self._content)
        if self._decompressor is not None:
            try:
                data = self._decompressor.decompress(data, num_remaining + 1)
            except zlib.error as error:
                raise UnreadableAnswerError(f"it cannot be decompressed ({error})") from error
        if len(data) > num_remaining:
            raise UnreadableAnswerError(
                f"it has more than {self._max_bytes:,} bytes; send fewer conversations in a "
                "request (max_items), or allow more bytes (max_answer_bytes)"
            )
        self._content += data
        if time.monotonic() > self._deadline:
            raise UnreadableAnswerError("it arrives too slowly; allow more time (timeout_s)")

    def build_response(self) -> httpx.Response:
        """Return the complete response."""
        if self._decompressor is not None and self._content and not self._decompressor.eof:
            raise UnreadableAnswerError("it cannot be decompressed (its end is missing)")
        kept = {"Content-Type", "Retry-After"} & {n.title() for n in self._response.headers}
        return httpx.Response(
            self._response.status_code,
            headers={name: self._response.headers[name] for name in kept},
            content=bytes(self._content),
        )


def parse_json_object(response: httpx.Response) -> dict[str, Any] | None:
    """Return the JSON object of a response; None for any other body or far too many containers."""
    content = response.content
    # Empty lists and objects take 30 times as much memory as their JSON has bytes.
    if content.count(b"[") + content.count(b"{") > _MAX_CONTAINERS:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def excerpt(response: httpx.Response) -> str:
    """Return the beginning of a response body, for a message."""
    # Not `response.text`: the response names the codec, and could name one that decompresses.
    return response.content[: 4 * _EXCERPT_CHARS].decode(errors="replace")[:_EXCERPT_CHARS]
