"""How well-known chat templates write turns: to recognise text of another model, and to read it.

A marker is a text that only a template writes. Whether it is this checkpoint's own is for
`rm_core.inputs.prerendered` to say; here is what is known of templates in general. Pure; knows no
tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from rm_core.errors import InvalidConversationError
from rm_core.inputs.conversations import Messages, parse_conversation

ChatFormatName: TypeAlias = Literal["chatml", "llama3", "gemma", "mistral"]
"""Of a family of chat templates."""


@dataclass(frozen=True, slots=True)
class _ChatFormat:
    """How a family of chat templates writes a conversation.

    Attributes:
        name: as settings call it.
        markers: texts that only this family writes; their presence identifies it.
        start: matches the marker that begins a turn, without the rest of the turn's header.
        header: matches the rest of the header; its group `role` is the turn's role. Empty where
            the marker itself is the role.
        ends: markers that end a turn or a conversation.
        trims: whether these templates drop white space around a turn's text.
        roles: names of roles that differ from ours.
        own_text: matches text at the start of a system turn that the template writes by itself.
    """

    name: ChatFormatName
    markers: tuple[str, ...]
    start: str
    header: str
    ends: tuple[str, ...]
    trims: bool
    roles: Mapping[str, str]
    own_text: str = ""

    @property
    def line_ends_header(self) -> bool:
        """Whether a header ends with its line."""
        return r"\n" in self.header


_CHATML = _ChatFormat(
    "chatml",
    ("<|im_start|>", "<|im_end|>"),
    r"<\|im_start\|>",
    r"(?P<role>\w+)(?:\r?\n|\Z)",
    ("<|im_end|>", "<|endoftext|>"),
    False,
    {},
)
_LLAMA3 = _ChatFormat(
    "llama3",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    r"<\|start_header_id\|>",
    r"(?P<role>\w+)<\|end_header_id\|>",
    ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
    True,
    {"ipython": "tool"},
    r"\ACutting Knowledge Date: [A-Z][a-z]+ \d{4}\n"
    r"Today Date: \d{1,2} [A-Z][a-z]+ \d{4}(?:\n\n|\Z)",
)
_GEMMA = _ChatFormat(
    "gemma",
    ("<start_of_turn>", "<end_of_turn>"),
    r"<start_of_turn>",
    r"(?P<role>\w+)(?:\r?\n|\Z)",
    ("<end_of_turn>", "<eos>", "<pad>"),
    True,
    {"model": "assistant"},
)
_MISTRAL = _ChatFormat(
    "mistral",
    ("[INST]", "[/INST]"),
    r"\[/?INST\]|\[SYSTEM_PROMPT\]",
    "",
    ("</s>", "[/SYSTEM_PROMPT]"),
    True,
    {"[INST]": "user", "[/INST]": "assistant", "[SYSTEM_PROMPT]": "system"},
)

_CHAT_FORMATS = {d.name: d for d in (_CHATML, _LLAMA3, _GEMMA, _MISTRAL)}
assert set(_CHAT_FORMATS) == set(get_args(ChatFormatName))

_ENDS = tuple(dict.fromkeys(end for dialect in _CHAT_FORMATS.values() for end in dialect.ends))
_STARTS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>", "<pad>")
_PADS = (*_STARTS, *_ENDS, "<|pad|>", "[PAD]", "<|PAD_TOKEN|>", "<|vision_pad|>", "<unk>")
_PADDING = re.compile(rf"(?:{'|'.join(map(re.escape, _PADS))})*+")
_FILLING = re.compile(rf"(?:\s|{'|'.join(map(re.escape, _PADS))})*+")
"""Text around turns that belongs to none: white space, BOS, padding and end markers."""

# Characters of a caller's text that an error quotes.
_MAX_EXCERPT = 40

_OTHER_MARKERS = (
    "<|start_of_role|>",  # Granite
    "<|START_OF_TURN_TOKEN|>",  # Command R
    "<|header_start|>",  # Llama 4
    "<|start|>system",  # gpt-oss
    "<|start|>developer",
    "<|start|>user",
    "<|start|>assistant",
    "<|im_system|>",  # Kimi
    "<|im_user|>",
    "<|im_sep|>",  # Phi-4
    "<|prompter|>",  # OpenAssistant
    "<|system|>",  # Zephyr, Phi-3, GLM, OLMo
    "<|user|>",
    "<|assistant|>",
    "<\uff5cUser\uff5c>",  # DeepSeek
    "<\uff5cAssistant\uff5c>",
    "[|system|]",  # EXAONE
    "[|user|]",
    "[|assistant|]",
    "<<SYS>>",  # Llama 2
    "[SYSTEM_PROMPT]",  # Mistral
)
KNOWN_MARKERS = tuple(
    dict.fromkeys([m for d in _CHAT_FORMATS.values() for m in d.markers] + list(_OTHER_MARKERS))
)
"""Texts that only chat templates write, each of at least one well-known family."""


def find_markers(text: str) -> list[str]:
    """Markers of any known template that stand in a text."""
    # Most texts have none of these characters, and one search finds that out.
    if "<" not in text and "[" not in text:
        return []
    return [marker for marker in KNOWN_MARKERS if marker in text]


BOS_TEXTS = (
    *("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>", "<|startoftext|>", "<BOS_TOKEN>"),
    *("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "[gMASK]", "<sop>"),
)
"""Texts that chat templates write before the first turn."""

# How turns of the user and of the assistant begin; ordinary text hardly has both.
_TRANSCRIPTS = (
    # Anthropic's HH, Nectar
    (r"(?:\A|\n)[ \t]*(?:Human|User):", r"\n[ \t]*Assistant:"),
    (r"", r"<extra_id_1>Assistant\r?\n"),  # HelpSteer2, Nemotron
    (r"### (?:Human|User|Instruction):", r"### (?:Assistant|Response):"),  # Alpaca, Guanaco
    (r"(?:\A|\s)USER:", r"\sASSISTANT:"),  # Vicuna
)
_COMPILED_TRANSCRIPTS = [(re.compile(one), re.compile(other)) for one, other in _TRANSCRIPTS]


def find_transcript(text: str) -> str | None:
    """The words that begin an assistant's turn in a text that holds turns of both sides, if any."""
    if not any(word in text for word in ("Assistant", "ASSISTANT", "### Response")):
        return None
    for user, assistant in _COMPILED_TRANSCRIPTS:
        found = assistant.search(text)
        if found and user.search(text):
            return found[0].strip()
    return None


