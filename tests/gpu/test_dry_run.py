"""`make gpu-check` on the CPU: all measuring code runs on tiny models.

Time on a GPU is rare; a typo must not end the run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import check, extras
from gpu.fake_kernels import make_fake_backend
from gpu.measurements import ModelMeasurement
from gpu.memory_meter import Clock, Meter, operations
from gpu.models import SHAPES, build, build_loaded_model, count_bytes
from gpu.parity import compute_allowed_error
from gpu.report import build_json, build_table, format_progress, is_bad
from gpu.sequences import KINDS, LENGTHS, TRUE, Draw, Scale, build_parity_sequences

from rm_core.attention import eager
from rm_core.packing import pack

Row = dict[str, Any]
DIVISOR = 256
# Parameters of the published checkpoints as in the catalog, in billions.
PARAMETERS = {
    "Qwen3-0.6B": 0.596,
    "Llama-3.1-8B": 7.505,
    "Gemma-2-27B": 27.227,
    "Qwen3-8B": 7.568,
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(eager, "BLOCK", 4)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def measure(part: str, seconds: float = 3600.0) -> list[Row]:
    rows: list[Row] = []
    meter = Meter(torch.device("cpu"))
    ModelMeasurement(SHAPES[part], meter, Clock(seconds), rows.append, Scale(DIVISOR)).run()
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("part", ["Llama-3.1-8B", "Gemma-2-27B"])
def test_model_measurement_emits_every_row(part: str) -> None:
    rows = measure(part)
    quantized = {row["way"]: row for row in rows if row["what"] == "quantized"}
    assert set(quantized) == {"int8", "fp8", "fp8-weights"}
    others = [row for row in rows if row["what"] != "quantized"]
    assert not [row for row in others if "failed" in row or "skipped" in row]
    assert not any(map(is_bad, rows))
    (compiled,) = (row for row in rows if row["what"] == "compile")
    assert compiled["graphs"] == (2 if part == "Gemma-2-27B" else 1)  # one for each kind of layer
    assert compiled["lengths"] > 5
    (host,) = (row for row in rows if row["what"] == "host")
    assert 0 < host["gap_s"] < host["seconds"]
    assert host["in_flight_s"] > 0
    (cache,) = (row for row in rows if row["what"] == "prefix cache")
    assert cache["same"] == cache["of"] > 0
    assert 0 < cache["cached"] < cache["tokens"]
    blocks = [row for row in rows if row["what"] == "full blocks"]
    assert len(blocks) == (part == "Gemma-2-27B")
    ways = {row["way"] for row in rows if row["what"] == "parity"}
    expected = {"flash_attention_2", "flash_attention_4", "flex", "eager"}
    assert ways == (expected if part == "Gemma-2-27B" else expected | {"varlen"})
    (bits,) = (row for row in rows if row["what"] == "bits")
    assert bits["same"] == bits["of"] == 16
    lengths = {length // DIVISOR for length in LENGTHS}
    for way in ways:
        for kind in KINDS:
            cells = [r for r in rows if (r["way"], r["what"]) == (way, kind)]
            assert {cell["length"] for cell in cells} == lengths
    text = build_table(rows, DIVISOR)
    assert part in text
    assert "deterministic" in text
    assert json.loads(json.dumps(build_json(rows)))["models"][part]
    assert all(format_progress(row) for row in rows)


def test_scaled_products_run_without_torchao() -> None:
    shape = SHAPES["Qwen3-0.6B"]
    model = build(shape, shape.config(tiny=True), torch.device("cpu"))
    row = extras.measure_scaled_products(model, Meter(torch.device("cpu")), 32, 0.0)
    assert row["seconds"] > 0
    assert row["bfloat16_s"] > 0


@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_quantized_linears_detect_one_scale_for_all_tokens(
    granularity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchao.quantization import PerTensor, quant_api

    monkeypatch.setattr(extras, "check_quantization", lambda *_, **__: None)
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda _: None)
    if granularity == "tensor":
        monkeypatch.setattr("torchao.quantization.PerRow", PerTensor)
    shape = SHAPES["Qwen3-0.6B"]
    model = build(shape, shape.config(tiny=True), torch.device("cpu"))
    meter = Meter(torch.device("cpu"))
    row = extras.measure_quantized_linears(model, "fp8", meter, 32, 0.0)
    assert row["ok"] is (granularity == "row"), row
    assert is_bad(row) is (granularity == "tensor")


def test_allowed_error_has_a_floor() -> None:
    assert compute_allowed_error(0.1, [1.0, 5.0]) == pytest.approx(0.2)
    assert compute_allowed_error(0.016, [1.0, 5.0]) == pytest.approx(0.016 + (2**-7 + 2**-5) / 2)


def test_measurements_without_time_are_skipped_with_reason() -> None:
    rows = measure("Qwen3-0.6B", seconds=-1.0)
    assert not any(map(is_bad, rows))
    assert any("no time" in row.get("skipped", "") for row in rows)
    assert "skipped: no time" in build_table(rows, DIVISOR)


@pytest.mark.slow
def test_failed_measurement_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.measurements.score", lambda *_: 1 / 0)
    rows = measure("Qwen3-0.6B")
    failed = [row["way"] for row in rows if "failed" in row]
    assert sorted(failed) == [
        "eager",
        "flash_attention_2",
        "flash_attention_4",
        "flex",
        "varlen",
    ]
    assert any(map(is_bad, rows))
    assert "parity failed: ZeroDivisionError" in build_table(rows, DIVISOR)


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_have_published_parameter_counts(name: str) -> None:
    """The model is built in full, without memory for the weights."""
    config = SHAPES[name].config()
    model = build(SHAPES[name], config, torch.device("meta"))
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weights / 1e9 == pytest.approx(PARAMETERS[name], abs=1e-3)
    assert count_bytes(config) / 2 == pytest.approx(weights, rel=1e-3)


def test_parity_sequences_exceed_window_and_share_prefixes() -> None:
    sequences = build_parity_sequences(Draw(1000, TRUE))
    lengths = [len(sequence) for sequence in sequences]
    assert sum(length > TRUE.window for length in lengths) == 2
    assert sum(lengths) < 20_000
    assert min(lengths) == 1
    (tree,) = pack(sequences, TRUE.fixed_row).batches
    assert len({segment.parent for segment in tree.segments}) > 4
    assert len(set(tree.ends)) == len(sequences)


def test_operations_count_keys_within_window() -> None:
    shape = SHAPES["Gemma-2-27B"]
    config = shape.config(tiny=True, window=4)
    model = build(shape, config, torch.device("cpu"))
    (tree,) = pack([(5, 6, 7, 8, 9, 10), (5, 6, 11)], 100).batches
    weights = 3 * 64 * (2 * 64 + 2 * 32 + 3 * 128)
    assert tree.num_tokens == 7
    everything, within_window = 1 + 2 + 3 + 4 + 5 + 6 + 3, 1 + 2 + 3 + 4 + 4 + 4 + 3
    full = config.layer_types.count("full_attention")
    keys = full * everything + (3 - full) * within_window
    assert operations(model, tree) == 2 * weights * 7 + 4 * 64 * keys


def test_built_model_has_bfloat16_weights_and_float32_head() -> None:
    shape = SHAPES["Qwen3-0.6B"]
    model = build(shape, shape.config(tiny=True), torch.device("cpu"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32
    loaded = build_loaded_model(model, "varlen", make_fake_backend("varlen", False))
    assert loaded.head.row.dtype == torch.float32


def test_collect_returns_rows_and_exit_code() -> None:
    rows: list[Row] = []
    code = "import sys; print('ROW {\"a\": 1}', flush=True); print('noise'); sys.exit("
    assert check.collect([sys.executable, "-c", f"{code}0)"], 60, rows.append) == ""
    failure = check.collect([sys.executable, "-c", f"{code}3)"], 60, rows.append)
    assert failure == "exit code 3: noise"
    assert rows == [{"a": 1}, {"a": 1}]


collect = check.collect  # a test replaces `check.collect`


def collect_tests(folder: Path, source: str, add_row: Callable[[Row], None]) -> str:
    """Run a file of tests as `make gpu-check` runs the tests of its folder, in a process."""
    (folder / "test_some.py").write_text(source)
    code = (
        "import sys, types; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from gpu import check\n"
        "clock = types.SimpleNamespace(left=60)\n"
        "check.run_tests(False, clock, check.print_row, Path(sys.argv[1]))\n"
    )
    paths = [str(folder), str(check.ROOT), str(check.ROOT / "tests")]
    return collect([sys.executable, "-c", code, *paths], 120, add_row)


def test_collect_reports_each_test_as_a_row(tmp_path: Path) -> None:
    rows: list[Row] = []
    source = """
