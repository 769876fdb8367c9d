"""What every step format defines: how steps are divided, written as tokens, and where read."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from rm_core.config import StepFormat
from rm_core.errors import InvalidConversationError, TemplateError
from rm_core.inputs.chat_rendering import ChatRenderer
from rm_core.inputs.conversations import Chat, Messages
from rm_core.packing import TokenIds
from rm_core.text import format_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Extend: TypeAlias = Callable[[list[int], str], None]
"""Append the token ids of a text, without BOS."""
# Private characters of Unicode, from which placeholders are taken.
_PLACEHOLDERS = range(0xE000, 0xF900)
_FIND_PLACEHOLDERS = re.compile("[\ue000-\uf8ff]").findall


@dataclass(slots=True)
class TokenSequence:
    """The token ids of one item while they are written."""

    extend: Extend  # see `Extend`
    input_ids: list[int] = field(default_factory=list)  # token ids so far
    readouts: list[int] = field(default_factory=list)  # indices of the tokens that are read so far
    texts: list[str] = field(default_factory=list)  # texts of the token ids so far, without BOS

    def add_text(self, text: str) -> None:
        """Append a text, which is tokenized alone."""
        self.texts.append(text)
        self.extend(self.input_ids, text)

    def add_token(self, token_id: int, text: str) -> None:
        """Append one token."""
        self.texts.append(text)
        self.input_ids.append(token_id)

    def add_readout(self) -> None:
        """Read the last token so far."""
        self.readouts.append(len(self.input_ids) - 1)


@dataclass(frozen=True, slots=True)
class FormatTools:
    """What the formats use of their encoder."""

    tokenizer: PreTrainedTokenizerBase  # tokenizer of the checkpoint
    tokenize: Callable[[str], list[int]]  # returns the token ids of a text, without BOS
    # Returns the indices of the tokens that end at positions of a text, as if the whole text was
    # tokenized.
    find_ends: Callable[[str, Sequence[int]], list[int]]
    special_tokens: tuple[str, ...]  # special tokens that the tokenizer adds to every text
    renderer: ChatRenderer | None  # renders the chat template; None unless the format needs one


class StepFormatBase(ABC):
    """How a model's authors write a problem and its steps.

    Raises:
        ModelLoadError: the checkpoint's tokenizer or template does not fit the format.
    """

    name: ClassVar[StepFormat]
    needs_chat_template: ClassVar[bool] = False  # whether the chat template writes the text
    separator: ClassVar[str]  # text at which a response is divided
    marker: ClassVar[str]  # text of the token that ends a step
    # Whether the marker in the texts themselves is probably an error.
    warns_about_marker: ClassVar[bool] = True
    # Rows of `lm_head` whose softmax gives the value: good step, bad step. Empty with a head.
    label_ids: tuple[int, ...] = ()
    marker_id: int

    @abstractmethod
    def __init__(self, tools: FormatTools) -> None: ...

    @abstractmethod
    def split(self, response: str) -> list[str]:
        """Divide a solution into steps, at least one."""

    @abstractmethod
    def write(self, prompt: Messages, steps: Sequence[str], sequence: TokenSequence) -> None:
        """Write an item, with one readout for each step; a format may leave out the last steps.

        Raises:
            InvalidConversationError: the format cannot express the prompt.
        """

    def count_min_tokens(self, steps: Sequence[str]) -> int:
        """Return a lower bound of the tokens: every step has one that is read."""
        return len(steps)

    def count_prompt_tokens(self, input_ids: TokenIds) -> int:
        """Count the tokens that a continuation of the solution shares: up to the last marker."""
        backwards = input_ids[::-1]
        return len(input_ids) - (
            backwards.index(self.marker_id) if self.marker_id in backwards else 0
        )

    def get_problem(self, prompt: Messages) -> str:
        """Return the user's message, which has to be the only one without a chat template."""
        roles = [message["role"] for message in prompt]
        if roles != ["user"]:
            raise InvalidConversationError(
                f"the prompt has messages of the roles {format_names(roles)}, and the step format "
                f"`{self.name}` of this model has one problem and its solution; send one message "
                "of the user before the solution"
            )
        problem: str = prompt[0]["content"]
        return problem


def split_nonblank(response: str, separator: str) -> list[str]:
    """Split a text and drop blank pieces; a blank text is one step."""
    return [piece for piece in response.split(separator) if piece.strip()] or [response]


def render_around_markers(
    renderer: ChatRenderer, write_messages: Callable[[str], Messages], num_markers: int
) -> list[str]:
    """Render messages with markers, and return the parts of the text around the markers.

    A character that occurs in no message is written in place of the marker, so that a marker that
    a caller typed is never taken for one.
    """
    contents = [message["content"] for message in write_messages("")]
    taken: set[str] = set().union(*map(_FIND_PLACEHOLDERS, contents))
    placeholder = next((c for c in map(chr, _PLACEHOLDERS) if c not in taken), None)
    if placeholder is None:
        raise InvalidConversationError(
            "the texts have every private character of Unicode (U+E000 to U+F8FF), and one has to "
            "mark the ends of steps; remove those characters"
        )
    text = renderer.render(Chat(write_messages(placeholder)))
    parts = text.split(placeholder)
    if len(parts) != num_markers + 1:
        raise TemplateError(
            f"the checkpoint's chat template wrote {len(parts) - 1} of the {num_markers} ends of "
            "steps, so the values could not be assigned to steps; fix the template"
        )
    return parts
