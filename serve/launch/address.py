"""The address of the service: checks that it can be used, and how local clients reach it."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing

import httpx

from rm_core import ModelLoadError
from serve.config.settings import Settings


def check_address(settings: Settings) -> None:
    """Check, before anything is started, that the service can listen on its address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        with closing(socket.socket(family, kind)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ModelLoadError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}; stop the "
            "process that listens there, or choose another --port or --host"
        ) from error
    if settings.tls_cert_file is None:
        return
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise ModelLoadError(
            f"the certificate {settings.tls_cert_file} with the key {settings.tls_key_file} cannot "
            f"be used: {error}; both must be readable PEM files, the key without a passphrase"
        ) from error


def get_service_url(settings: Settings) -> str:
    """Return the URL at which a client on this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    scheme = "https" if settings.tls_cert_file else "http"
    return (
        f"{scheme}://[{host}]:{settings.port}"
        if ":" in host
        else (f"{scheme}://{host}:{settings.port}")
    )


def format_ready_line(settings: Settings) -> str:
    """Format the line that announces the service and its address."""
    models = ", ".join(model.alias for model in settings.models)
    return f"ready: POST {get_service_url(settings)}/v1/score  (models: {models}; docs: /docs)"


def create_client(settings: Settings) -> httpx.Client:
    """Create a client that asks the service started here whether it is ready."""
    # The service may have a certificate for another name, or one that this machine does not trust;
    # nothing secret is sent.
    return httpx.Client(
        base_url=get_service_url(settings), timeout=5, trust_env=False, verify=False
    )
