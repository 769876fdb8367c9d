"""Autoscaling by queued tokens: reports of gateways, and the policy for Serve."""

from __future__ import annotations

from typing import Any

import pytest

from serve.config.model_settings import ModelSettings
from serve.deployments.autoscaling import QUEUED_TOKENS, compute_num_replicas
from serve.deployments.replica import Backlog


def test_backlog_sums_latest_report_of_each_gateway_until_expiry() -> None:
    backlog = Backlog()
    assert backlog.sum_tokens(0) == 0
    backlog.update("a", 100, now=0)
    backlog.update("b", 30, now=50)
    backlog.update("a", 70, now=50)
    assert backlog.sum_tokens(51) == 100
    backlog.update("b", 0, now=100)
    assert backlog.sum_tokens(105) == 70
    assert backlog.sum_tokens(111) == 0


@pytest.mark.parametrize(
    ("queued", "replicas"), [(0, 1), (1, 1), (1000, 1), (1001, 2), (9999, 10), (10_000, 10)]
)
def test_num_replicas_keeps_queued_tokens_at_target(queued: int, replicas: int) -> None:
    assert compute_num_replicas(queued, 1000) == replicas


def context(reports: dict[str, float] | None, target: int = 2) -> Any:
    """Return a context as Serve's controller creates it."""
    from ray.serve._private.common import DeploymentID
    from ray.serve.config import AutoscalingContext

    return AutoscalingContext(
        deployment_id=DeploymentID("Scorer-demo", "skyreward"),
        deployment_name="Scorer-demo",
        app_name="skyreward",
        current_num_replicas=target,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=1.0,
        total_queued_requests=0.0,
        aggregated_metrics=None if reports is None else {QUEUED_TOKENS: reports},  # type: ignore[dict-item]
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=None,
    )


def test_deployment_has_autoscaling_policy_if_replicas_vary() -> None:
    from serve.app import _build_replica_options

    assert _build_replica_options(ModelSettings(name="demo", num_replicas=3)) == {"num_replicas": 3}
    assert _build_replica_options(ModelSettings(name="demo", num_replicas=3, max_replicas=3)) == {
        "num_replicas": 3
    }
    settings = ModelSettings(name="demo", num_replicas=1, max_replicas=8, target_queued_tokens=1000)
    config = _build_replica_options(settings)["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (1, 8)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    # All replicas hear of the same queues, and the largest number decides.
    assert policy(context({"x": 4500.0, "y": 300.0}))[0] == 5
    assert policy(context({"x": 0.0}))[0] == 1
    assert policy(context({}))[0] == 2
    assert policy(context(None))[0] == 2
