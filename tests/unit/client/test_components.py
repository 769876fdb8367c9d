"""Several rewards and failures through the code of trainers."""

from __future__ import annotations

import asyncio
import logging
import math
import pickle
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray  # verl imports it; import it before stub modules are installed
import torch
from fastapi.testclient import TestClient
from peers import VERL, peer_module
from stub_service import StubService

from rm_core import Reward, ScoreError
from serve.client import ScoringClient, ScoringFailedError, ServiceError
from serve.client.integrations import base
from serve.client.integrations.base import ConversationReader
from serve.client.integrations.ms_swift import SkyRewardORM, build_orms
from serve.client.integrations.openrlhf import reward_func
from serve.client.integrations.slime import custom_rm
from serve.client.integrations.trl import TRLReward, build_reward_funcs
from serve.client.integrations.verl import compute_score_batch
from serve.client.responses import ModelRewards
from serve.client.settings import ClientSettings

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecation warnings of the trainers' code
assert ray

QUESTIONS = ["2+2?", "2+2?", "3+3?", "3+3?"]
ANSWERS = ["4", "It is 4.", "6", "Six."]
CHATS: list[Any] = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
]
# A message of another role, which no model reads as an answer.
BAD = [{"role": "user", "content": "?"}]
MODELS = ["rm", "prm"]


@pytest.fixture
def expected(app: TestClient) -> dict[str, list[float]]:
    """The reward of each model."""
    bodies = {name: {"model": name, "conversations": CHATS} for name in MODELS}
    return {
        name: [r["reward"] for r in app.post("/v1/score", json=body).json()["results"]]
        for name, body in bodies.items()
    }


