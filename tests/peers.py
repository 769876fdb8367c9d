"""The code of other projects' clients, loaded from where it was installed without what it needs.

Packages of trainers pull in engines and kernels that have no place beside ours. Their client code
needs next to none of it: single modules are imported as they are, while `__init__` files of the
packages around them are not run and named modules are stood in for. What is not installed skips.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import typing
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Filled by `make test`; what is on no package index may be put there too. `PEERS` names folders
# that are searched before it, separated by colons.
PEERS = Path(sys.prefix) / "peers"
_FOLDERS = [*map(Path, filter(None, os.environ.get("PEERS", "").split(":"))), PEERS]
_SCRIPTS = Path(__file__).parent / "trainer_scripts"

VERL: dict[str, dict[str, Any]] = {
    "omegaconf": {"DictConfig": dict, "open_dict": None},
    "tensordict": {"TensorDict": object},
    "verl": {"DataProto": object},
    "verl.protocol": {"DataProto": object, "pad_dataproto_to_divisor": None},
    "verl.single_controller.ray.base": {"RayResourcePool": object},
    "verl.utils": {"hf_tokenizer": None},
    "verl.utils.fs": {"copy_to_local": None},
    "verl.utils.ray_utils": {"get_event_loop": asyncio.get_event_loop},
    "verl.utils.reward_score": {"default_compute_score": None, "get_default_compute_score": None},
}
"""Stand-ins of what verl's reward code imports."""


def peer_path(name: str) -> Path:
    """A file or folder of a peer; skips where there is none."""
    for folder in _FOLDERS:
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"there is no {name} in {PEERS}")


def peer_functions(
    path: str, names: Collection[str], cls: str | None = None, **variables: Any
) -> dict[str, Any]:
    """Some functions of a file of a peer, by name; its other code is not run.

    Args:
        path: of the file, below the folder of peers.
        names: of the functions. One that is not there is left out.
        cls: class whose methods they are; None for functions of the module.
        variables: what the functions use of their module.
    """
    top, _, rest = path.partition("/")
    file = peer_path(top) / rest
    source = ast.parse(file.read_text(encoding="utf-8"))
    body: Sequence[ast.stmt] = source.body
    if cls is not None:
        body = next(
            node for node in body if isinstance(node, ast.ClassDef) and node.name == cls
        ).body
    source.body = [
        node for node in body if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    module = {name: getattr(typing, name) for name in typing.__all__}
    module |= {"json": json, "os": os, "math": math, "defaultdict": defaultdict, **variables}
    exec(compile(source, path, "exec"), module)
    return module


@contextlib.contextmanager
def peer_module(name: str, stand_ins: Mapping[str, Mapping[str, Any]]) -> Iterator[ModuleType]:
    """A module of a peer; while it is in use, what it imports is found.

    Args:
        name: with its packages.
        stand_ins: attributes of modules that are not to be imported, by name.
    """
    top = name.split(".")[0]
    place = peer_path(top).parent
    before = set(sys.modules)
    parts = name.split(".")
    packages = {".".join(parts[:number]) for number in range(1, len(parts))}
    for package in packages | set(stand_ins):
        module = ModuleType(package)
        module.__path__ = [str(place.joinpath(*package.split(".")))]
        vars(module).update(stand_ins.get(package, {}))
        sys.modules[package] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their code, at import
            yield importlib.import_module(name)
    finally:
        for added in set(sys.modules) - before:
            if added in stand_ins or added.split(".")[0] == top:
                del sys.modules[added]


def run_trainer_script(name: str, *arguments: str, **environment: str) -> Any:
    """Run `tests/trainer_scripts/NAME.py` with the packages of peers, and return what it prints.

    Skips where a package is missing.

    Args:
        name: name of the script, whose last line is JSON.
        arguments: of the script.
        environment: variables on top of this process's.
    """
    paths = [*map(str, _FOLDERS), *sys.path]
    with tempfile.TemporaryDirectory() as folder:  # some trainers write logs where they are
        process = subprocess.run(
            [sys.executable, "-W", "ignore", str(_SCRIPTS / f"{name}.py"), *arguments],
            env={**os.environ, "PYTHONPATH": ":".join(filter(None, paths)), **environment},
            cwd=folder,
            capture_output=True,
            text=True,
        )
    if missing := re.search(r"^ModuleNotFoundError: (.*)$", process.stderr, re.MULTILINE):
        pytest.skip(f"{name}: {missing[1]}")
    assert process.returncode == 0, process.stderr[-5000:]
    return json.loads(process.stdout.splitlines()[-1])
