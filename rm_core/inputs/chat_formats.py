"""Chat formats: how families of chat templates write turns.

Used to detect text that another model's template rendered, and to parse rendered text into
messages. A marker is a text that only a chat template writes. `rm_core.inputs.prerendered` decides
whether a marker belongs to the checkpoint's own template. Pure functions without a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from rm_core.errors import InvalidConversationError
from rm_core.inputs.conversations import Messages, parse_conversation

ChatFormatName: TypeAlias = Literal["chatml", "llama3", "gemma", "mistral"]
"""Name of a family of chat templates."""


@dataclass(frozen=True, slots=True)
class _ChatFormat:
    """How a family of chat templates writes a conversation."""

    name: ChatFormatName  # name of the chat format in settings
    # Texts that only this family writes; their presence identifies the family.
    markers: tuple[str, ...]
    start: str  # pattern of the marker that begins a turn, without the rest of the turn's header
    # Pattern of the rest of the header, with the turn's role as group `role`. Empty if the marker
    # itself names the role.
    header: str
    ends: tuple[str, ...]  # markers that end a turn or a conversation
    trims: bool  # whether these templates strip white space around a turn's text
    roles: Mapping[str, str]  # our role for each role that this family names differently
    # Pattern of text that the template itself adds at the start of a system turn.
    own_text: str = ""

    @property
    def line_ends_header(self) -> bool:
        """Whether a line end terminates the header."""
        return r"\n" in self.header


LLAMA3_OWN_TEXT = (
    r"\ACutting Knowledge Date: [A-Z][a-z]+ \d{4}\n"
    r"Today Date: \d{1,2} [A-Z][a-z]+ \d{4}(?:\n\n|\Z)"
)
"""Pattern of the date header of Llama 3.1's system turn."""

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
    LLAMA3_OWN_TEXT,
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

_CHAT_FORMATS = {
    chat_format.name: chat_format for chat_format in (_CHATML, _LLAMA3, _GEMMA, _MISTRAL)
}
assert set(_CHAT_FORMATS) == set(get_args(ChatFormatName))

_ENDS = tuple(
    dict.fromkeys(end for chat_format in _CHAT_FORMATS.values() for end in chat_format.ends)
)
_STARTS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>", "<pad>")
_PADS = (*_STARTS, *_ENDS, "<|pad|>", "[PAD]", "<|PAD_TOKEN|>", "<|vision_pad|>", "<unk>")
_PADDING = re.compile(rf"(?:{'|'.join(map(re.escape, _PADS))})*+")
_FILLING = re.compile(rf"(?:\s|{'|'.join(map(re.escape, _PADS))})*+")
"""Text around turns that belongs to no turn: white space, BOS, padding and end markers."""

# Maximum number of characters that an error message quotes from a caller's text.
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
    dict.fromkeys(
        [marker for chat_format in _CHAT_FORMATS.values() for marker in chat_format.markers]
        + list(_OTHER_MARKERS)
    )
)
"""Markers of well-known families of chat templates."""


def find_markers(text: str) -> list[str]:
    """Return the known markers that a text contains, of any template."""
    # Fast path: most texts contain neither character.
    if "<" not in text and "[" not in text:
        return []
    return [marker for marker in KNOWN_MARKERS if marker in text]


