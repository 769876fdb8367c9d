"""Addresses of the service: URLs for clients, and checks before the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from certificates import write_certificate
from conftest import find_free_port

from rm_core import ModelLoadError
from serve.config.settings import Settings
from serve.launch.address import check_address, format_ready_line, get_service_url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("::", "http://[::1]:9000"),
        ("rm.example.org", "http://rm.example.org:9000"),
    ],
)
def test_service_url_for_local_clients(host: str, url: str) -> None:
    settings = Settings.load(host=host, port=9000)
    assert get_service_url(settings) == url
    assert f"POST {url}/v1/score  (models: demo;" in format_ready_line(settings)


def test_service_url_is_https_with_certificate(tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    settings = Settings.load(port=9000, tls_cert_file=str(cert), tls_key_file=str(key))
    assert get_service_url(settings) == "https://127.0.0.1:9000"


def test_unusable_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cert, key = write_certificate(tmp_path)
    _, other = write_certificate(tmp_path / "other")
    check_address(
        Settings.load(port=find_free_port(), tls_cert_file=str(cert), tls_key_file=str(key))
    )
    for bad_key in (other, cert, tmp_path / "nowhere"):
        settings = Settings.load(
            port=find_free_port(), tls_cert_file=str(cert), tls_key_file=str(bad_key)
        )
        with pytest.raises(ModelLoadError, match=r"cannot be used: .*; both must be readable PEM"):
            check_address(settings)


def test_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"cannot listen on 192\.0\.2\.1"):
        check_address(Settings.load(host="192.0.2.1", port=find_free_port()))
