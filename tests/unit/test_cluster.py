"""Start of a private Ray cluster: its token, its folder, and the environment it inherits."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rm_core import ModelLoadError
from serve.config.settings import Settings
from serve.deployments import cluster
from serve.launch import ray

AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in AUTH:
        monkeypatch.setenv(name, "")  # so that monkeypatch undoes what the test sets
        monkeypatch.delenv(name)


def test_private_cluster_gets_random_token(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.enable_token_auth()
    assert os.environ["RAY_AUTH_MODE"] == "token"
    first = os.environ["RAY_AUTH_TOKEN"]
    assert len(first) == 64
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    # Ray would write a token that everybody can read.
    cluster.enable_token_auth()
    assert os.environ["RAY_AUTH_TOKEN"] not in ("", first)


@pytest.mark.parametrize("given", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "file"])
def test_configured_token_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    if given == "file":
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("x")
    else:
        monkeypatch.setenv(given, "x")
    before = dict(os.environ)
    cluster.enable_token_auth()
    assert dict(os.environ) == before


@pytest.mark.parametrize("mode", ["disabled", "k8s", ""])
def test_cluster_without_token_is_refused(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    messages: list[str] = []
    for start in (
        lambda: cluster.enable_token_auth(),
        lambda: cluster.connect("local"),
        lambda: ray.run_with_ray(Settings.load(), messages.append),
    ):
        with pytest.raises(ModelLoadError, match=r"RAY_AUTH_MODE is .* can run code .*Unset it"):
            start()
    assert not messages
    cluster.enable_token_auth(insecure=True)
    assert os.environ["RAY_AUTH_MODE"] == mode


def test_warning_is_logged_for_cluster_without_token(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.warn_without_token()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "requires no token" in record.getMessage()
    caplog.clear()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    cluster.warn_without_token()
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value", "warns"),
    [
        ("RAY_SERVE_ENABLE_HA_PROXY", "0", True),
        ("RAY_SERVE_ENABLE_HA_PROXY", "1", False),
        ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "others:middlewares", True),
        (
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
            "serve.api.middleware.ray_proxy:middlewares",
            False,
        ),
    ],
)
def test_warning_is_logged_for_proxy_without_limits(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    value: str,
    warns: bool,
) -> None:
    monkeypatch.setenv(name, value)
    cluster.warn_without_limits()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns


def test_private_folder_is_private_with_short_socket_paths() -> None:
    with cluster.create_private_folder() as root:
        assert stat.S_IMODE(Path(root).stat().st_mode) == 0o700
        folder = cluster.build_local_cluster_options(Path(root))["_temp_dir"]
        assert folder.startswith(root)
        # The longest path that Ray creates there, with process ids of 7 digits.
        session = f"{folder}/session_2026-01-01_00-00-00_123456_1234567"
        assert len(f"{session}/sockets/plasma_store.123456") <= 107
    assert not Path(root).exists()


def test_hide_settings_removes_variables_while_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "SKYREWARD_API_KEYS": "correct-horse",
        "skyreward_api_keys": "battery",
        "SKYREWARD_API_KEY": "staple",
        "SKYREWARD_OTLP_ENDPOINT": "http://user:password@collector",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", "needed by the scorers")
    before = dict(os.environ)
    with cluster.hide_settings():
        assert dict(os.environ) == {k: v for k, v in before.items() if k not in variables}
    assert dict(os.environ) == before
