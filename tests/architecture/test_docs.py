"""The documentation: what its pages show can be read, exists, and builds into a site.

Blocks that can be run are run by `tests/service/test_docs_blocks.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import html
import importlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from documented_commands import find_missing_paths, find_problems, known_variables
from documents import (
    Block,
    current_pages,
    inline_code,
    name_of,
    pages,
    read_blocks,
    read_prose,
    read_session,
    split_commands,
)
from prometheus_text import known_labels

from rm_core import ModelConfig
from rm_core.errors import RewardError
from serve.cli.main import main
from serve.client.settings import ClientSettings
from serve.config.model_settings import ModelSettings
from serve.config.reconfigure import apply_user_config
from serve.config.settings import Settings
from serve.telemetry.logging import RequestContext

# Of Ray, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
by_page = pytest.mark.parametrize("page", pages(), ids=name_of)
by_current_page = pytest.mark.parametrize("page", current_pages(), ids=name_of)
SHELL = ("bash", "console", "sh", "shell")
# Others are shown to be read, or for other people's programs.
LANGUAGES = {
    *SHELL, "json", "jsonl", "python", "toml", "yaml",
    "diff", "dockerfile", "html", "ini", "jinja", "nginx", "promql", "text",
}  # fmt: skip
# YAML for other programs, told by a key at the top.
FOREIGN_YAML = {
    "apiVersion", "scrape_configs", "services", "groups", "name", "jobs",
    # AReaL, NeMo-Gym and ROLL
    "workflow_kwargs", "reward_agent", "rewards",
}  # fmt: skip
# Columns that a job writes if the input has one with its first name.
RESULTS = (
    "reward", "chosen_reward", "rejected_reward", "margin", "rewards", "error", "truncated",
    "warnings", "results",
)  # fmt: skip


def blocks(page: Path, *languages: str) -> list[Block]:
    return [block for block in read_blocks(page) if block.language in languages]


def scripts(block: Block) -> Iterator[str]:
    """The commands of a block of shell, without prompts and output."""
    if "\n$ " in f"\n{block.text}":
        yield from (command for command, _ in read_session(block.text))
    else:
        yield block.text


@by_page
def test_blocks_have_a_language_that_is_checked(page: Path) -> None:
    for block in read_blocks(page):
        assert block.language in LANGUAGES, f"{block}: {block.language}"


@by_page
def test_python_blocks_compile_and_import_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        tree = ast.parse(block.text, str(block))
        for node in ast.walk(tree):
            for module, name in imported(node):
                if module.split(".")[0] in ("serve", "rm_core"):
                    assert exists(module, name), f"{block}: no {name} in {module}"


def imported(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from ((node.module, alias.name) for alias in node.names)


def exists(module: str, name: str) -> bool:
    try:
        loaded = importlib.import_module(module)
    except ImportError:
        return False
    return not name or hasattr(loaded, name) or bool(importlib.util.find_spec(f"{module}.{name}"))


@by_page
def test_data_blocks_parse(page: Path) -> None:
    for block in blocks(page, "json", "jsonl", "toml"):
        texts = block.text.splitlines() if block.language == "jsonl" else [block.text]
        for text in texts:
            parsed = tomllib.loads(text) if block.language == "toml" else json.loads(text)
            assert parsed, block


@by_page
def test_yaml_blocks_load_through_the_settings(page: Path) -> None:
    for block in blocks(page, "yaml"):
        for content in yaml.safe_load_all(block.text):
            check_yaml(block, content)


def check_yaml(block: Block, content: Any) -> None:
    if isinstance(content, list):
        for item in content:
            check_yaml(block, item)
    elif "applications" in content:
        for application in content["applications"]:
            assert Settings.load(**application.get("args", {}))
            check_deployments(application.get("deployments", ()))
    elif "deployments" in content:
        check_deployments(content["deployments"])
    elif "user_config" in content:
        check_deployments([content])
    elif content.keys() & Settings.model_fields.keys():
        assert Settings.load(**content)
    elif "name" in content and content.keys() <= ModelSettings.model_fields.keys():
        assert ModelSettings.model_validate(content)
    else:
        assert content.keys() & FOREIGN_YAML, f"{block}: neither settings nor a known format"


def check_deployments(deployments: Any) -> None:
    for deployment in deployments:
        values = deployment.get("user_config", {})
        if deployment["name"] == "Gateway":
            # A file of keys would have to exist.
            values = {name: value for name, value in values.items() if name != "api_keys_file"}
            assert apply_user_config(Settings.load(), values)


@by_page
def test_shell_blocks_show_commands_that_exist(page: Path) -> None:
    for block in blocks(page, *SHELL):
        for script in scripts(block):
            checked = subprocess.run(
                ["bash", "-n"], input=script, capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, f"{block}: {checked.stderr}"
            for command in split_commands(script):
                for problem in find_problems(command):
                    pytest.fail(f"{block}: {' '.join(command.words)}: {problem}")


@by_current_page
def test_inline_code_names_what_exists(page: Path) -> None:
    for code in inline_code(page):
        for problem in inline_problems(code):
            pytest.fail(f"{name_of(page)}: `{code}`: {problem}")


def inline_problems(code: str) -> Iterator[str]:
    if re.match(r"(skyreward|make) \S", code):
        # Prose may name an option without its value, and show what may be left out.
        for command in split_commands(re.sub(r"\[([^\]]*)\]", r"\1", f"{code} ...")):
            yield from find_problems(command)
    for word in re.split(r"[\s,;=]+", code):
        yield from find_missing_paths(word)
        if re.fullmatch(r"(?:serve|rm_core)(?:\.\w+)+(?::\w+)?", word) and not is_file(word):
            yield from missing_names(word)


@by_current_page
def test_quoted_errors_are_those_that_the_code_has(page: Path) -> None:
    for quoted in quoted_errors(page.read_text(encoding="utf-8")):
        # What a message is about varies: placeholders in capitals, numbers and special tokens.
        pieces = re.split(r"'.*?'|`.*?`|\.\.\.|[A-Z+]{3,}|\bN\b|\d+|<\|.*?\|>|(?<=\w): ", quoted)
        for piece in pieces:
            if not any(piece.strip(" ,") in text for text in known_messages()):
                pytest.fail(f"{name_of(page)}: no message has `{piece}`, of `{quoted}`")


def quoted_errors(markdown: str) -> list[str]:
    """Code of several words in the first column of the tables under "What goes wrong"."""
    (_, *sections) = re.split(r"^## What goes wrong$", markdown, flags=re.MULTILINE)
    rows = [row for text in sections for row in text.split("\n## ")[0].splitlines()]
    cells = [re.split(r"(?<!\\)\|", row)[1] for row in rows if row.startswith("| ")]
    found = [code for cell in cells for _, code in re.findall(r"(`+)(.+?)\1(?!`)", cell)]
    return [code.strip().replace("\\|", "|") for code in found if len(code.split()) > 2]


@functools.cache
def known_messages() -> list[str]:
    """Every text in the code, with a gap for each value that is filled in."""
    texts = []
    for file in (path for folder in ("serve", "rm_core") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                values = [getattr(part, "value", "") for part in node.values]
                texts.append("".join(v if isinstance(v, str) else "\0" for v in values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


def test_quoted_errors_are_found() -> None:
    table = "# A\n## What goes wrong\n\n| error | do |\n|---|---|\n| `a \\| b c` at N | `d e f` |\n"
    assert quoted_errors(f"{table}\n## Next\n| `g h i` | |") == ["a | b c"]
    assert quoted_errors("# A page") == []


def is_file(word: str) -> bool:
    return word.endswith((".yaml", ".yml", ".json", ".md"))


def missing_names(dotted: str) -> Iterator[str]:
    parts = re.split(r"[.:]", dotted)
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(module)
        except ImportError:
            continue
        for name in parts[end:]:
            found = getattr(found, name, None) or getattr(found, "model_fields", {}).get(name)
            if found is None:
                yield f"there is no {name} in {module}"
                return
        return
    yield f"there is no {dotted}"


@by_current_page
def test_metrics_and_variables_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    series = set(known_labels())
    metrics = series | {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in series}
    metrics |= {f"skyreward_{name}" for name in RESULTS}
    for name in re.findall(r"\bskyreward_\w+", text):
        assert name in metrics, f"{name_of(page)}: {name}"
    for name in re.findall(r"\bSKYREWARD_\w*[A-Z](?![\w*])", text):
        assert name in known_variables(), f"{name_of(page)}: {name}"


@pytest.mark.parametrize("page", sorted((ROOT / "docs/contributing").glob("*.md")), ids=name_of)
def test_files_of_the_code_exist(page: Path) -> None:
    """Pages about the code may name a file without the folders above it."""
    folders = ("rm_core", "seeds", "serve", "tests")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for code in inline_code(page):
        if re.fullmatch(r"[\w/]+\.py", code):
            assert any(path.match(code) for path in sources), f"{name_of(page)}: `{code}`"


@by_page
def test_pages_name_no_folder_that_readers_lack(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.compile(r"\]\([^)]*\)")
    assert not re.search(r"(?<![\w/.])(?:\.\./[\w]|/work/|/home/\w)", links.sub("", text))


@by_page
def test_links_to_files_lead_somewhere(page: Path) -> None:
    """Of all pages; within `docs/` the build looks at anchors too."""
    for target in re.findall(r"\]\(([^)\s]+)\)", read_prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            continue
        there = page.parent / path
        assert there.exists(), f"{name_of(page)}: {target}"
        assert not anchor or anchor in anchors(there), f"{name_of(page)}: {target}"


def anchors(page: Path) -> set[str]:
    """Of the headings that a page itself has; those of generated sections are unknown here."""
    from markdown.extensions.toc import slugify

    found = set()
    for line in read_prose(page).splitlines():
        if heading := re.match(r"#+ (.*)", line):
            found.add(slugify(re.sub(r"[`*]", "", heading[1]), "-"))
    generated = "<!-- generated:" in page.read_text(encoding="utf-8")
    return AnyAnchor() if generated else found


class AnyAnchor(set[str]):
    def __contains__(self, _: object) -> bool:
        return True


def test_the_library_page_has_every_field_of_a_model_config() -> None:
    text = (ROOT / "docs" / "guides" / "library.md").read_text(encoding="utf-8")
    fields = {field.name for field in dataclasses.fields(ModelConfig)} - {"name"}
    assert sorted(name for name in fields if f"`{name}`" not in text) == []


def test_fields_of_the_log_are_documented() -> None:
    """Those of the line that tells of a request, which is made from its record."""
    import serve.api.middleware.request_log as request_log

    record = RequestContext("id", "POST", "/v1/score", model="m", code="overloaded")
    page = (ROOT / "docs" / "reference" / "log-fields.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(\w+)` \|", page.partition("## Requests")[2], re.MULTILINE))
    assert documented == {*request_log._build_log_fields(record), "left_out"}


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site: what is strict about `.mkdocs.yml` ends the build."""
    if request.config.option.site:
        return ROOT / request.config.option.site
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-f", ".mkdocs.yml", "--site-dir", folder],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def shown(site: Path, page: str) -> str:
    """The text of a built page."""
    text = (site / page).read_text(encoding="utf-8")
    return html.unescape(re.sub(r"<[^>]+>", "", text[text.index("<article") :]))


