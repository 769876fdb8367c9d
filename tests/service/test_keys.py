"""API keys of a running service, and the digests that Ray gets."""

from __future__ import annotations

from pathlib import Path

import httpx
from command_line import invoke
from middleware_harness import KEY, OTHER_KEY
from preloaded import run_service
from ray import cloudpickle
from waiting import PATIENCE_S

from serve.api.middleware.access import KeyRing
from serve.app import build
from serve.config.settings import Settings


def test_service_with_key_file_requires_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# keys of the trainers\n{KEY}\n{OTHER_KEY}\n")
    pair = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
    with (
        run_service("--api-keys", str(file)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=PATIENCE_S) as client,
    ):
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 200
        for headers, status in (
            ({}, 401),
            ({"Authorization": f"Bearer {KEY[1:]}"}, 401),
            ({"Authorization": f"Bearer {KEY}"}, 200),
            ({"Authorization": f"Bearer {OTHER_KEY}"}, 200),
        ):
            answer = client.post("/v1/compare", json={"pairs": [pair]}, headers=headers)
            assert answer.status_code == status


def test_bad_key_file_stops_start(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("pass\n")
    result = invoke("serve", "--api-keys", file)
    assert result.exit_code == 1
    assert "line 1 of" in result.stderr
    assert "Traceback" not in result.stderr


def test_only_digests_are_sent_to_gateway() -> None:
    settings = Settings.load(api_keys=[KEY])
    sent = cloudpickle.dumps(build(settings))
    (digest,) = KeyRing.from_settings(settings).digests
    assert digest.encode() in sent
    assert KEY.encode() not in sent
