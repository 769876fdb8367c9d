"""The service in front of a simulated device, as a process: started, put under load, measured."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from posts import Kind, Texts, post_for
from transformers import AutoTokenizer, Qwen3Config
from workloads import TEMPLATE

from rm_core import seeds_dir
from serve.capacity.shape import ModelShape
from serve.cli.demo import find_free_port

TREE = Path(__file__).resolve().parents[2]
_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FIELDS += ("num_key_value_heads", "head_dim", "vocab_size")
_START_S = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """A service under one kind of posts.

    Attributes:
        posts: that were answered.
        conversations: that were scored.
        tokens: of the conversations, shared or not.
        computed_tokens: that the device would have computed.
        seconds: of the load.
        cpu_s: CPU of the service's process, without that of the simulation.
        starved_s: seconds that its threads waited for a core.
        busy_s: seconds of the device.
        client_cpu_s: CPU of the clients.
        stages: CPU by stage, of a run that was watched; else empty.
    """

    posts: int
    conversations: int
    tokens: int
    computed_tokens: int
    seconds: float
    cpu_s: float
    starved_s: float
    busy_s: float
    client_cpu_s: float
    stages: dict[str, float]

    @property
    def cpu_ms(self) -> float:
        """Of a conversation."""
        return 1_000 * self.cpu_s / self.conversations

    @property
    def cores(self) -> float:
        """Cores that the service used."""
        return self.cpu_s / self.seconds

    @property
    def busy_share(self) -> float:
        """Share of the time in which the device was busy."""
        return self.busy_s / self.seconds


def write_checkpoint(folder: Path, shape: ModelShape, tokenizer: Path | None) -> Path:
    """Write all of a checkpoint that a gateway reads: tokenizer, template and config.

    Args:
        folder: where.
        shape: sizes for the config.
        tokenizer: folder of a tokenizer; None for the demo model's. Without a template of its own
            it gets one of Qwen3's form.
    """
    source = tokenizer or seeds_dir() / "demo"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copy(source / name, folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    if not loaded.chat_template:
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    config = Qwen3Config(
        **{field: getattr(shape, field) for field in _FIELDS},
        max_position_embeddings=shape.max_length,
        architectures=["Qwen3ForSequenceClassification"],
        num_labels=1,
        pad_token_id=loaded.pad_token_id,
        eos_token_id=loaded.eos_token_id,
        bos_token_id=None,
    )
    config.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def simulated_service(checkpoint: Path, *options: str, tree: Path = TREE) -> Iterator[str]:
    """The address of a service, until the end of the `with`.

    Args:
        checkpoint: from `write_checkpoint`.
        options: more for `simulated_service.py`.
        tree: the source tree that the service is of.
    """
    port = find_free_port()
    script = Path(__file__).with_name("simulated_service.py")
    command = [sys.executable, str(script), "--checkpoint", str(checkpoint), "--port", str(port)]
    variables = {**os.environ, "PYTHONPATH": str(tree.resolve())}
    with subprocess.Popen([*command, *options], env=variables, cwd=tree) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            await_ready(process, url)
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


def measure(
    url: str,
    kind: Kind,
    texts: Texts,
    clients: int,
    seconds: float,
    *,
    services: Sequence[str] = (),
    is_watched: bool = False,
) -> Measured:
    """Put a service under load for so long, and measure what that takes.

    Args:
        url: of a service, or of a load balancer in front of several.
        kind: what is posted.
        texts: what posts are made of.
        clients: how many post at a time, unless the kind has fewer.
        seconds: how long.
        services: URL of each service behind a load balancer; what they take is added up.
        is_watched: whether stages are told, which takes CPU of its own; of one service only.
    """
    urls = services or (url,)
    before = [_read_usage(url, is_watched) for url in urls]
    answered = post_for(url, kind, texts, clients, seconds)
    usages = [_read_usage(url) for url in urls]
    after = usages[0]
    spent = {
        name: sum(usage[name] for usage in usages) - sum(usage[name] for usage in before)
        for name in after.keys() - {"stages"}
    }
    return Measured(
        posts=answered.posts,
        conversations=answered.conversations,
        tokens=answered.tokens,
        computed_tokens=spent["computed_tokens"],
        seconds=answered.seconds,
        cpu_s=spent["cpu_s"] - spent["own_cpu_s"],
        starved_s=spent["starved_s"],
        busy_s=spent["busy_s"],
        client_cpu_s=answered.cpu_s,
        stages=after["stages"],
    )


def _read_usage(url: str, profile: bool = False) -> dict[str, Any]:
    answer = httpx.get(f"{url}/simulated", params={"profile": profile}, trust_env=False)
    usage: dict[str, Any] = answer.raise_for_status().json()
    return usage


def await_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Wait until a process answers `/ready`.

    Raises:
        SystemExit: it ended, or did not answer in time.
    """
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/ready", trust_env=False).is_success:
                return
        time.sleep(0.3)
    raise SystemExit("the service did not become ready")
