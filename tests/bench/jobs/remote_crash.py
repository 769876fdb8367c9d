"""A job between two object stores, killed again and again: is its output whole, or absent?

The input is in an emulator of Google Cloud Storage, and the output goes in parts of 5 MiB to moto's
server for S3. The job runs undisturbed with local files; then it is killed with SIGKILL at moments
drawn at random: while it starts, while it scores, while it writes and while it uploads. Each start
has to resume behind the last chunk that was saved, no size but the final one may ever be seen of
the object, and its bytes have to be those of the undisturbed run. A job that ends before it was
killed often enough begins again. The last line is one JSON object.

    python tests/bench/jobs/remote_crash.py [--kills 20] [--rows 6000]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gcsfs
from crash_resume import rows_of, went_on_behind
from object_stores import S3Server, run_gs_server, run_s3_server
from running import Ended, Running, chunks_in, require, run, summary_of, write_rows
from stress_result import finish
from tiny_model import build_tiny

from serve.jobs.output import Output

_EARLY = 0.25
_WRITING_S = 1.0  # a kill comes at most as long after the phase began
_PART_BYTES, _NOTE_BYTES = 5 << 20, 5_000
_SOURCE, _BUCKET, _OBJECT = "gs://bucket/rows.jsonl", "scored", "scored/rows.jsonl"
_OUTPUT = f"s3://{_OBJECT}"


class Observer:
    """Looks at the object all the time, and records which sizes it had."""

    def __init__(self, server: S3Server) -> None:
        self.sizes: Counter[int | None] = Counter()
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.sizes[self._server.get_size(_OBJECT)] += 1


def kill_repeatedly(
    arguments: list[str],
    log: Path,
    times: tuple[float, float],
    options: argparse.Namespace,
    s3: S3Server,
) -> tuple[list[Ended], Counter[str], list[str]]:
    """Start, kill and start again, and let the last start finish.

    Returns:
        Every start; the kills by phase; what went wrong.
    """
    starting_s, scoring_s = times
    chance = random.Random(options.seed)
    state = Output.parse(_OUTPUT).state_folder
    starts: list[Ended] = []
    kills: Counter[str] = Counter()
    problems: list[str] = []
    num_behind = 0

    def begin() -> Running:
        return Running(arguments, log, options.chunk_rows, part_bytes=_PART_BYTES)

    while kills.total() < options.kills:
        saved, written = num_behind // options.chunk_rows, get_time(state / "output.partial")
        uploads = s3.count_uploads(_BUCKET)
        job = begin()
        if num_behind >= options.rows:
            phase, latest_s = chance.choice(("writing", "uploading")), _WRITING_S
        elif chance.random() < _EARLY:
            phase, latest_s = "starting", starting_s
        else:
            phase, latest_s = "scoring", 2 * scoring_s / options.kills
        # What an earlier start left behind, such as its uploads, is no sign of this one.
        has_begun: dict[str, Callable[[], bool]] = {
            "starting": lambda: True,
            "scoring": lambda saved=saved: chunks_in(_OUTPUT) > saved,
            "writing": lambda written=written: get_time(state / "output.partial") > written,
            "uploading": lambda uploads=uploads: s3.count_uploads(_BUCKET) > uploads,
        }
        is_killed = job.kill_after(chance.uniform(0, latest_s), has_begun[phase])
        ended = job.wait()
        starts.append(ended)
        if went_on_behind(ended) not in (0, num_behind):
            problems.append(f"start {len(starts)} resumed at {went_on_behind(ended)}")
        if is_killed:
            kills[phase] += 1
            num_behind = min(options.rows, chunks_in(_OUTPUT) * options.chunk_rows)
            print(
                f"  kill {kills.total()} ({phase}) after {ended.seconds:.1f} s, {num_behind} rows"
            )
        else:
            require(ended)
            print("  done before it was killed often enough: once more from the start", flush=True)
            s3.remove(_OBJECT)
            shutil.rmtree(state)
            num_behind = 0
    starts.append(require(begin().wait()))
    return starts, kills, problems


def get_time(path: Path) -> int:
    """Return when a file was created or changed last, in nanoseconds; 0 if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns
    return 0


def measure(options: argparse.Namespace, folder: Path) -> tuple[dict[str, bool], dict[str, Any]]:
    source, undisturbed, log = (folder / name for name in ("rows.jsonl", "whole.jsonl", "log"))
    # Columns that are copied make the files large, which takes no time to score.
    notes = {"notes": "n" * _NOTE_BYTES}
    rows = rows_of(options.rows, random.Random(options.seed))
    write_rows(source, ({**row, **notes} for row in rows))
    model = ["--model", str(build_tiny(folder / "tiny"))]
    whole = require(run([source, "-o", undisturbed, *model], log, options.chunk_rows))
    scoring_s = summary_of(undisturbed)["seconds"]
    print(f"undisturbed: {whole.seconds:.1f} s, {scoring_s:.1f} s of it scoring", flush=True)
    content = undisturbed.read_bytes()
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    arguments = [_SOURCE, "-o", _OUTPUT, *model]
    with run_gs_server() as gs, run_s3_server() as s3:
        os.environ.update({**s3.environment, **gs})
        gcsfs.GCSFileSystem().put_file(str(source), _SOURCE)
        s3.put("scored/other", b"")
        with Observer(s3) as observer:
            starts, kills, problems = kill_repeatedly(
                arguments, log, (whole.seconds - scoring_s, scoring_s), options, s3
            )
        written = s3.get(_OBJECT)
        again = require(run(arguments, log, options.chunk_rows))
    state = Output.parse(_OUTPUT).state_folder
    checks = {
        f"{options.kills} kills": kills.total() >= options.kills,
        "output is the same to the last byte": written == content,
        "only the complete object was ever visible": observer.sizes.keys() <= {None, len(content)},
        "every start resumed behind the last saved chunk": not problems,
        "nothing but the state and the lock is kept": {path.name for path in state.iterdir()}
        == {"state.sqlite", "lock"},
    }
    return checks, {
        "rows": options.rows,
        "chunk_rows": options.chunk_rows,
        "output_bytes": len(content),
        "kills": dict(kills),
        "looks": {str(size): number for size, number in observer.sizes.items()},
        "undisturbed": {"wall_s": round(whole.seconds, 1), "cpu_s": round(whole.cpu_s, 1)},
        "killed": {
            "starts": len(starts),
            "wall_s": round(sum(start.seconds for start in starts), 1),
            "cpu_s": round(sum(start.cpu_s for start in starts), 1),
        },
        "start_when_done_s": round(again.seconds, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--chunk-rows", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return finish(*measure(options, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
