"""Encode conversations: the checkpoint's chat template, token ids with one BOS, the readout.

One rule fits every Skywork generation: render the chat template to text, strip one leading BOS if
the template wrote one, tokenize, and prepend BOS if the tokenizer would add it. BOS therefore
occurs once if the tokenizer adds it (Llama 3, Gemma 2), and not at all otherwise (Qwen3). The
encoder needs no weights: a process that only tokenizes does not load a model.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rm_core.config import Kind, TokenizerMode
from rm_core.errors import (
    ConversationTooLongError,
    InputError,
    InvalidConversationError,
    ModelLoadError,
    TemplateError,
)
from rm_core.inputs.chat_template import ChatTemplate, RenderingInterrupt
from rm_core.inputs.conversations import Chat, Messages, parse_chat, validate_unicode
from rm_core.inputs.last_turn import LastTurnFinder
from rm_core.inputs.prerendered import PROBE, PrerenderedReader
from rm_core.inputs.text_splitting import TokenBoundaries
from rm_core.inputs.text_tokenizer import DEFAULT_CHECK_INTERVAL, TextTokenizer
from rm_core.inputs.token_count_bound import TokenBound
from rm_core.inputs.truncation import drop_oldest
from rm_core.inputs.warnings import WarningFinder
from rm_core.packing import TokenIds, common_prefix_length
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

# Probes for templates that refuse `PROBE`.
_OTHER_PROBES = (
    ({"role": "system", "content": "system"}, *PROBE),
    (*PROBE, *PROBE),
)
# Characters. Shorter texts are tokenized in a few milliseconds: errors report their exact length.
_LONG_TEXT = 65_536
# Minimum length in characters of a shared prefix whose tokens are kept.
_WORTH_KEEPING = 1_024
# Default of `max_unbroken_characters`: at least the first number, and per token of `max_length` the
# second number, which is more than a conversation within the limit needs.
_UNBROKEN, _UNBROKEN_PER_TOKEN = 524_288, 8


@dataclass(slots=True)
class SharedPrefix:
    """Prefix shared by the texts of one request, such as a prompt with many answers.

    Attributes:
        previous_text: the previous text, to compare the next text with.
        text: the shared prefix, up to a boundary and including its lookahead: the characters after
            the boundary that make it a boundary.
        stop: position of the boundary in `text`.
        input_ids: token ids of `text[:stop]`, without BOS.
    """

    previous_text: str = ""
    text: str = ""
    stop: int = 0
    input_ids: list[int] = field(default_factory=list)


def find_readout_position(input_ids: Sequence[int], pad_token_id: int | None) -> int:
    """Return the index of the readout: the last token that is not the pad token.

    This is the rule of transformers' sequence classifiers, which ignores the attention mask: if the
    text itself ends with the pad token, the reward is read before that token. Without a pad token,
    the index is the last position; if every token is the pad token, it is 0.
    """
    if pad_token_id is None:
        return len(input_ids) - 1
    for position in range(len(input_ids) - 1, 0, -1):
        if input_ids[position] != pad_token_id:
            return position
    return 0


class ChatEncoder:
    """Renders and tokenizes conversations for one checkpoint.

    Not thread-safe, since the tokenizer is not.

    Args:
        tokenizer: tokenizer with the chat template to use.
        pad_token_id: pad token id of the model's config, not of the tokenizer.
        max_length: maximum number of tokens of one conversation.
        warn_on_system_prompt: whether the authors advise against system prompts.
        template_date: day that the template gets as today's date; None for the day of the call.
        tokenizer_mode: see `ModelConfig`.
        tokenizer_check_interval: see `ModelConfig`.

    Attributes:
        kind: kind of the models that read what it encodes.
        max_length: maximum number of tokens of one conversation.
        max_unbroken_characters: maximum length of a text without a boundary, which is tokenized at
            once because no position is proven to be safe for a cut. May be changed to any number
            from 131,072, since text with boundaries is tokenized in parts of about half that.
        chat_template: text of the chat template.
        template_sha256: digest of `chat_template`.
        encoding_sha256: digest of template and tokenizer. Equal digests mean equal token ids.
        prerendered_reader: reads conversations that clients rendered themselves.
        template_date: day (ISO 8601) that the template gets as today's date; None for a template
            that never reads the date.
        depends_on_date: whether the template reads the date.
        text_tokenizer: the library that tokenizes texts.
        omitted_tokens: special tokens that the tokenizer's post-processor would add to a text, and
            that are omitted as in `apply_chat_template(tokenize=True)`. Never contains BOS.

    Raises:
        ModelLoadError: the chat template is missing or cannot be rendered.
    """

    kind: Kind = "classifier"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pad_token_id: int | None,
        max_length: int,
        warn_on_system_prompt: bool = False,
        template_date: datetime.date | None = None,
        tokenizer_mode: TokenizerMode = "auto",
        tokenizer_check_interval: int = DEFAULT_CHECK_INTERVAL,
    ) -> None:
        self._template = ChatTemplate(tokenizer, template_date or datetime.date.today())
        self._tokenizer = tokenizer
        self._pad_token_id = pad_token_id
        self.max_length = max_length
        self.chat_template = self._template.text
        self.template_sha256 = hashlib.sha256(self.chat_template.encode()).hexdigest()
        # Llama 3.2's default template writes the date into a system header.
        date = self._template.date
        self.template_date = None if date is None else date.isoformat()
        self.depends_on_date = self.template_date is not None
        dated = self._template.all_texts + (self.template_date or "")
        definition = tokenizer.backend_tokenizer.to_str()
        self.encoding_sha256 = hashlib.sha256((dated + definition).encode()).hexdigest()
        # Disables the padding, truncation and special tokens that the tokenizer file configures.
        tokenizer("", padding=False, truncation=False)
        self._backend = tokenizer.backend_tokenizer
        self.text_tokenizer = TextTokenizer(
            self._backend, definition, tokenizer_mode, tokenizer_check_interval
        )
        self._strips_bos, self.omitted_tokens = self._find_added_special_tokens()
        self._bound = TokenBound(tokenizer)
        self._boundaries = TokenBoundaries(tokenizer)
        self.max_unbroken_characters = max(_UNBROKEN, _UNBROKEN_PER_TOKEN * max_length)
        self._check_cancelled: Callable[[], None] = _do_nothing
        probe = self._render_probe()
        self.prerendered_reader = PrerenderedReader(tokenizer, probe, self._strips_bos)
        self._last_turn_finder = self._create_last_turn_finder(probe)
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
        """Encode one conversation.

        Args:
            conversation: messages that end with the assistant's; or a mapping of `messages` and
                `tools`; or `PrerenderedText` or `PrerenderedTokens`.
            truncation: `error` refuses a conversation over the limit. `left` drops the oldest turns
                and keeps the template's markers and the last turn whole; for `PrerenderedText` and
                `PrerenderedTokens`, it keeps BOS and the last tokens. `right` keeps the first
                tokens.
            max_length: a lower limit than the model's, in tokens.
            shared: prefix shared with the previous conversations. Does not affect token ids.

        Raises:
            InvalidConversationError: the shape is wrong, or the template refuses the conversation,
                or a part without a boundary is too long.
            ForeignTemplateError: another model's template rendered the conversation.
            ConversationTooLongError: the conversation exceeds the limit, and must not or cannot be
                truncated.
        """
        assert truncation in TRUNCATIONS
        limit = min(self.max_length, max_length or self.max_length)
        if isinstance(conversation, PrerenderedText | PrerenderedTokens):
            return self._encode_prerendered(conversation, truncation, limit)
        chat = parse_chat(conversation)
        text = self._render(chat)
        # `right` needs the first tokens, which only tokenizing gives.
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
            readouts=(find_readout_position(input_ids, self._pad_token_id),),
            truncated=truncated,
            warnings=warnings,
        )

    def count_prompt_tokens(self, input_ids: TokenIds) -> int:
        """Count the tokens before the content of the last turn, which other answers may share."""
        return self._last_turn_finder.find(input_ids)

    def encode_with_transformers(self, messages: Messages) -> list[int]:
        """Encode with transformers' own `apply_chat_template`, for comparisons.

        The template reads the real clock, and BOS may be missing or doubled.

        Args:
            messages: validated messages with string contents.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        try:
            input_ids: Any = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=False
            )
        except Exception as error:  # a template may raise any exception
            raise TemplateError(f"apply_chat_template refused the conversation: {error}") from error
        return [int(token) for token in input_ids]

    def strip_bos(self, input_ids: Sequence[int]) -> list[int]:
        """Remove every BOS from the start of token ids."""
        bos = self._tokenizer.bos_token_id
        start = next((i for i, token in enumerate(input_ids) if token != bos), len(input_ids))
        return list(input_ids[start:])

    def compute_offsets(self, encoded: Encoded) -> list[tuple[int, int]] | None:
        """Return start and end of each token in `encoded.text`, in characters.

        A BOS that the tokenizer added has equal start and end. Tokens that are bytes of one
        character share its range. None if the text that `right` truncation left has other tokens.
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
        """Encode conversations in order. A conversation that cannot be encoded gives an error.

        Args:
            conversations: see `encode`.
            truncation: see `encode`.
            max_length: see `encode`.
            shared: shared prefix to reuse across the calls of one request.
            check_cancelled: called before each conversation and before each part of a long text.
                Its exceptions propagate.
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
        prerendered = self.prerendered_reader.read(conversation)
        text, input_ids, is_whole = prerendered.text, prerendered.input_ids, True
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
                at_least = "" if is_whole else "at least "
                raise ConversationTooLongError(
                    _format_too_long(f"{at_least}{len(input_ids)}", limit)
                )
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
            readouts=(find_readout_position(input_ids, self._pad_token_id),),
            truncated=truncated,
            input_format=prerendered.input_format,
        )

    def _render_probe(self) -> str:
        """Render `PROBE`; return an empty text if the template accepts only other turns.

        Raises:
            ModelLoadError: the template renders none of the probes.
        """
        refusals = []
        for conversation in (PROBE, *_OTHER_PROBES):
            try:
                text = self._apply_template(Chat([*conversation]))
            except TemplateError as error:
                refusals.append(error)
                if isinstance(error.__cause__, RenderingInterrupt):
                    break  # every other probe may take as long
                continue
            return text if conversation is PROBE else ""
        raise ModelLoadError(
            "the chat template renders neither a conversation of a user and an assistant nor one "
            f"with a system prompt ({refusals[0].detail}); fix it, or give another template with "
            "--chat-template (setting `chat_template`)"
        )

    def _create_last_turn_finder(self, probe: str) -> LastTurnFinder:
        before, _, after = probe.rpartition(PROBE[-1]["content"])
        special_ids = frozenset(self._tokenizer.get_added_vocab().values())
        try:
            return LastTurnFinder(
                self._tokenize_range(before, 0, len(before)),
                self._tokenize_range(after, 0, len(after)),
                special_ids,
            )
        except InvalidConversationError:  # the tokenizer fails on what the template writes
            return LastTurnFinder([], [], special_ids)

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
        # Keys other than `content` are not validated before rendering.
        return validate_unicode(
            self._template.render(chat.messages, chat.tools), "the rendered conversation"
        )

    def _tokenize(
        self, text: str, limit: int, shared: SharedPrefix | None = None
    ) -> tuple[list[int], bool]:
        """Tokenize a text like `apply_chat_template(tokenize=True)`, but with exactly one BOS.

        Returns:
            Token ids, and whether they cover the whole text. If not, they are the token ids of the
            start of the text, and exceed the limit.
        """
        max_tokens = limit - self._strips_bos
        input_ids, stop = self._reuse_shared_ids(text, max_tokens, shared) if shared else ([], 0)
        stop = self._extend(input_ids, text, stop, max_tokens)
        if not input_ids:
            raise TemplateError("the chat template rendered the conversation to an empty text")
        return self._prepend_bos(input_ids), stop == len(text)

    def _tokenize_end(self, text: str, limit: int) -> tuple[list[int], bool]:
        """Like `_tokenize`, but from the end of the text. BOS is prepended in any case."""
        if len(text) < _LONG_TEXT:
            return self._tokenize(text, limit)
        input_ids: list[int] = []
        start = len(text)
        for start, stop in self._boundaries.split_from_end(text, self.max_unbroken_characters):
            input_ids = self._tokenize_range(text, start, stop) + input_ids
            if len(input_ids) > limit:
                break
        return self._prepend_bos(input_ids), start == 0

    def _extend(self, input_ids: list[int], text: str, start: int, max_tokens: int) -> int:
        """Append the ids of `text[start:]`, from a boundary on, until more than `max_tokens`.

        Returns:
            Position in the text up to which it was tokenized.
        """
        if len(text) < _LONG_TEXT:
            input_ids += self._tokenize_range(text, start, len(text))
            return len(text)
        for begin, stop in self._boundaries.split(text, start, self.max_unbroken_characters):
            if len(input_ids) > max_tokens:
                return begin
            input_ids += self._tokenize_range(text, begin, stop)
        return len(text)

    def _reuse_shared_ids(
        self, text: str, max_tokens: int, shared: SharedPrefix
    ) -> tuple[list[int], int]:
        """Return the ids of the prefix that a text shares with the previous one, and its end."""
        if len(text) < _WORTH_KEEPING:
            return [], 0
        if not (shared.text and text.startswith(shared.text)):
            common = common_prefix_length(shared.previous_text, text)
            boundary = self._boundaries.find_before(text, _WORTH_KEEPING, common - 1)
            shared.previous_text = text
            if boundary is None:
                return [], 0
            input_ids: list[int] = []
            shared.stop = self._extend(input_ids, text[:boundary], 0, max_tokens)
            shared.text = text[: shared.stop + self._boundaries.get_lookahead(text, shared.stop)]
            shared.input_ids = input_ids
        return [*shared.input_ids], shared.stop

    def _tokenize_range(self, text: str, start: int, stop: int) -> list[int]:
        """Tokenize `text[start:stop]` between two boundaries, without BOS."""
        self._check_cancelled()
        if stop - start > self.max_unbroken_characters:
            raise InvalidConversationError(
                f"{stop - start:,} characters of the conversation contain no position where the "
                "text can certainly be cut without changing a token, such as a space after a word, "
                f"and at most {self.max_unbroken_characters:,} characters are tokenized at once; "
                "shorten the text, or break it with spaces or lines"
            )
        with _convert_panics():
            return self.text_tokenizer.tokenize(text[start:stop])

    def _begins_with_bos(self, text: str) -> bool:
        """Return whether the first token is BOS, from the text or added by the tokenizer."""
        starts = [token for token in self._tokenizer.get_added_vocab() if text.startswith(token)]
        return self._strips_bos or max(starts, key=len, default="") == self._tokenizer.bos_token

    def _prepend_bos(self, input_ids: list[int]) -> list[int]:
        return [int(self._tokenizer.bos_token_id), *input_ids] if self._strips_bos else input_ids

    def _prove_too_long(self, text: str, limit: int) -> int | None:
        """Return a lower bound of a long text's tokens above the limit; None if it may fit."""
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
        """Return whether the tokenizer prepends BOS, and which other tokens it would add."""
        # If the tokenizer does not add BOS, a BOS of the template is the only one and is kept.
        added: list[int] = self._tokenizer("", add_special_tokens=True)["input_ids"]
        bos = self._tokenizer.bos_token_id
        adds_bos = bos is not None and added[:1] == [bos]
        return adds_bos, tuple(self._tokenizer.convert_ids_to_tokens(added[adds_bos:]))

    def _drop_oldest(self, chat: Chat, num_tokens: str, limit: int) -> Chat:
        def count_tokens(candidate: Messages) -> int | None:
            try:
                text = self._render(replace(chat, messages=candidate))
                # Most candidates are far too long, and only the comparison to the limit matters.
                return self._prove_too_long(text, limit) or len(self._tokenize(text, limit)[0])
            except TemplateError:
                return None

        kept = drop_oldest(chat.messages, count_tokens, limit)
        if kept is None:
            never_cut = "the last turn and `tools`" if chat.tools else "the last turn"
            raise ConversationTooLongError(
                _format_too_long(num_tokens, limit)
                + f"; `left` never cuts {never_cut}, and that alone is too long"
            )
        return replace(chat, messages=kept)


