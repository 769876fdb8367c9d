r"""Read transcripts, which are text with several turns, as messages.

Four kinds of transcripts are known, by the marker that begins a turn:

- `\n\nHuman:` and `\n\nAssistant:` (Anthropic's HH, Nectar)
- `<extra_id_1>User` and `<extra_id_1>Assistant` (HelpSteer2)
- `### Human:` and `### Assistant:` (Guanaco)
- `USER:` and `ASSISTANT:` (Vicuna)

`auto` reads only the first kind, and only if the whole text is such a transcript, because other
text does not look like that. `read` reads all kinds. `keep` reads none: all text is scored
unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rm_core import InvalidConversationError
from rm_core.inputs.conversations import Messages, validate_unicode
from serve.jobs.columns import TranscriptMode

_HH_START = re.compile(r"(?:\r?\n){2}Human:")


@dataclass(frozen=True, slots=True)
class _TranscriptFormat:
    """A kind of transcript.

    Attributes:
        start: pattern for the beginning of a text of this kind.
        turn: pattern for the beginning of a turn; its group is the speaker.
        unmarked_role: role of the text before the first turn; None if no such text may occur.
        end: marker that follows a turn of the assistant, or empty.
    """

    start: str
    turn: str
    unmarked_role: str | None = None
    end: str = ""


_HH = _TranscriptFormat(r"\s*Human:", r"(?:\A\s*|(?:\r?\n){2})(Human|Assistant):")
_FORMATS = (
    _HH,
    _TranscriptFormat(
        r"\s*<extra_id_0>System\r?\n|(?s:.*?)<extra_id_1>(?:User|Assistant)\r?\n",
        r"(?:\r?\n)?<extra_id_[01]>(System|User|Assistant)\r?\n",
        unmarked_role="user",
    ),
    _TranscriptFormat(r"\s*### (?:Human|System):", r"### (Human|Assistant|System):"),
    _TranscriptFormat(
        r"(?s:.*?)\bUSER:(?s:.*)\bASSISTANT:",
        r"(?:\A\s*|\s|(?<=</s>))(USER|ASSISTANT):",
        unmarked_role="system",
        end="</s>",
    ),
)
_ROLES = {"human": "user", "user": "user", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True, slots=True)
class Transcript:
    """The turns of a transcript.

    Attributes:
        messages: the turns; for a prompt, without an answer that it only begins.
        opening: for a prompt, the beginning of the answer, often empty; trailing white space is
            kept.
    """

    messages: Messages
    opening: str = ""


def parse_prompt_transcript(text: str, mode: TranscriptMode) -> Transcript | None:
    """Return the turns of a prompt, or None if the prompt is plain text.

    Raises:
        InvalidConversationError: the text begins as a transcript and is not a valid one.
    """
    turns = _parse(text, mode)
    if turns is None:
        return None
    if turns[-1]["role"] != "assistant":
        return Transcript(turns)
    opening = turns[-1]["content"]
    return Transcript(turns[:-1], opening and opening + text[len(text.rstrip()) :])


def parse_transcript(text: str, mode: TranscriptMode) -> Messages | None:
    """Return the turns of a conversation that ends with the assistant, or None for other text.

    Raises:
        InvalidConversationError: the text begins as a transcript and is not a valid one.
    """
    turns = _parse(text, mode)
    if turns is None or turns[-1]["role"] == "assistant":
        return turns
    if mode == "auto":
        return None
    raise InvalidConversationError(
        "the transcript does not end with an answer, so there is nothing to score; it must end "
        "with a turn of the assistant"
    )


def _parse(text: str, mode: TranscriptMode) -> Messages | None:
    kind = _find_format(text, mode)
    if kind is None:
        return None
    before, *fields = re.split(kind.turn, text)
    turns = [
        (_ROLES[speaker.lower()], content)
        for speaker, content in zip(fields[::2], fields[1::2], strict=True)
    ]
    if before.strip():
        if kind.unmarked_role is None:
            return None
        turns.insert(0, (kind.unmarked_role, before))
    if not any(role == "user" for role, _ in turns):
        return None
    messages = []
    for role, content in turns:
        if "<extra_id_" in content and kind.unmarked_role == "user":
            raise InvalidConversationError(
                "the transcript has an <extra_id_...> that does not begin a turn (it may be a "
                "label of an answer); remove it from the text"
            )
        text_of_turn = content.strip()
        if kind.end and role == "assistant":
            text_of_turn = text_of_turn.removesuffix(kind.end).rstrip()
        messages.append({"role": role, "content": validate_unicode(text_of_turn, "the transcript")})
    return messages


def _find_format(text: str, mode: TranscriptMode) -> _TranscriptFormat | None:
    if mode == "auto":
        return _HH if _HH_START.match(text) else None
    if mode == "read":
        return next((kind for kind in _FORMATS if re.match(kind.start, text)), None)
    return None
