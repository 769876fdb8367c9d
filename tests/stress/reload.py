"""A model gets new weights under load: does any request fail, does any answer mix two versions?

What is measured: clients that send nothing twice, and reload after reload between three
checkpoints of one architecture. Every request has to be answered 200, with the rewards that the
version in its fingerprint gives alone, to the bit (setting `deterministic`). In between come
checkpoints that must be refused, while the version before serves on: a shard is missing, another
architecture, NaN, half-written. The score cache is on: its rewards belong to their version. The
last line is one JSON object.

    python tests/stress/reload.py [--reloads 100] [--clients 16] [--ray] [--replicas 2]
        [--gateways 2]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from chaos import posts_of, undisturbed
from load import Outcome, Post, closed_loop
from safetensors.torch import load_file, save_file
from service import Service, parser_of, service_of
from stress_result import finish, percentiles
from tiny_model import build_tiny
from workload_mix import Conversation, Writer

from serve.client import ScoringClient, ServiceError

VERSIONS = ("one", "two", "three")
# The other gateways answer from their caches until they hear of new weights.
_OTHER_GATEWAYS_S = 3.0


@dataclass
class Answers:
    """What came back.

    Attributes:
        expected: rewards of the pool, by version.
    """

    expected: dict[str, list[float]]
    requests: int = 0
    by_version: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def seen(self, outcome: Outcome) -> None:
        """Compare one answer with what its version gives alone."""
        self.requests += 1
        self.seconds.append(outcome.seconds)
        if outcome.status != 200:
            said = outcome.failure or outcome.body[:160].decode(errors="replace")
            self.wrong[f"{outcome.status} {said}"] += 1
            return
        version = json.loads(outcome.body)["fingerprint"].get("version")
        self.by_version[str(version)] += 1
        if version not in self.expected:
            self.wrong[f"version {version}"] += 1
            return
        rewards = [result.get("reward") for result in outcome.results]
        if rewards != [self.expected[version][index] for index in outcome.post.picks]:
            self.wrong[f"rewards are not those of {version}"] += 1


class Load:
    """Clients on a thread of their own, until the end of the `with`."""

    def __init__(
        self,
        service: Service,
        pool: list[Conversation],
        answers: Answers,
        options: argparse.Namespace,
    ) -> None:
        self._over = False
        posts = self._until_over(posts_of(pool, options.seed))
        self._run = closed_loop(service.url, posts, options.clients, 1e9, answers.seen)
        self._thread = threading.Thread(target=asyncio.run, args=(self._run,))

    def _until_over(self, posts: Iterator[Post]) -> Iterator[Post]:
        for post in posts:
            if self._over:
                return
            yield post

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()


def build_bad(good: Path, folder: Path) -> dict[str, Path]:
    """Checkpoints that must be refused, by what is wrong with them."""
    bad = {
        name: Path(shutil.copytree(good, folder / name.replace(" ", "-")))
        for name in ("missing shard", "other architecture", "NaN", "half-written")
    }
    weights = load_file(good / "model.safetensors")
    first, second = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    shards = bad["missing shard"]
    (shards / "model.safetensors").unlink()
    save_file({name: t for name, t in weights.items() if "mlp" not in name}, shards / first)
    places = {name: second if "mlp" in name else first for name in weights}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.rmtree(bad["other architecture"])
    build_tiny(bad["other architecture"], num_key_value_heads=2)
    spoilt = {name: tensor.clone() for name, tensor in weights.items()}
    spoilt["score.weight"][0, 0] = torch.nan
    save_file(spoilt, bad["NaN"] / "model.safetensors", metadata={"format": "pt"})
    file = bad["half-written"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return bad


def run_reloads(
    control: ScoringClient, good: dict[str, Path], bad: dict[str, Path], number: int
) -> dict[str, Any]:
    """Reload again and again; every fifth time a bad checkpoint comes first."""
    refused: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    seconds = []
    kinds = list(bad)
    for turn in range(number):
        if turn % 5 == 4:
            kind = kinds[turn // 5 % len(kinds)]
            try:
                control.reload(str(bad[kind]))
                wrong[f"{kind}: taken"] += 1
            except ServiceError as error:
                if error.error_code == "reload_refused":
                    refused[kind] += 1
                else:
                    wrong[f"{kind}: {error.detail[:160]}"] += 1
        version = VERSIONS[turn % len(VERSIONS)]
        try:
            answers = control.reload(str(good[version]), version)
        except ServiceError as error:
            wrong[f"good: {error.detail[:160]}"] += 1
            continue
        seconds.append(answers[0]["seconds"])
        if answers[0]["fingerprint"]["version"] != version:
            wrong["another version"] += 1
        if turn % 20 == 0:
            print(f"  reload {turn}", flush=True)
    return {"refused": refused, "wrong": wrong, "seconds": seconds}


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--reloads", type=int, default=100)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--ray", action="store_true", help="with Ray; by default one process")
    parser.add_argument("--replicas", type=int, default=2, help="on Ray")
    parser.add_argument("--gateways", type=int, default=2, help="on Ray")
    options = parser.parse_args()
    pool = Writer(options.seed).pool()
    flags = [] if options.ray else ["--local"]
    settings = {"num_gateways": options.gateways} if options.ray else {}
    model: dict[str, Any] = {"deterministic": True}
    if options.ray:
        model["num_replicas"] = options.replicas
    with tempfile.TemporaryDirectory() as folder:
        good = {
            version: build_tiny(Path(folder) / version, seed)
            for seed, version in enumerate(VERSIONS)
        }
        bad = build_bad(good["one"], Path(folder))
        options.model = str(good["one"])
        with service_of(options, *flags, model=model, **settings) as service:
            with ScoringClient(service.url) as control:
                alone = {}
                for version, path in good.items():
                    control.reload(str(path), version)
                    if options.ray:
                        time.sleep(_OTHER_GATEWAYS_S)
                    alone[version] = undisturbed(service, pool)
                answers = Answers(alone)
                with Load(service, pool, answers, options):
                    found = run_reloads(control, good, bad, options.reloads)
            counted = service.metric("skyreward_model_reloads_total")
    num_bad = options.reloads // 5
    checks = {
        "the versions give different rewards": len({tuple(r) for r in alone.values()}) == 3,
        "every request was answered with the rewards of one version": not answers.wrong
        and answers.requests > 0,
        "answers of every version came": set(answers.by_version) == set(VERSIONS),
        "every reload of a good checkpoint was done": not found["wrong"]
        and len(found["seconds"]) == options.reloads,
        "every bad checkpoint was refused": found["refused"].total() == num_bad,
        "the service counted them": counted == options.reloads + num_bad + len(VERSIONS),
    }
    figures = {
        "reloads": len(found["seconds"]),
        "reload_ms": percentiles(found["seconds"]),
        "refused": dict(found["refused"]),
        "requests": answers.requests,
        "by_version": dict(answers.by_version),
        "latency_ms": percentiles(answers.seconds),
        "wrong": dict((answers.wrong + found["wrong"]).most_common(8)),
    }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
