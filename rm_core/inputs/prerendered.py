"""Read prerendered conversations: text that a client rendered, or token ids.

BOS is added or removed so that it occurs as often as in a conversation rendered by the encoder:
once for Llama 3 and Gemma 2, never for Qwen3. The result reports how the input was interpreted.
Text that another model's template rendered is refused, since its reward would look plausible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rm_core.errors import ForeignTemplateError, InvalidConversationError
from rm_core.inputs.chat_formats import find_markers, strip_end
from rm_core.inputs.conversations import validate_unicode
from rm_core.types import PrerenderedText, PrerenderedTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "question", "answer"
PROBE = ({"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER})
"""A conversation whose rendered text shows what the template writes around contents."""


@dataclass(frozen=True, slots=True)
class PrerenderedInput:
    """A prerendered conversation after it was read."""

    # Text to tokenize, with the special tokens it needs; None if the input was token ids.
    text: str | None
    input_ids: list[int]  # token ids; empty if the input was text
    input_format: str  # how the input was interpreted, as the value of a response header


class PrerenderedReader:
    """Reads prerendered text and token ids for one checkpoint.

    Args:
        probe: rendered text of `PROBE`, including any BOS that the template writes; empty if the
            template refuses `PROBE`.
        adds_bos: whether the tokenizer prepends BOS to every text.

    Attributes:
        markers: special tokens that the template writes around contents.
        special_markers: `markers`, BOS, EOS, the pad token, and every special token that looks like
            a marker of a template. Excludes tags such as `<think>`, which answers may contain.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probe: str, adds_bos: bool) -> None:
        added: dict[str, int] = tokenizer.get_added_vocab()
        self._bos = str(tokenizer.bos_token) if tokenizer.bos_token else ""
        self._bos_id = tokenizer.bos_token_id
        self._adds_bos = adds_bos
        self._has_bos = bool(self._bos) and (adds_bos or probe.startswith(self._bos))
        self._num_ids = 1 + max(tokenizer.get_vocab().values())
        self._end = probe.rpartition(_ANSWER)[2] if _ANSWER in probe else ""
        # Without the text between question and answer, such as Qwen3's thinking block, which other
        # templates write as well.
        around = (probe.partition(_QUESTION)[0], self._end)
        self.markers = tuple(
            token for token in added if token != self._bos and any(token in text for text in around)
        )
        ends = (*self.markers, tokenizer.eos_token, tokenizer.pad_token)
        self._ends = tuple(dict.fromkeys(str(end) for end in ends if end))
        self._starts = tuple(str(t) for t in (tokenizer.eos_token, tokenizer.pad_token) if t)
        self._added = frozenset(added)
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        like_markers = [
            token for token in special if "|" in token or "\uff5c" in token or token[:1] == "["
        ]
        tokens = (*self.markers, self._bos, *self._ends, *like_markers)
        self.special_markers = tuple(dict.fromkeys(token for token in tokens if token))

    def is_templated(self, text: str) -> bool:
        """Return whether a text has markers of this checkpoint's or any known template."""
        return any(marker in text for marker in self.markers) or bool(find_markers(text))

    def read(self, prerendered: PrerenderedText | PrerenderedTokens) -> PrerenderedInput:
        """Read a prerendered conversation, and normalize its BOS."""
        if isinstance(prerendered, PrerenderedTokens):
            return self._read_ids(prerendered.input_ids)
        return self._read_text(prerendered)

    def _read_text(self, prerendered: PrerenderedText) -> PrerenderedInput:
        text = validate_unicode(prerendered.text, "the text")
        if prerendered.close:
            text = _strip_starts(text, self._starts)
        num_bos = 0
        while self._bos and text.startswith(self._bos):
            text = text.removeprefix(self._bos)
            num_bos += 1
        if not text.strip():
            raise InvalidConversationError(
                "the text is empty; send a rendered conversation, or send messages"
            )
        is_ours = any(marker in text for marker in self.markers)
        if not is_ours:
            self._refuse_foreign(text)
        changes = self._describe_bos(num_bos)
        if self.markers and not is_ours:
            changes.insert(0, "no-template")
        elif prerendered.close:
            closed = strip_end(text, self._ends) + self._end
            if closed != text:
                text = closed
                changes.append("end-closed")
        if self._has_bos and not self._adds_bos:
            text = self._bos + text
        return PrerenderedInput(text, [], _format_input("text", changes))

    def check_ids(self, ids: Sequence[Any]) -> None:
        """Refuse no token ids, and ids that the model does not have."""
        if not ids:
            raise InvalidConversationError("the list of token ids is empty; send at least one")
        for index, value in enumerate(ids):
            if type(value) is not int or not 0 <= value < self._num_ids:
                raise InvalidConversationError(
                    f"token id {index} is {value!r:.40}; token ids of this model are integers from "
                    f"0 to {self._num_ids - 1}. Did another model's tokenizer produce them?"
                )

    def _read_ids(self, ids: Sequence[Any]) -> PrerenderedInput:
        self.check_ids(ids)
        num_bos = 0
        while self._bos and num_bos < len(ids) and ids[num_bos] == self._bos_id:
            num_bos += 1
        if num_bos == len(ids):
            raise InvalidConversationError("the only token id is BOS; send a conversation")
        input_ids = [self._bos_id] * self._has_bos + list(ids[num_bos:])
        return PrerenderedInput(
            None, input_ids, _format_input("tokens", self._describe_bos(num_bos))
        )

    def _refuse_foreign(self, text: str) -> None:
        foreign = [marker for marker in find_markers(text) if marker not in self._added]
        if foreign:
            raise ForeignTemplateError(
                f"the text contains {', '.join(foreign)}, which another model's chat template "
                "writes and this model does not know: the text was rendered with the wrong "
                "tokenizer. Render it with this model's tokenizer, or send messages"
            )

    def _describe_bos(self, num_bos: int) -> list[str]:
        if not self._bos:
            return []
        num_expected = int(self._has_bos)
        if num_bos == num_expected:
            return ["bos-kept"] if num_bos else []
        return ["bos-added" if num_bos < num_expected else "bos-stripped"]


def _format_input(kind: str, changes: Sequence[str]) -> str:
    return f"{kind}:{','.join(changes)}" if changes else kind


def _strip_starts(text: str, starts: Sequence[str]) -> str:
    while prefix := next((start for start in starts if text.startswith(start)), None):
        text = text.removeprefix(prefix)
    return text