@pytest.fixture
def chosen(service: StubService, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("SKYREWARD_CLIENT_URLS", service.url)
    monkeypatch.setenv("SKYREWARD_CLIENT_MODELS", "rm,prm")
    clients: list[ScoringClient] = []

    def make(*args: Any, **options: Any) -> ScoringClient:
        clients.append(ScoringClient(*args, **options))
        return clients[-1]

    monkeypatch.setattr(base, "ScoringClient", make)
    base._build_reward_client.cache_clear()
    yield monkeypatch
    base._build_reward_client.cache_clear()
    for client in clients:
        client.close()


def call_trl(functions: list[Any], completions: list[Any], **columns: Any) -> list[Any]:
    prompts = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [
        function(prompts=prompts, completions=completions, completion_ids=[], **columns)
        for function in functions
    ]


COMPLETIONS = [chat[1:] for chat in CHATS]
SPOILED = [COMPLETIONS[0], BAD, *COMPLETIONS[2:]]


def test_trl_functions_share_one_request(
    service: StubService, expected: dict[str, list[float]]
) -> None:
    extra: dict[str, list[Any]] = defaultdict(list)
    with ScoringClient(service.url) as client:
        functions = build_reward_funcs(client, MODELS)
        assert [function.__name__ for function in functions] == MODELS
        columns = {"log_extra": lambda column, values: extra[column].extend(values)}
        assert call_trl(functions, COMPLETIONS, **columns) == list(expected.values())
        assert len(service.bodies) == 1
        assert extra.keys() == {"prm_steps"}
        # Another batch, also of equal completions, is scored again.
        call_trl(functions, list(COMPLETIONS))
        assert len(service.bodies) == 2
        unpickled = pickle.loads(pickle.dumps(functions))
        assert call_trl(unpickled, COMPLETIONS) == list(expected.values())
        assert len(service.bodies) == 3
        unpickled[0].client.close()
        # A function that is called alone works too.
        assert call_trl(functions[1:], COMPLETIONS) == [expected["prm"]]


def test_trl_logs_rewards_of_turns(service: StubService, app: TestClient) -> None:
    extra: dict[str, list[Any]] = defaultdict(list)
    more = [[*c, {"role": "user", "content": "Sure?"}, *c] for c in COMPLETIONS]
    with ScoringClient(service.url) as client:
        functions = build_reward_funcs(client, ["rm"], turns="all")
        columns = {"log_extra": lambda column, values: extra[column].extend(values)}
        (rewards,) = call_trl(functions, more, **columns)
    assert [len(turns) for turns in extra["rm_turns"]] == [2] * 4
    assert [turns[-1] for turns in extra["rm_turns"]] == rewards


@pytest.mark.parametrize("on_error", ["none", "nan", "group", -2.0])
def test_trl_leaves_a_sample_out_for_all_models(
    service: StubService, expected: dict[str, list[float]], on_error: str | float
) -> None:
    with ScoringClient(service.url) as client:
        functions = build_reward_funcs(client, MODELS, on_error=on_error)
        for name, rewards in zip(MODELS, call_trl(functions, SPOILED), strict=True):
            wanted: list[float | None] = [*expected[name]]
            wanted[1] = on_error if isinstance(on_error, float) else None
            if on_error == "group":
                wanted[0] = None
            if on_error == "nan":
                assert math.isnan(rewards[1])
                rewards[1] = None
            assert rewards == wanted
        with pytest.raises(ScoringFailedError, match="conversation 1: invalid_conversation: rm: "):
            call_trl(build_reward_funcs(client, MODELS), SPOILED)


def test_weighted_sum_is_one_reward(service: StubService, expected: dict[str, list[float]]) -> None:
    options: dict[str, Any] = {
        "models": MODELS,
        "combine": {"rm": 0.5, "prm": 2.0},
        "clip": (-0.1, 0.1),
    }
    with ScoringClient(service.url) as client:
        (rewards,) = call_trl([TRLReward(client, **options)], COMPLETIONS)
    clipped = {n: [min(max(r, -0.1), 0.1) for r in values] for n, values in expected.items()}
    assert rewards == pytest.approx(
        [0.5 * rm + 2 * prm for rm, prm in zip(*clipped.values(), strict=True)]
    )


@pytest.mark.parametrize("status", [503, 400])
def test_service_that_is_gone_counts_as_failures(service: StubService, status: int) -> None:
    with ScoringClient(service.url, retry_timeout_s=0) as client:
        several: dict[str, Any] = {"models": MODELS}
        for options in (several, {}):
            service.refusals = [(status, {})]
            function = TRLReward(client, on_error="none", **options)
            if status == 503:
                assert call_trl([function], COMPLETIONS) == [[None] * 4]
            else:
                # A wrong request or setting would fail again.
                with pytest.raises(ServiceError, match="not now"):
                    call_trl([function], COMPLETIONS)
        service.refusals = [(503, {})]
        with pytest.raises(ServiceError, match="not now"):
            call_trl([TRLReward(client)], COMPLETIONS)


def test_ms_swift_functions_share_one_request(
    service: StubService, expected: dict[str, list[float]], chosen: pytest.MonkeyPatch
) -> None:
    rewards = compute_ms_swift_rewards(COMPLETIONS, build_orms(MODELS))
    assert torch.equal(rewards, torch.tensor(list(expected.values())).T)
    assert len(service.bodies) == 1


def compute_ms_swift_rewards(completions: list[Any], orms: dict[str, Any]) -> torch.Tensor:
    """Rewards by ms-swift's code, `[answers, functions]`."""

    class Rows:
        @staticmethod
        def rows_to_batched(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
            return {key: [row[key] for row in rows] for key in rows[0]}

    stand_ins = {
        "swift.utils": {"get_logger": logging.getLogger},
        "swift.rl_core.data": {"GRPOSample": object},
        "swift.dataset": {"RowPreprocessor": Rows},
    }
    samples = [
        SimpleNamespace(
            messages=(messages := [chat[0], *completion]),
            to_reward_row=lambda messages=messages: {"messages": messages},
        )
        for chat, completion in zip(CHATS, completions, strict=True)
    ]
    with peer_module("swift.rl_core.grpo_algorithm", stand_ins) as module:
        functions = [orm(args=None) for orm in orms.values()]
        assert [type(function).__name__ for function in functions] == list(orms)
        rewards: torch.Tensor = module.compute_rewards_per_func(
            samples, functions, [None] * len(functions), "cpu"
        )
        return rewards


def nanstd(tensor: torch.Tensor, dim: int | None = None, keepdim: bool = False) -> torch.Tensor:
    """As ms-swift's, which is in a module that imports all of ms-swift."""
    mean = torch.nanmean(tensor, dim=dim, keepdim=True)
    variance = torch.nanmean((tensor - mean) ** 2, dim=dim, keepdim=True)
    count = torch.sum(~torch.isnan(tensor), dim=dim, keepdim=True)
    variance = variance * count / (count - 1)
    return variance.sqrt() if keepdim or dim is None else variance.sqrt().squeeze(dim)


def test_ms_swift_masks_only_with_gdpo(
    service: StubService, chosen: pytest.MonkeyPatch, expected: dict[str, list[float]]
) -> None:
    """What the guide says of None: ms-swift's sum takes it as 0."""
    rewards = compute_ms_swift_rewards(SPOILED, build_orms(MODELS, on_error="none"))
    grouped = compute_ms_swift_rewards(SPOILED, build_orms(MODELS, on_error="group"))
    assert rewards[1].isnan().all()
    assert grouped[:2].isnan().all()
    with peer_module("swift.rl_core.advantage", {"swift.utils": {"nanstd": nanstd}}) as module:

        def compute(values: torch.Tensor, scale: str) -> tuple[torch.Tensor, torch.Tensor]:
            advantages: tuple[torch.Tensor, torch.Tensor] = module.compute_advantages(
                values, torch.ones(2), 2, scale_rewards=scale
            )
            return advantages

        advantages, sums = compute(rewards, "group")
        assert sums[1] == 0
        assert advantages[1] != 0
        advantages, sums = compute(grouped, "group")
        assert torch.equal(advantages[:2], torch.zeros(2))
        assert advantages[2:].abs().min() > 0


def test_verl_gdpo_gets_a_key_for_each_model(
    service: StubService, chosen: pytest.MonkeyPatch, expected: dict[str, list[float]]
) -> None:
    """verl's `gdpo` manager and its advantages, with the keys that the function returns."""
    manager = "verl.experimental.reward_loop.reward_manager"
    stand_ins = {**VERL, manager: {"register": lambda name: lambda cls: cls}}
    settings: dict[str, Any] = {"on_error": -1.0, "prompt_field": "question"}
    texts = ["4", "It is 4.", "6", "Six."]
    tokenizer = SimpleNamespace(decode=lambda ids, **_: texts[int(ids[0])])
    config = SimpleNamespace(trainer=SimpleNamespace(experiment_name="x"))
    with peer_module(f"{manager}.gdpo", stand_ins) as module:
        from functools import partial

        from serve.client.integrations.verl import compute_score

        async def run() -> list[dict[str, Any]]:
            loop = module.GDPORewardManager(config, tokenizer, partial(compute_score, **settings))
            outputs = [await loop.run_single(Batch([item])) for item in build_verl_items()]
            await base.get_reward_client(**settings).async_client.close()
            return outputs

        outputs = asyncio.run(run())
    infos = [output["reward_extra_info"] for output in outputs]
    # Row 3 has no prompt, so that it cannot be scored.
    for name in MODELS:
        assert [info[name] for info in infos] == [*expected[name][:3], -1.0]
    assert [info["scored"] for info in infos] == [1.0, 1.0, 1.0, 0.0]
    assert [output["reward_score"] for output in outputs] == pytest.approx(
        [sum(pair) for pair in zip(*([*expected[n][:3], -1.0] for n in MODELS), strict=True)]
    )
    columns = {key: np.array([info[key] for info in infos]) for key in infos[0]}
    assert all(values.dtype.kind == "f" for values in columns.values())
    parts = []
    for name in MODELS:
        groups = torch.tensor([*expected[name][:3], -1.0]).view(2, 2)
        deviations = groups.std(1, keepdim=True) + 1e-6
        parts.append(((groups - groups.mean(1, keepdim=True)) / deviations).flatten())
    summed = parts[0] + 0.5 * parts[1]
    whitened = (summed - summed.mean()) * torch.rsqrt(summed.var() + 1e-8)
    assert torch.allclose(compute_gdpo_advantages(columns), whitened, atol=1e-5)
    questions: list[Any] = [{"question": question} for question in QUESTIONS[:3]]
    batch = compute_score_batch(["d"] * 3, ANSWERS[:3], [None] * 3, questions, **settings)
    assert batch == [info | {} for info in infos[:3]]


def compute_gdpo_advantages(columns: dict[str, np.ndarray[Any, Any]]) -> torch.Tensor:
    """Advantages of four answers to two prompts by verl's code, with weights 1 and 0.5."""
    stand_ins: dict[str, dict[str, Any]] = {
        **VERL,
        "verl.trainer.config": {"AlgoConfig": object},
        "verl.workers.config": {"ActorConfig": object},
        "verl.utils": {"as_torch_index": None, "group_mean_std": None},
        "verl.utils.import_utils": {"deprecated": lambda *_: lambda function: function},
        "verl.utils.device": {"get_device_name": None, "get_torch_device": None},
    }
    with peer_module("verl.trainer.ppo.core_algos", stand_ins) as module:
        advantages: torch.Tensor = module.compute_gdpo_outcome_advantage(
            torch.zeros(4, 1),
            torch.ones(4, 1),
            np.array(["x", "x", "y", "y"]),
            config={"gdpo_reward_keys": MODELS, "gdpo_reward_weights": [1.0, 0.5]},
            non_tensor_batch=columns,
            batch={"prompts": torch.zeros(4, 2), "attention_mask": torch.ones(4, 3).long()},
        )[0]
        return advantages[:, 0]


class Batch(list[Any]):
    """A stand-in for `DataProto`, for code that indexes it."""

    def __getitem__(self, index: Any) -> Any:
        items = super().__getitem__(index)
        return Batch(items) if isinstance(index, slice) else items


def build_verl_items() -> list[SimpleNamespace]:
    infos: list[Any] = [{"question": question} for question in QUESTIONS[:3]]
    return [
        SimpleNamespace(
            batch={"responses": torch.tensor([index]), "attention_mask": torch.ones(3).long()},
            non_tensor_batch={
                "data_source": "d",
                "reward_model": {"ground_truth": ""},
                "extra_info": info,
            },
        )
        for index, info in enumerate([*infos, {}])
    ]


def test_trainers_without_a_mask_refuse_to_leave_out(
    service: StubService, chosen: pytest.MonkeyPatch, expected: dict[str, list[float]]
) -> None:
    sample = SimpleNamespace(prompt=CHATS[0][:1], response="4")
    sums = [sum(pair) for pair in zip(*expected.values(), strict=True)]

    async def score_slime() -> Any:
        reward = await custom_rm(None, sample)
        await base.get_reward_client().async_client.close()
        return reward

    assert asyncio.run(score_slime()) == pytest.approx(sums[0])
    chosen.setenv("SKYREWARD_CLIENT_COMBINE", "rm=0.5,prm=-1")
    scored = reward_func(["2+2?4"], ["2+2?"])
    logs = scored["extra_logs"]
    assert {name: logs[name] for name in MODELS} == {n: [expected[n][0]] for n in MODELS}
    assert scored["rewards"] == pytest.approx([0.5 * logs["rm"][0] - logs["prm"][0]])
    chosen.setenv("SKYREWARD_CLIENT_ON_ERROR", "none")
    message = "does not leave out samples with on_error 'none'; give a number or one of: raise"
    for name, call in (
        ("OpenRLHF", lambda: reward_func(["2+2?4"], ["2+2?"])),
        ("slime", lambda: asyncio.run(custom_rm(None, sample))),
        ("verl", lambda: compute_score_batch(["d"], ["4"], [None], [{"question": "2+2?"}])),
    ):
        with pytest.raises(ServiceError, match=f"{name} {message}"):
            call()


def test_settings_of_several_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYREWARD_CLIENT_MODELS", "a, b")
    monkeypatch.setenv("SKYREWARD_CLIENT_COMBINE", "a=0.7,b=-0.3")
    monkeypatch.setenv("SKYREWARD_CLIENT_CLIP", "-5,5")
    monkeypatch.setenv("SKYREWARD_CLIENT_ON_ERROR", "-20")
    settings = ClientSettings.load()
    assert (settings.models, settings.clip) == (("a", "b"), (-5.0, 5.0))
    assert dict(settings.combine) == {"a": 0.7, "b": -0.3}
    assert settings.on_error == -20.0
    given = ClientSettings.load(models=["a"], combine={"a": 2}, on_error="nan")
    assert (given.models, given.combine, given.on_error) == (("a",), (("a", 2.0),), "nan")
    for bad in ({"on_error": "drop"}, {"on_error": math.inf}, {"combine": "a=x"}):
        with pytest.raises(ServiceError, match="bad settings of the client"):
            ClientSettings.load(**bad)
    with pytest.raises(ServiceError, match="combine has 'c', which is not one of the models"):
        base.get_reward_client(combine={"c": 1})
    with pytest.raises(ServiceError, match="on_error 'drop' is unknown; give a number or one of"):
        ConversationReader(on_error="drop")  # type: ignore[arg-type]


def test_calibrated_components_need_a_calibration() -> None:
    reader = ConversationReader(models=("a",), calibrated=True, on_error="none")
    failure = ScoreError("model_asleep", "asleep")
    assert reader.extract_models([ModelRewards({"a": failure})]).components == {"a": [None]}
    result = ModelRewards({"a": Reward(2.0, 5)}, {"a": 0.5})
    assert reader.extract_models([result]).components == {"a": [0.5]}
    with pytest.raises(ServiceError, match="model 'a' has no calibration"):
        reader.extract_models([ModelRewards({"a": Reward(2.0, 5)})])


def test_single_orm_takes_on_error(
    service: StubService, chosen: pytest.MonkeyPatch, expected: dict[str, list[float]]
) -> None:
    function = SkyRewardORM(models=["rm"], on_error="group")
    messages = [[chat[0], *completion] for chat, completion in zip(CHATS, SPOILED, strict=True)]
    rewards = asyncio.run(function([""] * 4, messages=messages))
    assert rewards == [None, None, *expected["rm"][2:]]
