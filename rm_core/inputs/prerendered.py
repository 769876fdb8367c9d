"""Text that a client templated itself, and token ids that it made, in a conversation's place.

Whatever the client did about BOS, it stands as often at the start as it does in a conversation that
is rendered here: once for Llama 3 and Gemma 2, never for Qwen3. What was recognised is told.
Text in the template of another model would be scored to a plausible number; it is refused.
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
PROBE = (
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _ANSWER},
)
"""A conversation whose rendering shows what the template writes around texts."""


@dataclass(frozen=True, slots=True)
class PrerenderedInput:
    """What was read of a prepared text or of ids.

    Attributes:
        text: to be tokenized, special tokens added; None where ids came.
        input_ids: where they came.
        recognised: what the client did, in words for a header.
    """

    text: str | None
    input_ids: list[int]
    input_format: str


class PrerenderedReader:
    """Reads prepared texts and ids for one checkpoint.

    Args:
        tokenizer: of the checkpoint.
        probe: rendering of `PROBE` with any BOS that the template writes; empty if it has none.
        adds_bos: whether the tokenizer puts BOS before every text.

    Attributes:
        markers: special tokens that the template writes around texts.
        special_markers: those, BOS, EOS, padding, and every special token that looks like a marker
            of a template; not tags such as `<think>`, which answers write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probe: str, adds_bos: bool) -> None:
        added: dict[str, int] = tokenizer.get_added_vocab()
        self._bos = str(tokenizer.bos_token) if tokenizer.bos_token else ""
        self._bos_id = tokenizer.bos_token_id
        self._adds_bos = adds_bos
        self._has_bos = bool(self._bos) and (adds_bos or probe.startswith(self._bos))
        self._num_ids = 1 + max(tokenizer.get_vocab().values())
        self._end = probe.rpartition(_ANSWER)[2] if _ANSWER in probe else ""
        # Not what stands between, such as Qwen3's block of thoughts: others write that as well.
        around = (probe.partition(_QUESTION)[0], self._end)
        self.markers = tuple(t for t in added if t != self._bos and any(t in a for a in around))
        ending = (*self.markers, tokenizer.eos_token, tokenizer.pad_token)
        self._ends = tuple(dict.fromkeys(str(end) for end in ending if end))
        self._starts = tuple(str(t) for t in (tokenizer.eos_token, tokenizer.pad_token) if t)
        self._added = frozenset(added)
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        odd = [token for token in special if "|" in token or "\uff5c" in token or token[:1] == "["]
        names = (*self.markers, self._bos, *self._ends, *odd)
        self.special_markers = tuple(dict.fromkeys(name for name in names if name))

    def is_templated(self, text: str) -> bool:
        """Whether a text has markers, of this checkpoint's template or of another known one."""
        return any(marker in text for marker in self.markers) or bool(find_markers(text))

    def read(self, prepared: PrerenderedText | PrerenderedTokens) -> PrerenderedInput:
        """See the module.

        Raises:
            InvalidConversationError: it is empty, no Unicode, or has ids that are no tokens.
            ForeignTemplateError: the text is in the template of another model.
        """
        if isinstance(prepared, PrerenderedTokens):
            return self._read_ids(prepared.input_ids)
        return self._read_text(prepared)

    def _read_text(self, rendered: PrerenderedText) -> PrerenderedInput:
        text = validate_unicode(rendered.text, "the text")
        if rendered.close:
            text = _strip_starts(text, self._starts)
        found = 0
        while self._bos and text.startswith(self._bos):
            text = text.removeprefix(self._bos)
            found += 1
        if not text.strip():
            raise InvalidConversationError(
                "the text is empty; send a rendered conversation, or messages to be rendered here"
            )
        is_ours = any(marker in text for marker in self.markers)
        if not is_ours:
            self._refuse_foreign(text)
        words = self._describe_bos(found)
        if self.markers and not is_ours:
            words.insert(0, "no-template")
        elif rendered.close:
            closed = strip_end(text, self._ends) + self._end
            if closed != text:
                text = closed
                words.append("end-closed")
        if self._has_bos and not self._adds_bos:
            text = self._bos + text
        return PrerenderedInput(text, [], _format_input("text", words))

    def _read_ids(self, sent: Sequence[Any]) -> PrerenderedInput:
        if not sent:
            raise InvalidConversationError("there are no token ids; send at least one")
        for place, value in enumerate(sent):
            if type(value) is not int or not 0 <= value < self._num_ids:
                raise InvalidConversationError(
                    f"token id {place} is {value!r:.40}; this model's are whole numbers from 0 to "
                    f"{self._num_ids - 1}. Were they made by another model's tokenizer?"
                )
        found = 0
        while self._bos and found < len(sent) and sent[found] == self._bos_id:
            found += 1
        if found == len(sent):
            raise InvalidConversationError("there are no token ids but BOS; send a conversation")
        input_ids = [self._bos_id] * self._has_bos + list(sent[found:])
        return PrerenderedInput(None, input_ids, _format_input("tokens", self._describe_bos(found)))

    def _refuse_foreign(self, text: str) -> None:
        foreign = [marker for marker in find_markers(text) if marker not in self._added]
        if foreign:
            raise ForeignTemplateError(
                f"the text has {', '.join(foreign)}, which another model's chat template writes "
                "and this model does not know: it was rendered with the wrong tokenizer. Render "
                "it with this model's tokenizer, or send messages"
            )

    def _describe_bos(self, found: int) -> list[str]:
        if not self._bos:
            return []
        wanted = int(self._has_bos)
        if found == wanted:
            return ["bos-kept"] if found else []
        return ["bos-added" if found < wanted else "bos-stripped"]


def _format_input(kind: str, words: Sequence[str]) -> str:
    return f"{kind}:{','.join(words)}" if words else kind


def _strip_starts(text: str, starts: Sequence[str]) -> str:
    while found := next((start for start in starts if text.startswith(start)), None):
        text = text.removeprefix(found)
    return text
