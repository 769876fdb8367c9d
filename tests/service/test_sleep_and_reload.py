"""A service in one process: sleep, wake and reload by command, and a folder that it watches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from checkpoints import SPECS, build_checkpoint
from click.testing import CliRunner
from preloaded import run_service
from service_process import damage
from waiting import until

from serve.cli.main import main
from serve.client import ScoringClient

BODY = {
    "conversations": [
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": f"It is {n}."}]
        for n in range(8)
    ]
}
KEY, ADMIN_KEY = "ordinary-ordinary-key", "admin-admin-admin-key"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Checkpoints that differ in their weights alone."""
    root = tmp_path_factory.mktemp("versions")
    spec = SPECS["qwen3"]
    return [build_checkpoint(root / f"v{seed}", replace(spec, seed=seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def url(
    folders: list[Path], watched: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    files = tmp_path_factory.mktemp("keys")
    (files / "keys").write_text(KEY)
    (files / "admin").write_text(ADMIN_KEY)
    options = ["--model", f"rm={folders[0]}", "--watch", str(watched)]
    options += ["--api-keys", str(files / "keys"), "--admin-api-keys", str(files / "admin")]
    with run_service(*options) as url:
        yield url


def score(url: str) -> dict[str, Any]:
    answer = httpx.post(
        f"{url}/v1/score",
        json=BODY,
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def command(url: str, *arguments: str, key: str = ADMIN_KEY) -> Any:
    return CliRunner().invoke(main, [*arguments, "--url", url, "--api-key", key])


@pytest.mark.parametrize("level", [1, 2])
def test_rewards_after_sleep_are_those_of_before(url: str, level: int) -> None:
    before = score(url)
    asleep = json.loads(command(url, "sleep", "--level", str(level)).output)
    assert (asleep["state"], asleep["sleep_level"]) == ("asleep", level)
    assert asleep["freed_bytes"] >= 0
    refused = httpx.post(
        f"{url}/v1/score", json=BODY, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
    )
    assert refused.json()["error"]["code"] == "model_asleep"
    assert json.loads(command(url, "wake").output)["state"] == "ready"
    after = score(url)
    assert after["results"] == before["results"]
    assert after["fingerprint"] == before["fingerprint"]


def test_ordinary_key_may_not_control_models(url: str) -> None:
    refused = command(url, "sleep", key=KEY)
    assert refused.exit_code == 1
    assert "answered 403" in refused.output


def test_reload_gives_rewards_of_new_weights_and_refuses_damaged_ones(
    url: str, folders: list[Path], tmp_path: Path
) -> None:
    before = score(url)
    done = json.loads(command(url, "reload", str(folders[1]), "--version", "one").output)
    assert done["fingerprint"]["version"] == "one"
    after = score(url)
    assert after["fingerprint"] == done["fingerprint"]
    assert after["results"] != before["results"]
    bad = Path(shutil.copytree(folders[2], tmp_path / "bad"))
    damage(bad, "NaN")
    refused = command(url, "reload", str(bad))
    assert refused.exit_code == 1
    assert "answered 409" in refused.output
    assert score(url)["results"] == after["results"]


def test_new_checkpoint_of_watched_folder_is_taken(
    url: str, folders: list[Path], watched: Path
) -> None:
    shutil.copytree(folders[2], watched / "checkpoint-20")
    with ScoringClient(url, api_key=KEY) as client:

        def version() -> str | None:
            (model,) = client.get("/v1/models")["data"]
            found: str | None = model["fingerprint"].get("version")
            return found

        until(lambda: version() == "checkpoint-20")
        bad = Path(shutil.copytree(folders[1], watched / "tmp-checkpoint-30"))
        damage(bad, "NaN")
        bad.rename(watched / "checkpoint-30")
        refused = 'skyreward_model_reloads_total{model="rm",outcome="refused"} '

        def count_refused() -> float:
            text = httpx.get(f"{url}/metrics", trust_env=False).text
            return float(text.split(refused)[1].split("\n")[0])

        before = count_refused()
        until(lambda: count_refused() == before + 1)
        assert version() == "checkpoint-20"
        shutil.copytree(folders[0], watched / "checkpoint-40")
        until(lambda: version() == "checkpoint-40")
        assert count_refused() == before + 1
