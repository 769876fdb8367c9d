"""What the gateway's own code takes for a conversation, in two source trees side by side.

CPU of the process of `skyreward serve --local` with a simulated device (`simulated.py`), for a
post of 4 KB alone, pairs, groups of 16, the answers to 12 prompts in any order, and posts of 256.
One service of each tree is up; they take turns in short runs over the same texts, since the speed
of a shared machine changes by the second, and medians are told, of the ratios too. Without
`--before` there is one service. The last line is one JSON object.

    python tests/bench/service_cpu.py --before PATH --tokenizer FOLDER
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from pathlib import Path

from front import TREE, measure, simulated_service, write_checkpoint
from gateway import DATA, MODELS
from posts import KINDS, Texts

from serve.capacity.shape import find_model_shape


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--before", type=Path, metavar="PATH", help="another source tree")
    add("--tokenizer", type=Path, help="a folder with tokenizer.json; default: the demo model's")
    add("--data", type=Path, default=DATA, help="folder of published benchmark files")
    add("--kinds", default="", help="parts of the names of the posts wanted, with commas")
    add("--clients", type=int, default=16)
    add("--rounds", type=int, default=7)
    add("--seconds", type=float, default=2, help="of each run")
    options = parser.parse_args()
    trees = {"before": options.before} if options.before else {}
    trees["now"] = TREE
    record = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        checkpoint = write_checkpoint(
            Path(folder), find_model_shape(MODELS["0.6b"]), options.tokenizer
        )
        urls = {
            name: stack.enter_context(simulated_service(checkpoint, tree=tree))
            for name, tree in trees.items()
        }
        for kind in KINDS:
            if any(part in kind for part in options.kinds.split(",")):
                record[kind] = show(kind, measure_kind(options, kind, urls))
    print(json.dumps(record))


def measure_kind(
    options: argparse.Namespace, kind: str, urls: dict[str, str]
) -> dict[str, list[float]]:
    """Milliseconds of CPU a conversation: of each tree, one number a round."""
    cpu_ms: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(options.rounds + 1):
        for name in sorted(urls, reverse=bool(number % 2)):
            texts = Texts(options.data, seed=number)
            measured = measure(urls[name], KINDS[kind], texts, options.clients, options.seconds)
            if number:  # the first round warms up
                cpu_ms[name].append(measured.cpu_ms)
    return cpu_ms


def show(kind: str, cpu_ms: dict[str, list[float]]) -> dict[str, float]:
    """Print one kind of posts; return it as plain data."""
    record = {f"{name}_ms": statistics.median(times) for name, times in cpu_ms.items()}
    told = ", ".join(
        f"{name} {statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
        for name, times in cpu_ms.items()
    )
    if "before" in cpu_ms:
        pairs = zip(cpu_ms["now"], cpu_ms["before"], strict=True)
        record["ratio"] = statistics.median(now / before for now, before in pairs)
        told += f"; ratio {record['ratio']:.2f}"
    print(f"{kind}: ms of CPU a conversation: {told}", flush=True)
    return {name: round(value, 4) for name, value in record.items()}


if __name__ == "__main__":
    main()
