"""verl: the service as verl's own reward model, started, put to sleep and ended by verl.

With `VERL_USE_EXTERNAL_MODULES=serve.client.integrations.verl_service`, verl knows the engine
`skyreward` for `reward.reward_model.rollout.name`. verl's `RewardModelManager` then starts one
service for each GPU of the resource pool, with `reward.reward_model.model_path`; wakes them before
the rewards of a step and puts them to sleep after; and they end with the trainer. `compute_score`
is the `custom_reward_function` that scores with them.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import ray
from verl.single_controller.base import Worker
from verl.single_controller.ray import RayClassWithInitArgs
from verl.workers.rollout.replica import RolloutMode, RolloutReplica, RolloutReplicaRegistry

from serve.client.errors import ServiceError
from serve.client.integrations import verl

ENGINE = "skyreward"
_ALIAS = "reward"
_START_TIMEOUT_S = 1800
_PAUSE_S = 0.5
_CONTROL_TIMEOUT_S = 600
_PR_SET_PDEATHSIG = 1


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward_router_address: str,
    **settings: Any,
) -> float | dict[str, float]:
    """Return the reward of an answer from the services that verl started.

    See `serve.client.integrations.verl.compute_score`; verl passes the address of its router.
    """
    settings = {"urls": f"http://{reward_router_address}", "model": _ALIAS, **settings}
    return await verl.compute_score(data_source, solution_str, ground_truth, extra_info, **settings)


class SkyRewardServer(Worker):
    """A Ray actor with a GPU of the pool; it runs the service in a separate process.

    The options are those of `skyreward serve`, by name without dashes; True for a switch.
    """

    def __init__(self, model: str, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._model = model
        self._options = dict(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def start(self) -> str:
        """Start the service; return its address once the model is loaded, within half an hour."""
        ip = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            self._port = probe.getsockname()[1]
        command = [sys.executable, "-m", "serve.cli.main", "serve", "--local"]
        command += ["--model", f"{_ALIAS}={self._model}", "--host", "0.0.0.0"]
        command += ["--port", str(self._port)]
        for name, value in self._options.items():
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        # The actor may be killed, and the service must then end too.
        self._process = subprocess.Popen(
            command, preexec_fn=functools.partial(_end_with_parent, os.getpid())
        )
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None:
                raise ServiceError(
                    f"the service for verl ended with exit status {self._process.returncode}; its "
                    "messages are in the log of this Ray actor"
                )
            if time.monotonic() > deadline:
                raise ServiceError(f"the service for verl is not ready after {_START_TIMEOUT_S} s")
            time.sleep(_PAUSE_S)
        return f"[{ip}]:{self._port}" if ":" in ip else f"{ip}:{self._port}"

    def control(self, action: str) -> None:
        """Put the model to sleep (`sleep`) or wake it (`wake`)."""
        try:
            self._request(f"/v1/models/{_ALIAS}/{action}", {}, _CONTROL_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")
            raise ServiceError(f"the service for verl refused `{action}`: {detail}") from error

    def _is_ready(self) -> bool:
        try:
            self._request("/ready", None, 5)
        except OSError:
            return False
        return True

    def _request(self, path: str, body: Any, timeout_s: float) -> None:
        # Only clients on the same machine may control models.
        url = f"http://127.0.0.1:{self._port}{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout_s) as answer:
            answer.read()


class SkyRewardReplica(RolloutReplica):
    """One service; verl's `RewardModelManager` calls its methods."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.world_size != 1:
            raise ServiceError(
                f"the engine {ENGINE!r} takes one GPU for each replica and got {self.world_size}; "
                "set reward.reward_model.rollout.tensor_model_parallel_size=1"
            )

    def get_ray_class_with_init_args(self) -> Any:
        """Return the actor's class with its arguments."""
        options = (self.config.engine_kwargs or {}).get(ENGINE) or {}
        return RayClassWithInitArgs(
            cls=ray.remote(SkyRewardServer), model=self.model_config.path, options=options
        )

    async def launch_servers(self) -> None:
        """Start the service in the actor that verl placed on the pool."""
        (self._server_handle,) = self.servers = self.workers
        self._server_address = await self._server_handle.start.remote()

    async def wake_up(self) -> None:
        """Put the model on its GPU again."""
        await self._control("wake")

    async def sleep(self) -> None:
        """Free the GPU for the policy, where both share it."""
        await self._control("sleep")

    async def _control(self, action: str) -> None:
        if self.rollout_mode != RolloutMode.STANDALONE:
            await asyncio.gather(*[server.control.remote(action) for server in self.servers])


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


RolloutReplicaRegistry.register(ENGINE, lambda: SkyRewardReplica)