def strip_end(text: str, ends: tuple[str, ...] = _ENDS) -> str:
    """A text without the markers of a turn's end that stand behind it."""
    rest = text
    while True:
        bare = rest.rstrip()
        found = next((end for end in ends if bare.endswith(end)), None)
        if found is None:
            # White space before no marker at all is the answer's own.
            return rest
        rest = bare.removesuffix(found)


def read_turns(text: str, prompt: str, name: ChatFormatName) -> Messages:
    """The conversation that a text in a dialect is made of, read whole.

    BOS, padding, white space between turns and what the template writes by itself (the date header
    of Llama 3.1) are left out; all other text is in the content of a turn, or the text is refused.

    Args:
        text: a prompt and the answer to it.
        prompt: the first part of the text; without any marker it is the user's turn as it is.
        name: of the dialect of the model that wrote the answer.

    Raises:
        InvalidConversationError: the text is not a prompt and an answer in this dialect; names the
            character.
    """
    dialect = _CHAT_FORMATS[name]
    bare, prompt = _strip_starts(text), _strip_starts(prompt)
    if not prompt or not bare.startswith(prompt):
        raise InvalidConversationError(
            "the text does not begin with its prompt, so where the answer begins cannot be known; "
            "send as the prompt exactly what stands before the answer"
        )
    reader = _TurnReader(bare, dialect, len(text) - len(bare))
    reader.read_prompt(len(prompt))
    reader.read_answer(len(prompt))
    return parse_conversation(reader.build_messages())


@dataclass(slots=True)
class _Turn:
    """A turn that was read.

    Attributes:
        role: in our words.
        content: its text.
        ended: whether an end marker follows the content.
    """

    role: str
    content: str = ""
    is_complete: bool = False


