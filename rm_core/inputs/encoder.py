"""From a conversation to token ids: the checkpoint's own template, exactly one BOS, the readout.

The rule that fits every Skywork generation: render the chat template to text, strip one leading
BOS if it wrote one, tokenize, and put BOS before the ids if the tokenizer would. So BOS occurs once
where the tokenizer adds it (Llama 3, Gemma 2) and not at all where it does not (Qwen3). Knows
nothing of weights: a process that only tokenizes loads no model.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rm_core.errors import (
    ConversationTooLongError,
    InputError,
    InvalidConversationError,
    ModelLoadError,
    TemplateError,
)
from rm_core.inputs.chat_template import ChatTemplate, RenderingInterrupt
from rm_core.inputs.conversations import Chat, Messages, parse_chat, validate_unicode
from rm_core.inputs.length_bound import TokenBound
from rm_core.inputs.prerendered import PROBE, PrerenderedReader
from rm_core.inputs.token_boundaries import TokenBoundaries
from rm_core.inputs.truncation import drop_oldest
from rm_core.inputs.warnings import WarningFinder
from rm_core.packing import common_prefix_length
from rm_core.types import (
    TRUNCATIONS,
    Encoded,
    PrerenderedText,
    PrerenderedTokens,
    ScoreError,
    Truncation,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For templates that refuse `PROBE`.
_OTHER_PROBES = (
    ({"role": "system", "content": "system"}, *PROBE),
    (*PROBE, *PROBE),
)
# Characters; shorter ones are tokenized in some milliseconds, and told their exact length.
_LONG_TEXT = 65_536
# Characters that several texts have to share at their start for its tokens to be kept.
_WORTH_KEEPING = 1_024
# Default of `max_unbroken_characters`, and of more than a conversation that fits can have of them.
_UNBROKEN, _UNBROKEN_PER_TOKEN = 524_288, 8


@dataclass(slots=True)
class SharedPrefix:
    """The start that the texts of one request have in common, such as a prompt of many answers.

    Attributes:
        before: the text before, to compare the next one with.
        text: what they share, up to a place where they can be cut and the characters behind it
            that make it one.
        stop: that place.
        input_ids: of what is before it, without BOS.
    """

    previous_text: str = ""
    text: str = ""
    stop: int = 0
    input_ids: list[int] = field(default_factory=list)


def find_readout_position(input_ids: Sequence[int], pad_token_id: int | None) -> int:
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
        max_unbroken_characters: longest part of a text that is tokenized at once because nothing
            proves that it could be cut without changing a token; may be set to another number,
            131,072 or more, since what can be cut is tokenized in parts of about half of that.
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
        self._strips_bos, self.omitted_tokens = self._find_added_special_tokens()
        self._bound = TokenBound(tokenizer)
        self._boundaries = TokenBoundaries(tokenizer)
        self.max_unbroken_characters = max(_UNBROKEN, _UNBROKEN_PER_TOKEN * max_length)
        self._check_cancelled: Callable[[], None] = _do_nothing
        self.prerendered_reader = PrerenderedReader(
            tokenizer, self._render_probe(), self._strips_bos
        )
        self._warning_finder = WarningFinder(
            self.prerendered_reader.special_markers, warn_on_system_prompt
        )

    def encode(
        self,
        conversation: object,
        truncation: Truncation = "error",
        max_length: int | None = None,
        shared: SharedPrefix | None = None,
    ) -> Encoded:
        """Token ids and readout of one conversation.

        Args:
            conversation: messages, the last one the assistant's; or a mapping of `messages` and
                `tools`; or `RenderResult` or `PrerenderedTokens`.
            truncation: `error` refuses what is over the limit; `left` drops the oldest turns and
                keeps the markers of the template and the last turn whole, of `RenderResult` and
                `PrerenderedTokens` it keeps BOS and the last tokens; `right` keeps the first tokens.
            max_length: a limit below that of the model.
            shared: what the conversations before had in common; changes no token.

        Raises:
            InvalidConversationError: the shape is wrong, or the template refuses it, or it cannot
                be tokenized in parts that are short enough.
            ForeignTemplateError: another model's template has rendered it.
            ConversationTooLongError: over the limit and not to be cut, or not cuttable.
        """
        assert truncation in TRUNCATIONS
        limit = min(self.max_length, max_length or self.max_length)
        if isinstance(conversation, PrerenderedText | PrerenderedTokens):
            return self._encode_prerendered(conversation, truncation, limit)
        chat = parse_chat(conversation)
        text = self._render(chat)
        # The first tokens can only be known by tokenizing, however long the text is.
        over = self._prove_too_long(text, limit) if truncation != "right" else None
        if over and truncation == "error":
            raise ConversationTooLongError(_format_too_long(f"at least {over}", limit))
        input_ids, is_whole = ([], False) if over else self._tokenize(text, limit, shared)
        num_tokens = str(len(input_ids)) if is_whole else f"at least {over or len(input_ids)}"
        truncated = not is_whole or len(input_ids) > limit
        if truncated and truncation == "error":
            raise ConversationTooLongError(_format_too_long(num_tokens, limit))
        warnings = self._warning_finder.find_warnings(chat, text, self._try_render)
        if truncated and truncation == "right":
            input_ids = input_ids[:limit]
            text = self._decode(input_ids)
        elif truncated:
            text = self._render(self._drop_oldest(chat, num_tokens, limit))
            input_ids, _ = self._tokenize(text, limit)
        return Encoded(
            text=text,
            input_ids=tuple(input_ids),
            readout=find_readout_position(input_ids, self._pad_token_id),
            truncated=truncated,
            warnings=warnings,
        )

    def encode_with_transformers(self, messages: Messages) -> list[int]:
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

    def compute_offsets(self, encoded: Encoded) -> list[tuple[int, int]] | None:
        """Where in `encoded.text` each of its tokens stands: start and end, in characters.

        A BOS that the tokenizer added stands nowhere and has equal ends; bytes of one character
        share it. None where `right` cut the text so that what is left has other tokens.
        """
        with _convert_panics():
            encoding = self._backend.encode(encoded.text, add_special_tokens=False)
        offsets = [(0, 0)] * self._strips_bos + encoding.offsets
        return offsets if self._prepend_bos(encoding.ids) == list(encoded.input_ids) else None

    def encode_all(
        self,
        conversations: Iterable[object],
        truncation: Truncation = "error",
        max_length: int | None = None,
        *,
        shared: SharedPrefix | None = None,
        check_cancelled: Callable[[], None] | None = None,
    ) -> list[Encoded | ScoreError]:
        """Like `encode` for each, in order; one that cannot be encoded becomes its error.

        Args:
            conversations: as of `encode`.
            truncation: as of `encode`.
            max_length: as of `encode`.
            shared: kept from one call to the next, where they belong together.
            look_up: called before each conversation and each part of a long one; what it raises
                ends this.
        """
        shared = shared or SharedPrefix()
        self._check_cancelled = check_cancelled or _do_nothing
        encoded: list[Encoded | ScoreError] = []
        try:
            for conversation in conversations:
                self._check_cancelled()
                try:
                    encoded.append(self.encode(conversation, truncation, max_length, shared))
                except InputError as error:
                    encoded.append(ScoreError.from_exception(error))
        finally:
            self._check_cancelled = _do_nothing
        return encoded

    def _encode_prerendered(
        self, conversation: PrerenderedText | PrerenderedTokens, truncation: Truncation, limit: int
    ) -> Encoded:
        read = self.prerendered_reader.read(conversation)
        text, input_ids, is_whole = read.text, read.input_ids, True
        if text is not None:
            over = self._prove_too_long(text, limit) if truncation == "error" else None
            if over:
                raise ConversationTooLongError(_format_too_long(f"at least {over}", limit))
            if truncation == "left":
                input_ids, is_whole = self._tokenize_end(text, limit)
            else:
                input_ids, is_whole = self._tokenize(text, limit)
        truncated = not is_whole or len(input_ids) > limit
        if truncated:
            if truncation == "error":
                whole = "" if is_whole else "at least "
                raise ConversationTooLongError(_format_too_long(f"{whole}{len(input_ids)}", limit))
            bos = self._tokenizer.bos_token_id
            has_bos = bos is not None and (
                input_ids[0] == bos if is_whole or text is None else self._begins_with_bos(text)
            )
            num_kept = int(truncation == "left" and has_bos)
            start = num_kept + len(input_ids) - limit if truncation == "left" else 0
            input_ids = ([bos] * num_kept + input_ids[start:])[:limit]
        return Encoded(
            text=self._decode(input_ids) if text is None or truncated else text,
            input_ids=tuple(input_ids),
            readout=find_readout_position(input_ids, self._pad_token_id),
            truncated=truncated,
            input_format=read.input_format,
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
        return validate_unicode(
            self._template.render(chat.messages, chat.tools), "the rendered conversation"
        )

    def _tokenize(
        self, text: str, limit: int, shared: SharedPrefix | None = None
    ) -> tuple[list[int], bool]:
        """Token ids of a text, and whether of all of it: else of its start, more than the limit.

        As `apply_chat_template(tokenize=True)`, but with exactly one BOS.
        """
        most = limit - self._strips_bos
        input_ids, stop = self._reuse_shared_ids(text, most, shared) if shared else ([], 0)
        stop = self._extend(input_ids, text, stop, most)
        if not input_ids:
            raise TemplateError("the chat template rendered the conversation to nothing")
        return self._prepend_bos(input_ids), stop == len(text)

    def _tokenize_end(self, text: str, limit: int) -> tuple[list[int], bool]:
        """As `_tokenize`, but of its end; BOS before it, as if it were the whole."""
        if len(text) < _LONG_TEXT:
            return self._tokenize(text, limit)
        input_ids: list[int] = []
        start = len(text)
        for start, stop in self._boundaries.split_from_end(text, self.max_unbroken_characters):
            input_ids = self._tokenize_range(text, start, stop) + input_ids
            if len(input_ids) > limit:
                break
        return self._prepend_bos(input_ids), start == 0

    def _extend(self, input_ids: list[int], text: str, start: int, most: int) -> int:
        """Add the ids of a text from a border on; where it stopped, having more than `most`."""
        if len(text) < _LONG_TEXT:
            input_ids += self._tokenize_range(text, start, len(text))
            return len(text)
        for begin, stop in self._boundaries.split(text, start, self.max_unbroken_characters):
            if len(input_ids) > most:
                return begin
            input_ids += self._tokenize_range(text, begin, stop)
        return len(text)

    def _reuse_shared_ids(
        self, text: str, most: int, shared: SharedPrefix
    ) -> tuple[list[int], int]:
        """Ids of what a text shares with the one before it, and where that ends."""
        if len(text) < _WORTH_KEEPING:
            return [], 0
        if not (shared.text and text.startswith(shared.text)):
            common = common_prefix_length(shared.previous_text, text)
            border = self._boundaries.find_before(text, _WORTH_KEEPING, common - 1)
            shared.previous_text = text
            if border is None:
                return [], 0
            input_ids: list[int] = []
            shared.stop = self._extend(input_ids, text[:border], 0, most)
            shared.text = text[: shared.stop + self._boundaries.get_lookahead(text, shared.stop)]
            shared.input_ids = input_ids
        return [*shared.input_ids], shared.stop

    def _tokenize_range(self, text: str, start: int, stop: int) -> list[int]:
        """Token ids of a part of a text that is cut at borders, without BOS."""
        self._check_cancelled()
        if stop - start > self.max_unbroken_characters:
            raise InvalidConversationError(
                f"{stop - start:,} characters of the conversation have no place where they could "
                "certainly be cut without changing a token, such as a space after a word, and up "
                f"to {self.max_unbroken_characters:,} are tokenized at once; shorten it, or raise "
                "the service's setting `max_unbroken_characters`"
            )
        # The same ids as from calling the tokenizer, in half the time: no offsets, no wrapping.
        with _convert_panics():
            (encoding,) = self._backend.encode_batch_fast(
                [text[start:stop]], add_special_tokens=False
            )
        input_ids: list[int] = encoding.ids
        return input_ids

    def _begins_with_bos(self, text: str) -> bool:
        """Whether BOS is the first token of a text, the tokenizer's own included."""
        starts = [token for token in self._tokenizer.get_added_vocab() if text.startswith(token)]
        return self._strips_bos or max(starts, key=len, default="") == self._tokenizer.bos_token

    def _prepend_bos(self, input_ids: list[int]) -> list[int]:
        return [int(self._tokenizer.bos_token_id), *input_ids] if self._strips_bos else input_ids

    def _prove_too_long(self, text: str, limit: int) -> int | None:
        """A number of tokens over the limit that a long text has at least; None if it may fit."""
        if len(text) < _LONG_TEXT:
            return None
        with _convert_panics():
            return self._bound.prove_too_long(text, limit)

    def _decode(self, input_ids: Sequence[int]) -> str:
        with _convert_panics():
            text = self._tokenizer.decode(list(input_ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        bos = self._tokenizer.bos_token
        return text.removeprefix(str(bos)) if bos and self._strips_bos else text

    def _find_added_special_tokens(self) -> tuple[bool, tuple[str, ...]]:
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
                return self._prove_too_long(text, limit) or len(self._tokenize(text, limit)[0])
            except TemplateError:
                return None

        kept = drop_oldest(chat.messages, size, limit)
        if kept is None:
            never_cut = "the last turn and `tools`" if chat.tools else "the last turn"
            raise ConversationTooLongError(
                _format_too_long(num_tokens, limit)
                + f"; `left` never cuts {never_cut}, and here that alone is too long"
            )
        return replace(chat, messages=kept)


@contextlib.contextmanager
def _convert_panics() -> Iterator[None]:
    """What a call of the tokenizer raises, as an error of the conversation."""
    try:
        yield
    except BaseException as error:
        # The tokenizer raises a bare Exception; a panic in Rust (a regular expression that gave
        # up) derives from BaseException.
        if type(error).__name__ not in ("Exception", "PanicException"):
            raise
        raise InvalidConversationError(
            f"the checkpoint's tokenizer failed on this conversation ({type(error).__name__}); "
            "change its text, or correct tokenizer.json"
        ) from error


def _do_nothing() -> None:
    pass


def _format_too_long(num_tokens: str, limit: int) -> str:
    return (
        f"the conversation has {num_tokens} tokens and the limit is {limit}; "
        'shorten it, or choose truncation "left" or "right"'
    )


def to_render_json(encoded: Encoded) -> dict[str, Any]:
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
