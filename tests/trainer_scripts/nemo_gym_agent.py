"""Rollouts of NeMo-Gym's simple agent, whose resources server is the service itself.

The policy is a server of the Responses API that answers from a list.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from urllib.request import Request, urlopen

import uvicorn
from fastapi import FastAPI
from nemo_gym.config_types import ModelServerRef, ResourcesServerRef
from nemo_gym.server_utils import BaseServerConfig, ServerClient
from omegaconf import OmegaConf
from responses_api_agents.simple_agent.app import SimpleAgent, SimpleAgentConfig

URL, QUESTION, OPTIONS, *ANSWERS = sys.argv[1:]


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(app: FastAPI, port: int) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def build_policy() -> FastAPI:
    app, answers = FastAPI(), iter(ANSWERS)

    @app.post("/v1/responses")
    def respond(_: dict) -> dict:  # type: ignore[type-arg]
        text = {"type": "output_text", "text": next(answers), "annotations": []}
        reasoning = {"type": "reasoning", "id": "r", "summary": []}
        message = {"type": "message", "id": "m", "role": "assistant", "content": [text]}
        return {
            "id": "resp", "object": "response", "created_at": 0, "model": "policy",
            "output": [reasoning, message], "tools": [], "tool_choice": "auto",
            "parallel_tool_calls": False,
        }  # fmt: skip

    return app


def post(port: int, path: str, body: object) -> object:
    request = Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request) as response:
        return json.load(response)


policy_port, agent_port = find_port(), find_port()
servers = {
    "policy": {"responses_api_models": {"policy": {"host": "127.0.0.1", "port": policy_port}}},
    "agent": {"responses_api_agents": {"agent": {"host": "127.0.0.1", "port": agent_port}}},
    "skyreward": {
        "resources_servers": {
            "skyreward": {"host": "127.0.0.1", "port": int(URL.rpartition(":")[2])}
        }
    },
}
config = SimpleAgentConfig(
    host="127.0.0.1",
    port=agent_port,
    entrypoint="",
    name="agent",
    resources_server=ResourcesServerRef(type="resources_servers", name="skyreward"),
    model_server=ModelServerRef(type="responses_api_models", name="policy"),
)
client = ServerClient(
    head_server_config=BaseServerConfig(host="127.0.0.1", port=1),
    global_config_dict=OmegaConf.create(servers),
)
agent = SimpleAgent(config=config, server_client=client)
row = {
    "responses_create_params": {"input": [{"role": "user", "content": QUESTION}]},
    "skyreward": json.loads(OPTIONS),
    "_ng_task_index": 0,
}
os.environ["NEMO_GYM_CONFIG_DICT"] = OmegaConf.to_yaml(servers)  # as its command line passes it
with serving(build_policy(), policy_port), serving(agent.setup_webserver(), agent_port):
    rollouts = [post(agent_port, "/run", row) for _ in ANSWERS]
    metrics = post(agent_port, "/aggregate_metrics", {"verify_responses": rollouts})
print(json.dumps({"rollouts": rollouts, "metrics": metrics}))
