"""Small random step models and judges with the true layouts, and a service of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from checkpoints import SPECS, build_tokenizer, edit_config, edit_weights
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
}


def build_step_model(folder: Path) -> Path:
    """Write a checkpoint with the layout of Skywork-o1-Open-PRM: Qwen2 with `v_head.summary`."""
    tokenizer = build_tokenizer(SPECS["qwen3"])
    tokenizer.bos_token = "<|im_start|>"
    torch.manual_seed(0)
    config = Qwen2Config(
        **_SIZES,
        vocab_size=len(tokenizer) + 8,  # transformers adds <|endoftext|> to tokenizers of Qwen2
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    head = nn.Linear(_SIZES["hidden_size"], 1)
    edit_weights(
        folder,
        lambda weights: weights.update(
            {
                "v_head.summary.weight": head.weight.detach(),
                "v_head.summary.bias": head.bias.detach(),
            }
        ),
    )
    remote_code = {
        "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
        "AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel",
    }
    edit_config(folder, architectures=["Qwen2ForPrmModel"], auto_map=remote_code)
    for module in ("configuration_qwen2_rm", "modeling_qwen2_rm"):
        (folder / f"{module}.py").write_text("raise RuntimeError('remote code was run')\n")
    tokenizer.save_pretrained(folder)
    return folder


def build_judge(folder: Path) -> Path:
    """Write a checkpoint with the layout of Skywork-Critic: a Llama language model."""
    tokenizer = build_tokenizer(SPECS["llama-v0.2"])
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template += (
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(**_SIZES, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.inference_mode()
def compute_step_rewards(folder: Path, problem: str, lines: list[str]) -> list[float]:
    """Step rewards by the authors' arithmetic: plain transformers, one solution at a time."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    weights: dict[str, torch.Tensor] = {}
    edit_weights(folder, lambda stored: weights.update(stored))
    body: PreTrainedModel = AutoModel.from_config(Qwen2Config.from_pretrained(folder))
    body.load_state_dict(
        {n.removeprefix("model."): t for n, t in weights.items() if n.startswith("model.")}
    )
    ids = tokenizer.encode(f"{tokenizer.bos_token}{problem}\n", add_special_tokens=False)
    marker = tokenizer.encode("\n", add_special_tokens=False)[-1]
    flags = []
    for line in lines:
        ids += tokenizer.encode(line, add_special_tokens=False) if line else []
        flags.append(len(ids))
        ids.append(marker)
    hidden = body.eval()(torch.tensor([ids])).last_hidden_state[0, flags]
    values = hidden @ weights["v_head.summary.weight"][0] + weights["v_head.summary.bias"]
    return [float(value) for value in values.sigmoid()]


@torch.inference_mode()
def compute_log_odds(
    folder: Path, input_ids: list[int], labels: tuple[int, int]
) -> tuple[float, float]:
    """Log-odds of two labels and their mass, from the full logits of plain transformers."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    logits = model(torch.tensor([input_ids])).logits[0, -1]
    first, second = labels
    mass = logits.softmax(0)[[first, second]].sum()
    return float(logits[first] - logits[second]), float(mass)


@contextlib.contextmanager
def serving_models(
    options: dict[str, Any] | None = None, /, **models: Path | dict[str, Any]
) -> Iterator[TestClient]:
    """A client of the application with real models on the CPU, by alias; all in this process.

    Args:
        options: other settings of the service.
        models: folder of each model, or its settings.
    """
    # Not on a machine that only checks a GPU.
    from fakes import ready
    from fastapi.testclient import TestClient
    from waiting import until

    from serve.api.app import create_app
    from serve.config.settings import Settings
    from serve.scoring.service import ScoringService
    from serve.worker.lifecycle import ManagedWorker

    chosen = [
        {"alias": alias, "device": "cpu"} | ({"name": str(m)} if isinstance(m, Path) else m)
        for alias, m in models.items()
    ]
    settings = Settings.load(models=chosen, **(options or {}))
    workers = [ManagedWorker(model) for model in settings.models]
    service = ScoringService(list(zip(settings.models, workers, strict=True)), settings)
    try:
        with TestClient(create_app(service, settings), raise_server_exceptions=False) as client:
            until(lambda: ready(client))
            yield client
    finally:
        for worker in workers:
            worker.close()


def read_tokens(folder: Path) -> dict[str, int]:
    """The vocabulary of a checkpoint."""
    vocabulary: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"][
        "vocab"
    ]
    return vocabulary
