"""Untrusted text does not control the terminal of the person who runs a command."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.table import Table

from rm_core import ModelInfo
from rm_core.verification import Check
from serve.cli.catalog import print_checks
from serve.cli.main import main
from serve.console import Console
from serve.escaping import EscapingFormatter, dump_json, escape_line, escape_text
from serve.evaluation.console import print_table
from serve.telemetry.logging import TextFormatter

EVIL = "\x1b]0;PWN\x07[bold red]x[/nope]\x1b[2J\x9b31m\u202e:smile:\r\u2066\ud800"
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Any character, the unsafe ones often.
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from(EVIL + "[/]\n\t")))


@given(TEXTS)
def test_escaped_text_has_no_unsafe_characters(text: str) -> None:
    shown = escape_text(text)
    assert not UNSAFE.search(shown)
    assert escape_text(shown) == shown
    if not UNSAFE.search(text):
        assert shown == text
    # Further lines are indented, so none can pass for our own message.
    assert all(line.startswith("  ") for line in escape_line(text).split("\n")[1:])


def test_escapes_name_the_character() -> None:
    assert escape_text("a\x1b[2J\x9b\u202eb\tc\nd") == "a\\x1b[2J\\x9b\\u202eb\tc\nd"
    assert escape_text("日本 שלום é") == "日本 שלום é"


@given(st.recursive(TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner)))
def test_dump_json_is_safe_and_round_trips(value: Any) -> None:
    text = dump_json(value, indent=1)
    assert not UNSAFE.search(text)
    assert json.loads(text) == value


@settings(max_examples=50)
@given(TEXTS)
def test_tables_escape_unsafe_characters(text: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        table = Table(title=text)
        table.add_column(text)
        table.add_row(text)
        Console().print(table)
        Console().print(text)
        print_table(text, [text, text], [[text, text]])
        info = ModelInfo(**dict.fromkeys((field.name for field in fields(ModelInfo)), text))
        print_checks(info, [Check(text, None, 0.0, 0.0, False, text)])
    assert not UNSAFE.search(out.getvalue())


def test_tables_keep_markup_and_emoji_codes(capsys: pytest.CaptureFixture[str]) -> None:
    Console().print("skyreward[flash] :smile: [/x]")
    assert capsys.readouterr().out == "skyreward[flash] :smile: [/x]\n"


@pytest.mark.parametrize("formatter", [EscapingFormatter("%(message)s"), TextFormatter()])
def test_log_lines_are_escaped(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(EVIL)
    except ValueError:
        record = logging.LogRecord("serve", 30, "", 0, "%s", (EVIL,), sys.exc_info())
    assert not UNSAFE.search(formatter.format(record))
    assert "PWN" in formatter.format(record)


@contextlib.contextmanager
def service(refuse: int = 0) -> Iterator[str]:
    """Run a service with hostile text everywhere, which refuses the first `refuse` requests."""
    fingerprint = {
        "revision": EVIL, "template_sha256": "t", "dtype": "float32", "attention": "sdpa",
    }  # fmt: skip
    model = {"state": "ready", "fingerprint": fingerprint, "max_model_len": 9}
    model |= {"encoding_sha256": "e", "kind": "classifier"}
    left = [refuse]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"models": {EVIL: model}})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if left[0]:
                left[0] -= 1
                self.answer(503, {"error": {"message": EVIL}})
                return
            error = {"error": {"code": EVIL, "message": EVIL}}
            good = {"reward": 1.0, "num_tokens": 1, "truncated": False, "warnings": [f"{EVIL}: x"]}
            results = [error, *[good] * (len(body["conversations"]) - 1)]
            self.answer(200, {"results": results, "usage": {}, "fingerprint": fingerprint})

        def answer(self, status: int, body: Any) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not UNSAFE.search(done.output)
    return done


def test_score_escapes_messages_of_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "\x1b[31m[red]\u202e"
    pairs = [{"prompt": "a", "chosen": f"b{n}", "rejected": "c", EVIL[:-1]: n} for n in range(3)]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    output = tmp_path / f"out{name}.jsonl"
    with service(refuse=1) as url:
        done = run("score", tmp_path / f"{name}.jsonl", "-o", output, "--url", url)
    assert done.exit_code == 3
    assert "\\x1b]0;PWN\\x07[bold red]x[/nope]" in done.output
    assert json.loads(output.read_text().splitlines()[0])["error"]["code"] == EVIL
    assert "trying again" in caplog.text


def test_error_messages_escape_names(tmp_path: Path) -> None:
    missing = tmp_path / "\x1b[31m\u202e"
    for arguments in (
        ("score", missing, "-o", tmp_path / "out.jsonl"),
        ("score", missing, "-o", tmp_path / "out.jsonl", missing),
        ("eval", "judgebench", "--data", missing, "--model", "demo", "-o", tmp_path / "out"),
        ("models", "\x1b[31m"),
        ("render", missing),
        ("render", "--model", missing, "-"),
        ("verify", "--model", missing),
        ("plan", "--model", missing),
        ("serve", "--model", f"\x1b={missing}", "--local"),
        ("\x1b[31m",),
        ("--\x1b[31m",),
        ("score", "--\x1b[31m"),
        ("compare-runs", missing, missing),
        ("leaderboard", "judgebench", missing),
    ):
        done = run(*arguments)
        assert done.exit_code in (1, 2), (arguments, done.output)
        assert "\\x1b" in done.output, arguments


def test_render_prints_json_without_control_characters(tmp_path: Path) -> None:
    content = EVIL.replace("\ud800", "")
    file = tmp_path / "in.jsonl"
    file.write_text(json.dumps({"messages": [
        {"role": "user", "content": content}, {"role": "assistant", "content": "b"},
    ]}))  # fmt: skip
    done = run("render", "--model", "demo", file)
    assert done.exit_code == 0
    assert content in json.loads(done.output)["text"]
