"""Runs the blocks of a page of documentation in a folder of the page, against one service."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import shutil
import subprocess
import symtable
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from checkpoints import SPECS, build_tokenizer
from conftest import ROOT
from documents import Block, is_output_of, read_blocks, read_session, split_commands
from fake_hub import get_variables, run_fake_hub
from transformers import Qwen3Config, Qwen3ForCausalLM

from rm_core import seeds_dir

ADDRESSES = re.compile(r"http://(?:127\.0\.0\.1|localhost):8000\b")
POLICY = re.compile(r"\"Qwen/[\w.-]+\"")
CHECKPOINT = re.compile(r"\bSkywork/[\w.-]+")
SHELL = ("bash", "console", "sh", "shell")
# Programs of a script that is run, and commands of `skyreward` that end by themselves.
PROGRAMS = {"cat", "curl", "echo", "export", "head", "ls", "skyreward", "sort", "tail", "wc"}
COMMANDS = {
    *("models", "plan", "score", "select", "calibrate", "render", "eval", "compare-runs"),
    "leaderboard",
}
ROUTES = {
    "pairs": "compare",
    "responses": "rank",
    "items": "steps",
    "conversations": "score",
    "messages": "score",
}
# A policy that has learnt nothing never ends, and there may be no GPU.
SMALL_TRAINING = {
    "max_completion_length": "8", "use_cpu": "True", "bf16": "False", "report_to": "[]",
}  # fmt: skip


class Page:
    """Runs the blocks of a page in its folder.

    Args:
        folder: where they run.
        url: of the service.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self._earlier: list[str] = []
        _write_samples(folder)
        programs = folder / ".bin"
        programs.mkdir()
        _write_program(programs / "skyreward", f'exec "{sys.executable}" -m serve.cli.main "$@"')
        for name in ("python", "python3"):
            _write_program(programs / name, f'exec "{sys.executable}" "$@"')
        if curl := shutil.which("curl"):
            script = f'exec "{curl}" --silent --show-error --fail-with-body "$@"'
            _write_program(programs / "curl", script)
        self._path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        self._environment = {
            **os.environ,
            "PATH": self._path,
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "COLUMNS": "120",
        }

    def run_python(self, block: Block) -> str:
        """What the block prints; it goes on from earlier ones if it uses their names."""
        code = self._with_service(block.text)
        if "from_pretrained(" in code or "ModelConfig(" in code:
            code = CHECKPOINT.sub(str(seeds_dir() / "demo"), code)
        if "trl" in imported_modules(code):
            code = self._with_small_policy(code)
        if block.file_name:
            (self.folder / block.file_name).write_text(code)
        earlier = "\n".join(self._earlier) if free_names(code) else ""
        self._earlier.append(code)
        return self._run([sys.executable, "-c", f"{earlier}\n{code}"], block)

    def run_shell(self, script: str, block: Block) -> str:
        """What the script prints on both streams."""
        script = CHECKPOINT.sub("demo", self._with_service(script))
        return self._run(["bash", "-euo", "pipefail", "-c", script], block)

    def can_run_python(self, block: Block) -> bool:
        """Whether everything that the block imports is installed."""
        modules = imported_modules(block.text)
        return all((self.folder / name).exists() or find_spec(name) for name in modules)

    def can_run(self, script: str) -> bool:
        """Whether everything that a script asks for is here."""
        return all(self._can_run(command.words) for command in split_commands(script))

    def _can_run(self, words: Sequence[str]) -> bool:
        if not words:
            return True
        text = " ".join(words)
        if words[0] not in PROGRAMS or shutil.which(words[0], path=self._path) is None:
            return words[0] == "export"
        if words[0] == "curl" and not ADDRESSES.search(text):
            return False
        if words[0] != "skyreward":
            return True
        model = words[words.index("--model") + 1] if "--model" in words else "demo"
        if words[1] not in COMMANDS or "--ray" in words or "hf://" in text or "--measure" in words:
            return False
        is_local = "--url" not in words
        if words[1] in ("score", "calibrate", "render", "eval") and is_local and model != "demo":
            return False
        if words[1] == "eval" and "--data" not in words:
            return False
        written = {words[i + 1] for i, word in enumerate(words) if word in ("-o", "--output")}
        paths = {word for word in words if re.search(r"/$|\.(jsonl?|parquet)$", word)} - written
        # A folder of results is an argument without an ending.
        paths |= set(words[2:]) if words[1] == "compare-runs" else set()
        return all((self.folder / path).exists() for path in paths)

    def _run(self, command: Sequence[str], block: Block) -> str:
        with run_fake_hub() if "--push-to-hub" in command else nullcontext() as hub:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=self.folder,
                env=self._environment | (get_variables(hub) if hub else {}), timeout=300,
            )  # fmt: skip
        assert done.returncode == 0, f"{block} failed\n{done.stdout}\n{done.stderr}"
        return done.stdout if command[0] == sys.executable else done.stdout + done.stderr

    def _with_service(self, text: str) -> str:
        return ADDRESSES.sub(self.url, text)

    def _with_small_policy(self, code: str) -> str:
        policy = self.folder / "policy"
        if not policy.exists():
            build_policy(policy)
        code = POLICY.sub(repr(str(policy)), code)
        small = "".join(f"{k}={v}, " for k, v in SMALL_TRAINING.items() if f"{k}=" not in code)
        return re.sub(r"(\w+Config)\((?=\w+=)", rf"\1({small}", code)


