"""Rewards of a batch of ROLL from our worker, outside of a cluster."""

from __future__ import annotations

import json
import sys

import torch
from roll.distributed.scheduler.protocol import DataProto
from transformers import AutoTokenizer

from serve.client.integrations.roll import SkyRewardWorker

FOLDER, PROMPT, *ANSWERS = sys.argv[1:]
worker = object.__new__(SkyRewardWorker)
worker.tokenizer = AutoTokenizer.from_pretrained(FOLDER)


def encode(texts: list[str], side: str) -> torch.Tensor:
    encoded = worker.tokenizer(
        texts, padding=True, padding_side=side, add_special_tokens=False, return_tensors="pt"
    )
    return encoded["input_ids"]


batch = DataProto.from_dict(
    tensors={
        "prompts": encode([PROMPT] * len(ANSWERS), "left"),
        "responses": encode([f"{answer}<|im_end|>" for answer in ANSWERS], "right"),
    }
)
rewards = worker.compute_rewards(batch).batch
assert rewards["token_level_rewards"].shape == batch.batch["responses"].shape
assert torch.equal(rewards["scores"], rewards["response_level_rewards"])
print(json.dumps(rewards["scores"].tolist()))
