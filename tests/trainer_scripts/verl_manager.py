"""A batch of rewards from verl's own reward loop, with the service as its reward model.

verl places the service on a pool of one simulated GPU, wakes it before the rewards, and puts it to
sleep after. The last line has the rewards, and the state of the model before and after.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from urllib.request import urlopen

FOLDER, PROMPT, *ANSWERS = sys.argv[1:]
MODULE = "serve.client.integrations.verl_service"
os.environ["VERL_USE_EXTERNAL_MODULES"] = MODULE

import ray  # noqa: E402
import torch  # noqa: E402
import verl  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from verl.experimental.reward_loop import RewardLoopManager  # noqa: E402
from verl.single_controller.ray.base import RayResourcePool  # noqa: E402


def read_state(manager: RewardLoopManager) -> str:
    (address,) = manager.reward_model_manager.server_addresses
    with urlopen(f"http://{address}/v1/models") as answer:
        return str(json.load(answer)["data"][0]["state"])


def ends(address: str) -> bool:
    """Whether the service ends with Ray, in a minute at most."""
    host, _, port = address.rpartition(":")
    for _ in range(120):
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            return True
        time.sleep(0.5)
    return False


def build_config() -> OmegaConf:
    reward = OmegaConf.load(Path(verl.__path__[0], "trainer/config/reward/reward.yaml"))
    fragment = {
        "num_workers": 1,
        "custom_reward_function": {"path": f"pkg://{MODULE}", "name": "compute_score"},
        "reward_model": {
            "enable": True,
            "model_path": FOLDER,
            "n_gpus_per_node": 1,
            "rollout": {
                "name": "skyreward",
                "tensor_model_parallel_size": 1,
                "engine_kwargs": {"skyreward": {"dtype": "float32"}},
            },
        },
    }
    policy = {"model": {"path": FOLDER, "tokenizer_path": None}}
    merged = OmegaConf.merge(reward, fragment)
    return OmegaConf.create({"reward": merged, "actor_rollout_ref": policy})


def build_batch(manager: RewardLoopManager) -> verl.DataProto:
    tokenizer = manager.reward_model_manager.tokenizer
    encoded = tokenizer(ANSWERS, padding=True, padding_side="right", return_tensors="pt",
                        add_special_tokens=False)  # fmt: skip
    prompts = torch.zeros(len(ANSWERS), 1, dtype=torch.long)
    mask = torch.cat([torch.ones_like(prompts), encoded["attention_mask"]], dim=1)
    row = {"data_source": "x", "reward_model": {"ground_truth": "8"}}
    return verl.DataProto.from_dict(
        tensors={"prompts": prompts, "responses": encoded["input_ids"], "attention_mask": mask},
        non_tensors={
            **{name: [value] * len(ANSWERS) for name, value in row.items()},
            "extra_info": [{"question": PROMPT} for _ in ANSWERS],
        },
    )


ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=True)
try:
    pool = RayResourcePool([1], use_gpu=True, max_colocate_count=3)
    manager = RewardLoopManager(build_config(), pool)
    before = read_state(manager)
    scored = manager.compute_rm_score(build_batch(manager)).batch["rm_scores"]
    result = {"rewards": scored.sum(dim=1).tolist(), "states": [before, read_state(manager)]}
    address = manager.reward_model_manager.server_addresses[0]
finally:
    ray.shutdown()
result["is_ended"] = ends(address)
print(json.dumps(result))