def test_the_site_asks_no_other_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        asked = re.findall(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=\"?(\S+)", text)
        assert not [address for address in asked if re.match(r"(?:https?:)?//", address)], page
        assert 'class="mermaid"' not in text  # its script would come from another host


def test_the_reference_has_every_setting(site: Path) -> None:
    text = shown(site, "reference/settings.html")
    for model in (Settings, ModelSettings, ClientSettings):
        prefix = str(model.model_config.get("env_prefix", ""))  # type: ignore[attr-defined]
        for name, setting in model.model_fields.items():  # type: ignore[attr-defined]
            assert setting.description, name
            assert f"{name}{prefix + name.upper() if prefix else ''}\n" in text, name


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    text = shown(site, "reference/cli.html")
    for command in main.commands.values():
        for param in command.params:
            for option in param.opts if param.param_type_name == "option" else ():
                assert option in text, f"{command.name} {option}"


def test_the_reference_has_every_metric(site: Path) -> None:
    text = shown(site, "reference/metrics.html")
    for name in known_labels():
        assert re.sub(r"_(bucket|count|sum)$", "", name) in text, name


def test_the_reference_has_every_error(site: Path) -> None:
    def classes(cls: type[RewardError]) -> Iterator[type[RewardError]]:
        yield cls
        for sub in cls.__subclasses__():
            yield from classes(sub)

    text = shown(site, "reference/errors.html")
    for cls in classes(RewardError):
        if cls.__module__ in ("rm_core.errors", "serve.errors", "serve.client.errors"):
            assert f"{cls.code}\n{cls.__name__}\n" in text, cls


