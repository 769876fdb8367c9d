"""Both log formats, on standard error."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from serve.telemetry.logging import CURRENT_REQUEST, RequestContext, configure_logging


@pytest.fixture
def _in_request() -> Iterator[None]:
    token = CURRENT_REQUEST.set(RequestContext("step-7"))
    yield
    CURRENT_REQUEST.reset(token)


FIELDS = {"route": "/v1/score", "status": 200, "total_s": 0.25, "model": 'a "b"\nc'}


@pytest.mark.usefixtures("_in_request")
def test_json_log_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    logging.getLogger("serve.x").info("request %d", 1, extra={"fields": FIELDS})
    logging.getLogger("rm_core.y").warning("two\nlines")
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    time = datetime.fromisoformat(first.pop("time"))
    offset = time.utcoffset()
    assert offset is not None
    assert not offset
    assert first == {
        "level": "INFO",
        "logger": "serve.x",
        "message": "request 1",
        "request_id": "step-7",
        **FIELDS,
    }
    assert (second["level"], second["message"]) == ("WARNING", "two\nlines")


def test_json_log_has_traceback_in_exception(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("serve").exception("failed")
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["request_id"]) == ("failed", "-")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: broken")


def test_fields_do_not_overwrite_members_of_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "json")
    logging.getLogger("serve").info("m", extra={"fields": {"level": "x", "other": None}})
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["other"]) == ("INFO", None)


@pytest.mark.usefixtures("_in_request")
def test_text_log_has_fields_after_message(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", "text")
    logging.getLogger("serve.x").info("request", extra={"fields": FIELDS})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        " INFO serve.x [step-7] request route=/v1/score status=200 total_s=0.2500 "
        r'model="a \"b\"\nc"'
    )


def test_configuring_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        configure_logging("WARNING", "text")
    logging.getLogger("serve").info("quiet")
    logging.getLogger("serve").warning("loud")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
def test_uvicorn_errors_are_logged_and_access_log_is_not(
    capsys: pytest.CaptureFixture[str], level: str
) -> None:
    configure_logging(level, "json")
    logging.getLogger("uvicorn.access").info("GET /secret")
    logging.getLogger("uvicorn.error").error("Exception in ASGI application")
    line = json.loads(capsys.readouterr().err)
    assert line["logger"] == "uvicorn.error"
