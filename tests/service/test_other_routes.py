"""compare, rank, render and the status routes of a running service."""

from __future__ import annotations

import math
import re
from typing import Any

import httpx
import pytest
from checkpoints import PathOf
from reference import Reference

from serve import __version__

PROMPT = "What is the capital of France?"
GOOD, BAD = "The capital of France is Paris.", "The capital of Brazil is Brasilia."


def turns(answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": answer}]


def test_compare_accepts_every_form_of_pair(http: httpx.Client, checkpoint_of: PathOf) -> None:
    reference = Reference(checkpoint_of("llama-v0.1"))
    good, bad = reference.reward(turns(GOOD)), reference.reward(turns(BAD))
    user = [{"role": "user", "content": PROMPT}]
    pairs = [
        {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD},
        {"prompt": user, "chosen": GOOD, "rejected": BAD},
        {"prompt": user, "chosen": turns(GOOD)[1:], "rejected": turns(BAD)[1:]},
        {"chosen": turns(GOOD), "rejected": turns(BAD)},
        {"prompt": PROMPT, "chosen": turns(GOOD), "rejected": turns(BAD)},
        {"prompt": PROMPT, "chosen": BAD, "rejected": GOOD},
    ]
    body = http.post("/v1/compare", json={"model": "llama", "pairs": pairs}).json()
    for result in body["results"][:-1]:
        assert result["chosen_reward"] == pytest.approx(good, abs=1e-4)
        assert result["rejected_reward"] == pytest.approx(bad, abs=1e-4)
        assert result["margin"] == pytest.approx(good - bad, abs=2e-4)
        assert result["probability"] == pytest.approx(1 / (1 + math.exp(bad - good)), abs=1e-4)
    assert body["results"][-1]["margin"] == pytest.approx(bad - good, abs=2e-4)
    assert body["accuracy"] == pytest.approx(5 / 6 if good > bad else 1 / 6)
    assert body["usage"]["num_computed_tokens"] <= body["usage"]["num_tokens"] / len(pairs)


def test_compare_returns_errors_of_bad_pairs_in_order(http: httpx.Client) -> None:
    good = {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}
    bad: list[tuple[Any, str]] = [
        (3, "must be an object"),
        ({"prompt": PROMPT, "chosen": GOOD}, "`rejected`"),
        ({"chosen": GOOD, "rejected": BAD}, "without a `prompt`"),
        ({"prompt": [], "chosen": GOOD, "rejected": BAD}, "the prompt is empty"),
        ({"prompt": "word " * 3000, "chosen": GOOD, "rejected": BAD}, "tokens"),
    ]
    pairs = [item for pair, _ in bad for item in (pair, good)]
    body = http.post("/v1/compare", json={"model": "llama", "pairs": pairs}).json()
    margins = {result["margin"] for result in body["results"][1::2]}
    assert len(margins) == 1
    for (_, expected), result in zip(bad, body["results"][::2], strict=True):
        assert expected in result["error"]["message"]
    assert body["accuracy"] == (1.0 if margins.pop() > 0 else 0.0)


def test_compare_without_pairs_has_no_accuracy(http: httpx.Client) -> None:
    body = http.post("/v1/compare", json={"model": "llama", "pairs": []}).json()
    assert (body["results"], body["accuracy"]) == ([], None)


def test_rank_returns_rewards_ranks_and_best_index(
    http: httpx.Client, checkpoint_of: PathOf
) -> None:
    reference = Reference(checkpoint_of("llama-v0.1"))
    responses: list[Any] = [BAD, GOOD, 7, BAD, turns("Lyon.")[1:]]
    body = http.post(
        "/v1/rank", json={"model": "llama", "prompt": PROMPT, "responses": responses}
    ).json()
    expected = [reference.reward(turns(text)) for text in (BAD, GOOD, BAD, "Lyon.")]
    results = body["results"]
    assert "error" in results.pop(2)
    assert [r["reward"] for r in results] == pytest.approx(expected, abs=1e-4)
    ranks = [1 + sum(other["reward"] > r["reward"] for other in results) for r in results]
    assert [r["rank"] for r in results] == ranks
    assert results[0]["rank"] == results[2]["rank"]
    assert body["best_index"] == next(r["index"] for r in results if r["rank"] == 1)


def test_rank_without_rewards_has_no_best_index(http: httpx.Client) -> None:
    body = http.post(
        "/v1/rank", json={"model": "llama", "prompt": [], "responses": [GOOD, BAD]}
    ).json()
    assert body["best_index"] is None
    assert all("prompt is empty" in r["error"]["message"] for r in body["results"])


@pytest.mark.parametrize(("model", "spec"), [("llama", "llama-v0.1"), ("gemma", "gemma2")])
def test_render_returns_scored_token_ids(
    http: httpx.Client, checkpoint_of: PathOf, model: str, spec: str
) -> None:
    reference = Reference(checkpoint_of(spec))
    body = http.post("/v1/render", json={"model": model, "conversations": [turns(GOOD), []]}).json()
    shown, refused = body["results"]
    assert shown["input_ids"] == reference.input_ids(turns(GOOD))
    assert shown["readout_position"] == shown["num_tokens"] - 1
    assert GOOD in shown["text"]
    assert "error" in refused


def test_status_routes(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    ready = http.get("/ready")
    assert ready.status_code == 200
    assert {m["state"] for m in ready.json()["models"].values()} == {"ready"}
    models = http.get("/v1/models").json()
    assert [m["id"] for m in models["data"]] == ["demo", "llama", "gemma"]
    for model in models["data"]:
        assert model["object"] == "model"
        assert model["max_model_len"] > 0
        assert model["fingerprint"]["revision"].startswith("local-")


def test_info_has_resolved_auto_values_with_reasons(http: httpx.Client) -> None:
    info = http.get("/info").json()
    assert info["version"] == __version__
    assert info["settings"]["host"] == "127.0.0.1"
    gemma, llama = info["models"]["gemma"], info["models"]["llama"]
    assert gemma["attention"] == "eager"
    assert "softcap" in gemma["attention_reason"]
    assert llama["attention"] == "sdpa"
    assert llama["attention_reason"]
    assert (llama["dtype"], llama["head_dtype"], llama["device"]) == ("float32", "float32", "cpu")


def test_request_id_is_echoed_once(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"X-Request-Id": "run-7/step-3"})
    assert answer.headers.get_list("x-request-id") == ["run-7/step-3"]
    assert len(http.get("/v1/models").headers.get_list("x-request-id")) == 1


def test_unknown_routes_have_native_error(http: httpx.Client) -> None:
    for answer in (http.get("/nothing"), http.get("/v1/score")):
        assert answer.status_code in (404, 405)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_openapi_has_title_version_and_valid_examples(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    assert document["info"]["title"] == "skyreward"
    assert document["info"]["version"] == __version__
    schemas = document["components"]["schemas"]
    for name in ("ScoreRequest", "CompareRequest", "RankRequest"):
        route = f"/v1/{name.removesuffix('Request').lower()}"
        assert schemas[name]["examples"]
        for example in schemas[name]["examples"]:
            answer = http.post(route, json={"model": "llama", **example})
            assert answer.status_code == 200, answer.text
            if "image_url" not in str(example):  # this model reads only text
                assert not any("error" in result for result in answer.json()["results"])


def test_docs_page_loads_only_from_service(http: httpx.Client) -> None:
    page = http.get("/docs").text
    assert "skyreward" in page
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert any(address.endswith(".js") for address in addresses)
    for address in addresses:
        assert address.startswith("/")
        assert http.get(address).status_code == 200