def test_the_reference_has_every_route(site: Path) -> None:
    from serve.api.app import create_app
    from serve.scoring.service import ScoringService

    settings = Settings.load()
    document = create_app(ScoringService([], settings), settings).openapi()
    text = shown(site, "reference/http.html")
    for path, methods in document["paths"].items():
        for method in methods:
            assert re.search(rf"{method.upper()} {re.escape(path)}\b", text), path
    for name in document["components"]["schemas"]:
        assert name.lstrip("_") in text


def test_wire_formats_are_of_paths_that_exist() -> None:
    from serve.api.app import create_app
    from serve.scoring.service import ScoringService

    settings = Settings.load()
    paths = create_app(ScoringService([], settings), settings).openapi()["paths"]
    page = ROOT / "docs" / "reference" / "wire-formats.md"
    tables = [line for line in read_prose(page).splitlines() if line.startswith("|")]
    named = {p for line in tables for p in re.findall(r"`(/[a-z0-9_/]+)`", line.split("|")[1])}
    assert named
    assert named <= set(paths)


def test_commands_are_split_as_a_shell_splits_them() -> None:
    script = "A=1 python -m x 'a b' \\\n  --c \"$(echo 'd e')\" | head -3 > f  # no\nmake check"
    found = [command.words for command in split_commands(script)]
    assert found == [
        ["python", "-m", "x", "a b", "--c", "$(echo 'd e')"],
        ["head", "-3"],
        ["make", "check"],
    ]
    assert split_commands(script)[0].variables == {"A": "1"}


@pytest.mark.parametrize(
    "line",
    [
        "skyreward scor x -o y",
        "skyreward score x -o y --chunk-row 5",
        "skyreward score x --truncation middle",
        "skyreward models a b",
        "make chek",
        "python tests/bench/no.py",
        "python tests/bench/throughput.py --plotz x",
        "pip install '.[flsh]'",
        "SKYREWARD_PROT=1 skyreward serve",
    ],
)
def test_wrong_commands_are_found(line: str) -> None:
    assert [*find_problems(split_commands(line)[0])], shlex.split(line)
