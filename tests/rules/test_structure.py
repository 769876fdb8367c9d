"""The rules of the house: import directions, exports, and one reader of the environment."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import rm_core

HEAVY = {"ray", "fastapi", "starlette", "pydantic", "uvicorn", "httpx", "click", "rich"}
SOURCES = sorted([*ROOT.glob("rm_core/**/*.py"), *ROOT.glob("serve/**/*.py")])
# Files later in a list may be imported by earlier ones, never the other way round.
RM_CORE_LAYERS = [
    ["rm_core.verification"],
    ["rm_core.benchmarks.registry", "rm_core.benchmarks.intervals"],
    [
        "rm_core.benchmarks.rewardbench",
        "rm_core.benchmarks.rewardbench2",
        "rm_core.benchmarks.rm_bench",
        "rm_core.benchmarks.rmb",
        "rm_core.benchmarks.judgebench",
        "rm_core.benchmarks.ppe",
    ],
    ["rm_core.benchmarks.tallies", "rm_core.benchmarks.statistics", "rm_core.benchmarks.best_of_n"],
    ["rm_core.benchmarks.rows"],
    ["rm_core.benchmarks.records"],
    ["rm_core.benchmarks.options"],
    ["rm_core.scorer"],
    ["rm_core.forward", "rm_core.memory", "rm_core.engine_errors"],
    ["rm_core.loading"],
    ["rm_core.self_check", "rm_core.weights", "rm_core.precision"],
    ["rm_core.checkpoint", "rm_core.placement", "rm_core.quantization"],
    ["rm_core.packed_linear", "rm_core.readout_layer", "rm_core.layer_split"],
    ["rm_core.golden"],
    ["rm_core.config_file", "rm_core.tokenizer_file"],
    ["rm_core.checkpoint_files", "rm_core.rope_limits"],
    ["rm_core.catalog", "rm_core.chat", "rm_core.attention"],
    [
        "rm_core.token_bound",
        "rm_core.text_borders",
        "rm_core.prepared",
        "rm_core.advice",
        "rm_core.chat_template",
    ],
    ["rm_core.tokenizer_parts"],
    ["rm_core.dialects"],
    ["rm_core.packing"],
    ["rm_core.records", "rm_core.truncation", "rm_core.conversations", "rm_core.cache"],
    ["rm_core.types", "rm_core.config", "rm_core.rounding", "rm_core.compiling"],
    ["rm_core.errors"],
]
SERVE_LAYERS = [
    ["serve.cli", "serve.demo"],
    ["serve.score_command", "serve.eval_command", "serve.plan_command"],
    ["serve.planning.shown"],
    ["serve.planning.plan"],
    ["serve.planning.fleet", "serve.planning.measure"],
    ["serve.planning.replica", "serve.planning.queueing"],
    ["serve.planning.devices", "serve.planning.load", "serve.planning.shape"],
    ["serve.options"],
    ["serve.evaluation"],
    ["serve.start.launch", "serve.tables", "serve.jobs"],
    ["serve.app", "serve.start.local", "serve.start.ingress"],
    ["serve.gateway", "serve.scorer", "serve.clients"],
    ["serve.figures.gateways", "serve.http"],
    ["serve.start.listening", "serve.autoscaling", "serve.router"],
    ["serve.routes.openapi", "serve.guard.middleware"],
    ["serve.routes.shared_paths"],
    [
        "serve.routes.vllm",
        "serve.routes.sglang",
        "serve.routes.openrlhf",
        "serve.routes.tei",
        "serve.routes.llamafactory",
        "serve.routes.slime",
        "serve.routes.chat",
        "serve.routes.rerank",
    ],
    ["serve.routes.peers"],
    [
        "serve.routes.native",
        "serve.routes.status",
        "serve.routes.figures",
        "serve.routes.playground",
        "serve.routes.docs",
        "serve.record.tracing",
    ],
    ["serve.routes.dependencies", "serve.routes.json_route", "serve.routes.shapes"],
    ["serve.guard.refusal"],
    ["serve.guard.body"],
    ["serve.guard.admission", "serve.guard.deadline"],
    ["serve.service", "serve.record.log"],
    ["serve.figures.states"],
    ["serve.served_model"],
    ["serve.queue.dispatch", "serve.queue.slices", "serve.queue.encoder_thread"],
    ["serve.queue.losses", "serve.queue.waiting"],
    ["serve.backends"],
    ["serve.engine"],
    [
        "serve.guard.limits",
        "serve.guard.keys",
        "serve.guard.hosts",
        "serve.routes.json_body",
        "serve.routes.json_outline",
    ],
    ["serve.problems"],
    ["serve.queue.batch_choice", "serve.queue.fair_order", "serve.queue.work_rate"],
    ["serve.figures.metrics"],
    ["serve.figures.collectors", "serve.figures.merge"],
    ["serve.queue.observer"],
    ["serve.start.door", "serve.changes"],
    ["serve.start.connections"],
    ["serve.start.haproxy", "serve.start.cluster", "serve.guard.delivery"],
    ["serve.schemas", "serve.record.formats", "serve.settings"],
    ["serve.model_settings", "serve.record.request", "serve.web"],
    ["serve.pages", "serve.batch_clock", "serve.console"],
    ["serve.escaping"],
]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Every imported module, also of imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert node.module
            yield node.module


def layer_of(module: str, layers: list[list[str]]) -> int | None:
    for index, names in enumerate(layers):
        if any(module == name or module.startswith(name + ".") for name in names):
            return index
    return None


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_go_one_way(path: Path) -> None:
    module = module_of(path)
    package = module.split(".")[0]
    layers = RM_CORE_LAYERS if package == "rm_core" else SERVE_LAYERS
    mine = layer_of(module, layers)
    is_room = path.name == "__init__.py" and not list(imports_of(path))
    is_face = is_room or module in ("rm_core", "serve") or module.startswith("rm_core.demo_model")
    assert mine is not None or is_face, f"{module} has no layer in this test"
    for imported in imports_of(path):
        top = imported.split(".")[0]
        if package == "rm_core":
            assert top not in HEAVY | {"serve"}, f"{module} imports {imported}"
        if package == "serve":
            assert top not in ("safetensors", "tokenizers"), f"{module} does tensor work"
        theirs = layer_of(imported, layers)
        if top == package and theirs is not None and mine is not None:
            assert theirs >= mine, f"{module} imports {imported}, which is above it"


def test_rm_core_needs_torch_and_transformers_alone() -> None:
    code = (
        "import sys, rm_core, rm_core.verification, rm_core.scorer; "
        f"print([m for m in {sorted(HEAVY - {'httpx', 'click', 'rich'})} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_exports_are_sorted_and_there() -> None:
    assert list(rm_core.__all__) == sorted(rm_core.__all__)
    for name in rm_core.__all__:
        assert getattr(rm_core, name)


def test_flash_attn_is_known_to_the_attention_room_alone() -> None:
    for path in SOURCES:
        if "attention" not in path.parts:
            assert not any(name.startswith("flash_attn") for name in imports_of(path)), path


def test_settings_are_the_only_reader_of_the_environment() -> None:
    """Variables are set for Ray before it starts, and for oneDNN; nobody else touches them."""
    allowed = {
        "rm_core.packed_linear",
        "serve.settings",
        "serve.clients.settings",
        "serve.start.launch",
        "serve.start.cluster",
    }
    for path in SOURCES:
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        }
        if module_of(path) not in allowed:
            assert not names & {"environ", "getenv"}, path


def test_ray_serve_is_imported_under_a_name_of_its_own() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "ray":
                assert [alias.asname for alias in node.names] == ["ray_serve"], path


def test_no_code_where_only_values_belong() -> None:
    for folder in ("deploy", "seeds"):
        assert not list((ROOT / folder).rglob("*.py"))


def test_top_level_holds_what_was_agreed() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top <= {
        "pyproject.toml", "README.md", "serve", "rm_core", "deploy", "tests", "seeds",
        "Makefile", "constraints.txt", "LICENSE",
    }  # fmt: skip
