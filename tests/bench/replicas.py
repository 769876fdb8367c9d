"""How far several replicas of a model compute a prompt once, and how fast they are together.

Trainers post the answers to a prompt one by one, each after the reward of its last one. A prompt is
in the prefix cache of one replica: a batch that another replica gets computes it again. Here the
dispatcher of a gateway has replicas that are simulated devices, on an event loop whose clock jumps
to the next timer: the machine that runs this has no influence on the figures. Which tree's
dispatcher it is decides `PYTHONPATH`, so that two trees can be compared.

    PYTHONPATH=. python tests/bench/replicas.py --prompt-tokens 500 2000 8000
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulated import SimulatedDevice
from waiting import VirtualTime

from rm_core import BatchResult, Fingerprint
from serve.capacity.devices import DEVICES
from serve.capacity.shape import find_model_shape
from serve.scheduler.dispatcher import Dispatcher
from serve.worker.worker import SequenceBatch

_CALL_S = 0.002  # of a call to a replica
_GROUP = 16
_NUM_TEMPLATE_TOKENS = 5
_ANSWER_TOKENS = (60, 500)


class SimulatedReplicas:
    """A backend of replicas that run one batch after another, each with its own prefix cache.

    The router's rule is the service's: the preferred replica, if no other one has fewer calls.
    """

    def __init__(self, devices: Sequence[SimulatedDevice]) -> None:
        self.num_replicas = len(devices)
        self.num_computed_tokens = 0
        self._devices = devices
        self._num_calls = [0] * len(devices)
        self._free_at = [0.0] * len(devices)

    async def run_batch(self, batch: SequenceBatch, backlog_tokens: int) -> BatchResult:
        """Return a result when the replica that takes the batch would be done with it."""
        least = min(self._num_calls)
        free = [index for index, count in enumerate(self._num_calls) if count == least]
        preferred = batch.preferred_replica
        index = int(preferred) if preferred and int(preferred) in free else random.choice(free)
        self._num_calls[index] += 1
        try:
            await asyncio.sleep(_CALL_S)
            run = self._devices[index].run(batch)
            now = asyncio.get_running_loop().time()
            self._free_at[index] = max(now, self._free_at[index]) + run.seconds
            await asyncio.sleep(self._free_at[index] - now)
        finally:
            self._num_calls[index] -= 1
        self.num_computed_tokens += run.num_computed_tokens
        return BatchResult(
            (0.0,) * len(batch),
            run.num_computed_tokens,
            run.seconds,
            Fingerprint("", "", "bfloat16", "flash"),
            replica=str(index),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="skywork-reward-v2-qwen3-0.6b")
    parser.add_argument("--device", choices=list(DEVICES), default="h200")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--in-order", action="store_true", help="the answers to a prompt together")
    options = parser.parse_args()
    shape, device = find_model_shape(options.model), DEVICES[options.device]
    for num_prompt_tokens in options.prompt_tokens:
        answers = list(make_answers(options.prompts, num_prompt_tokens))
        if not options.in_order:
            random.Random(0).shuffle(answers)
        num_distinct = _NUM_TEMPLATE_TOKENS + sum(map(len, answers))
        num_distinct -= len(answers) * _NUM_TEMPLATE_TOKENS
        num_distinct -= (_GROUP - 1) * options.prompts * num_prompt_tokens
        one_s = 0.0
        for num_replicas in options.replicas:
            replicas = SimulatedReplicas(
                [
                    SimulatedDevice(
                        shape, device, lambda _, n=num_prompt_tokens: _NUM_TEMPLATE_TOKENS + n
                    )
                    for _ in range(num_replicas)
                ]
            )
            random.seed(0)
            with asyncio.Runner(loop_factory=VirtualTime) as runner:
                seconds = runner.run(
                    post_all(replicas, answers, num_prompt_tokens, options.clients)
                )
            one_s = one_s or seconds * num_replicas
            print(
                f"prompts of {num_prompt_tokens:,} tokens, {num_replicas} replicas: "
                f"{seconds:.2f} s, {one_s / seconds:.1f} times the rate of one, "
                f"{replicas.num_computed_tokens / num_distinct:.2f} times the distinct tokens"
            )


def make_answers(num_prompts: int, num_prompt_tokens: int) -> Iterator[tuple[int, ...]]:
    """Yield the token ids of the answers to each prompt, all behind the tokens of one template."""
    draw = random.Random(1)
    template = tuple(range(_NUM_TEMPLATE_TOKENS))
    for _ in range(num_prompts):
        prompt = tuple(draw.choices(range(100_000), k=num_prompt_tokens))
        for _ in range(_GROUP):
            num_tokens = draw.randint(*_ANSWER_TOKENS)
            yield template + prompt + tuple(draw.choices(range(100_000), k=num_tokens))


async def post_all(
    replicas: SimulatedReplicas,
    answers: Sequence[tuple[int, ...]],
    num_prompt_tokens: int,
    num_clients: int,
) -> float:
    """Score all answers, one a request and client at a time; return how many seconds that takes."""
    dispatcher = Dispatcher(
        "rm", replicas, count_prompt_tokens=lambda _: _NUM_TEMPLATE_TOKENS + num_prompt_tokens
    )
    dispatcher.max_batch_tokens = replicas._devices[0].max_batch_tokens
    dispatcher.prompts.max_tokens = replicas._devices[0].cache_tokens
    waiting = iter(answers)

    async def post_one_by_one() -> None:
        for answer in waiting:
            with dispatcher.open_flow("", 0) as flow:
                await dispatcher.compute_outputs(flow, [answer])

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(post_one_by_one())
    return asyncio.get_running_loop().time()


if __name__ == "__main__":
    main()
