"""Does every route want a key, and does no key get out?

What is checked: a service that was started with a file of two keys, and every route in its OpenAPI
document, the document itself and the pages that are not in it: without a key, with wrong keys of
several kinds, with each right one. Only `/health`, `/ready` and `/metrics` may be open. No key may
stand in `/info`, in `/metrics` or in the service's log. The last line is one JSON object.

    python tests/stress/keys.py [--local]
"""

from __future__ import annotations

import base64
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from openapi_operations import Operation, operations_of
from service import parser_of, service_of
from stress_result import finish

OPEN = ("/health", "/ready", "/metrics")
PAGES = ("/", "/openapi.json", "/docs", "/redoc", "/metrics", "/no/such/route")


def wrong_headers(key: str) -> dict[str, Mapping[str, str]]:
    """What must not open anything, made of a key that would."""
    basic = base64.b64encode(f"user:{key}".encode()).decode()
    values = {
        "another key": f"Bearer {secrets.token_urlsafe(32)}",
        "its beginning": f"Bearer {key[:-1]}",
        "more than it": f"Bearer {key}x",
        "nothing after Bearer": "Bearer",
        "no scheme": key,
        "Basic": f"Basic {basic}",
        "bytes beyond ASCII": f"Bearer {key[:-1]}\xe9",
    }
    headers = {name: {"Authorization": value} for name, value in values.items()}
    return {"no key": {}, **headers, "another header": {"X-Api-Key": key}}


def send(http: httpx.Client, operation: Operation, headers: Mapping[str, str]) -> httpx.Response:
    """With the body that the document gives as an example."""
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    return http.request(
        operation.method,
        operation.path,
        headers=encoded,  # type: ignore[arg-type]
        json=operation.example if operation.method == "POST" else None,
    )


def wrong_in(http: httpx.Client, operation: Operation, keys: list[str]) -> list[str]:
    """What is not as it should be with one route."""
    found = []
    name = f"{operation.method} {operation.path}"
    for how, headers in wrong_headers(keys[0]).items():
        answer = send(http, operation, headers)
        if operation.path in OPEN:
            if not answer.is_success:
                found.append(f"{name}, {how}: {answer.status_code}, and should be open")
        elif answer.status_code != 401:
            found.append(f"{name}, {how}: {answer.status_code} instead of 401")
        elif not answer.headers.get("www-authenticate", "").startswith("Bearer"):
            found.append(f"{name}, {how}: 401 without WWW-Authenticate: Bearer")
        elif not {"error", "detail"} & set(answer.json()):
            found.append(f"{name}, {how}: 401 without an error")
    for key in keys:
        answer = send(http, operation, {"Authorization": f"Bearer {key}"})
        good = answer.status_code < 400 or operation.path == "/no/such/route"
        if answer.status_code == 401 or not good:
            found.append(f"{name}, a right key: {answer.status_code} {answer.text[:200]}")
    return found


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--key", help="one that the service at --url knows")
    options = parser.parse_args()
    flags = ("--local",) if options.local else ()
    keys = [options.key] if options.url else [secrets.token_urlsafe(32) for _ in range(2)]
    if None in keys:
        parser.error("with --url give a --key of that service")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+b") as log:
        file = Path(folder) / "keys"
        file.write_text("\n".join(keys) + "\n")
        with (
            # INFO: a line for each request, in which no key may stand.
            service_of(
                options, *flags, "--api-keys", str(file), output=log, log_level="INFO"
            ) as service,
            httpx.Client(base_url=service.url, timeout=60, trust_env=False) as http,
        ):
            bearer = {"Authorization": f"Bearer {keys[0]}"}
            operations = operations_of(http.get("/openapi.json", headers=bearer).json())
            pages = [Operation("GET", path, False, None) for path in PAGES]
            wrong = [w for o in [*operations, *pages] for w in wrong_in(http, o, keys)]
            told = [http.get(path, headers=bearer).text for path in ("/info", "/metrics")]
        log.seek(0)
        said = log.read().decode(errors="replace")
    leaks = [
        place
        for place, text in (("/info", told[0]), ("/metrics", told[1]), ("the log", said))
        if any(key in text for key in keys)
    ]
    checks = {
        "every route but the open ones wants a right key": not wrong,
        "no key in /info, /metrics or the log": not leaks,
    }
    figures: dict[str, Any] = {
        "routes": [f"{o.method} {o.path}" for o in operations],
        "wrong": wrong[:20],
        "num_wrong": len(wrong),
        "leaks": leaks,
        "log_lines": said.count("\n"),
    }
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
