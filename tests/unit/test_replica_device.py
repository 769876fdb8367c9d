"""The device of a replica, and the GPUs that Ray gives it."""

from __future__ import annotations

from typing import Any

import pytest

from serve.config.model_settings import ModelSettings
from serve.config.settings import Settings


@pytest.mark.filterwarnings("ignore")  # of Ray's own import
@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({"num_gpus": 0}, 8, ("cpu", 0)),
        ({"num_gpus": 0, "device": "cpu"}, 8, ("cpu", 0)),
        ({}, 0, ("cpu", 0)),
        ({}, 8, ("auto", 1)),
        ({"num_gpus": 0.5}, 8, ("auto", 0.5)),
        ({"num_gpus": 2}, 8, ("auto", 2)),
        ({"device": "cpu"}, 8, ("cpu", 0)),
        ({"device": "cuda"}, 8, ("cuda", 1)),
    ],
)
def test_replica_without_a_gpu_runs_on_the_cpu(
    settings: dict[str, Any],
    gpus: int,
    expected: tuple[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also on a machine with GPUs: Ray does not hide them from an actor that has none."""
    from serve.app import _bind_scorer, _resolve_device

    monkeypatch.setattr("serve.app.ray.is_initialized", lambda: True)
    monkeypatch.setattr("serve.app.ray.cluster_resources", lambda: {"CPU": 8.0, "GPU": float(gpus)})
    model = ModelSettings(name="demo", **settings)
    settings_ = Settings(models=(model,))
    bound = _bind_scorer(_resolve_device(model), settings_, None)._bound_deployment
    replica = ModelSettings.model_validate(bound.init_args[0])
    num_gpus = bound.ray_actor_options["num_gpus"]
    assert (replica.to_model_config().device, num_gpus) == expected


def test_num_gpus_0_with_cuda_device_is_refused() -> None:
    with pytest.raises(ValueError, match="num_gpus 0 means the CPU, and device is 'cuda:1'"):
        ModelSettings(name="demo", num_gpus=0, device="cuda:1")
