"""API keys: which keys are known, the warnings about them, and that no key leaves the process."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
from fakes import FakeBackend
from fastapi.testclient import TestClient
from middleware_harness import KEY, OTHER_KEY

from rm_core import ModelLoadError
from serve.api.app import create_app
from serve.api.middleware.access import KeyRing, build_key_warnings
from serve.config.settings import Settings, read_settings_file
from serve.launch import ray
from serve.scoring.service import ScoringService


def test_keys_of_settings_and_file_are_known(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# trainers\n\n  {OTHER_KEY}  \n# nobody\n")
    ring = KeyRing.from_settings(Settings.load(api_keys=[KEY], api_keys_file=str(file)))
    assert len(ring) == 2
    names = [ring.find_name(key.encode()) for key in (KEY, OTHER_KEY)]
    assert None not in names
    assert len(set(names)) == 2
    for unknown in (b"", KEY[:-1].encode(), KEY.upper().encode(), b"# trainers", b"\xff\x00"):
        assert ring.find_name(unknown) is None


def test_key_ring_holds_only_digests() -> None:
    ring = KeyRing.from_settings(Settings.load(api_keys=f"{KEY}, {OTHER_KEY} {KEY}"))
    assert ring.digests == tuple(hashlib.sha256(k.encode()).hexdigest() for k in (KEY, OTHER_KEY))
    assert KEY not in repr(vars(ring))
    again = KeyRing.from_digests(ring.digests)
    assert again.find_name(KEY.encode()) == ring.find_name(KEY.encode())
    name = str(again.find_name(KEY.encode()))
    assert name.startswith("key-")
    assert name.removeprefix("key-") not in ring.digests[0]


def test_key_ring_without_keys_is_empty() -> None:
    ring = KeyRing.from_settings(Settings.load())
    assert not ring
    assert ring.find_name(b"") is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has no key"),
        (b"# only\n\n", "has no key"),
        (f"{KEY}\nshort12\n".encode(), "line 2 of"),
        ("schlüssel-schlüssel\n".encode(), "ASCII"),
        (b"two keys in-one-line\n", "white space"),
        (b"\xff\xfe\x00latin-latin\n", "UTF-8"),
    ],
)
def test_unusable_key_file_stops_start(tmp_path: Path, content: bytes, expected: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(ModelLoadError, match=expected) as caught:
        KeyRing.from_settings(Settings.load(api_keys_file=str(file)))
    for secret in ("short12", "schlüssel", "two keys", "latin-latin", KEY):
        assert secret not in caught.value.detail


def test_missing_key_file_and_short_key_stop_start(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ModelLoadError, match="--api-keys"):
            KeyRing.from_settings(Settings.load(api_keys_file=str(path)))
    with pytest.raises(ModelLoadError, match="key 2 of `api_keys`"):
        KeyRing.from_settings(Settings.load(api_keys=[KEY, "1234567"]))


@pytest.mark.parametrize(
    "chosen",
    [
        {"api_keys": [KEY], "port": 0},
        {"api_keys": {KEY: 1}},
        {"api_keys": [KEY, 12345678901]},
        {"api_key": KEY},
        {"api_keys": [KEY], "tls_cert_file": "cert.pem"},
        {"api_keys": [KEY], "max_body_bytes": 2**40},
    ],
)
def test_settings_errors_do_not_show_keys(chosen: dict[str, object]) -> None:
    with pytest.raises(ModelLoadError) as caught:
        Settings.load(**chosen)
    with pytest.raises(ValueError, match="validation error") as raw:  # as Serve would raise it
        Settings.model_validate(chosen)
    for text in (caught.value.detail, str(raw.value)):
        assert KEY not in text
        assert "12345678901" not in text


def test_unreadable_settings_file_error_does_not_show_keys(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    for text in (f"api_keys: [{KEY}\nport: 1", f"api_keys: '{KEY}\n", f"api_keys: {KEY}: 1"):
        file.write_text(text)
        with pytest.raises(ModelLoadError, match="cannot be read") as caught:
            read_settings_file(file)
        assert KEY not in caught.value.detail


def test_responses_and_logs_do_not_show_keys(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.load(api_keys=[KEY, OTHER_KEY])
    app = create_app(ScoringService([(settings.models[0], FakeBackend())], settings), settings)
    with caplog.at_level(logging.DEBUG), TestClient(app) as client:
        headers = {"Authorization": f"Bearer {KEY}"}
        info = client.get("/info", headers=headers)
        wrong = client.get("/info", headers={"Authorization": f"Bearer {KEY}-not"})
        document = client.get("/openapi.json", headers=headers)
    assert info.json()["settings"]["api_keys"] == ["**********"] * 2
    assert wrong.status_code == 401
    shown = [info.text, wrong.text, document.text, caplog.text, repr(settings), str(vars(app))]
    shown += [settings.model_dump_json()]
    assert not any(KEY in text or OTHER_KEY in text for text in shown)


def test_open_service_without_keys_gets_warning() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "lab.example.org"):
        settings = Settings.load(host=host)
        (warning,) = build_key_warnings(settings, KeyRing.from_settings(settings), KeyRing())
        assert f"no API keys are configured, and the service listens on {host}" in warning
        assert "--api-keys" in warning
    for settings in (Settings.load(), Settings.load(host="::1"), Settings.load(host="localhost")):
        assert build_key_warnings(settings, KeyRing.from_settings(settings), KeyRing()) == []
    settings = Settings.load(host="0.0.0.0", api_keys=[KEY])
    assert build_key_warnings(settings, KeyRing.from_settings(settings), KeyRing()) == []


def test_short_keys_are_accepted_with_warning(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"eight-88\n{KEY}\n")
    settings = Settings.load(api_keys_file=str(file), api_keys=["fifteen-fifteen"])
    ring = KeyRing.from_settings(settings)
    assert len(ring) == 3
    (warning,) = build_key_warnings(settings, ring, KeyRing())
    assert f"key 1 of `api_keys`, line 1 of {file}: fewer than 16" in warning
    assert "eight-88" not in warning


def test_preflight_checks_report_key_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "check_address", lambda _: None)
    lines: list[str] = []
    ray.run_preflight_checks(Settings.load(host="0.0.0.0"), lines.append)
    assert sum("no API keys" in line for line in lines) == 1
