"""The service in front of a GPU that is simulated: how fast it is, and where it stops.

What is measured: `skyreward serve --local` as it is, from HTTP to the scheduler, with a worker that
answers after the time that a GPU would take by `skyreward plan` (`simulated.py`), under clients
that post without a pause: a conversation of 4 KB alone, pairs, groups of 16, the answers to 12
prompts one by one in any order, and posts of 256. Conversations/s and tokens/s of a gateway core
are those by the CPU of the service's process, wherever it stops; the CPU by stage is of a second,
shorter run (`stages.py`). Then the three constants of a gateway in `serve/capacity/plan.py`, fitted
to all kinds of posts. The last line is one JSON object.

    python tests/bench/gateway.py --simulate-device h200 --tokenizer FOLDER

FOLDER has a `tokenizer.json`, for example Qwen's; by default it is the demo model's.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from front import Measured, measure, simulated_service, write_checkpoint
from posts import KINDS, Texts
from stages import SIMULATED

from serve.capacity.devices import DEVICES
from serve.capacity.shape import find_model_shape

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MODELS = {
    "0.6b": "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
    "8b": "Skywork/Skywork-Reward-V2-Qwen3-8B",
}
_BUSY = 0.9
_STARVED = 0.2
_WARM_UP_S = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--simulate-device", choices=list(DEVICES), default="h200")
    add("--sizes", default=",".join(MODELS), help=f"of {', '.join(MODELS)}, with commas")
    add("--mfu", type=float, help="as of `skyreward plan`")
    add("--tokenizer", type=Path, help="a folder with tokenizer.json")
    add("--data", type=Path, default=DATA, help="folder of published benchmark files")
    add("--kinds", default="", help="parts of the names of the posts wanted, with commas")
    add("--clients", type=int, default=64)
    add("--seconds", type=float, default=15, help="of each kind; a third of it for the stages")
    options = parser.parse_args()
    record = {
        size: measure_size(options, size) for size in MODELS if size in options.sizes.split(",")
    }
    print(json.dumps({"device": options.simulate_device, "cores": os.cpu_count(), **record}))


def measure_size(options: argparse.Namespace, size: str) -> dict[str, Any]:
    """All kinds of posts with a model of one size, printed as they come."""
    texts = Texts(options.data)
    flags = ["--device", options.simulate_device, "--model", MODELS[size]]
    flags += [] if options.mfu is None else ["--mfu", str(options.mfu)]
    found: dict[str, Measured] = {}
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(
            Path(folder), find_model_shape(MODELS[size]), options.tokenizer
        )
        with simulated_service(checkpoint, *flags) as url:
            print(f"\n{MODELS[size]} on {DEVICES[options.simulate_device].name}, simulated")
            for name, kind in KINDS.items():
                if not any(part in name for part in options.kinds.split(",")):
                    continue
                run = partial(measure, url, kind, texts, options.clients)
                run(_WARM_UP_S)
                found[name] = run(options.seconds)
                watched = run(options.seconds / 3, is_watched=True)
                record[name] = show(name, found[name], watched.stages)
    constants = fit_constants(found)
    if constants:
        print("  " + ", ".join(f"{name} {ms:.4f} ms" for name, ms in constants.items()))
    return {"kinds": record, "constants_ms": constants}


def show(name: str, measured: Measured, stages: Mapping[str, float]) -> dict[str, Any]:
    """Print one kind of posts; return it as plain data."""
    conversations, tokens = measured.conversations, measured.tokens
    cores_needed = _BUSY / measured.busy_share * measured.cores
    shares = {stage: cpu_s for stage, cpu_s in stages.items() if stage != SIMULATED}
    total = sum(shares.values()) or 1.0
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    record = {
        "conversations_per_s": round(conversations / measured.seconds, 1),
        "tokens_per_s": round(tokens / measured.seconds),
        "computed_share": round(measured.computed_tokens / tokens, 3),
        "device_busy": round(measured.busy_share, 3),
        "gateway_cores": round(measured.cores, 2),
        "cpu_ms_per_conversation": round(measured.cpu_ms, 3),
        "conversations_per_s_per_core": round(conversations / measured.cpu_s, 1),
        "tokens_per_s_per_core": round(tokens / measured.cpu_s),
        "cores_for_90_percent_busy": round(cores_needed, 1),
        "stops_at": find_limit(measured),
        "stages": {stage: round(cpu_s / total, 3) for stage, cpu_s in ordered},
    }
    print(
        f"  {name}: {record['conversations_per_s']:,} conversations/s, "
        f"{record['tokens_per_s']:,} tokens/s ({record['computed_share']:.0%} computed); "
        f"the device is busy {measured.busy_share:.0%} of the time, "
        f"the gateway uses {measured.cores:.2f} cores\n"
        f"    a gateway core: {record['conversations_per_s_per_core']:,} conversations/s, "
        f"{record['tokens_per_s_per_core']:,} tokens/s; {measured.cpu_ms:.3f} ms a conversation; "
        f"{cores_needed:.1f} cores keep the device busy {_BUSY:.0%} of the time\n"
        f"    stops at {record['stops_at']}; CPU: "
        + ", ".join(f"{stage} {share:.0%}" for stage, share in record["stages"].items()),
        flush=True,
    )
    return record


def find_limit(measured: Measured) -> str:
    """Say what cannot go any faster."""
    if measured.busy_share >= _BUSY:
        return "the device"
    if measured.cores >= _BUSY:
        return "the gateway, which is one Python process"
    if measured.client_cpu_s / measured.seconds >= _BUSY:
        return "the clients of this benchmark"
    if measured.starved_s / measured.seconds >= _STARVED:
        return "the cores of this machine, for which the gateway waits"
    return "the number of clients"


def fit_constants(found: Mapping[str, Measured]) -> dict[str, float]:
    """Milliseconds of CPU of a request, a conversation and a token, by least squares.

    Every kind of posts weighs the same. A constant that would be below 0 is 0. Fewer kinds than
    constants give none.
    """
    names = ["a request", "a conversation", "a token"]
    if len(found) < len(names):
        return {}
    counts = np.array([[m.posts, m.conversations, m.tokens] for m in found.values()])
    cpu_ms = np.array([1_000 * m.cpu_s for m in found.values()])
    used = list(range(len(names)))
    constants = np.zeros(len(names))
    while used:
        solution = np.linalg.lstsq(counts[:, used] / cpu_ms[:, None], np.ones(len(found)))[0]
        if (solution >= 0).all():
            constants[used] = solution
            break
        used.pop(int(np.argmin(solution)))
    return dict(zip(names, constants.tolist(), strict=True))


if __name__ == "__main__":
    main()
