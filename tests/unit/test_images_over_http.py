"""Images through the application: every route that takes messages, limits, what is never told."""

from __future__ import annotations

import base64
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SPECS, build_checkpoint
from fastapi.testclient import TestClient
from image_files import answer, ask, encode_image, make_image, to_uri
from image_mutations import draw_body
from kinds import build_judge, build_step_model, serving_models
from PIL import Image
from plain_vision import PlainVisionModel
from vision import MAX_PIXELS, MIN_PIXELS, build_vision_model

from serve.api.schemas import ConversationResult, RenderResult

FILES = [encode_image(make_image(*size)) for size in ((84, 56), (160, 90), (33, 200))]
SOURCES = [to_uri(file) for file in FILES]
ANSWERS = ["A pattern.", "Nothing is shown.", "A dog that runs."]
TEXT_MODELS = ("prm", "judge", "rm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vision_model(tmp_path_factory.mktemp("vision") / "vl")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    models: dict[str, Path | dict[str, Any]] = {
        "vl": folder,
        "prm": build_step_model(folder.parent / "prm"),
        "judge": {"name": str(build_judge(folder.parent / "judge")), "kind": "judge"},
        "rm": build_checkpoint(folder.parent / "rm", SPECS["llama-v0.2"]),
    }
    with serving_models({"max_request_images": 20, "log_level": "DEBUG"}, **models) as client:
        yield client


@pytest.fixture(scope="module")
def plain(folder: Path) -> PlainVisionModel:
    return PlainVisionModel(folder)


def post(client: TestClient, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json={"model": "vl", **body})
    assert response.status_code == status, response.text
    return response.json()


def near(values: Any) -> Any:
    return pytest.approx(values, abs=1e-4, rel=0)