def _write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _write_samples(folder: Path) -> None:
    pairs = (seeds_dir() / "pairs.jsonl").read_text(encoding="utf-8")
    (folder / "pairs.jsonl").write_text(pairs, encoding="utf-8")
    chats = (
        [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["chosen"]},
        ]
        for row in map(json.loads, pairs.splitlines())
    )
    lines = (json.dumps({"messages": chat}) + "\n" for chat in chats)
    (folder / "conversations.jsonl").write_text("".join(lines), encoding="utf-8")
    # In place of ms-swift, whose plugins register themselves.
    (folder / "swift").mkdir()
    (folder / "swift" / "rewards.py").write_text("orms = {}")


def build_policy(folder: Path) -> None:
    tokenizer = build_tokenizer(SPECS["qwen3"])
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def imported_modules(code: str) -> set[str]:
    """Top-level packages that a program imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    return {name.split(".")[0] for name in names}


def free_names(code: str) -> set[str]:
    """Names that a program uses and does not define."""
    found: set[str] = set()
    defined = {symbol.get_name() for symbol in _table(code).get_symbols() if symbol.is_assigned()}
    defined |= {symbol.get_name() for symbol in _table(code).get_symbols() if symbol.is_imported()}
    tables = [_table(code)]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            is_global = symbol.is_global() or table.get_type() == "module"
            if symbol.is_referenced() and is_global:
                found.add(symbol.get_name())
    return found - defined - set(dir(builtins)) - {"__name__", "__file__"}


def _table(code: str) -> symtable.SymbolTable:
    return symtable.symtable(code, "block", "exec")


def expected_output(block: Block, following: Block | None) -> str | None:
    """The output that the page shows right after a block."""
    if following is None or following.language not in ("json", "jsonl", "text"):
        return None
    return following.text if is_output_of(following, block) else None


def assert_shows(shown: str, printed: str, block: Block) -> None:
    """Fail unless a page shows what was printed: JSON by its values, else line by line."""
    if not shown.strip():
        return
    try:
        wanted, got = json.loads(shown), json.loads(printed)
    except ValueError:
        lines = iter(" ".join(line.split()) for line in printed.splitlines())
        for line in shown.splitlines():
            pattern = wildcard(" ".join(line.split()))
            assert any(pattern.fullmatch(got) for got in lines), (
                f"{block} prints no {line!r}\n{printed}"
            )
        return
    assert matches(wanted, got), f"{block} shows\n{wanted}\nand prints\n{got}"


def matches(shown: Any, got: Any) -> bool:
    """Whether a value is the one that is shown, `...` standing for anything in a text."""
    if isinstance(shown, dict) and isinstance(got, dict):
        return shown.keys() == got.keys() and all(matches(shown[key], got[key]) for key in shown)
    if isinstance(shown, list) and isinstance(got, list):
        return len(shown) == len(got) and all(map(matches, shown, got))
    if isinstance(shown, float) and isinstance(got, int | float):
        return abs(shown - got) <= 1e-3
    if isinstance(shown, str) and isinstance(got, str):
        return wildcard(shown).fullmatch(got) is not None
    return bool(type(shown) is type(got) and shown == got)


def wildcard(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, text.split("..."))), re.DOTALL)


def run_page(page: Path, runner: Page) -> Iterator[tuple[Block, str]]:
    """Run what can be run of a page; gives the output of each block of Python."""
    blocks = read_blocks(page)
    for block, following in pairwise([*blocks, None]):
        assert block is not None
        shown = expected_output(block, following)
        if block.language == "python":
            if not runner.can_run_python(block):
                continue
            printed = runner.run_python(block)
            if shown is not None:
                assert_shows(shown, printed, block)
            yield block, printed
        elif block.language in SHELL and "\n$ " in f"\n{block.text}":
            for script, output in read_session(block.text):
                if runner.can_run(script):
                    assert_shows(output, runner.run_shell(script, block), block)
        elif block.language in SHELL and runner.can_run(block.text):
            printed = runner.run_shell(block.text, block)
            if shown is not None:
                assert_shows(shown, printed, block)
        elif block.language == "json":
            check_body(block, shown, runner.url)


def check_body(block: Block, shown: str | None, url: str) -> None:
    """A body of a native route is accepted, and answered with what the page shows."""
    body = json.loads(block.text)
    if not isinstance(body, dict) or "results" in body:
        return
    route = next((route for key, route in ROUTES.items() if isinstance(body.get(key), list)), None)
    if route is not None:
        answer = httpx.post(f"{url}/v1/{route}", json=body, trust_env=False, timeout=60)
        assert answer.status_code == 200, f"{block}: {answer.text}"
        if shown is not None and "results" in json.loads(shown):
            assert_shows(shown, answer.text, block)