class _TurnReader:
    """Reads turns in the order of the text; text that belongs to no turn is an error.

    Args:
        text: to be read, without BOS and padding at the start.
        dialect: of the text.
        offset: number of characters that were left out at the start.
    """

    def __init__(self, text: str, chat_format: _ChatFormat, offset: int) -> None:
        self._text = text
        self._chat_format = chat_format
        self._offset = offset
        self._turns: list[_Turn] = []
        self._start = re.compile(chat_format.start)
        self._header = re.compile(chat_format.header)
        self._end = re.compile("|".join(map(re.escape, chat_format.ends)))

    def read_prompt(self, end: int) -> None:
        """Read `text[:end]`."""
        if self._start.search(self._text, 0, end):
            self._read_turns(0, end)
            return
        prompt = self._text[:end]
        found = find_markers(prompt) + [m for m in self._chat_format.ends if m in prompt]
        if found:
            raise InvalidConversationError(
                f"the prompt has {found[0]}, and no turn of {self._chat_format.name} begins in it; "
                "name the template that wrote the prompt as the policy's, or send all of the prompt"
            )
        self._turns.append(_Turn("user", prompt, is_complete=True))

    def read_answer(self, begin: int) -> None:
        """Read `text[begin:]`: the rest of the prompt's last turn, and turns after that."""
        # A generation may stop at the marker of a next turn that it did not write.
        stopped = re.compile(rf"(?:{self._chat_format.start})\s*\Z").search(self._text, begin)
        end = stopped.start() if stopped else len(self._text)
        following = self._start.search(self._text, begin, end)
        stop = following.start() if following else end
        last = self._turns[-1]
        if last.role == "assistant" and not last.is_complete:
            if not last.content and self._chat_format.line_ends_header:
                begin = self._skip_line_end(begin)
            self._extend(last, begin, stop)
        elif following is None or not self._is_filling(begin, stop):
            self._turns.append(_Turn("assistant"))
            self._extend(self._turns[-1], begin, stop)
        if following:
            self._read_turns(stop, end)

    def build_messages(self) -> Messages:
        """What was read, without the text that the template writes by itself."""
        messages = []
        for turn in self._turns:
            content = turn.content.strip() if self._chat_format.trims else turn.content
            if turn.role == "system" and self._chat_format.own_text:
                content, num_found = re.subn(self._chat_format.own_text, "", content, count=1)
                if num_found and not content:
                    continue
            messages.append({"role": turn.role, "content": content})
        return messages

    def _read_turns(self, begin: int, end: int) -> None:
        starts = list(self._start.finditer(self._text, begin, end))
        self._refuse_text(begin, starts[0].start(), "before the first turn")
        for place, start in enumerate(starts):
            stop = starts[place + 1].start() if place + 1 < len(starts) else end
            header = self._header.match(self._text, start.end(), stop)
            if header is None:
                raise self._build_error(
                    start.start(),
                    "a turn begins whose header is not a role alone (no name, no space)",
                )
            role = header["role"] if self._chat_format.header else start[0]
            turn = _Turn(self._chat_format.roles.get(role, role))
            self._turns.append(turn)
            self._extend(turn, header.end(), stop)

    def _extend(self, turn: _Turn, begin: int, stop: int) -> None:
        """Add `text[begin:stop]` to a turn, up to an end marker that must be the last text."""
        end = self._end.search(self._text, begin, stop)
        turn.content += self._text[begin : end.start() if end else stop]
        if end:
            turn.is_complete = True
            self._refuse_text(end.end(), stop, f"after {end[0]}")

    def _refuse_text(self, begin: int, end: int, where: str) -> None:
        filling = _FILLING.match(self._text, begin, end)
        assert filling is not None
        if filling.end() < end:
            raise self._build_error(filling.end(), f"there is text {where} that belongs to no turn")

    def _is_filling(self, begin: int, end: int) -> bool:
        return _FILLING.fullmatch(self._text, begin, end) is not None

    def _skip_line_end(self, begin: int) -> int:
        """Where the content begins of a turn whose header ends the prompt without a line end."""
        if self._text[begin - 1] == "\n":
            return begin
        found = re.compile(r"\r?\n").match(self._text, begin)
        return found.end() if found else begin

    def _build_error(self, position: int, what: str) -> InvalidConversationError:
        excerpt = self._text[position : position + _MAX_EXCERPT]
        return InvalidConversationError(
            f"at character {self._offset + position} of the text {what}: {excerpt!r}; send exactly "
            f"what the policy's template ({self._chat_format.name}) writes, or send messages"
        )


def _strip_starts(text: str) -> str:
    padding = _PADDING.match(text)
    assert padding is not None
    return text[padding.end() :]
