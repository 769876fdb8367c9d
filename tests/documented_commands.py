"""Commands that the documentation shows, without running them: what in them does not exist."""

from __future__ import annotations

import functools
import importlib.util
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

import click
from conftest import ROOT
from documents import Command

from serve.cli.main import main
from serve.client.settings import ClientSettings
from serve.config.settings import Settings

# Words that stand for what a reader has: NAME, ORG/NAME, DIR..., X, [NAME].
_PLACEHOLDER = re.compile(r"\[?[A-Z][A-Z0-9_./@=-]*(?:\.\.\.)?\]?")
_OUR_FOLDERS = ("deploy", "docs", "rm_core", "seeds", "serve", "tests")


def find_problems(command: Command) -> Iterator[str]:
    """What a reader who types the command would be told is wrong with it."""
    for variable in command.variables:
        if variable.startswith("SKYREWARD_") and variable not in known_variables():
            yield f"there is no variable {variable}"
    for word in command.words:
        yield from find_missing_paths(word)
    program, *arguments = command.words or [""]
    if program == "skyreward":
        yield from _skyreward_problems(arguments)
    elif program == "make":
        yield from _make_problems(arguments)
    elif program in ("python", "python3"):
        yield from _python_problems(arguments)
    elif program == "pip":
        yield from _extra_problems(arguments)


@functools.cache
def known_variables() -> set[str]:
    """Environment variables with our prefix that anything of ours reads."""
    names = {
        str(model.model_config["env_prefix"]) + name.upper()
        for model in (Settings, ClientSettings)
        for name in model.model_fields
    }
    for command in main.commands.values():
        names |= {param.envvar for param in command.params if isinstance(param.envvar, str)}
    return names


def find_missing_paths(word: str) -> Iterator[str]:
    """Paths in a word that the repository should have and has not."""
    word = word.strip("'\"(),:;")
    if re.search(r"[{}<>$|\s]", word) or word.startswith(("/", "~", "http", "--")):
        return
    ours = "/" in word and word.split("/")[0] in _OUR_FOLDERS
    if ours and not _PLACEHOLDER.fullmatch(word) and not list(ROOT.glob(word.rstrip("/"))):
        yield f"the repository has no {word}"


def _skyreward_problems(arguments: Sequence[str]) -> Iterator[str]:
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name.startswith("-"):
        yield from _parse_problems(main, arguments)
    elif name in main.commands:
        yield from _parse_problems(main.commands[name], rest)
    elif not _PLACEHOLDER.fullmatch(name):
        yield f"skyreward has no command {name}"


def _parse_problems(command: click.Command, arguments: Sequence[str]) -> Iterator[str]:
    # Not `main()`: files need not exist, and nothing is to run.
    context = click.Context(command, info_name=command.name)
    parser = command.make_parser(context)
    takes_value = {
        option
        for param in command.params
        if isinstance(param, click.Option) and not param.is_flag
        for option in param.opts
    }
    words = list(arguments)
    for i in reversed(range(len(words))):
        if words[i] == "...":  # what is left out: the value of an option, or anything else
            words[i : i + 1] = ["VALUE"] if i and words[i - 1] in takes_value else []
    try:
        values, extra, _ = parser.parse_args(words)
    except click.UsageError as error:
        yield error.format_message()
        return
    if extra:
        yield f"unexpected: {' '.join(extra)}"
    for param in command.params:
        yield from _value_problems(param, values.get(str(param.name)), context)


def _value_problems(param: click.Parameter, value: Any, context: click.Context) -> Iterator[str]:
    for one in value if isinstance(value, list | tuple) else [value]:
        if not isinstance(one, str) or _PLACEHOLDER.fullmatch(one):
            continue
        if isinstance(param.type, click.Path | click.File):
            continue
        try:
            param.type.convert(one, param, context)
        except click.UsageError as error:
            yield error.format_message()


def _make_problems(arguments: Sequence[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, equals, _ = word.partition("=")
        if equals and f"$({name})" not in makefile and f"$(if $({name})" not in makefile:
            yield f"the Makefile reads no {name}"
        is_target = not (equals or word.startswith(("-", "...")) or _PLACEHOLDER.fullmatch(word))
        if is_target and not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE):
            yield f"the Makefile has no target {word}"


def _python_problems(arguments: Sequence[str]) -> Iterator[str]:
    if arguments[:1] == ["-m"]:
        module = arguments[1]
        ours = module.split(".")[0] in _OUR_FOLDERS
        if ours and importlib.util.find_spec(module) is None:
            yield f"there is no module {module}"
    elif arguments and (script := ROOT / arguments[0]).is_file():
        # Their options are defined there, or in a module beside them.
        sources = "".join(path.read_text() for path in script.parent.parent.rglob("*.py"))
        for word in arguments[1:]:
            if word.startswith("--") and f'"{word.split("=")[0]}"' not in sources:
                yield f"{arguments[0]} has no option {word}"


def _extra_problems(arguments: Sequence[str]) -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in arguments:
        if found := re.fullmatch(r"(?:\.|skyreward)\[([\w,-]+)\]", word):
            for extra in set(found[1].split(",")) - set(project["optional-dependencies"]):
                yield f"there is no extra {extra}"
