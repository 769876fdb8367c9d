"""Start the service with configs of `deploy/`, with a test checkpoint for each real one.

The service runs in one process without Ray, so settings of Ray (replicas, GPUs, gateways) are left
out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from checkpoints import PathOf
from conftest import ROOT
from preloaded import run_service

from rm_core import find_entry

TEST_CHECKPOINTS = {"llama": "llama-v0.2", "qwen3": "qwen3", "gemma2": "gemma2"}
RAY_SETTINGS = {"num_gpus", "num_replicas", "max_replicas", "target_queued_tokens", "revision"}
CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


def replace_checkpoint(model: dict[str, Any], checkpoint_of: PathOf) -> dict[str, Any]:
    entry = find_entry(model["name"])
    assert entry is not None
    settings = {name: value for name, value in model.items() if name not in RAY_SETTINGS}
    return {**settings, "name": str(checkpoint_of(TEST_CHECKPOINTS[entry.family]))}


@pytest.mark.parametrize("name", ["several-models", "gemma-2-27b-two-gpus"])
def test_deploy_config_starts_and_scores(name: str, checkpoint_of: PathOf, tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "models" / f"{name}.yaml").read_text())
    settings = config["applications"][0]["args"]
    settings.pop("num_gateways")
    settings["models"] = [replace_checkpoint(m, checkpoint_of) for m in settings["models"]]
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    with (
        run_service("--config", str(file)) as url,
        httpx.Client(base_url=url, timeout=300, trust_env=False) as client,
    ):
        info = client.get("/info").json()
        for model in settings["models"]:
            body = {"model": model["alias"], "conversations": [CONVERSATION]}
            answer = client.post("/v1/score", json=body).json()
            assert answer["model"] == model["alias"]
            assert isinstance(answer["results"][0]["reward"], float)
            if "max_batch_tokens" in model:
                models = info["settings"]["models"]
                effective = next(m for m in models if m["alias"] == model["alias"])
                assert effective["max_batch_tokens"] == model["max_batch_tokens"]