BOS_TEXTS = (
    *("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>", "<|startoftext|>", "<BOS_TOKEN>"),
    *("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "[gMASK]", "<sop>"),
)
"""Texts that chat templates write before the first turn."""

# Patterns of how turns of user and assistant begin. Ordinary text rarely matches both.
_TRANSCRIPTS = (
    # Anthropic's HH, Nectar
    (r"(?:\A|\n)[ \t]*(?:Human|User):", r"\n[ \t]*Assistant:"),
    (r"", r"<extra_id_1>Assistant\r?\n"),  # HelpSteer2, Nemotron
    (r"### (?:Human|User|Instruction):", r"### (?:Assistant|Response):"),  # Alpaca, Guanaco
    (r"(?:\A|\s)USER:", r"\sASSISTANT:"),  # Vicuna
)
_COMPILED_TRANSCRIPTS = [
    (re.compile(user), re.compile(assistant)) for user, assistant in _TRANSCRIPTS
]


def find_transcript(text: str) -> str | None:
    """Return the words that begin an assistant's turn if a text has turns of both sides."""
    if not any(word in text for word in ("Assistant", "ASSISTANT", "### Response")):
        return None
    for user, assistant in _COMPILED_TRANSCRIPTS:
        match = assistant.search(text)
        if match and user.search(text):
            return match[0].strip()
    return None


def strip_end(text: str, ends: tuple[str, ...] = _ENDS) -> str:
    """Remove end markers, and white space after them, from the end of a text."""
    rest = text
    while True:
        bare = rest.rstrip()
        marker = next((end for end in ends if bare.endswith(end)), None)
        if marker is None:
            # White space that no marker follows belongs to the answer.
            return rest
        rest = bare.removesuffix(marker)


def read_turns(text: str, prompt: str, name: ChatFormatName) -> Messages:
    """Parse a rendered text into the messages of a conversation.

    BOS, padding, white space between turns and text that the template itself adds (the date header
    of Llama 3.1) are omitted. All other text must belong to a turn, or the text is refused.

    Args:
        text: a prompt followed by its answer.
        prompt: the prompt at the start of the text. A prompt without markers is one user turn.
        name: chat format of the model that wrote the answer.

    Raises:
        InvalidConversationError: the text is not a prompt and an answer in this chat format. The
            message names the character.
    """
    chat_format = _CHAT_FORMATS[name]
    bare, prompt = _strip_starts(text), _strip_starts(prompt)
    if not prompt or not bare.startswith(prompt):
        raise InvalidConversationError(
            "the text does not begin with its prompt, so the start of the answer is unknown; send "
            "exactly the text before the answer as the prompt"
        )
    reader = _TurnReader(bare, chat_format, len(text) - len(bare))
    reader.read_prompt(len(prompt))
    reader.read_answer(len(prompt))
    return parse_conversation(reader.build_messages())


@dataclass(slots=True)
class _Turn:
    """A turn of the text."""

    role: str  # one of our roles
    content: str = ""  # text of the turn
    is_complete: bool = False  # whether an end marker follows the content


class _TurnReader:
    """Reads turns in the order of the text. Text outside of turns is an error.

    `offset` characters were removed from the start of the text.
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
        markers = find_markers(prompt) + [m for m in self._chat_format.ends if m in prompt]
        if markers:
            raise InvalidConversationError(
                f"the prompt contains {markers[0]}, but no turn in the format "
                f"{self._chat_format.name}; name the template that rendered the prompt as the "
                "policy's, or send the whole prompt"
            )
        self._turns.append(_Turn("user", prompt, is_complete=True))

    def read_answer(self, begin: int) -> None:
        """Read `text[begin:]`: the rest of the prompt's last turn, and the turns after it."""
        # Generation may stop at the marker of a turn that it did not write.
        stopped = re.compile(rf"(?:{self._chat_format.start})\s*\Z").search(self._text, begin)
        end = stopped.start() if stopped else len(self._text)
        following = self._start.search(self._text, begin, end)
        stop = following.start() if following else end
        last = self._turns[-1]
        if last.role == "assistant" and not last.is_complete:
            if not last.content and self._chat_format.line_ends_header:
                begin = self._skip_line_end(begin)
            self._extend(last, begin, stop)
        elif following is None or not _FILLING.fullmatch(self._text, begin, stop):
            self._turns.append(_Turn("assistant"))
            self._extend(self._turns[-1], begin, stop)
        if following:
            self._read_turns(stop, end)

    def build_messages(self) -> Messages:
        """Return the turns as messages, without text that the template itself adds."""
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
        for index, start in enumerate(starts):
            stop = starts[index + 1].start() if index + 1 < len(starts) else end
            header = self._header.match(self._text, start.end(), stop)
            if header is None:
                raise self._build_error(
                    start.start(),
                    "a turn begins whose header is not only a role (names and spaces are not "
                    "allowed)",
                )
            role = header["role"] if self._chat_format.header else start[0]
            turn = _Turn(self._chat_format.roles.get(role, role))
            self._turns.append(turn)
            self._extend(turn, header.end(), stop)

    def _extend(self, turn: _Turn, begin: int, stop: int) -> None:
        """Add `text[begin:stop]` to a turn, up to an end marker; no text may follow the marker."""
        end = self._end.search(self._text, begin, stop)
        turn.content += self._text[begin : end.start() if end else stop]
        if end:
            turn.is_complete = True
            self._refuse_text(end.end(), stop, f"after {end[0]}")

    def _refuse_text(self, begin: int, end: int, where: str) -> None:
        filling = _FILLING.match(self._text, begin, end)
        assert filling is not None
        if filling.end() < end:
            raise self._build_error(filling.end(), f"text {where} does not belong to a turn")

    def _skip_line_end(self, begin: int) -> int:
        """Skip the line end of a header if the prompt ends with the header but without it."""
        if self._text[begin - 1] == "\n":
            return begin
        line_end = re.compile(r"\r?\n").match(self._text, begin)
        return line_end.end() if line_end else begin

    def _build_error(self, position: int, problem: str) -> InvalidConversationError:
        excerpt = self._text[position : position + _MAX_EXCERPT]
        return InvalidConversationError(
            f"at character {self._offset + position} of the text, {problem}: {excerpt!r}; send "
            f"exactly the output of the policy's template ({self._chat_format.name}), or send "
            "messages"
        )


def _strip_starts(text: str) -> str:
    padding = _PADDING.match(text)
    assert padding is not None
    return text[padding.end() :]
