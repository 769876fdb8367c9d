"""Third-party clients of other services against a real service: they get the native rewards."""

from __future__ import annotations

import re
from typing import Any

import huggingface_hub
import openai
import pytest
import torch
from huggingface_hub import InferenceClient
from peer_service import ANSWERS, Served, conversation
from peers import peer_module, peer_path

from serve.client import ScoringClient

# Ignore deprecation warnings of the clients' code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_sample_client_of_skywork_model_card(served: Served) -> None:
    """The code block of the V2 card, with the service's URL and a local checkpoint."""
    card = peer_path("skywork/README.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "base_urls" in b)
    block = block.replace("http://127.0.0.1:{8000 + i}/", f"{served.url}/")
    block = re.sub(
        'model_name_or_path = ".*"', f"model_name_or_path = {str(served.folders['llama'])!r}", block
    )
    scope: dict[str, Any] = {}
    exec(block, scope)
    with ScoringClient(served.url, "llama") as client:
        assert scope["rewards"] == client.score([scope["conv1"], scope["conv2"]])


def test_llama_factory_client(served: Served) -> None:
    with peer_module("llamafactory.train.ppo.ppo_utils", {}) as module:
        for model in ("demo", "llama"):
            url = f"{served.url}/v1/score/evaluation?model={model}"
            rewards = module.get_rewards_from_server(url, served.rendered(model))
            assert torch.equal(rewards, torch.Tensor(served.native(model)))


@pytest.mark.parametrize("model", ["demo", "llama"])
def test_openai_sdk(served: Served, model: str) -> None:
    rewards, texts = served.native(model), served.rendered(model)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        assert model in [served_model.id for served_model in client.models.list()]
        embedded = client.embeddings.create(model=model, input=texts, encoding_format="float")
        assert [item.embedding for item in embedded.data] == [[reward] for reward in rewards]
        chat = client.chat.completions.create(
            model=model,
            messages=conversation(ANSWERS[0]),  # type: ignore[arg-type]
        )
        assert chat.choices[0].message.content == f"reward:{rewards[0]!r}"
    with openai.OpenAI(base_url=served.url, api_key="none") as client:
        body = {"model": model, "input": texts}
        classified = client.post("/classify", cast_to=object, body=body)
        assert [item["probs"] for item in classified["data"]] == [[r] for r in rewards]  # type: ignore[index]
        body = {"model": model, "messages": conversation(ANSWERS[0])}  # type: ignore[dict-item]
        pooled = client.post("/pooling", cast_to=object, body=body)
        assert pooled["data"][0]["data"] == [rewards[0]]  # type: ignore[index]
        with pytest.raises(openai.NotFoundError, match="nope"):
            client.post("/classify", cast_to=object, body={"model": "nope", "input": texts})


@pytest.mark.parametrize("model", ["demo", "llama"])
def test_hugging_face_inference_client(
    served: Served, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tests run offline; this request stays on the local machine.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    client = InferenceClient(f"{served.url}/predict?model={model}")
    for text, reward in zip(served.rendered(model), served.native(model), strict=True):
        output = client.text_classification(text)
        (element,) = output if isinstance(output, list) else [output]
        assert element.score == reward
