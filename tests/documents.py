"""The documentation as readers have it: pages, their blocks of code, commands in these."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conftest import ROOT

_FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,}|~{3,}) *(?P<language>[\w+-]*)(?P<info>.*)$")
_INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_ASSIGNMENT = re.compile(r"(\w+)=(.*)", re.DOTALL)
_SEPARATORS = "\n;|&"
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1(.*?)\n.*?^\t*\2$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its file.
        line: number of its first line, counted from 1.
        language: of the fence; `text` if there is none.
        text: without the fence and its indentation.
        lead: what the page has between the previous block and this one.
    """

    page: Path
    line: int
    language: str
    text: str
    lead: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The file that a comment in the first line names, such as `# plugin.py`."""
        found = re.match(r"# ([\w.-]+\.\w+)\n", self.text)
        return found and found[1]


@dataclass(slots=True)
class Command:
    """A simple command of a shell script; `variables` are those that it sets."""

    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


def pages() -> list[Path]:
    """Every Markdown file that is written for readers."""
    folders = ("docs", "deploy", "seeds")
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.md"))
    return [*sorted(ROOT.glob("*.md")), *sorted(found)]


def current_pages() -> list[Path]:
    """All of them but the changelog, which names what is gone."""
    return [page for page in pages() if page.name != "changelog.md"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, those inside lists and admonitions too."""
    blocks: list[Block] = []
    lead: list[str] = []
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if fence is None:
            lead.append(line)
            continue
        indent, marks = len(fence["indent"]), fence["marks"]
        body = []
        for _, inner in lines:
            if inner.strip().startswith(marks) and not inner.strip().strip(marks[0]):
                break
            body.append(inner[indent:] if not inner[:indent].strip() else inner)
        else:
            raise AssertionError(f"{name_of(page)}:{number}: the block has no end")
        language = fence["language"] or "text"
        text = "".join(f"{line}\n" for line in body)
        blocks.append(Block(page, number, language, text, "\n".join(lead)))
        lead = []
    return blocks


def read_prose(page: Path) -> str:
    """The text of a page without its fenced blocks."""
    lines: list[str] = []
    marks = None
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = _FENCE.match(line)
        if marks is None and fence is None:
            lines.append(line)
        elif marks is None and fence is not None:
            marks = fence["marks"]
        elif marks is not None and line.strip() == marks:
            marks = None
    return "\n".join(lines)


def inline_code(page: Path) -> list[str]:
    """What stands in backticks in the prose of a page."""
    prose = read_prose(page)
    return [" ".join(code.split()).replace("\\|", "|") for _, code in _INLINE.findall(prose)]


def is_output_of(output: Block, block: Block) -> bool:
    """Whether a block that follows another one shows what that one prints.

    So it is if nothing stands between them, or one sentence that ends in a colon.
    """
    lead = output.lead.strip()
    introduces = lead.endswith(":") and "\n\n" not in lead and len(lead) < 120
    return output.page == block.page and (not lead or introduces)


def read_session(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and the output below it."""
    command: list[str] = []
    output: list[str] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            if command:
                yield "\n".join(command), "\n".join(output)
            command, output = [line[2:]], []
        elif command and command[-1].endswith("\\"):
            command.append(line.removeprefix("> "))
        else:
            output.append(line)
    if command:
        yield "\n".join(command), "\n".join(output)


def split_commands(script: str) -> list[Command]:
    """The simple commands of a shell script: words without quotes, redirections left out.

    It knows what documentation has: quotes, continued lines, comments, pipes, lists,
    substitutions, which stay text, and here-documents, which are left out.
    """
    script = _HEREDOC.sub(r"\3", script.replace("\\\n", " "))
    commands = [Command()]
    words = iter(_split_words(script))
    for word in words:
        command = commands[-1]
        if word is None:
            commands.append(Command())
        elif re.fullmatch(r"\d?(?:>>?|<)&?\d?", word):
            if not word[-1].isdigit() or len(word) == 1:
                next(words, None)
        elif (found := _ASSIGNMENT.fullmatch(word)) and command.words in ([], ["export"]):
            command.variables[found[1]] = found[2]
        else:
            command.words.append(word)
    return [command for command in commands if command.words or command.variables]


def _split_words(script: str) -> Iterator[str | None]:
    """Words and redirections; None between two commands."""
    word: str | None = None
    i = 0
    while i < len(script):
        char = script[i]
        if char in "'\"":
            end = _end_of_quote(script, i)
            word = (word or "") + _unquoted(script[i + 1 : end], char)
            i = end
        elif script.startswith("$(", i):
            end = _end_of_substitution(script, i + 1)
            word = (word or "") + script[i : end + 1]
            i = end
        elif char == "\\":
            word = (word or "") + script[i + 1 : i + 2]
            i += 1
        elif char in " \t" or char in _SEPARATORS:
            if word is not None:
                yield word
            word = None
            if char in _SEPARATORS and script[i - 1 : i] not in (">", "<"):
                yield None
        elif char == "#" and word is None:
            i = script.find("\n", i) - 1
            if i < 0:
                return
        elif char in "<>" and (word is None or word.isdigit()):
            arrow = re.compile(r"[<>]+(?:&\d?)?").match(script, i)
            assert arrow
            yield (word or "") + arrow[0]
            word = None
            i = arrow.end() - 1
        else:
            word = (word or "") + char
        i += 1
    if word is not None:
        yield word


def _end_of_quote(script: str, start: int) -> int:
    quote = script[start]
    end = start + 1
    while script[end] != quote:
        end += 2 if quote == '"' and script[end] == "\\" else 1
    return end


def _unquoted(text: str, quote: str) -> str:
    return re.sub(r'\\([\\"$`])', r"\1", text) if quote == '"' else text


def _end_of_substitution(script: str, start: int) -> int:
    depth = 0
    for i in range(start, len(script)):
        depth += (script[i] == "(") - (script[i] == ")")
        if depth == 0:
            return i
    raise AssertionError(f"no end of: {script[start - 1 :]}")
