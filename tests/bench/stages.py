"""Where a service's CPU goes, by the stage of a request.

A thread looks at every other thread every 2 ms: the CPU that it has taken meanwhile goes to the
stage of the innermost function that belongs to one, by the file that the function is in. Threads
of native code, which tokenizers may start, are a stage of their own.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from types import FrameType

SIMULATED = "simulated device"
_INTERVAL_S = 0.002
# Threads give the interpreter away this often while they are watched. By default it is 5 ms, and
# the watching thread would mostly see where they give it away by themselves.
_SWITCH_INTERVAL_S = 0.0002
_SIMULATED_FILE = "tests/bench/simulated.py"
_STAGES = (
    ("render", ("rm_core/inputs/chat_template.py", "/jinja2/", "<template>")),
    ("validate", ("/pydantic/", "/fastapi/", "serve/api/schemas.py", "serve/scoring/limits.py")),
    ("validate", ("rm_core/inputs/conversations.py", "rm_core/inputs/warnings.py")),
    ("schedule", ("serve/scheduler/", "serve/scoring/", "serve/worker/")),
    ("schedule", ("rm_core/inputs/last_turn.py",)),  # tells which prompts replicas have
    ("tokenize", ("rm_core/inputs/", "/tokenizers/", "/transformers/")),
    ("parse", ("rm_core/strict_json.py", "serve/api/json_route.py")),
    ("answer", ("serve/api/routes/", "serve/api/compat/", "/starlette/responses.py")),
    ("http", ("/uvicorn/", "/asyncio/", "/starlette/", "/anyio/", "serve/api/", "serve/telemetry")),
)
_OTHER = "other"


def find_stage(frame: FrameType | None) -> str:
    """Return the stage of the innermost function that belongs to one.

    Whatever the simulated device calls belongs to it.
    """
    found = _OTHER
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith(_SIMULATED_FILE):
            return SIMULATED
        if found == _OTHER:
            found = _find_stage_of_file(file)
        frame = frame.f_back
    return found


@functools.cache
def _find_stage_of_file(file: str) -> str:
    return next((stage for stage, parts in _STAGES if any(part in file for part in parts)), _OTHER)


class StageSampler:
    """Attributes the CPU of this process to stages from its construction until `stop`."""

    def __init__(self) -> None:
        self._cpu_s: dict[str, float] = {}
        self._stopped = threading.Event()
        self._switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        self._started_at = time.process_time()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """Return the CPU seconds of each stage."""
        self._stopped.set()
        self._thread.join()
        sys.setswitchinterval(self._switch_interval_s)
        return self._cpu_s

    def _watch(self) -> None:
        own = threading.get_ident()
        last: dict[int, float] = {}
        while not self._stopped.wait(_INTERVAL_S):
            frames = sys._current_frames()
            for thread in frames.keys() - {own}:
                cpu_s = time.clock_gettime(time.pthread_getcpuclockid(thread))
                stage = find_stage(frames[thread])
                spent = cpu_s - last.get(thread, cpu_s)
                self._cpu_s[stage] = self._cpu_s.get(stage, 0.0) + spent
                last[thread] = cpu_s
        total = time.process_time() - self._started_at - time.thread_time()
        self._cpu_s["native threads"] = max(0.0, total - sum(self._cpu_s.values()))
