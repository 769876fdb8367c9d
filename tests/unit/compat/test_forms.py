"""Responses of each wire format, and the effect of its options."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import pytest
from compat_bodies import LONGER, LONGER_REWARD, MESSAGES, REWARD, TEXT
from fakes import INFO, FakeBackend, conversation, ready, serving
from fastapi.testclient import TestClient
from waiting import until

from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.service import ScoringService


def usage(num_tokens: int, *more: str) -> dict[str, Any]:
    return {
        "prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0,
        "prompt_tokens_details": None, **dict.fromkeys(more),
    }  # fmt: skip


def test_vllm_classify(client: TestClient) -> None:
    answer = client.post(
        "/classify", json={"input": [TEXT, LONGER]}, headers={"x-request-id": "my-id"}
    )
    body = answer.json()
    num_tokens = sum(
        client.post("/tokenize", json={"prompt": text}).json()["count"] for text in (TEXT, LONGER)
    )
    assert body.pop("created") > 1_700_000_000
    assert body == {
        "id": "classify-my-id",
        "object": "list",
        "model": "demo",
        "data": [
            {"index": 0, "label": "LABEL_0", "probs": [REWARD], "num_classes": 1},
            {"index": 1, "label": "LABEL_0", "probs": [LONGER_REWARD], "num_classes": 1},
        ],
        "usage": usage(num_tokens, "completion_tokens_details"),
    }
    assert answer.headers["x-skyreward-use-activation"] == "false (default)"
    named = client.post("/classify", json={"input": TEXT, "request_id": "mine"}).json()
    assert named["id"] == "classify-mine"


@pytest.mark.parametrize("form", [{"input": TEXT}, {"messages": MESSAGES}])
@pytest.mark.parametrize("path", ["/classify", "/pooling"])
def test_use_activation_selects_raw_or_sigmoid(
    client: TestClient, path: str, form: dict[str, Any]
) -> None:
    def value(use_activation: object) -> tuple[float, str]:
        answer = client.post(path, json=form | {"use_activation": use_activation})
        (item,) = answer.json()["data"]
        header = answer.headers["x-skyreward-use-activation"]
        return (item["probs"] if path == "/classify" else item["data"])[0], header

    assert value(False) == (REWARD, "false (as asked)")
    assert value(None) == (REWARD, "false (default)")
    probability, header = value(True)
    assert probability == pytest.approx(1 / (1 + math.exp(-REWARD)), abs=1e-15)
    assert header == "true (as asked)"
    # Names of older versions, which vLLM ignores as well.
    old = client.post(path, json=form | {"activation": True, "softmax": True, "unheard_of": 1})
    assert old.json()["data"] == client.post(path, json=form).json()["data"]


@pytest.mark.parametrize(("endianness", "order"), [("little", "<"), ("big", ">"), ("native", "=")])
def test_vllm_pooling_base64_encoding(client: TestClient, endianness: str, order: str) -> None:
    body = {"input": LONGER, "encoding_format": "base64", "endianness": endianness}
    (item,) = client.post("/pooling", json=body).json()["data"]
    assert item["object"] == "pooling"
    assert struct.unpack(f"{order}f", base64.b64decode(item["data"])) == (LONGER_REWARD,)


@pytest.mark.parametrize(
    ("options", "kept", "num_cut"),
    [
        ({}, slice(None), 0),
        ({"truncate_prompt_tokens": -1}, slice(None), 0),
        ({"truncate_prompt_tokens": 10**6}, slice(None), 0),
        ({"truncate_prompt_tokens": 5}, slice(5), 1),
        ({"truncate_prompt_tokens": 5, "truncation_side": "right"}, slice(5), 1),
        ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, slice(-5, None), 1),
        ({"truncation_side": "left"}, slice(None), 0),
    ],
)
def test_vllm_truncation(options: dict[str, Any], kept: slice, num_cut: int) -> None:
    backend = FakeBackend()
    with serving(backend, cache_bytes=0) as client:
        until(lambda: ready(client))
        ids = client.post("/tokenize", json={"prompt": TEXT}).json()["tokens"]
        answer = client.post("/classify", json={"input": TEXT} | options)
        assert answer.status_code == 200
        assert list(backend.batches[-1][0]) == ids[kept]
        assert answer.headers.get("x-skyreward-truncated") == (str(num_cut) if num_cut else None)


def test_tokenize_returns_scored_token_ids(client: TestClient) -> None:
    rendered = client.post("/v1/render", json={"conversations": [MESSAGES]}).json()["results"][0]
    for body in ({"prompt": TEXT}, {"messages": MESSAGES}):
        answer = client.post("/tokenize", json=body).json()
        assert answer == {
            "count": rendered["num_tokens"],
            "max_model_len": 16384,
            "tokens": rendered["input_ids"],
            "token_strs": None,
        }


def test_sglang_classify_returns_object_for_one_input_and_list_for_several(
    client: TestClient,
) -> None:
    ids = client.post("/tokenize", json={"prompt": TEXT}).json()["tokens"]
    for single, several in (
        ({"text": TEXT}, {"text": [TEXT, LONGER]}),
        ({"input_ids": ids}, {"input_ids": [ids, [*ids, 5, 6]]}),
    ):
        one = client.post("/classify", json={**single, "rid": "r1"}).json()
        assert one["embedding"] == [REWARD]
        assert one["meta_info"].pop("e2e_latency") >= 0
        assert one["meta_info"] == {
            "id": "r1", "finish_reason": {"type": "length", "length": 0},
            "prompt_tokens": len(ids), "weight_version": "default", "num_retractions": 0,
        }  # fmt: skip
        found = client.post("/classify", json={**several, "model": "whatever"}).json()
        assert [item["embedding"] for item in found] == [[REWARD], [LONGER_REWARD]]
    alone_in_a_list = client.post("/classify", json={"text": [TEXT]}).json()
    assert [item["embedding"] for item in alone_in_a_list] == [[REWARD]]


def test_sglang_embeddings(client: TestClient) -> None:
    num_tokens = client.post("/tokenize", json={"prompt": TEXT}).json()["count"]
    body = {"model": "path/of/the/trainer", "input": TEXT}
    answer = client.post("/v1/embeddings", json=body)
    assert answer.json() == {
        "data": [{"embedding": [REWARD], "index": 0, "object": "embedding"}],
        "model": "demo",
        "object": "list",
        "usage": usage(num_tokens),
    }
    packed = client.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    assert base64.b64decode(packed["data"][0]["embedding"]) == struct.pack("<f", REWARD)


@pytest.mark.parametrize("prompts", [None, ["p", "q"]])
@pytest.mark.parametrize("labels", [None, [1, {"x": 2}]])
def test_openrlhf_get_reward(client: TestClient, prompts: object, labels: object) -> None:
    # The policy's end marker, without the line break that the template appends.
    body = {"query": [TEXT[:-1], f"<|endoftext|>{LONGER[:-1]}<|endoftext|>"]}
    body |= {"prompts": prompts, "labels": labels} if prompts or labels else {}
    answer = client.post("/get_reward", json=body)
    rewards = [REWARD, LONGER_REWARD]
    assert answer.json() == {
        "rewards": rewards, "scores": rewards, "extra_logs": {"dummy_scores": rewards},
    }  # fmt: skip
    assert answer.headers["x-skyreward-input"] == "text:end-closed"
    assert client.post("/get_reward", json={"query": TEXT}).json()["rewards"] == [REWARD]


def test_policy_template_setting_rerenders_texts_of_policy() -> None:
    settings = Settings.load(policy_template="gemma")
    backend = FakeBackend()
    app = create_app(ScoringService([(settings.models[0], backend)], settings), settings)
    prompt = "<bos><start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n"
    with TestClient(app) as client:
        until(lambda: ready(client))
        ids = client.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
        good = {"query": [f"{prompt}4<end_of_turn>"], "prompts": [prompt]}
        answer = client.post("/get_reward", json=good)
        assert answer.json()["rewards"] == [len(ids)]
        assert [list(ids) for ids in backend.batches[-1]] == [ids]
        assert answer.headers["x-skyreward-input"] == "conversation:from-gemma"
        slime = client.post("/remote_rm", json={"prompt": prompt, "response": "4<end_of_turn>\n"})
        assert slime.json() == len(ids)
        assert slime.headers["x-skyreward-input"] == "conversation:from-gemma"
        # Without the prompt, the start of the answer is unknown.
        without = client.post("/get_reward", json={"query": good["query"]})
        assert without.json()["error"]["code"] == "foreign_template"
        other = client.post("/get_reward", json={**good, "prompts": ["another"]})
        assert other.status_code == 400
        assert "query 0 of 1: the text does not begin with its prompt" in other.text


def test_slime_response_is_bare_reward(client: TestClient) -> None:
    prompt = TEXT[: TEXT.index("4<")]
    for body, input_format in (
        ({"prompt": "2+2?", "response": "4"}, "conversation:prompt-as-user"),
        ({"prompt": "2+2?", "response": "4<|im_end|>\n"}, "conversation:prompt-as-user"),
        ({"prompt": MESSAGES[:1], "response": "4<|im_end|>"}, "conversation"),
        ({"prompt": prompt, "response": "4<|im_end|>"}, "text:end-closed"),
        ({"prompt": prompt, "response": "4", "label": {"any": [1]}}, "text:end-closed"),
    ):
        answer = client.post("/remote_rm", json=body)
        assert answer.json() == REWARD, body
        assert answer.headers["x-skyreward-input"] == input_format


def test_llamafactory_evaluation(client: TestClient) -> None:
    body = {"model": "model", "messages": [TEXT, LONGER]}
    answer = client.post("/v1/score/evaluation", json=body).json()
    assert answer.pop("id").startswith("scoreval-")
    assert answer == {
        "object": "score.evaluation", "model": "model", "scores": [REWARD, LONGER_REWARD],
    }  # fmt: skip
    content = json.dumps(body | {"model": "\ud800"})
    odd = client.post(
        "/v1/score/evaluation", content=content, headers={"Content-Type": "application/json"}
    )
    assert odd.json()["model"] == r"\ud800"
    cut = client.post("/v1/score/evaluation", json=body | {"max_length": 18})
    assert cut.headers["x-skyreward-truncated"] == "1"


def test_tei_predict(client: TestClient) -> None:
    def prediction(score: float) -> list[dict[str, Any]]:
        return [{"score": score, "label": "LABEL_0"}]

    def post(**body: Any) -> tuple[Any, str, str]:
        answer = client.post("/predict", json=body)
        headers = answer.headers
        return answer.json(), headers["x-skyreward-raw-scores"], headers["x-skyreward-input"]

    assert post(inputs=TEXT) == (prediction(REWARD), "true (default)", "text")
    batch = [[TEXT], [LONGER]]
    assert post(inputs=batch, raw_scores=True) == (
        [prediction(REWARD), prediction(LONGER_REWARD)], "true (as asked)", "text",
    )  # fmt: skip
    probabilities, header, _ = post(inputs=TEXT, raw_scores=False)
    assert probabilities[0]["score"] == pytest.approx(1 / (1 + math.exp(-REWARD)), abs=1e-15)
    assert header == "false (as asked)"
    pair = "conversation:first-as-user,second-as-assistant"
    assert post(inputs=["2+2?", "4"]) == (prediction(REWARD), "true (default)", pair)
    assert post(inputs=[["2+2?", "4"], [TEXT]])[2] == f"{pair}; text"
    assert client.post("/", json={"inputs": TEXT}).json() == prediction(REWARD)


def test_tei_predict_truncates_only_on_request() -> None:
    backend = FakeBackend()
    with serving(backend, max_length=10) as client:
        until(lambda: ready(client))
        assert client.post("/predict", json={"inputs": TEXT}).status_code == 422
        for direction in ("right", "Left"):
            body = {"inputs": TEXT, "truncate": True, "truncation_direction": direction}
            answer = client.post("/predict", json=body)
            assert answer.json()[0]["score"] == 10
            assert answer.headers["x-skyreward-truncated"] == "1"
        assert backend.batches[-2] != backend.batches[-1]


def test_info_has_tei_fields(client: TestClient) -> None:
    info = client.get("/info").json()
    assert info["model_id"] == "demo"
    assert info["model_sha"] == INFO.revision
    assert info["model_dtype"] == "float32"
    assert info["model_type"] == {
        "classifier": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    }
    assert info["max_input_length"] == 16384
    assert info["auto_truncate"] is False
    assert info["max_client_batch_size"] == info["settings"]["max_conversations"]
    assert info["service"] == "skyreward"


def test_nvidia_chat_completions(client: TestClient) -> None:
    body = {"messages": conversation("4 4 4 4"), "temperature": 0.5, "max_tokens": 8, "n": 1}
    answer = client.post("/v1/chat/completions", json=body).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": f"reward:{LONGER_REWARD}", "refusal": None,
    }  # fmt: skip
    (token,) = choice["logprobs"]["content"]
    assert (token["token"], token["logprob"]) == ("reward", LONGER_REWARD)
    assert (answer["object"], answer["model"]) == ("chat.completion", "demo")
