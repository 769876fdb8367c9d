r"""Transcripts: text that holds several turns, read as messages.

Four kinds of transcripts are known, by what begins a turn:

- `\n\nHuman:` and `\n\nAssistant:` (Anthropic's HH, Nectar)
- `<extra_id_1>User` and `<extra_id_1>Assistant` (HelpSteer2)
- `### Human:` and `### Assistant:` (Guanaco)
- `USER:` and `ASSISTANT:` (Vicuna)

`auto` reads the first kind alone, and only where the whole text is such a transcript: nobody else
writes that. `read` reads all kinds. `keep` reads none: all text is scored as it came.
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
    """A way to write a transcript.

    Attributes:
        start: matches the beginning of a text of this kind.
        turn: matches what begins a turn; its group is the speaker.
        unmarked: role of the text before the first turn; None where there must be none.
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
    """The turns of a text.

    Attributes:
        messages: the turns; of a prompt, all but an answer that has only begun.
        opening: of a prompt, the beginning of the answer, often empty; white space at its end
            stays.
    """

    messages: Messages
    opening: str = ""


def parse_prompt_transcript(text: str, mode: TranscriptMode) -> Transcript | None:
    """The turns of a prompt; None where it is plain text.

    Raises:
        InvalidConversationError: it begins as a transcript and is none.
    """
    turns = _parse(text, mode)
    if turns is None:
        return None
    if turns[-1]["role"] != "assistant":
        return Transcript(turns)
    opening = turns[-1]["content"]
    return Transcript(turns[:-1], opening and opening + text[len(text.rstrip()) :])


def parse_transcript(text: str, mode: TranscriptMode) -> Messages | None:
    """The turns of a whole conversation, the last one the assistant's; None for other text.

    Raises:
        InvalidConversationError: it begins as a transcript and is none.
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
    before, *parts = re.split(kind.turn, text)
    turns = [
        (_ROLES[speaker.lower()], content)
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
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
                "the transcript has an <extra_id_...> that begins no turn (labels of an answer, "
                "for one); leave it out of the text"
            )
        plain = content.strip()
        if kind.end and role == "assistant":
            plain = plain.removesuffix(kind.end).rstrip()
        messages.append({"role": role, "content": validate_unicode(plain, "the transcript")})
    return messages


def _find_format(text: str, mode: TranscriptMode) -> _TranscriptFormat | None:
    if mode == "auto":
        return _HH if _HH_START.match(text) else None
    if mode == "read":
        return next((kind for kind in _FORMATS if re.match(kind.start, text)), None)
    return None
