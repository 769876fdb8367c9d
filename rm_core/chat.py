"""From a conversation to token ids: the checkpoint's own template, exactly one BOS, the readout.

The rule that fits every Skywork generation: render the chat template to text, strip one leading
BOS if it wrote one, tokenize, and put BOS before the ids if the tokenizer would. So BOS occurs once
where the tokenizer adds it (Llama 3, Gemma 2) and not at all where it does not (Qwen3). Knows
nothing of weights: a process that only tokenizes loads no model.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rm_core.advice import Advisor
from rm_core.chat_template import ChatTemplate, RenderingInterrupt
from rm_core.conversations import Chat, Messages, checked_text, parse_chat
from rm_core.errors import (
    ConversationTooLongError,
    InputError,
    InvalidConversationError,
    ModelLoadError,
    TemplateError,
)
from rm_core.prepared import PROBE, PreparedReader
from rm_core.token_bound import TokenBound
from rm_core.truncation import drop_oldest
from rm_core.types import TRUNCATIONS, Encoded, Rendered, ScoreError, Tokens, Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For templates that refuse `PROBE`.
_OTHER_PROBES = (
    ({"role": "system", "content": "system"}, *PROBE),
    (*PROBE, *PROBE),
)
# Characters; shorter ones are tokenized in some milliseconds, and told their exact length.
_LONG_TEXT = 65_536


def readout_position(input_ids: Sequence[int], pad_token_id: int | None) -> int:
    """Index of the token that is read: the rightmost one that is not the pad token.

    What transformers' sequence classifiers do, whatever the attention mask says: if the text
    itself ends in the pad token, the score is read before it. Without a pad token it is the last
    position; if every token is the pad token it is 0.
    """
    if pad_token_id is None:
        return len(input_ids) - 1
    for position in range(len(input_ids) - 1, 0, -1):
        if input_ids[position] != pad_token_id:
            return position
    return 0


class ChatEncoder:
    """Renders and tokenizes conversations for one checkpoint.

    Not safe for concurrent use from several threads: the tokenizer is not.

    Args:
        tokenizer: with the chat template to use.
        pad_token_id: of the model's config, not the tokenizer's.
        max_length: most tokens of one conversation.
        warn_on_system_prompt: whether the authors advise against system prompts.
        template_date: what the template gets as today's date; None for the day of the call.

    Attributes:
        max_length: most tokens of one conversation.
        chat_template: its text.
        template_sha256: of that text.
        encoding_sha256: of that text and the tokenizer: equal where token ids are.
        prepared: reads what clients rendered themselves.
        template_date: the day (ISO 8601) that the template gets as today's; None for a template
            that never asks.
        depends_on_date: whether it asks.
        left_out_tokens: special tokens that the tokenizer's post-processor would add to a text
            and that are left out, as in `apply_chat_template(tokenize=True)`; BOS is never one.

    Raises:
        ModelLoadError: the tokenizer has no chat template, or none that can be rendered.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pad_token_id: int | None,
        max_length: int,
        warn_on_system_prompt: bool = False,
        template_date: datetime.date | None = None,
    ) -> None:
        self._template = ChatTemplate(tokenizer, template_date or datetime.date.today())
        self._tokenizer = tokenizer
        self._pad_token_id = pad_token_id
        self.max_length = max_length
        self.chat_template = self._template.text
        self.template_sha256 = hashlib.sha256(self.chat_template.encode()).hexdigest()
        # Llama 3.2's stock template writes the date into a system header.
        date = self._template.date
        self.template_date = None if date is None else date.isoformat()
        self.depends_on_date = self.template_date is not None
        dated = self._template.all_texts + (self.template_date or "")
        self.encoding_sha256 = hashlib.sha256(
            (dated + tokenizer.backend_tokenizer.to_str()).encode()
        ).hexdigest()
        # Puts the file's own padding, truncation and treatment of special tokens aside for good.
        tokenizer("", padding=False, truncation=False)
        self._backend = tokenizer.backend_tokenizer
        self._strips_bos, self.left_out_tokens = self._special_tokens_added()
        self._bound = TokenBound(tokenizer)
        self.prepared = PreparedReader(tokenizer, self._render_probe(), self._strips_bos)
        self._advisor = Advisor(self.prepared.special_markers, warn_on_system_prompt)

    def encode(
        self,
        conversation: object,
        truncation: Truncation = "error",
        max_length: int | None = None,
    ) -> Encoded:
        """Token ids and readout of one conversation.

        Args:
            conversation: messages, the last one the assistant's; or a mapping of `messages` and
                `tools`; or `Rendered` or `Tokens`.
            truncation: `error` refuses what is over the limit; `left` drops the oldest turns and
                keeps the markers of the template and the last turn whole, of `Rendered` and
                `Tokens` it keeps BOS and the last tokens; `right` keeps the first tokens.
            max_length: a limit below that of the model.

        Raises:
            InvalidConversationError: the shape is wrong, or the template refuses it.
            ForeignTemplateError: another model's template has rendered it.
            ConversationTooLongError: over the limit and not to be cut, or not cuttable.
        """
        assert truncation in TRUNCATIONS
        limit = min(self.max_length, max_length or self.max_length)
        if isinstance(conversation, Rendered | Tokens):
            return self._encode_prepared(conversation, truncation, limit)
        chat = parse_chat(conversation)
        text = self._render(chat)
        # The first tokens can only be known by tokenizing, however long the text is.
        over = self._surely_over(text, limit) if truncation != "right" else None
        if over and truncation == "error":
            raise ConversationTooLongError(_too_long(f"at least {over}", limit))
        input_ids = [] if over else self._tokenize(text)
        warnings = self._advisor.find_warnings(chat, text, self._try_render)
        truncated = over is not None or len(input_ids) > limit
        if truncated:
            if truncation == "right":
                input_ids = input_ids[:limit]
                text = self._decode(input_ids)
            elif truncation == "left":
                whole = f"at least {over}" if over else str(len(input_ids))
                text = self._render(self._drop_oldest(chat, whole, limit))
                input_ids = self._tokenize(text)
            else:
                raise ConversationTooLongError(_too_long(str(len(input_ids)), limit))
        return Encoded(
            text=text,
            input_ids=tuple(input_ids),
            readout=readout_position(input_ids, self._pad_token_id),
            truncated=truncated,
            warnings=warnings,
        )

    def encode_plainly(self, messages: Messages) -> list[int]:
        """Token ids by transformers' own `apply_chat_template`, for comparisons.

        The template reads the real clock here, and BOS may be missing or doubled.

        Args:
            messages: checked ones, with text as content.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        try:
            input_ids: Any = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template may raise anything
            raise TemplateError(f"apply_chat_template refused the conversation: {error}") from error
        return [int(token) for token in input_ids]

    def strip_bos(self, input_ids: Sequence[int]) -> list[int]:
        """Token ids without BOS at their start, however often it is there."""
        bos = self._tokenizer.bos_token_id
        start = next((i for i, token in enumerate(input_ids) if token != bos), len(input_ids))
        return list(input_ids[start:])

    def offsets(self, encoded: Encoded) -> list[tuple[int, int]] | None:
        """Where in `encoded.text` each of its tokens stands: start and end, in characters.

        A BOS that the tokenizer added stands nowhere and has equal ends; bytes of one character
        share it. None where `right` cut the text so that what is left has other tokens.
        """
        encoding = self._backend.encode(encoded.text, add_special_tokens=False)
        offsets = [(0, 0)] * self._strips_bos + encoding.offsets
        return offsets if self._with_bos(encoding.ids) == list(encoded.input_ids) else None

    def encode_all(
        self,
        conversations: Iterable[object],
        truncation: Truncation = "error",
        max_length: int | None = None,
    ) -> list[Encoded | ScoreError]:
        """Like `encode` for each, in order; one that cannot be encoded becomes its error."""
        encoded: list[Encoded | ScoreError] = []
        for conversation in conversations:
            try:
                encoded.append(self.encode(conversation, truncation, max_length))
            except InputError as error:
                encoded.append(ScoreError.of(error))
        return encoded

    def _encode_prepared(
        self, conversation: Rendered | Tokens, truncation: Truncation, limit: int
    ) -> Encoded:
        read = self.prepared.read(conversation)
        text, input_ids = read.text, read.input_ids
        if text is not None:
            over = self._surely_over(text, limit) if truncation == "error" else None
            if over:
                raise ConversationTooLongError(_too_long(f"at least {over}", limit))
            input_ids = self._tokenize(text)
        truncated = len(input_ids) > limit
        if truncated:
            if truncation == "error":
                raise ConversationTooLongError(_too_long(str(len(input_ids)), limit))
            bos = self._tokenizer.bos_token_id
            num_kept = int(truncation == "left" and bos is not None and input_ids[0] == bos)
            start = num_kept + len(input_ids) - limit if truncation == "left" else 0
            input_ids = (input_ids[:num_kept] + input_ids[start:])[:limit]
        return Encoded(
            text=self._decode(input_ids) if text is None or truncated else text,
            input_ids=tuple(input_ids),
            readout=readout_position(input_ids, self._pad_token_id),
            truncated=truncated,
            recognised=read.recognised,
        )

    def _render_probe(self) -> str:
        """The rendering of `PROBE`; empty for a template that wants other turns.

        Raises:
            ModelLoadError: the template renders no conversation.
        """
        refusals = []
        for conversation in (PROBE, *_OTHER_PROBES):
            try:
                text = self._apply_template(Chat([*conversation]))
            except TemplateError as error:
                refusals.append(error)
                if isinstance(error.__cause__, RenderingInterrupt):
                    break  # each further one might take as long
                continue
            return text if conversation is PROBE else ""
        raise ModelLoadError(
            "the chat template renders no conversation, neither of a user and an assistant nor "
            f"after a system prompt ({refusals[0].detail}); correct it, or give another one with "
            "--chat-template (setting `chat_template`)"
        )

    def _render(self, chat: Chat) -> str:
        text = self._apply_template(chat)
        bos = self._tokenizer.bos_token
        return text.removeprefix(str(bos)) if bos and self._strips_bos else text

    def _try_render(self, chat: Chat) -> str | None:
        try:
            return self._render(chat)
        except InvalidConversationError:
            return None

    def _apply_template(self, chat: Chat) -> str:
        # Keys other than `content` come unchecked.
        return checked_text(
            self._template.render(chat.messages, chat.tools), "the rendered conversation"
        )

    def _tokenize(self, text: str) -> list[int]:
        # As `apply_chat_template(tokenize=True)`, but with exactly one BOS. The same ids as from
        # calling the tokenizer, in half the time: no offsets, no wrapping.
        try:
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:
            # The tokenizer raises a bare Exception; a panic in Rust (a regular expression that gave
            # up) derives from BaseException.
            if type(error).__name__ not in ("Exception", "PanicException"):
                raise
            raise InvalidConversationError(
                f"the checkpoint's tokenizer failed on this conversation ({type(error).__name__}); "
                "change its text, or correct tokenizer.json"
            ) from error
        if not encoding.ids:
            raise TemplateError("the chat template rendered the conversation to nothing")
        return self._with_bos(encoding.ids)

    def _with_bos(self, input_ids: list[int]) -> list[int]:
        return [int(self._tokenizer.bos_token_id), *input_ids] if self._strips_bos else input_ids

    def _surely_over(self, text: str, limit: int) -> int | None:
        """A number of tokens over the limit that a long text has at least; None if it may fit."""
        if len(text) < _LONG_TEXT:
            return None
        return self._bound.tokens_over(text, limit)

    def _decode(self, input_ids: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(input_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        bos = self._tokenizer.bos_token
        return text.removeprefix(str(bos)) if bos and self._strips_bos else text

    def _special_tokens_added(self) -> tuple[bool, tuple[str, ...]]:
        """Whether the tokenizer puts BOS before a text, and which other tokens it would add."""
        # Where the tokenizer adds none, a BOS that the template wrote is the only one: it stays.
        added: list[int] = self._tokenizer("", add_special_tokens=True)["input_ids"]
        bos = self._tokenizer.bos_token_id
        adds_bos = bos is not None and added[:1] == [bos]
        return adds_bos, tuple(self._tokenizer.convert_ids_to_tokens(added[adds_bos:]))

    def _drop_oldest(self, chat: Chat, num_tokens: str, limit: int) -> Chat:
        def size(candidate: Messages) -> int | None:
            try:
                text = self._render(replace(chat, messages=candidate))
                # Only whether it fits is asked for, many times, of much that is far too long.
                return self._surely_over(text, limit) or len(self._tokenize(text))
            except TemplateError:
                return None

        kept = drop_oldest(chat.messages, size, limit)
        if kept is None:
            never_cut = "the last turn and `tools`" if chat.tools else "the last turn"
            raise ConversationTooLongError(
                _too_long(num_tokens, limit)
                + f"; `left` never cuts {never_cut}, and here that alone is too long"
            )
        return replace(chat, messages=kept)


def _too_long(num_tokens: str, limit: int) -> str:
    return (
        f"the conversation has {num_tokens} tokens and the limit is {limit}; "
        'shorten it, or choose truncation "left" or "right"'
    )


def render_record(encoded: Encoded) -> dict[str, Any]:
    """What a caller is shown of an encoded conversation, as plain JSON data."""
    record: dict[str, Any] = {
        "text": encoded.text,
        "input_ids": list(encoded.input_ids),
        "num_tokens": encoded.num_tokens,
        "readout_position": encoded.readout,
        "truncated": encoded.truncated,
    }
    if encoded.warnings:
        record["warnings"] = list(encoded.warnings)
    return record
