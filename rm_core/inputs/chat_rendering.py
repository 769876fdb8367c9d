"""Render conversations with the checkpoint's chat template to the text that is tokenized."""

from __future__ import annotations

from rm_core.errors import InvalidConversationError, ModelLoadError, TemplateError
from rm_core.inputs.chat_template import ChatTemplate, RenderingInterrupt
from rm_core.inputs.conversations import Chat, validate_unicode
from rm_core.inputs.prerendered import PROBE

# Probes for templates that refuse `PROBE`.
_OTHER_PROBES = (
    ({"role": "system", "content": "system"}, *PROBE),
    (*PROBE, *PROBE),
)


class ChatRenderer:
    """Renders conversations without a BOS that the tokenizer adds.

    Args:
        template: chat template of the checkpoint.
        added_bos: text of the BOS that the tokenizer prepends; empty if it prepends none.
    """

    def __init__(self, template: ChatTemplate, added_bos: str) -> None:
        self._template = template
        self._added_bos = added_bos

    def render(self, chat: Chat, *, add_generation_prompt: bool = False) -> str:
        """Render a conversation.

        Args:
            chat: validated conversation.
            add_generation_prompt: whether to end with what the template writes before an answer.

        Raises:
            TemplateError: the template refuses the conversation.
            InvalidConversationError: the rendered text is not valid Unicode.
        """
        text = self._apply(chat, add_generation_prompt)
        return text.removeprefix(self._added_bos)

    def try_render(self, chat: Chat) -> str | None:
        """Render a conversation; return None if that fails."""
        try:
            return self.render(chat)
        except InvalidConversationError:
            return None

    def render_probe(self) -> str:
        """Render `PROBE`, with any BOS; return an empty text if the template accepts only others.

        Raises:
            ModelLoadError: the template renders none of the probes.
        """
        refusals = []
        for conversation in (PROBE, *_OTHER_PROBES):
            try:
                text = self._apply(Chat([*conversation]))
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

    def _apply(self, chat: Chat, add_generation_prompt: bool = False) -> str:
        text = self._template.render(
            chat.messages, chat.tools, add_generation_prompt=add_generation_prompt
        )
        # Keys other than `content` are not validated before rendering.
        return validate_unicode(text, "the rendered conversation")
