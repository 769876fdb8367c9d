"""Evaluations as processes: `skyreward eval` as a person starts it, and what it took."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.jobs.output import get_job_folder
from serve.jobs.store import read_finished_manifest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "stress")]


@dataclass(frozen=True, slots=True)
class Way:
    """One `skyreward eval`.

    Attributes:
        folder: what it wrote.
        seconds: from its start to its end.
    """

    folder: Path
    seconds: float

    @property
    def summary(self) -> bytes:
        return (self.folder / "summary.json").read_bytes()

    @property
    def rewards(self) -> dict[tuple[str, str], list[float]]:
        """By subset and id, of the items that have any."""
        lines = (self.folder / "scores.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        return {(row["subset"], row["id"]): row["rewards"] for row in rows}

    @property
    def max_length(self) -> int:
        """Most tokens of a conversation."""
        kept = json.loads((self.folder / "scored_by.json").read_text())
        return int(kept["model"]["max_length"])

    def figures(self) -> dict[str, Any]:
        """What the job took."""
        manifest = read_finished_manifest(get_job_folder(self.folder / "rewards.jsonl"))
        assert manifest
        assert manifest.completion
        took = manifest.completion.summary
        saved = {
            "not_computed": took.num_saved_tokens,
            "shared": took.num_shared_tokens,
            "repeated": took.num_repeated_tokens,
            "in_score_cache": took.num_cached_tokens,
        }
        return {
            "wall_s": round(self.seconds, 1),
            "scoring_s": round(took.seconds, 1),
            "conversations": took.num_conversations,
            "tokens": took.num_tokens,
            **{name: round(count / max(1, took.num_tokens), 4) for name, count in saved.items()},
            "tokens_per_s": round(took.tokens_per_s),
        }


def evaluated(benchmark: str, data: Path, folder: Path, *how: str) -> Way:
    """Run it as a person does."""
    command = [sys.executable, "-m", "serve.cli.main", "eval", benchmark, "--data", str(data)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        [*command, *how, "-o", str(folder)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"exit code {done.returncode}: {done.stderr[-2000:]}")
    return Way(folder, time.perf_counter() - started)


def part_of(data: Path, folder: Path, share: float) -> Path:
    """So much of each file, spread over it; all of it for a share of 1."""
    if share >= 1:
        return data
    for path in sorted(data.rglob("*.json*")):
        text = path.read_text(encoding="utf-8")
        is_array = path.suffix == ".json"
        rows = json.loads(text) if is_array else [json.loads(line) for line in text.splitlines()]
        kept = rows[:: max(1, math.floor(1 / share))]
        part = folder / path.relative_to(data.parent)
        part.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in kept)
        part.write_text(json.dumps(kept) if is_array else lines)
    return folder / data.name
