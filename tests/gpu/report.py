"""Formats the rows of `make gpu-check` as a table for people and a JSON object for programs.

A line of the table is a model and a way to compute its attention. Tokens per second are in
thousands, counting complete conversations; the second number is the share of the measured matrix
rate in percent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpu.sequences import KINDS, LENGTHS

Row = dict[str, Any]
# Values of `what` for the pytest tests: all tests together, and each test.
_TESTS = ("tests", "test")
HEADER = ("model", "attention", "max", "mean", "float32 / eager", "same order")


def is_bad(row: Row) -> bool:
    """Return whether a row is a failure; a skipped row is not."""
    return "failed" in row or row.get("ok") is False


def build_table(rows: list[Row], divisor: int = 1) -> str:
    """Format all rows as a table, with a legend above and notes below.

    Args:
        rows: rows of `ModelMeasurement`, and of the tests.
        divisor: divisor of the lengths.
    """
    lengths = [length // divisor for length in LENGTHS]
    cells = [(kind, length) for kind in KINDS for length in lengths]
    lines = [
        (*HEADER, *(f"{kind[0]} {length:,}" for kind, length in cells), "GiB / est."),
    ]
    measured = [row for row in rows if row["what"] not in _TESTS]
    for model in _distinct(row["model"] for row in measured):
        model_rows = [row for row in measured if row["model"] == model]
        for way in _distinct(row["way"] for row in model_rows if row["way"]):
            lines.append((model, way, *_line([r for r in model_rows if r["way"] == way], cells)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = [
        "Parity: maximum and mean |difference| from plain eager, mean difference from float32 / "
        "that of plain eager, pairs in the same order.",
        "p: pairs, g: groups of 16, by length of a conversation: thousand tokens/s of complete "
        "conversations, % of the matrix rate on distinct tokens.",
        "Last column: peak memory of activations / the estimate.",
        *("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines),
        *_notes(rows),
    ]
    return "\n".join(text)


def build_json(rows: list[Row]) -> dict[str, Any]:
    """Return the rows as JSON data: by model, by way; a timed cell is a list of four numbers."""
    models: dict[str, Any] = {}
    tests: dict[str, int] = {}
    for row in rows:
        if row["what"] == "test":
            tests[row["outcome"]] = tests.get(row["outcome"], 0) + 1
            continue
        if "collected" in row:
            tests["collected"] = row["collected"]
            continue
        values = {k: _short(v) for k, v in row.items() if k not in ("model", "way", "what")}
        target = models.setdefault(row["model"], {}).setdefault(row["way"] or "model", {})
        if row["what"] not in KINDS:
            target[row["what"]] = values
        elif "seconds" in values:
            names = ("tokens_per_s", "share", "peak_bytes", "estimate_bytes")
            cell = [values.get(name) for name in names]
            target.setdefault(row["what"], {})[str(row["length"])] = cell
        else:
            target.setdefault(row["what"], {})[str(row["length"])] = values
    return {"tests": tests, "models": models}


def format_progress(row: Row) -> str:
    """Format one row as a progress line."""
    values = {k: _short(v) for k, v in row.items() if k not in ("model", "way", "what")}
    text = ", ".join(f"{key} {value}" for key, value in values.items())
    return f"{row['model']} | {row['way'] or '-'} | {row['what']}: {text}"


def _line(rows: list[Row], cells: list[tuple[str, int]]) -> list[str]:
    by_what = {row["what"]: row for row in rows}
    parity = by_what.get("parity", {})
    if "max" in parity:
        first = [f"{parity['max']:.3f}", f"{parity['mean']:.3f}", _float32(parity)]
        first.append(parity["pairs"])
    elif "bits" in by_what and "same" in by_what["bits"]:
        bits = by_what["bits"]
        first = ["same", "bits:", f"{bits['same']} of {bits['of']}", ""]
    else:
        first = ["-"] * 4
    timed = {(row["what"], row["length"]): row for row in rows if "length" in row}
    peak = max(rows, key=lambda row: row.get("peak_bytes", 0))
    estimate = peak.get("estimate_bytes")
    memory = f"{peak.get('peak_bytes', 0) / 2**30:.1f}"
    memory += f" / {estimate / 2**30:.1f}" if estimate else ""
    return [*first, *(_cell(timed.get(cell, {})) for cell in cells), memory]


def _float32(row: Row) -> str:
    if "from_float32" not in row:
        return "-"
    return f"{row['from_float32']:.3f} / {row['eager_from_float32']:.3f}"


def _cell(row: Row) -> str:
    if "tokens_per_s" not in row:
        return "failed" if "failed" in row else "skipped" if "skipped" in row else "-"
    share = f" {row['share']:.0%}" if "share" in row else ""
    return f"{row['tokens_per_s'] / 1000:.1f}{share}"


def _notes(rows: list[Row]) -> list[str]:
    """Return notes on everything that does not fit into a cell, without duplicates."""
    notes = []
    for row in rows:
        where = f"{row['model']}, {row['way'] or 'all'}"
        if row["what"] == "model" and "matrix_tflops" in row:
            device, rate = row["device"], row["matrix_tflops"]
            notes.append(f"{row['model']}: {device}, bf16 matrix rate {rate:.4g} TFLOP/s")
        if "failed" in row:
            notes.append(f"{where}: {row['what']} failed: {row['failed']}")
        if "skipped" in row:
            notes.append(f"{where}: {row['what']} skipped: {_once(row['skipped'])}")
        if row["what"] == "proof" and row["seconds"] >= 1:
            notes.append(f"{where}: self-check of the kernels took {row['seconds']:.0f} s")
        if row.get("ok") is False and row["what"] == "parity":
            notes.append(f"{where}: the difference EXCEEDS the allowed difference")
        if row.get("ok") is False and row["what"] == "quantized":
            notes.append(f"{where}: a token's result DEPENDS on its neighbors")
        if row.get("ok") is False and row["what"] == "prefix cache":
            notes.append(f"{where}: the prefix cache is NOT USED or CHANGES rewards")
        if row.get("ok") is False and row["what"] == "full blocks":
            notes.append(f"{where}: unmasked blocks give OTHER results")
        if row.get("ok") is False and row["what"] == "compile":
            notes.append(f"{where}: COMPILED AGAIN for rows of other lengths")
        for feature in ("softcap", "window"):
            if f"without_{feature}" in row:
                mean = row[f"without_{feature}"]
                notes.append(f"{row['model']}: without {feature} rewards change by {mean:.3f}")
        if row.get("rows", 8) < 8:
            size = f"batches of {row['rows']} because of limited memory"
            notes.append(f"{where}: {row['length']} tokens in {size}")
        if row["what"] == "full row" and "tokens" in row:
            size = f"a row of {row['tokens']} tokens, {row['share']:.0%} of the matrix rate"
            notes.append(f"{where}: {size} ({row['reason']})")
        if row["what"] == "quantized" and "seconds" in row:
            times = f"{row['seconds']:.3g} s, bfloat16 {row['bfloat16_s']:.3g} s"
            notes.append(f"{where}: linear layers of a decoder layer {times}")
        if row["what"] == "compile" and "seconds" in row:
            times = f"{row['seconds']:.3g} s, uncompiled {row['uncompiled_s']:.3g} s"
            first = f"the first row took {row['first_s']:.0f} s"
            graphs = f"{row['graphs']} graphs for {row['lengths']} lengths"
            notes.append(f"{where}: a batch {times}; {graphs}, {first}")
        if row["what"] == "host" and "seconds" in row:
            times = f"{row['gap_s']:.3g} s of {row['seconds']:.3g} s"
            two = f"{row['in_flight_gap_s']:.3g} s of {row['in_flight_s']:.3g} s"
            notes.append(
                f"{where}: a batch spends {times} outside the decoder, with two in flight {two}"
            )
        if row["what"] == "prefix cache" and "seconds" in row:
            times = f"{row['seconds']:.3g} s, without the cache {row['uncached_s']:.3g} s"
            bits = f"same bits: {row['same']} of {row['of']}" if "same" in row else "bits unknown"
            tokens = f"{row['cached']} of {row['tokens']} tokens cached"
            notes.append(f"{where}: a batch with {tokens} {times}; {bits}")
        if row["what"] == "full blocks" and "seconds" in row:
            times = f"{row['seconds']:.3g} s, masked {row['masked_s']:.3g} s"
            notes.append(f"{where}: {row['full']} of {row['blocks']} blocks unmasked, {times}")
        if row["what"] == "test" and row["outcome"] != "passed":
            notes.append(f"test {row['way']}: {row['outcome']} {row['reason']}".rstrip())
    return [f"- {note}" for note in _distinct(notes)]


def _once(reason: str) -> str:
    """Remove the seconds from a reason, since they differ from cell to cell."""
    return reason.partition(" (")[0] if reason.startswith("no time") else reason


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _short(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value
