"""What the status routes show and hide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import FakeBackend
from fastapi.testclient import TestClient

from serve.api.app import create_app
from serve.config.settings import Settings
from serve.scoring.service import ScoringService

KEY = "correct-horse-battery"


def shown(route: str, **chosen: Any) -> Any:
    settings = Settings.load(**chosen)
    app = create_app(ScoringService([(settings.models[0], FakeBackend())], settings), settings)
    # The lifespan stops the trace exporter, whose retries would use the global `random` during
    # the next tests.
    with TestClient(app) as client:
        return client.get(route, headers={"Authorization": f"Bearer {KEY}"}).json()


def test_status_routes_show_file_names_without_folders(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint_of("qwen3")
    template = tmp_path / "own.jinja"
    template.write_text((folder / "chat_template.jinja").read_text())
    keys = tmp_path / "keys.txt"
    keys.write_text(KEY)
    chosen = {
        "models": [{"name": str(folder), "alias": "rm", "chat_template": str(template)}],
        "api_keys_file": str(keys),
        "tls_cert_file": str(tmp_path / "cert.pem"),
        "tls_key_file": str(tmp_path / "key.pem"),
    }
    info, listed = shown("/info", **chosen), shown("/v1/models", **chosen)
    (model,) = info["settings"]["models"]
    assert (model["name"], model["chat_template"]) == ("qwen3", "own.jinja")
    assert info["settings"]["api_keys_file"] == "keys.txt"
    assert info["settings"]["tls_cert_file"] == "cert.pem"
    assert info["settings"]["tls_key_file"] == "key.pem"
    assert info["model_id"] == info["models"]["rm"]["root"] == listed["data"][0]["root"] == "qwen3"
    for text in map(str, (info, listed)):
        assert str(folder.parent) not in text
        assert str(tmp_path) not in text


def test_info_shows_url_without_credentials() -> None:
    endpoint = "http://user:secret-1@127.0.0.1:9/v1/traces?token=secret-2"
    info = shown("/info", api_keys=[KEY], otlp_endpoint=endpoint)
    assert info["settings"]["otlp_endpoint"] == "http://127.0.0.1:9/v1/traces"
    assert "secret-" not in str(info)


def test_info_shows_whole_model_name() -> None:
    info = shown("/info", api_keys=[KEY])
    assert info["settings"]["models"][0]["name"] == info["model_id"] == "demo"
    assert info["settings"]["otlp_endpoint"] is None