@contextlib.contextmanager
def _convert_panics() -> Iterator[None]:
    """Convert exceptions of the tokenizer to `InvalidConversationError`."""
    try:
        yield
    except BaseException as error:
        # The tokenizer raises a bare Exception. A panic in Rust (such as a regular expression that
        # reached a limit) is a BaseException.
        if type(error).__name__ not in ("Exception", "PanicException"):
            raise
        raise InvalidConversationError(
            f"the checkpoint's tokenizer failed on this conversation ({type(error).__name__}); "
            "change the text, or fix tokenizer.json"
        ) from error


def _do_nothing() -> None:
    pass


def _format_too_long(num_tokens: str, limit: int) -> str:
    return (
        f"the conversation has {num_tokens} tokens and the limit is {limit}; "
        'shorten it, or choose truncation "left" or "right"'
    )


def to_render_json(encoded: Encoded) -> dict[str, Any]:
    """Return an encoded conversation as JSON data, as callers of the render route get it."""
    rendered: dict[str, Any] = {
        "text": encoded.text,
        "input_ids": list(encoded.input_ids),
        "num_tokens": encoded.num_tokens,
        "readout_position": encoded.readout,
        "truncated": encoded.truncated,
    }
    if encoded.warnings:
        rendered["warnings"] = list(encoded.warnings)
    return rendered
