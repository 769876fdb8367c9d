"""Encode conversations: the checkpoint's chat template, token ids with one BOS, the readout.

One rule fits every Skywork generation: render the chat template to text, strip one leading BOS if
the template wrote one, tokenize, and prepend BOS if the tokenizer would add it. BOS therefore
occurs once if the tokenizer adds it (Llama 3, Gemma 2), and not at all otherwise (Qwen3).
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rm_core.config import TokenizerMode
from rm_core.errors import (
    ConversationTooLongError,
    InvalidConversationError,
    ModelLoadError,
    TemplateError,
)
from rm_core.inputs.base_encoder import Encoder, SharedPrefix, format_too_long
from rm_core.inputs.chat_rendering import ChatRenderer
from rm_core.inputs.chat_template import ChatTemplate
from rm_core.inputs.conversations import Chat, Messages, parse_chat, refuse_images
from rm_core.inputs.image_tokens import ImageTokens
from rm_core.inputs.last_turn import LastTurnFinder
from rm_core.inputs.prerendered import PROBE, PrerenderedReader
from rm_core.inputs.text_tokenizer import DEFAULT_CHECK_INTERVAL
from rm_core.inputs.truncation import drop_oldest
from rm_core.inputs.warnings import WarningFinder
from rm_core.packing import TokenIds
from rm_core.types import (
    TRUNCATIONS,
    Encoded,
    PlacedImage,
    PrerenderedText,
    PrerenderedTokens,
    Truncation,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


class ChatEncoder(Encoder):
    """Renders and tokenizes conversations for one checkpoint.

    Args:
        pad_token_id: pad token id of the model's config, not of the tokenizer.
        warn_on_system_prompt: whether the authors advise against system prompts.
        template_date: day that the template gets as today's date; None for the day of the call.
        appended_token: token that follows every conversation, and at which it is read; None for no
            such token.

    Raises:
        ModelLoadError: the chat template is missing or cannot be rendered.
    """

    kind = "classifier"
    probe = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi!"})

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
        appended_token: str | None = None,
        image_tokens: ImageTokens | None = None,
    ) -> None:
        template = ChatTemplate(tokenizer, template_date or datetime.date.today())
        input_format = "" if appended_token is None else f"appended_token: {appended_token}\n"
        if image_tokens is not None:
            input_format += f"images: {image_tokens.processor.description}\n"
        super().__init__(
            tokenizer,
            template,
            input_format,
            max_length=max_length,
            tokenizer_mode=tokenizer_mode,
            tokenizer_check_interval=tokenizer_check_interval,
        )
        self._pad_token_id = pad_token_id
        self.image_tokens = image_tokens
        self._appended_token = appended_token or ""
        self.appended_ids = self._find_appended_ids(self._appended_token)
        self._renderer = ChatRenderer(template, self.added_bos, tokenizer_check_interval)
        probe = self._renderer.render_probe()
        self._renderer.check_shared_prompts()
        self.prerendered_reader = PrerenderedReader(tokenizer, probe, bool(self.added_bos))
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
        limit = min(self.max_length, max_length or self.max_length) - len(self.appended_ids)
        if isinstance(conversation, PrerenderedText | PrerenderedTokens):
            encoded = self._encode_prerendered(conversation, truncation, limit)
            if encoded.input_ids[-1:] == self.appended_ids:
                return encoded  # the client appended it
            return self._append_token(encoded)
        return self._append_token(self._encode_chat(conversation, truncation, limit, shared))

    def _encode_chat(
        self, conversation: object, truncation: Truncation, limit: int, shared: SharedPrefix | None
    ) -> Encoded:
        chat = self._read_images(parse_chat(conversation), limit if truncation == "error" else None)
        text = self._render(chat, shared)
        # `right` needs the first tokens, which only tokenizing gives.
        over = self._prove_chat_too_long(chat, text, limit) if truncation != "right" else None
        if over and truncation == "error":
            raise ConversationTooLongError(_format_too_long(f"at least {over}", limit))
        input_ids: list[int] = []
        images: list[PlacedImage] = []
        is_whole = False
        if not over:
            input_ids, images, is_whole = self._tokenize_chat(chat, text, limit, shared)
        num_tokens = str(len(input_ids)) if is_whole else f"at least {over or len(input_ids)}"
        truncated = not is_whole or len(input_ids) > limit
        if truncated and truncation == "error":
            raise ConversationTooLongError(_format_too_long(num_tokens, limit))
        warnings = self._warning_finder.find_warnings(
            self._hide_images(chat),
            text,
            self._renderer.try_render,
            shared.contents if shared else {},
        )
        if truncated and truncation == "right":
            input_ids, images = self._keep_first(input_ids, images, limit)
            text = self._decode(self._collapse(input_ids, images))
        elif truncated:
            chat = self._drop_oldest(chat, num_tokens, limit)
            text = self._render(chat)
            input_ids, images, _ = self._tokenize_chat(chat, text, limit)
        return Encoded(
            text=text,
            input_ids=tuple(input_ids),
            readouts=(find_readout_position(input_ids, self._pad_token_id),),
            truncated=truncated,
            warnings=warnings,
            images=tuple(images),
        )

    def _read_images(self, chat: Chat, limit: int | None) -> Chat:
        if self.image_tokens is None:
            refuse_images(chat.messages, "this model")
            return chat
        return self.image_tokens.read(chat, limit)

    def _hide_images(self, chat: Chat) -> Chat:
        return chat if self.image_tokens is None else self.image_tokens.hide(chat)

    def _render(self, chat: Chat, shared: SharedPrefix | None = None) -> str:
        """Render a conversation, and keep its prompt for the next one."""
        chat = self._hide_images(chat)
        is_text = isinstance(chat.messages[-1]["content"], str)
        if not (shared and shared.is_repeated and is_text and self._renderer.shares_prompts):
            return self._renderer.render(chat)
        prompt = self._renderer.render_prompt(chat, shared.prompt)
        if prompt is not shared.prompt:
            shared.prompt, shared.previous_text = prompt, prompt.text or shared.previous_text
        return self._renderer.render_answer(chat, prompt)

    def _count_hidden(self, chat: Chat) -> int:
        return 0 if self.image_tokens is None else self.image_tokens.count_hidden(chat)

    def _prove_chat_too_long(self, chat: Chat, text: str, limit: int) -> int | None:
        """Like `_prove_too_long`, with the tokens of images."""
        hidden = self._count_hidden(chat)
        if hidden > limit:
            return hidden
        over = self._prove_too_long(text, limit - hidden)
        return over and over + hidden

    def _tokenize_chat(
        self, chat: Chat, text: str, limit: int, shared: SharedPrefix | None = None
    ) -> tuple[list[int], list[PlacedImage], bool]:
        """Like `_tokenize`, with the tokens of images, and with the images."""
        input_ids, is_whole = self._tokenize(text, limit, shared)
        if self.image_tokens is None:
            return input_ids, [], is_whole
        expanded, images = self.image_tokens.expand(input_ids, chat)
        if is_whole:
            self.image_tokens.check_all_placed(images, chat)
        return expanded, images, is_whole

    def _keep_first(
        self, input_ids: list[int], images: list[PlacedImage], limit: int
    ) -> tuple[list[int], list[PlacedImage]]:
        """Return the first tokens, at most `limit`, without a part of an image."""
        if self.image_tokens is not None:
            limit = self.image_tokens.find_cut(input_ids, images, limit)
        return input_ids[:limit], [image for image in images if image.stop <= limit]

    def _collapse(self, input_ids: list[int], images: list[PlacedImage]) -> list[int]:
        if self.image_tokens is None:
            return input_ids
        return self.image_tokens.collapse(input_ids, images)

    def _find_appended_ids(self, token: str) -> tuple[int, ...]:
        if not token:
            return ()
        token_id = self._tokenizer.get_vocab().get(token)
        if token_id is None or token_id == self._pad_token_id:
            found = "not a token of the tokenizer" if token_id is None else "the pad token"
            raise ModelLoadError(
                f"`appended_token` is {token!r:.80}, which is {found}; the model is read at this "
                "token, so give one that the tokenizer has (tokenizer.json lists them)"
            )
        return (int(token_id),)

    def _append_token(self, encoded: Encoded) -> Encoded:
        """Append the token at which the conversation is read, if there is one."""
        if not self.appended_ids:
            return encoded
        input_ids = encoded.input_ids + self.appended_ids
        text = encoded.text + self._appended_token
        return replace(encoded, text=text, input_ids=input_ids, readouts=(len(input_ids) - 1,))

    @property
    def reads_images(self) -> bool:
        """Whether conversations may have images."""
        return self.image_tokens is not None

    def collapse_images(self, encoded: Encoded) -> list[int]:
        """Return token ids with one placeholder for each image, as the chat template writes it."""
        return self._collapse(list(encoded.input_ids), list(encoded.images))

    def count_prompt_tokens(self, input_ids: TokenIds) -> int:
        """Count the tokens before the content of the last turn, which other answers may share."""
        return self._last_turn_finder.find(input_ids)

    def encode_with_transformers(self, messages: Messages) -> list[int]:
        """Encode validated messages of strings with transformers' `apply_chat_template`.

        The template reads the real clock, and BOS may be missing or doubled.
        """
        input_ids = self._apply_chat_template(messages, tokenize=True, return_dict=False)
        return [int(token) for token in input_ids]

    def render_with_transformers(self, messages: Messages) -> str:
        """Render with transformers' own `apply_chat_template`, as other tools publish texts.

        The template reads the real clock, and nothing is truncated.

        Args:
            messages: validated messages with string contents.

        Raises:
            TemplateError: the template refuses the conversation.
        """
        return str(self._apply_chat_template(messages, tokenize=False))

    def _apply_chat_template(self, messages: Messages, **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # a template may raise any exception
            raise TemplateError(f"apply_chat_template refused the conversation: {error}") from error

    def _encode_prerendered(
        self, conversation: PrerenderedText | PrerenderedTokens, truncation: Truncation, limit: int
    ) -> Encoded:
        prerendered = self.prerendered_reader.read(conversation)
        text, input_ids, is_whole = prerendered.text, prerendered.input_ids, True
        if self.image_tokens is not None:
            self.image_tokens.refuse_in_prerendered(text, input_ids)
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

    def _drop_oldest(self, chat: Chat, num_tokens: str, limit: int) -> Chat:
        def count_tokens(candidate: Messages) -> int | None:
            try:
                cut = replace(chat, messages=candidate)
                text = self._render(cut)
                # Most candidates are far too long, and only the comparison to the limit matters.
                over = self._prove_chat_too_long(cut, text, limit)
                return over or len(self._tokenize(text, limit)[0]) + self._count_hidden(cut)
            except TemplateError:
                return None

        kept = drop_oldest(chat.messages, count_tokens, limit)
        if kept is None:
            never_cut = "the last turn and `tools`" if chat.tools else "the last turn"
            raise ConversationTooLongError(
                format_too_long(num_tokens, limit, 'shorten it, or choose truncation "right"')
                + f"; `left` never cuts {never_cut}, and that alone is too long"
            )
        return replace(chat, messages=kept)


def _format_too_long(num_tokens: str, limit: int) -> str:
    return format_too_long(num_tokens, limit, 'shorten it, or choose truncation "left" or "right"')


def to_render_json(encoded: Encoded) -> dict[str, Any]:
    """Return an encoded conversation as JSON data, as callers of the render route get it."""
    rendered: dict[str, Any] = {
        "text": encoded.text,
        "input_ids": encoded.vocabulary_ids,
        "num_tokens": encoded.num_tokens,
        "readout_position": encoded.readout,
        "truncated": encoded.truncated,
    }
    if encoded.steps:
        rendered["steps"] = list(encoded.steps)
        rendered["readout_positions"] = list(encoded.readouts)
    if encoded.images:
        rendered["images"] = [
            {
                "position": placed.start,
                "num_tokens": placed.image.num_tokens,
                "width": placed.image.width,
                "height": placed.image.height,
            }
            for placed in encoded.images
        ]
    if encoded.warnings:
        rendered["warnings"] = list(encoded.warnings)
    return rendered
