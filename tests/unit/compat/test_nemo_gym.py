"""NeMo-Gym's routes: items of the Responses API, several models, judges and failures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SPECS, build_checkpoint
from fastapi.testclient import TestClient
from kinds import build_judge, serving_models

from rm_core import InvalidConversationError
from rm_core.inputs.responses_items import read_input, read_output, read_tools

QUESTION = {"role": "user", "content": "2+2?"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The application with two classifiers, `a` and `b`, and a judge."""
    root: Path = tmp_path_factory.mktemp("models")
    first = build_checkpoint(root / "a", SPECS["llama-v0.2"])
    second = build_checkpoint(root / "b", SPECS["qwen3"])
    judge = {"name": str(build_judge(root / "judge")), "kind": "judge"}
    with serving_models({}, a=first, b=second, judge=judge) as client:
        yield client


def output(*texts: str) -> dict[str, Any]:
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    message = {"type": "message", "id": "m", "role": "assistant", "content": parts}
    return {"id": "r", "output": [{"type": "reasoning", "id": "x", "summary": []}, message]}


def verify(client: TestClient, response: Any, **options: Any) -> Any:
    body = {
        "responses_create_params": {"input": [QUESTION]},
        "response": response,
        "verifier_metadata": {"label": "4"},
        "skyreward": options,
    }
    return client.post("/verify", json=body)


def native(client: TestClient, model: str, text: str) -> float:
    conversation = [QUESTION, {"role": "assistant", "content": text}]
    answer = client.post("/v1/score", json={"model": model, "messages": conversation}).json()
    return float(answer["results"][0]["reward"])


def test_verify_returns_body_and_raw_reward(models: TestClient) -> None:
    answer = verify(models, output("4", " apples"), model="a").json()
    assert answer["reward"] == native(models, "a", "4 apples")
    assert answer["response"] == output("4", " apples")
    assert answer["verifier_metadata"] == {"label": "4"}
    assert "reward_components" not in answer


def test_verify_keeps_components_of_several_models(models: TestClient) -> None:
    answer = verify(models, output("4"), models={"a": 0.25, "b": -2})
    first, second = native(models, "a", "4"), native(models, "b", "4")
    assert answer.headers["x-skyreward-model"] == "a, b"
    assert answer.json()["reward_components"] == {"a": first, "b": second}
    assert (answer.json()["reward_a"], answer.json()["reward_b"]) == (first, second)
    assert answer.json()["reward"] == pytest.approx(0.25 * first - 2 * second, abs=1e-12)


def test_verify_refuses_a_sum_that_is_too_large(models: TestClient) -> None:
    answer = verify(models, output("4"), models={"a": 1e308, "b": 1e308})
    assert answer.status_code == 400
    assert "too large for a double" in answer.text


def test_versions_are_those_of_all_models(tmp_path: Path) -> None:
    folders = {
        "a": str(build_checkpoint(tmp_path / "a", SPECS["qwen3"])),
        "judge": str(build_judge(tmp_path / "judge")),
    }
    named = {
        "a": {"name": folders["a"], "version": "step-1"},
        "b": {"name": folders["a"]},
        "judge": {"name": folders["judge"], "kind": "judge", "version": "step-2"},
    }
    header = "x-skyreward-version"
    with serving_models({}, **named) as client:
        assert verify(client, output("4"), model="a").headers[header] == "step-1"
        assert verify(client, output("4"), models={"b": 1, "a": 1}).headers[header] == ", step-1"
        assert header not in verify(client, output("4"), model="b").headers
        body = {"conversation_history": [QUESTION], "response_objs": [output("4"), output("5")]}
        assert client.post("/compare?model=judge", json=body).headers[header] == "step-2"


def test_verify_reports_failures_as_chosen(models: TestClient) -> None:
    empty: dict[str, Any] = {"output": []}
    assert verify(models, empty, model="a").status_code == 400
    failed = verify(models, empty, model="a", on_error="judge_failed")
    assert failed.status_code == 200
    assert failed.json()["reward"] == 0
    assert failed.json()["_ng_failure_class"] == "judge_failed"
    assert failed.json()["_ng_failure_judge_error"].startswith("invalid_conversation: ")
    assert "reward_components" not in failed.json()