import pytest
def test_good():
    print("without a line break", end="")
def test_bad():
    assert 1 == 2
@pytest.mark.skip(reason="why not")
def test_left_out(): ...
@pytest.fixture
def broken():
    raise LookupError("nothing there")
def test_of_fixture(broken): ...
"""
    assert collect_tests(tmp_path, source, rows.append) == ""
    outcomes = {r["way"]: (r["outcome"], r["reason"]) for r in rows if r["what"] == "test"}
    assert outcomes == {
        "test_good": ("passed", ""),
        "test_bad": ("failed", "assert 1 == 2"),
        "test_left_out": ("skipped", "why not"),
        "test_of_fixture": ("failed", "LookupError: nothing there"),
    }
    assert [row["way"] for row in rows if is_bad(row)] == ["test_bad", "test_of_fixture"]
    assert build_json(rows)["tests"] == {"collected": 4, "passed": 1, "failed": 2, "skipped": 1}
    assert "test test_bad: failed assert 1 == 2" in build_table(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package", "No module named 'no_such_package'"),
        ("import pytest\ndef test_a(): pytest.exit('enough', returncode=1)", "exit code 1"),
        ("", "exit code 5"),
    ],
)
def test_collect_reports_tests_that_did_not_run(source: str, reason: str, tmp_path: Path) -> None:
    rows: list[Row] = []
    assert collect_tests(tmp_path, source, rows.append) == ""
    (bad,) = filter(is_bad, rows)
    assert reason in bad.get("failed", "") + bad.get("reason", "")


@pytest.mark.slow
def test_tests_of_images_pass_on_the_cpu() -> None:
    """On a GPU they run without Pillow; here the backends and devices are those of the CPU."""
    options = ["-q", "-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider"]
    file = str(check.HERE / "test_gpu_images.py")
    paths = os.pathsep.join([str(check.ROOT), str(check.ROOT / "tests")])
    variables = {"GPU_TESTS_ON_CPU": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, file],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]


@pytest.mark.slow
def test_main_fails_for_a_failed_test_and_writes_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def collect_failure(command: list[str], seconds: float, add_row: Callable[[Row], None]) -> str:
        return collect_tests(tmp_path, "def test_bad():\n    assert 1 == 2", add_row)

    file = tmp_path / "rows.jsonl"
    options = ["--dry-run", "--parts", "tests", "--rows", str(file)]
    monkeypatch.setattr(check, "collect", collect_failure)
    monkeypatch.setattr(sys, "argv", ["check.py", *options])
    assert check.main() == 1
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row.get("outcome") for row in rows] == [None, "failed"]
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["bad"] == 1
    assert summary["tests"] == {"collected": 1, "failed": 1}


def test_part_without_rows_is_a_failure() -> None:
    rows: list[Row] = []
    failure = check.collect([sys.executable, "-c", "print('ROW {\"a\"')"], 60, rows.append)
    assert failure == 'the part printed no rows: ROW {"a"'
    assert rows == []


def test_hanging_part_is_killed() -> None:
    rows: list[Row] = []
    code = "import time; print('ROW {\"a\": 1}', flush=True); time.sleep(600)"
    assert "its share of the time" in check.collect([sys.executable, "-c", code], 1.5, rows.append)
