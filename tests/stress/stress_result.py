"""What a script found: checks that passed or not, figures beside them, one JSON line at the end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """Of latencies, in milliseconds."""
    found = sorted(seconds)
    if not found:
        return {}
    places = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * found[min(len(found) - 1, int(share * len(found)))], 1)
        for name, share in places.items()
    }


def finish(checks: Mapping[str, bool], figures: Mapping[str, Any]) -> int:
    """Print each check, then the whole as one line of JSON; returns the exit code."""
    for check, passed in checks.items():
        print(f"{'passed' if passed else 'FAILED'}  {check}")
    passed = bool(checks) and all(checks.values())
    failed = [check for check, good in checks.items() if not good]
    print(json.dumps({"passed": passed, "failed": failed, **figures}), flush=True)
    return 0 if passed else 1
