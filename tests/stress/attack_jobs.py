"""Hostile inputs, services and links against `skyreward score`: what it takes, what it does.

Each attack runs the command line itself in a process of its own, whose time and peak of memory are
measured:

- a lock of the job that is a link to somebody's file;
- a compressed file of one line of 300 MB, a Parquet file of a kilobyte with a shared text of 16 MB;
- a saved data set that names a file outside its folder;
- a service that answers a gzip bomb, that says nothing (then one SIGTERM), whose words have
  Rich's markup and escape codes;
- an address with a password, which must be in no file.

The last line is one JSON object.

    python tests/stress/attack_jobs.py [--only NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from stress_result import finish

ROW = {"prompt": "2+2?", "response": "4"}
EVIL = "\x1b]0;PWN\x07[/evil]\x1b[2J"
MOST_MB, MOST_S = 900, 90
SIGNAL_S = 8
FINGERPRINT = {"revision": "r", "template_sha256": "t", "dtype": "float32", "attention": "sdpa"}


class Ran(NamedTuple):
    """A run of the command.

    Attributes:
        code: its exit code.
        told: what it printed.
        seconds: how long it took; after the signal, where one was sent.
        megabytes: its peak of memory.
    """

    code: int
    told: str
    seconds: float
    megabytes: float


def score(
    source: Path, output: Path, *options: str, end: Callable[[], object] | None = None
) -> Ran:
    """Run `skyreward score`; `end` returns when SIGTERM is to be sent."""
    command = [
        sys.executable,
        "-m",
        "serve.cli.main",
        "score",
        str(source),
        "-o",
        str(output),
        *options,
    ]
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdout=told, stderr=told)
        started = time.monotonic()
        if end is not None:
            end()
            time.sleep(1)
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
        timer = threading.Timer(120, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        told.seek(0)
        words = told.read().decode(errors="replace")
    return Ran(process.returncode, words, seconds, usage.ru_maxrss / 1024)


@contextlib.contextmanager
def service(
    answer: Callable[[int], tuple[bytes, dict[str, str]]],
) -> Iterator[tuple[str, threading.Event]]:
    """A service whose posts are answered by this; gives its address, and an event at a post."""
    asked = threading.Event()
    model = {
        "state": "ready", "fingerprint": FINGERPRINT, "max_model_len": 9, "encoding_sha256": "e",
        "kind": "classifier",
    }  # fmt: skip

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(json.dumps({"models": {"demo": model}}).encode(), {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.set()
            with contextlib.suppress(OSError):
                self.reply(*answer(len(body["conversations"])))

        def reply(self, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def results(number: int, item: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    return json.dumps({"results": [item] * number, "fingerprint": FINGERPRINT}).encode(), {}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def packed(start: bytes, num_mb: int, end: bytes) -> bytes:
    """A gzip of so many MB, made piece by piece: the memory of a child begins at ours."""
    packer = zlib.compressobj(9, wbits=31)
    pieces = [packer.compress(start)]
    pieces += [packer.compress(b"0" * (1 << 20)) for _ in range(num_mb)]
    return b"".join([*pieces, packer.compress(end), packer.flush()])


def planted_lock(folder: Path) -> tuple[Ran, dict[str, bool]]:
    victim = folder / "victim"
    victim.write_text("precious")
    (folder / "out.jsonl.job").mkdir()
    (folder / "out.jsonl.job" / "lock").symlink_to(victim)
    ran = score(lines(folder / "in.jsonl", ROW), folder / "out.jsonl")
    return ran, {"the victim is what it was": victim.read_text() == "precious"}


def long_line(folder: Path) -> tuple[Ran, dict[str, bool]]:
    end = b'"}\n' + json.dumps(ROW).encode()
    (folder / "in.jsonl.gz").write_bytes(packed(b'{"prompt": "', 300, end))
    ran = score(folder / "in.jsonl.gz", folder / "out.jsonl")
    out = folder / "out.jsonl"
    return ran, {
        "its neighbour has a reward": ran.code == 3 and '"reward"' in out.read_text(),
        "the output is small": out.exists() and out.stat().st_size < 10_000,
    }


def shared_text(folder: Path) -> tuple[Ran, dict[str, bool]]:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), ["x" * (16 << 20)])
    table = pa.table({"prompt": texts, "response": ["y"] * 64})
    pq.write_table(table, folder / "in.parquet", compression="zstd", store_schema=False)
    ran = score(folder / "in.parquet", folder / "out.parquet", "--dry-run", "--limit", "3")
    return ran, {"all rows are counted": "64" in ran.told or "3" in ran.told}


def saved_set(folder: Path) -> tuple[Ran, dict[str, bool]]:
    state = {"_data_files": [{"filename": "../../../../../../etc/passwd"}], "_split": None}
    (folder / "set").mkdir()
    (folder / "set" / "state.json").write_text(json.dumps(state))
    ran = score(folder / "set", folder / "out.jsonl")
    out = folder / "out.jsonl"
    leaks = out.exists() and "root:" in out.read_text()
    return ran, {"nothing of it is in the output": not leaks}


def bomb(folder: Path) -> tuple[Ran, dict[str, bool]]:
    content = packed(b"", 800, b"")
    with service(lambda number: (content, {"Content-Encoding": "gzip"})) as (url, _):
        ran = score(lines(folder / "in.jsonl", ROW), folder / "out.jsonl", "--url", url)
    return ran, {"it is refused": ran.code == 1 and "Traceback" not in ran.told}


def silence(folder: Path) -> tuple[Ran, dict[str, bool]]:
    released = threading.Event()

    def nothing(number: int) -> tuple[bytes, dict[str, str]]:
        released.wait()
        return b"", {}

    source = lines(folder / "in.jsonl", ROW)
    with service(nothing) as (url, asked):
        ran = score(source, folder / "out.jsonl", "--url", url, end=lambda: asked.wait(60))
        released.set()
    good = {"reward": 1.0, "num_tokens": 1, "truncated": False}
    with service(lambda number: results(number, good)) as (url, _):
        again = score(source, folder / "out.jsonl", "--url", url)
    return ran, {
        f"one SIGTERM ends it within {SIGNAL_S} s": ran.code == 143 and ran.seconds <= SIGNAL_S,
        "it goes on": again.code == 0,
    }


def hostile_words(folder: Path) -> tuple[Ran, dict[str, bool]]:
    error = {"error": {"code": EVIL, "message": EVIL}}
    with service(lambda number: results(number, error)) as (url, _):
        ran = score(lines(folder / "in.jsonl", ROW), folder / "out.jsonl", "--url", url)
    return ran, {
        "it ends in order": ran.code == 3 and "Traceback" not in ran.told,
        "no escape code is printed": "\x1b" not in ran.told and "\x07" not in ran.told,
    }


def password(folder: Path) -> tuple[Ran, dict[str, bool]]:
    good = {"reward": 1.0, "num_tokens": 1, "truncated": False}
    with service(lambda number: results(number, good)) as (url, _):
        secret = url.replace("//", "//me:hunter2@") + "?token=hunter3"
        ran = score(lines(folder / "in.jsonl", ROW), folder / "out.jsonl", "--url", secret)
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return ran, {
        "it is in no file": ran.code == 0 and b"hunter" not in kept,
        "it is not printed": "hunter" not in ran.told,
        "the job's folder is private": (folder / "out.jsonl.job").stat().st_mode & 0o77 == 0,
    }


ATTACKS: dict[str, Callable[[Path], tuple[Ran, dict[str, bool]]]] = {
    "planted lock": planted_lock,
    "line of 300 MB": long_line,
    "shared text": shared_text,
    "saved set": saved_set,
    "gzip bomb": bomb,
    "silent service": silence,
    "hostile words": hostile_words,
    "password": password,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    options = parser.parse_args()
    checks: dict[str, bool] = {}
    figures: dict[str, Any] = {}
    for name, attack in ATTACKS.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="attack-") as made:
            ran, found = attack(Path(made))
        for what, passed in found.items():
            checks[f"{name}: {what}"] = passed
        checks[f"{name}: at most {MOST_MB} MB"] = ran.megabytes <= MOST_MB
        checks[f"{name}: at most {MOST_S} s"] = ran.seconds <= MOST_S
        figures[name] = {"s": round(ran.seconds, 1), "mb": round(ran.megabytes), "exit": ran.code}
        last = ran.told.strip().splitlines()[-1:] or [""]
        print(f"{name:16} {ran.seconds:6.1f} s {ran.megabytes:6.0f} MB  {ascii(last[0])[:150]}")
    return finish(checks, figures)


if __name__ == "__main__":
    sys.exit(main())