def to_plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages with files in place of data URIs, as transformers' template takes them."""
    files = dict(zip(SOURCES, FILES, strict=True))
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [
                {"type": "image", "image": files[part["image_url"]["url"]]}
                if part["type"] == "image_url"
                else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


CONVERSATIONS = [
    [{"role": "user", "content": "What is shown?"}, answer()],
    [ask(SOURCES[0]), answer()],
    [ask(*SOURCES), answer()],
    [ask(SOURCES[1]), answer(), ask(SOURCES[0], question="And here?"), answer("The same.")],
]


def test_rewards_are_those_of_plain_transformers(
    client: TestClient, plain: PlainVisionModel
) -> None:
    results = post(client, "/v1/score", conversations=CONVERSATIONS)["results"]
    expected = plain.score_all([to_plain(messages) for messages in CONVERSATIONS])
    assert [ConversationResult(**r).reward for r in results] == near(expected)
    assert len({round(value, 3) for value in expected}) == len(expected)


def test_every_form_of_a_part_is_the_same_image(client: TestClient) -> None:
    data = SOURCES[0].partition(",")[2]
    forms = [
        {"type": "image_url", "image_url": {"url": SOURCES[0], "detail": "high"}},
        {"type": "image_url", "image_url": SOURCES[0]},
        {"type": "input_image", "image_url": SOURCES[0]},
        {"type": "image", "image": SOURCES[0]},
        {"type": "image", "image": data},
        {"type": "image", "image": data.rstrip("=").replace("+", "-").replace("/", "_")},
    ]
    conversations = [[{"role": "user", "content": [form]}, answer()] for form in forms]
    body = post(client, "/v1/score", conversations=conversations)
    (reward,) = {result["reward"] for result in body["results"]}
    assert reward is not None
    (tokens,) = {result["num_tokens"] for result in body["results"]}
    assert body["usage"]["num_computed_tokens"] <= tokens


def test_native_routes(client: TestClient, plain: PlainVisionModel) -> None:
    prompt = [ask(SOURCES[2])]
    first, second, third = plain.score_all([to_plain([*prompt, answer(text)]) for text in ANSWERS])
    pair = {"prompt": prompt, "chosen": ANSWERS[0], "rejected": ANSWERS[1]}
    (compared,) = post(client, "/v1/compare", pairs=[pair])["results"]
    assert (compared["chosen_reward"], compared["rejected_reward"]) == near((first, second))
    ranked = post(client, "/v1/rank", prompt=prompt, responses=ANSWERS)
    assert [result["reward"] for result in ranked["results"]] == near([first, second, third])
    messages = [*prompt, answer(ANSWERS[0]), ask(SOURCES[0]), answer(ANSWERS[1])]
    (turns,) = post(client, "/v1/score", messages=messages, turns="all")["results"]
    assert [turn["reward"] for turn in turns["turn_rewards"]] == near(
        [first, plain.score(to_plain(messages))]
    )


def test_render_shows_where_images_are(client: TestClient) -> None:
    (result,) = post(client, "/v1/render", messages=CONVERSATIONS[2], offsets=True)["results"]
    rendering = RenderResult(**result)
    assert rendering.text is not None
    assert rendering.input_ids is not None
    assert rendering.images is not None
    assert rendering.offsets is not None
    assert rendering.text.count("<|image_pad|>") == len(FILES)
    for image in rendering.images:
        assert image.num_tokens == image.width * image.height / 28**2
        assert MIN_PIXELS <= image.width * image.height <= MAX_PIXELS
        ids = rendering.input_ids[image.position : image.position + image.num_tokens]
        (start, end) = rendering.offsets[image.position]
        assert rendering.text[start:end] == "<|image_pad|>"
        assert len(set(ids)) == 1
        assert rendering.input_ids[image.position + image.num_tokens] != ids[0]
    tokens = post(client, "/tokenize", messages=CONVERSATIONS[2])["tokens"]
    assert tokens == rendering.input_ids
    assert min(tokens) >= 0


def test_routes_of_other_services(client: TestClient) -> None:
    messages = [ask(SOURCES[0]), answer(ANSWERS[0])]
    (result,) = post(client, "/v1/score", messages=messages)["results"]
    reward = near(result["reward"])
    assert post(client, "/classify", messages=messages)["data"][0]["probs"] == [reward]
    assert post(client, "/pooling", messages=messages)["data"][0]["data"] == [reward]
    every = post(client, "/pooling", messages=messages, task="token_classify")["data"][0]["data"]
    assert len(every) == result["num_tokens"]
    assert every[-1] == [reward]
    chat = post(client, "/v1/chat/completions", messages=messages)
    assert float(chat["choices"][0]["message"]["content"].removeprefix("reward:")) == reward
    query = {"content": messages[0]["content"]}
    scored = post(client, "/score", queries=query, documents=ANSWERS[:2])["data"]
    assert scored[0]["score"] == reward
    ranked = post(client, "/v1/rerank", query=query, documents=ANSWERS)["results"]
    assert next(item for item in ranked if item["index"] == 0)["relevance_score"] == reward


def test_rendered_text_and_token_ids_have_no_images(client: TestClient) -> None:
    messages = [ask(SOURCES[0]), answer(ANSWERS[0])]
    (rendered,) = post(client, "/v1/render", messages=messages)["results"]
    text, ids = rendered["text"], rendered["input_ids"]
    for path, body in (
        ("/classify", {"input": text}),
        ("/classify", {"input": ids}),
        ("/classify", {"text": text}),
        ("/classify", {"input_ids": ids}),
        ("/pooling", {"input": text}),
        ("/v1/embeddings", {"input": ids}),
    ):
        answered = str(post(client, path, 400, **body))
        assert "as messages" in answered or "content parts of messages" in answered
    negative = post(client, "/classify", 400, input=[*ids[:5], -7])
    assert "-7" in str(negative)
    refused = post(client, "/classify", 400, text="2+2?", image_data=SOURCES[0])
    assert "`image_data` is not read" in str(refused)
    kwargs = {"max_pixels": 100}
    refused = post(client, "/classify", 400, messages=messages, mm_processor_kwargs=kwargs)
    assert "`mm_processor_kwargs`" in str(refused)


def test_models_of_text_refuse_images_alone(client: TestClient) -> None:
    texts = [{"role": "user", "content": "2+2?"}, answer("4")]
    image = [ask(SOURCES[0]), answer()]
    good, bad = post(client, "/v1/score", model="rm", conversations=[texts, image])["results"]
    assert good["reward"] is not None
    assert "reads only text" in bad["error"]["message"]
    (bad,) = post(client, "/v1/steps", model="prm", items=[{"prompt": image[:1], "response": "4"}])[
        "results"
    ]
    assert "reads only text" in bad["error"]["message"]
    pair = {"prompt": image[:1], "chosen": "4", "rejected": "5"}
    (bad,) = post(client, "/v1/compare", model="judge", pairs=[pair])["results"]
    assert "reads only text" in bad["error"]["message"]
    models = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert [models[name]["reads_images"] for name in ("vl", *TEXT_MODELS)] == [True] + 3 * [False]
    assert models["vl"]["image_limits"] == {
        "max_image_bytes": 10 * 2**20,
        "max_image_pixels": 4096**2,
        "max_images": 16,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
    }
    assert "image_limits" not in models["rm"]


def bodies_of(source: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return a body of every route that takes messages, with an image."""
    prompt = [ask(source)]
    messages = [*prompt, answer()]
    query = {"content": prompt[0]["content"]}
    return [
        ("/v1/score", {"conversations": [messages]}),
        ("/v1/score", {"messages": messages}),
        ("/v1/score", {"messages": messages, "turns": "all"}),
        ("/v1/compare", {"pairs": [{"prompt": prompt, "chosen": "a", "rejected": "b"}]}),
        ("/v1/rank", {"prompt": prompt, "responses": ANSWERS}),
        ("/v1/rank", {"prompt": prompt, "responses": [messages]}),
        ("/v1/render", {"messages": messages}),
        ("/v1/steps", {"items": [{"prompt": prompt, "response": "x"}]}),
        ("/classify", {"messages": messages}),
        ("/classify", {"text": "x", "image_data": source}),
        ("/pooling", {"messages": messages}),
        ("/tokenize", {"messages": messages}),
        ("/score", {"queries": query, "documents": "x"}),
        ("/rerank", {"query": query, "documents": ["x"]}),
        ("/v1/embeddings", {"input": [{"image": source}]}),
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/score/evaluation", {"messages": [source]}),
        ("/get_reward", {"query": [source]}),
        ("/predict", {"inputs": source}),
        ("/remote_rm", {"prompt": prompt, "response": "x"}),
    ]


def test_no_address_is_opened(client: TestClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)  # connections wait in its backlog
        port = server.getsockname()[1]
        for scheme in ("http", "https", "ftp", "HTTP"):
            url = f"{scheme}://127.0.0.1:{port}/image.png"
            for path, body in bodies_of(url):
                for model in ("vl", *TEXT_MODELS):
                    response = client.post(path, json={"model": model, **body})
                    assert response.status_code < 500, response.text
                    if model == "vl" and path in ("/v1/rank", "/classify", "/pooling"):
                        told = ("address", "image_data")
                        assert any(word in response.text for word in told), response.text
        for path in ("file:///etc/passwd", "/etc/passwd", str(Path(__file__))):
            (result,) = post(client, "/v1/score", messages=[ask(path), answer()])["results"]
            assert "error" in result
        with pytest.raises(BlockingIOError):
            server.accept()
        with socket.create_connection(("127.0.0.1", port)) as own:
            connection, address = server.accept()
            connection.close()
            assert address == own.getsockname()


def test_image_data_is_told_nowhere(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("serve", "rm_core"):
        logging.getLogger(name).propagate = True
    hidden = base64.b64encode(b"kept to itself " * 40).decode()
    whole = base64.b64encode(FILES[0] + b"kept to itself " * 40).decode()
    cut = base64.b64encode(FILES[1][:200] + b"kept to itself " * 40).decode()
    for data in (hidden, whole, cut, f"data:image/png,{hidden}", f"data:image/png;base64,{cut}"):
        for source in (data, [data], {"url": [data]}, {data: data}):
            for path, body in bodies_of(source):
                response = client.post(path, json={"model": "vl", **body})
                assert response.status_code < 500, response.text
                # vLLM's and SGLang's documents are returned, as they do.
                echoed = response.json().get("results", [{}]) if path == "/rerank" else []
                if not any("document" in item for item in echoed):
                    assert hidden[40:80] not in response.text, (path, response.text[:500])
    assert "request" in caplog.text
    assert hidden[40:80] not in caplog.text
    assert "kept to itself" not in caplog.text


def test_mutated_images_are_refused_clearly(client: TestClient) -> None:
    statuses = set()
    for number in range(150):
        path, body, how = draw_body(7, number)
        headers = {"Content-Type": "application/json"}
        named = body.replace(b"{", b'{"model": "vl", ', 1)
        response = client.post(path, content=named, headers=headers)
        assert response.status_code in (200, 400, 413), (number, how, response.text[:500])
        assert response.json(), how
        statuses.add(response.status_code)
    assert {200, 400} <= statuses


def test_limits_of_a_request(client: TestClient) -> None:
    file = encode_image(make_image())
    distinct = [to_uri(file + bytes([number])) for number in range(21)]
    body = post(client, "/v1/rank", prompt=[ask(*distinct[:16])], responses=ANSWERS * 20)
    assert all("reward" in result for result in body["results"])
    twice = [[ask(source), answer()] for source in distinct[:20] * 2]
    assert all("reward" in r for r in post(client, "/v1/score", conversations=twice)["results"])
    more = [[ask(source), answer()] for source in distinct]
    error = post(client, "/v1/score", 413, conversations=more)["error"]
    assert error["code"] == "request_too_large"
    assert "21 different images and the limit is 20" in error["message"]
    (result,) = post(client, "/v1/score", messages=[ask(*distinct[:17]), answer()])["results"]
    assert "17 images and the limit is 16" in result["error"]["message"]


def test_image_of_ten_megabytes_is_no_text(client: TestClient) -> None:
    """A group of answers on it is accepted: its base64 would be 448 M characters."""
    image = Image.effect_noise((1850, 1880), 100).convert("RGB")
    source = to_uri(encode_image(image, "BMP"), "image/bmp")
    assert 13 * 2**20 < len(source) < 10 * 2**20 * 4 / 3 + 100
    body = post(client, "/v1/rank", prompt=[ask(source)], responses=[f"{i}?" for i in range(32)])
    assert all("reward" in result for result in body["results"])
    (error,) = post(client, "/v1/score", messages=[ask(source + "AAAA" * 99_999), answer()])[
        "results"
    ]
    assert error["error"]["code"] == "invalid_image"
