r"""Read text of a chat template whose special tokens were removed, as trainers log rollouts.

verl and TRL decode prompts with `skip_special_tokens=True`. Of a ChatML prompt, this leaves
`user\n2+2?\nassistant\n`: the names of roles remain, and the markers that no content can contain
are gone. A reading is therefore refused where more lines are names of roles than begin turns, and
it is marked as uncertain where several turns are recognized by these names alone. Pure functions
without a tokenizer; `rm_core.inputs.policy_tokenizer` finds out what any template leaves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rm_core.errors import InvalidConversationError
from rm_core.inputs.chat_formats import LLAMA3_OWN_TEXT, ChatFormatName
from rm_core.inputs.conversations import Messages, validate_unicode

_NEXT_ROLES: Mapping[str, tuple[str, ...]] = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
NO_THOUGHTS = "<think>\n\n</think>\n\n"
"""Written by Qwen3's template before an answer without thoughts."""


@dataclass(frozen=True, slots=True)
class StrippedTurns:
    """Turns that were read.

    Attributes:
        messages: the turns, without the one that the answer belongs to.
        opening: beginning of the answer, which the template wrote.
        is_certain: whether no other turns could have left the same text.
    """

    messages: Messages
    opening: str = ""
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class StrippedFormat:
    """What a chat template leaves of its markers.

    Attributes:
        borders: text between the turn before and one of this role. Blank text separates nothing.
        first_user: text before the first turn of the user, without a system message.
        system: text before a system message; None if it looks like a turn of the user.
        opening: text that the template writes at the beginning of an answer.
        own_text: pattern of text that the template itself adds at the start of a system message.
    """

    borders: Mapping[str, str]
    first_user: str
    system: str | None
    opening: str = ""
    own_text: str = ""

    def matches(self, prompt: str) -> bool:
        """Return whether a text begins and ends as a prompt does."""
        starts = [self.first_user, *([] if self.system is None else [self.system])]
        return any(prompt.startswith(start) for start in starts) and self._find_end(prompt) >= 0

    def read_prompt(self, prompt: str) -> StrippedTurns:
        """Read a prompt that ends where an answer begins.

        Raises:
            InvalidConversationError: the prompt does not begin and end as this template writes it,
                or its turns are unclear.
        """
        end = self._find_end(prompt)
        if not self.matches(prompt):
            raise InvalidConversationError(
                "the prompt does not begin with a turn and end where an answer begins; it may have "
                "been cut, or another template wrote it"
            )
        role, text = "user", prompt[:end].removeprefix(self.first_user)
        if not prompt.startswith(self.first_user):
            assert self.system is not None
            role, text = "system", prompt[len(self.system) : end]
            if self.own_text and (own := re.match(self.own_text, text)):
                text = text[own.end() :]
                if text.startswith(self.first_user):
                    role, text = "user", text.removeprefix(self.first_user)
        messages, num_unused = self._read_turns(text, role, ("user", "tool"))
        has_one_turn = len(messages) == (1 if role == "user" else 2)
        if messages[-1]["role"] == "system" or (num_unused and len(messages) > 1):
            raise _build_error("the prompt")
        has_borders = bool(self.borders["assistant"].strip())
        opening = "" if prompt.endswith(NO_THOUGHTS) else self.opening
        return StrippedTurns(messages, opening, has_one_turn and not num_unused and has_borders)

    def read_answer(self, answer: str) -> StrippedTurns:
        """Read an answer, which has several turns if the policy called tools.

        Raises:
            InvalidConversationError: its turns are unclear.
        """
        messages, num_unused = self._read_turns(answer, "assistant", ("assistant",))
        if num_unused and len(messages) > 1:
            raise _build_error("the answer")
        return StrippedTurns(messages, "", len(messages) == 1)

    def _find_end(self, prompt: str) -> int:
        """Return where the last turn ends; -1 if the prompt does not end before an answer."""
        for end in (self.opening, NO_THOUGHTS):
            if prompt.endswith(self.borders["assistant"] + end):
                return len(prompt) - len(self.borders["assistant"] + end)
        return -1

    def _read_turns(
        self, text: str, role: str, last_roles: tuple[str, ...]
    ) -> tuple[Messages, int]:
        """Return the turns of a text, and the number of borders in it that cannot be ones.

        Args:
            text: the first turn, from the start of its content, and those after it.
            role: role of the first turn.
            last_roles: possible roles of the last turn.
        """
        patterns = [
            f"(?P<{name}>{re.escape(border)})"
            for name, border in self.borders.items()
            if border.strip()
        ]
        # In a lookahead, so that borders that overlap are found as well.
        found = [*re.finditer(f"(?={'|'.join(patterns)})", text)] if patterns else []
        turns = [(role, 0, 0)]
        for match in found:
            name = str(match.lastgroup)
            before, _, start = turns[-1]
            index = match.start()
            # Templates that write no line feed before a name strip white space at the end of turns.
            is_word = index > start and text[index - 1].isspace() and not text[index].isspace()
            if name in _NEXT_ROLES[before] and index >= start and not is_word:
                turns.append((name, *match.span(name)))
        while len(turns) > 1 and turns[-1][0] not in last_roles:
            turns.pop()
        messages = []
        for index, (name, _, start) in enumerate(turns):
            end = turns[index + 1][1] if index + 1 < len(turns) else len(text)
            content = validate_unicode(text[start:end], "the text")
            messages.append({"role": name, "content": content})
        return messages, len(found) - len(turns) + 1


def _build_error(what: str) -> InvalidConversationError:
    return InvalidConversationError(
        f"the special tokens between the turns of {what} were removed, and which of its lines "
        "begin turns is unknown, because more of them are names of roles; give the messages of "
        "this row, or score the text as one turn with --transcripts keep"
    )


_CHATML = StrippedFormat(
    {"user": "\nuser\n", "assistant": "\nassistant\n", "tool": "\ntool\n"},
    "user\n",
    "system\n",
)
_LLAMA3 = StrippedFormat(
    {"user": "user\n\n", "assistant": "assistant\n\n", "tool": "ipython\n\n"},
    "user\n\n",
    "system\n\n",
    own_text=LLAMA3_OWN_TEXT,
)
_GEMMA = StrippedFormat({"user": "\nuser\n", "assistant": "\nmodel\n"}, "user\n", None)
_FORMATS: Mapping[ChatFormatName, StrippedFormat] = {
    "chatml": _CHATML,
    "llama3": _LLAMA3,
    "gemma": _GEMMA,
}
"""Families whose templates leave names of roles. Mistral's leave none."""


def find_stripped_format(
    prompt: str, name: ChatFormatName | None = None
) -> tuple[ChatFormatName, StrippedFormat] | None:
    """Return the family whose template may have written a prompt; None if there is none.

    Args:
        prompt: text without special tokens.
        name: the only family to consider; None for all.
    """
    families = _FORMATS if name is None else {name} & _FORMATS.keys()
    for family in families:
        for opening in ("", "<think>\n"):
            stripped = replace(_FORMATS[family], opening=opening)
            if stripped.matches(prompt):
                return family, stripped
    return None
