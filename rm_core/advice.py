"""What a caller should know of a conversation although it is scored."""

from __future__ import annotations

from rm_core.conversations import Messages

SYSTEM_PROMPT_WARNING = (
    "system_prompt: the authors of this checkpoint advise against system prompts; the "
    "conversation was scored with it all the same"
)


def warnings_of(messages: Messages, text: str, warn_on_system_prompt: bool) -> tuple[str, ...]:
    """Warnings about a conversation.

    Args:
        messages: of the conversation, all of them.
        text: what the template made of them.
        warn_on_system_prompt: whether the checkpoint's authors advise against system prompts.
    """
    warnings = []
    if warn_on_system_prompt and any(m["role"] == "system" for m in messages):
        warnings.append(SYSTEM_PROMPT_WARNING)
    # Most stand there as they came; only the others are worth a closer look.
    missing = [i for i, m in enumerate(messages) if m["content"].strip() not in text]
    if missing:
        rendered = _squeeze(text)
        missing = [i for i in missing if _squeeze(messages[i]["content"]) not in rendered]
    if missing:
        warnings.append(
            f"template_changed_content: the chat template left out or changed text of "
            f"message(s) {', '.join(map(str, missing))}; /v1/render shows what was scored"
        )
    return tuple(warnings)


def _squeeze(text: str) -> str:
    # Templates trim and reflow white space; only lost words are worth a warning.
    return "".join(text.split())
