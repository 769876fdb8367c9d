"""How well-known chat templates write turns: to recognise text of another model, and to read it.

A marker is a text that only a template writes. Whether it is this checkpoint's own is for
`rm_core.prepared` to say; here is what is known of templates in general. Pure; knows no tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from rm_core.conversations import Messages, parse_conversation
from rm_core.errors import InvalidConversationError

DialectName: TypeAlias = Literal["chatml", "llama3", "gemma", "mistral"]
"""Of a family of chat templates."""


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a family of chat templates writes a conversation.

    Attributes:
        name: as settings call it.
        markers: that tell it.
        turn: matches the beginning of a turn; its group `role` is the turn's role.
        ends: what stands behind a turn's text, or behind the whole conversation.
        trims: whether these templates drop white space around a turn's text.
        roles: names of roles that differ from ours.
    """

    name: DialectName
    markers: tuple[str, ...]
    turn: str
    ends: tuple[str, ...]
    trims: bool
    roles: Mapping[str, str]


_CHATML = _Dialect(
    "chatml",
    ("<|im_start|>", "<|im_end|>"),
    r"<\|im_start\|>(?P<role>\w+)\n",
    ("<|im_end|>", "<|endoftext|>"),
    False,
    {},
)
_LLAMA3 = _Dialect(
    "llama3",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n",
    ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
    True,
    {"ipython": "tool"},
)
_GEMMA = _Dialect(
    "gemma",
    ("<start_of_turn>", "<end_of_turn>"),
    r"<start_of_turn>(?P<role>\w+)\n",
    ("<end_of_turn>", "<eos>", "<pad>"),
    True,
    {"model": "assistant"},
)
_MISTRAL = _Dialect(
    "mistral",
    ("[INST]", "[/INST]"),
    r"(?P<role>\[INST\]|\[/INST\]) ?",
    ("</s>",),
    True,
    {"[INST]": "user", "[/INST]": "assistant"},
)

_DIALECTS = {d.name: d for d in (_CHATML, _LLAMA3, _GEMMA, _MISTRAL)}
assert set(_DIALECTS) == set(get_args(DialectName))

_STARTS = ("<|begin_of_text|>", "<bos>", "<s>", "<|endoftext|>", "<pad>")
_ENDS = tuple(dict.fromkeys(end for dialect in _DIALECTS.values() for end in dialect.ends))


def markers_in(text: str) -> list[str]:
    """Markers of any known template that stand in a text."""
    return [m for dialect in _DIALECTS.values() for m in dialect.markers if m in text]


def without_end(text: str, ends: tuple[str, ...] = _ENDS) -> str:
    """A text without the markers of a turn's end that stand behind it."""
    rest = text
    while True:
        bare = rest.rstrip()
        found = next((end for end in ends if bare.endswith(end)), None)
        if found is None:
            # White space before no marker at all is the answer's own.
            return rest
        rest = bare.removesuffix(found)


def read_turns(text: str, prompt: str, name: DialectName) -> Messages:
    """The conversation that a text in a dialect is made of.

    Args:
        text: a prompt and the answer to it.
        prompt: the first part of the text; without any marker it is the user's turn as it is.
        name: of the dialect of the model that wrote the answer.

    Raises:
        InvalidConversationError: the text is no prompt and an answer in this dialect.
    """
    dialect = _DIALECTS[name]
    text, prompt = _without_starts(text), _without_starts(prompt)
    if not prompt or not text.startswith(prompt):
        raise InvalidConversationError(
            "the text does not begin with its prompt, so where the answer begins cannot be known; "
            "send as the prompt exactly what stands before the answer"
        )
    parts = re.split(dialect.turn, prompt)
    if len(parts) == 1:
        turns = [("user", prompt)]
    else:
        turns = [
            (dialect.roles.get(role, role), without_end(content, dialect.ends))
            for role, content in zip(parts[1::2], parts[2::2], strict=True)
        ]
    answer = without_end(text[len(prompt) :], (*dialect.markers, *dialect.ends))
    if turns[-1][0] == "assistant":
        # What the prompt already says of the answer, such as an empty block of thoughts.
        answer = turns.pop()[1] + answer
    turns.append(("assistant", answer))
    return parse_conversation(
        [
            {"role": role, "content": content.strip() if dialect.trims else content}
            for role, content in turns
        ]
    )


def _without_starts(text: str) -> str:
    while found := next((start for start in _STARTS if text.startswith(start)), None):
        text = text.removeprefix(found)
    return text
