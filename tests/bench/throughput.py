"""Tokens per second of this project beside its peers, in one run on one machine.

What is measured: five workloads (`workloads.py`) and any file given, through ours in process and
over HTTP (all in one post; 64 clients, one conversation a post), plain transformers one by one
and in padded batches of 8, and vLLM over HTTP if its address is given; then how the cost grows
(`growth.py`). Beside each rate stand the tokens that went through the model, where a way tells
them. `rounds.py` tells how, `machine.py` against what. The last line is one JSON object.

    python tests/bench/throughput.py --rounds 3 --plots build/bench

vLLM has to serve the same checkpoint, so it is written first:

    python tests/bench/throughput.py --checkpoint rm --only model
    VLLM_VENV/bin/vllm serve rm --port 8011 &
    python tests/bench/throughput.py --checkpoint rm --vllm http://127.0.0.1:8011
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from growth import Curve, Growth
from machine import matrix_rate, need_of
from report import (
    EAGER,
    ONE_POST,
    OUR_CLIENTS,
    PADDED,
    SORTED,
    VLLM_CLIENTS,
    WITHOUT_CACHE,
    pairs_of,
    show,
)
from rounds import Measured, measure
from services import Skyreward, Vllm, our_service
from ways import IN_PROCESS, ONE_BY_ONE, Plain, Way, in_process
from workloads import WORKLOADS, Conversations, build_model, draw_salt, job_file, with_salt

from rm_core import Encoded, ModelConfig, RewardScorer
from rm_core.packing import TokenIds
from rm_core.verification import sample_conversations


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder of published benchmark files; default: sample pairs")
    add("--file", type=Path, action="append", default=[], help="a job file to measure as well")
    add("--workloads", default="", help="parts of the names of those wanted, with commas")
    add("--model", help="a folder or hub id in place of the benchmark's own model")
    add("--checkpoint", type=Path, help="where the benchmark's own model is, or is to be written")
    add("--url", help="a running service with that model; by default one is started")
    add("--local", action="store_true", help="start it without Ray")
    add("--ways", default="", help="parts of the names of those wanted, with commas")
    add("--vllm", metavar="URL", help="vLLM with that model")
    add("--without-prefix-cache", action="store_true", help="also ours with no prefix cache")
    add("--clients", type=int, default=64)
    add("--eager", action="store_true", help="also plain transformers with eager attention")
    add("--rounds", type=int, default=3)
    add("--padded-rounds", type=int, help="of padded batches, which take longest; default: all")
    add("--quick", action="store_true", help="an eighth of each workload, and small sizes")
    add("--only", choices=("model", "workloads", "growth"))
    add("--plots", type=Path, metavar="FOLDER", help="where SVG files go")
    return parser.parse_args()


def main() -> None:
    # Ends as Ctrl-C does, so that the service that was started here ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        workloads, model = prepare(options, Path(folder))
        if options.only == "model":
            print(f"the benchmark's model is in {model}")
            return
        scorer = RewardScorer.load(ModelConfig(model))
        plain = Plain(scorer)
        measured: dict[str, Measured] = {}
        if options.only != "growth":
            measured = measure_workloads(options, workloads, scorer, plain, model)
        curves = [] if options.only == "workloads" else measure_growth(options, scorer, plain)
    if options.plots:
        draw(measured, curves, options.plots)
    rates = [rate for one in measured.values() for way in one.rates.values() for rate in way]
    print(
        json.dumps(
            {
                "model": options.model or Path(model).name,
                "device": str(scorer.loaded_model.device),
                "dtype": scorer.fingerprint.dtype,
                "cores": os.cpu_count(),
                "torch": torch.__version__,
                "rounds": options.rounds,
                "clients": options.clients,
                "matrix_gflops": round(statistics.median(rates) / 1e9, 1) if rates else None,
                "workloads": {name: one.record(pairs_of(one)) for name, one in measured.items()},
                "growth": {curve.name: curve.record() for curve in curves},
            }
        )
    )


def prepare(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Conversations], str]:
    """The workloads, and the model to score them with."""
    files = {file.name: job_file(file) for file in options.file}
    if options.data is None:
        print("no --data: the sample pairs and the demo model")
        samples = [messages for _, messages in sample_conversations()]
        return {"sample pairs": samples} | files, options.model or "demo"
    every = {name: draw_from(options.data) for name, draw_from in WORKLOADS.items()}
    chosen = {
        name: conversations[: len(conversations) // 8 if options.quick else None]
        for name, conversations in every.items()
        if wanted(name, options.workloads)
    }
    model = options.model
    if model is None:
        place = options.checkpoint or folder / "bench-model"
        if not (place / "config.json").is_file():
            print("writing the benchmark's model")
            build_model(place, list(every.values()))
        model = str(place)
    return chosen | files, model


def measure_workloads(
    options: argparse.Namespace,
    workloads: dict[str, Conversations],
    scorer: RewardScorer,
    plain: Plain,
    model: str,
) -> dict[str, Measured]:
    """Every workload through every way; tables are printed as they come."""
    rate = partial(
        matrix_rate, scorer.loaded_model.device, getattr(torch, scorer.fingerprint.dtype)
    )
    print(f"a matrix product at {rate() / 1e9:.0f} GFLOP/s; medians of {options.rounds} rounds")

    def rounds(way: str) -> int:
        is_padded = way in (PADDED, SORTED) and options.padded_rounds is not None
        return min(options.rounds, options.padded_rounds) if is_padded else options.rounds

    measured = {}
    with our_address(options, model) as url, uncached_address(options, model) as uncached_url:
        ways = contenders(options, scorer, plain, url, uncached_url)
        for name, conversations in workloads.items():
            kept, sequences = encodable(scorer, conversations)
            need = need_of(sequences, plain.model)
            measured[name] = measure(ways, kept, need, rounds, rate)
            if len(kept) < len(conversations):
                print(f"\n{len(conversations) - len(kept)} that cannot be scored are left out")
            show(name, measured[name])
    return measured


def our_address(
    options: argparse.Namespace, model: str
) -> contextlib.AbstractContextManager[str | None]:
    """Where our service listens: the one given, or one started for as long as it is needed."""
    needed = any(wanted(way, options.ways) for way in (ONE_POST, OUR_CLIENTS))
    if options.url or not needed:
        return contextlib.nullcontext(options.url)
    return our_service(model, options.local)


def uncached_address(
    options: argparse.Namespace, model: str
) -> contextlib.AbstractContextManager[str | None]:
    """Where a second service listens, which has no prefix cache; nowhere unless it is asked for."""
    if options.without_prefix_cache and wanted(WITHOUT_CACHE, options.ways):
        return our_service(model, options.local, prefix_cache_bytes=0)
    return contextlib.nullcontext()


def contenders(
    options: argparse.Namespace,
    scorer: RewardScorer,
    plain: Plain,
    url: str | None,
    uncached_url: str | None,
) -> dict[str, Way]:
    """The ways in the order of a round: neighbours are those whose ratios are of interest."""
    ways: dict[str, Way] = {PADDED: plain.padded, SORTED: plain.sorted_padded}
    if options.eager:
        ways[EAGER] = Plain(scorer, "eager").one_by_one
    ways |= {ONE_BY_ONE: plain.one_by_one, IN_PROCESS: in_process(scorer)}
    if url:
        ours = Skyreward(url, options.clients)
        ways |= {ONE_POST: ours.one_post, OUR_CLIENTS: ours.one_each}
    if uncached_url:
        ways[WITHOUT_CACHE] = Skyreward(uncached_url, options.clients).one_each
    if options.vllm:
        ways[VLLM_CLIENTS] = Vllm(options.vllm, options.clients).one_each
    return {name: way for name, way in ways.items() if wanted(name, options.ways)}


def wanted(name: str, parts: str) -> bool:
    """Whether one of the parts, between commas, is in a name; nothing is in every name."""
    return any(part.strip() in name.lower() for part in parts.lower().split(","))


def encodable(
    scorer: RewardScorer, conversations: Conversations
) -> tuple[Conversations, list[TokenIds]]:
    """The conversations that the model can score behind a salt, and their token ids with one."""
    salted = with_salt(conversations, draw_salt())
    encoded = zip(conversations, scorer.encoder.encode_all(salted), strict=True)
    pairs = [(c, e.input_ids) for c, e in encoded if isinstance(e, Encoded)]
    return [c for c, _ in pairs], [ids for _, ids in pairs]


def measure_growth(options: argparse.Namespace, scorer: RewardScorer, plain: Plain) -> list[Curve]:
    """The three curves, printed as they come."""
    growth = Growth(scorer, plain, options.rounds, options.quick)
    curves = []
    for measured in (growth.by_length, growth.by_group, growth.by_number):
        curve = measured()
        curves.append(curve)
        print(f"\ntokens/s by {curve.axis}. {curve.title}")
        for way, points in curve.points.items():
            told = "  ".join(f"{size:,}: {rate:,.0f}" for size, rate in points.items())
            print(f"  {way:24} {told}", flush=True)
    return curves


def draw(measured: dict[str, Measured], curves: list[Curve], folder: Path) -> None:
    """Write the plots, with matplotlib needed only here."""
    from plots import draw_curve, draw_workloads

    files = [draw_curve(curve, folder) for curve in curves]
    if measured:
        files.append(draw_workloads(measured, folder))
    print("\nwritten:", *files)


if __name__ == "__main__":
    main()