def test_compare_gives_raw_rewards_or_margins(models: TestClient) -> None:
    body = {"conversation_history": [QUESTION], "response_objs": [output("4"), output("5")]}
    rewards = models.post("/compare?model=a", json=body).json()["rewards"]
    assert rewards == [native(models, "a", "4"), native(models, "a", "5")]
    judged = models.post("/compare", json={**body, "skyreward": {"model": "judge"}})
    ranked = models.post(
        "/v1/rank", json={"model": "judge", "prompt": "2+2?", "responses": ["4", "5"]}
    )
    margins = [result["reward"] for result in ranked.json()["results"]]
    assert judged.json() == {"rewards": margins, "comparison_results": None, "metrics": None}
    assert margins[0] == -margins[1] != 0
    alone = models.post("/compare?model=judge", json={**body, "response_objs": [output("4")]})
    assert alone.status_code == 400


def test_routes_around_a_rollout(models: TestClient) -> None:
    assert models.post("/seed_session", json={"x": 1}).json() == {}
    assert models.get("/reverify_mode").json() == "stateless"
    rows = [{"_ng_task_index": i // 2, "reward": i, "reward_a": -i} for i in range(4)]
    summary = models.post("/aggregate_metrics", json={"verify_responses": rows}).json()
    assert summary["key_metrics"] == {"mean/reward": 1.5, "mean/reward_a": -1.5}
    assert summary["agent_metrics"]["max/reward"] == 3
    assert [g["mean/reward"] for g in summary["group_level_metrics"]] == [0.5, 2.5]
    assert [g["_ng_task_index"] for g in summary["group_level_metrics"]] == [0, 1]
    empty = models.post("/aggregate_metrics", json={"verify_responses": []}).json()
    assert empty == {"group_level_metrics": [], "agent_metrics": {}, "key_metrics": {}}
    for value in (1.7e308, 10**400):  # whose mean is no float
        rows = [{"reward": value, "reward_a": 1}, {"reward": value, "reward_a": 2}]
        summary = models.post("/aggregate_metrics", json={"verify_responses": rows}).json()
        assert summary["key_metrics"] == {"mean/reward_a": 1.5}
    infinite = models.post(
        "/aggregate_metrics",
        content='{"verify_responses": [{"reward": 1e400}]}',
        headers={"Content-Type": "application/json"},
    )
    assert infinite.status_code == 400


@pytest.mark.parametrize("index", ["a", [1], {"b": 1}, None, 1.5])
def test_task_index_is_an_integer(models: TestClient, index: object) -> None:
    rows = [{"_ng_task_index": index, "reward": 1}, {"_ng_task_index": 1, "reward": 1}]
    refused = models.post("/aggregate_metrics", json={"verify_responses": rows})
    assert refused.status_code == 400
    assert "_ng_task_index" in refused.text


def test_items_become_messages() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "tide", "arguments": '{"x": 1}'}
    result = {"type": "function_call_output", "call_id": "c", "output": "06:00"}
    read = read_output({"output": [call, {**call, "call_id": "d"}, result, *output("6")["output"]]})
    assert [m["role"] for m in read] == ["assistant", "tool", "assistant"]
    assert [c["id"] for c in read[0]["tool_calls"]] == ["c", "d"]
    assert read[0]["tool_calls"][0]["function"] == {"name": "tide", "arguments": {"x": 1}}
    assert read[1] == {"role": "tool", "tool_call_id": "c", "content": "06:00"}
    assert read[2]["content"] == [{"type": "text", "text": "6"}]
    image = {"type": "input_image", "image_url": "data:image/png;base64,"}
    developer = {"role": "developer", "content": [{"type": "input_text", "text": "a"}, image]}
    assert read_input("2+2?") == [QUESTION]
    assert read_input([developer]) == [
        {
            "role": "system",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": image["image_url"]}},
            ],
        }
    ]
    tool = {"type": "function", "name": "tide", "parameters": {}, "strict": True}
    assert read_tools([tool]) == [
        {"type": "function", "function": {"name": "tide", "parameters": {}}}
    ]
    assert read_tools([]) is None


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ({"a": 1}, "`output` is an object"),
        ([{"type": "mcp_call"}], "item 0 of `output` has the type 'mcp_call'"),
        (["text"], "item 0 of `output` has the type None"),
        ([{"type": "function_call", "name": "f", "arguments": "["}], "arguments"),
    ],
)
def test_unreadable_items_are_named(items: Any, reason: str) -> None:
    with pytest.raises(InvalidConversationError, match=reason):
        read_output(json.loads(json.dumps({"output": items})))
