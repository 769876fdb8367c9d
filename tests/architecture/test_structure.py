"""Rules that import-linter has no contract for: exports, one reader of the environment, folders."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

import rm_core

HEAVY = {"ray", "fastapi", "starlette", "pydantic", "uvicorn", "httpx", "click", "rich"}
SOURCES = sorted([*ROOT.glob("rm_core/**/*.py"), *ROOT.glob("serve/**/*.py")])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def test_rm_core_needs_torch_and_transformers_alone() -> None:
    code = (
        "import sys, rm_core, rm_core.verification, rm_core.scorer; "
        f"print([m for m in {sorted(HEAVY - {'httpx', 'click', 'rich'})} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_exports_are_there() -> None:
    for name in rm_core.__all__:
        assert getattr(rm_core, name)


def test_settings_are_the_only_reader_of_the_environment() -> None:
    """Others set variables for Ray and oneDNN, and read those of malloc and of a user's folders."""
    allowed = {
        "rm_core.model.offload",
        "rm_core.model.prepacked_linear",
        "serve.config.settings",
        "serve.client.settings",
        "serve.launch.ray",
        "serve.deployments.cluster",
        "serve.jobs.output",
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
    files = [*(ROOT / "deploy").rglob("*.py"), *(ROOT / "seeds").rglob("*.py")]
    assert not [file for file in files if "training" not in file.parts]


def test_top_level_holds_what_was_agreed() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    top = {name.split("/")[0] for name in listed if not name.startswith(".")}
    assert top <= {
        "pyproject.toml", "README.md", "serve", "rm_core", "deploy", "tests", "seeds", "docs",
        "Makefile", "constraints.txt", "LICENSE",
    }  # fmt: skip
