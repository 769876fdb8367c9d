"""Read prompts without special tokens with the tokenizer of the policy that they were written for.

What the template leaves of its markers is found by rendering samples. Every prompt that is read is
rendered, tokenized and decoded again, as trainers do; a difference of one character is an error.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rm_core.errors import InvalidConversationError, ModelLoadError, TemplateError
from rm_core.inputs.chat_template import ChatTemplate
from rm_core.inputs.stripped_turns import NO_THOUGHTS, StrippedFormat, StrippedTurns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SYSTEM, _USER, _ANSWER, _NEXT = (f"Sample{name}Text" for name in ("A", "B", "C", "D"))
_DATES = ((r"\b\d{1,2} [A-Z][a-z]{2} \d{4}\b", "%d %b %Y"), (r"\b\d{4}-\d\d-\d\d\b", "%Y-%m-%d"))
"""How templates write today's date: Llama 3's, and gpt-oss's."""
_MAX_PROMPTS = 256


class PolicyTokenizer:
    """A tokenizer and its chat template.

    Args:
        tokenizer: tokenizer of the policy.
        name: its name in messages.

    Raises:
        ModelLoadError: the template is missing or cannot be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._get_template = functools.lru_cache(16)(self._build_template)
        # The rollouts of one prompt are next to each other.
        self._read = functools.lru_cache(_MAX_PROMPTS)(self._read_uncached)
        self._today = datetime.date.today()
        try:
            self._get_template(self._today)
        except TemplateError as error:
            raise ModelLoadError(
                f"the chat template of {name} renders no turn of a user ({error.detail}); give the "
                "folder of the policy's tokenizer"
            ) from error

    def read_prompt(self, prompt: str) -> tuple[StrippedTurns, StrippedFormat]:
        """Read a prompt that ends where an answer begins; the format reads the answer.

        Raises:
            InvalidConversationError: the tokenizer writes no conversation in this way, or the turns
                are unclear.
        """
        return self._read(prompt)

    def _read_uncached(self, prompt: str) -> tuple[StrippedTurns, StrippedFormat]:
        tokens = self._tokenizer.all_special_tokens
        if special := next((token for token in tokens if token and token in prompt), None):
            raise InvalidConversationError(
                f"the prompt has the special token {special} of {self._name}, and "
                "--policy-tokenizer reads text without special tokens; name the template by "
                "--policy-template instead"
            )
        template, stripped = self._get_template(self._today)
        if template.date is not None and (date := _find_date(prompt)):
            template, stripped = self._get_template(date)
        turns = stripped.read_prompt(prompt)
        written = self._write(template, turns.messages)
        if prompt not in (written, written + NO_THOUGHTS):
            raise InvalidConversationError(
                f"the prompt is not what the tokenizer {self._name} writes for the turns in it; it "
                "may have been cut, or written by another tokenizer or with other options of the "
                "chat template"
            )
        return turns, stripped

    def _build_template(self, date: datetime.date) -> tuple[ChatTemplate, StrippedFormat]:
        template = ChatTemplate(self._tokenizer, date)
        user = {"role": "user", "content": _USER}
        first_user, end = self._split(template, [user], _USER)
        answer = {"role": "assistant", "content": _ANSWER}
        later = [user, answer, {"role": "user", "content": _NEXT}]
        borders, opening = {"assistant": end}, ""
        try:
            _, assistant, next_user, _ = self._split(template, later, _USER, _ANSWER, _NEXT)
            if end.startswith(assistant):
                borders = {"assistant": assistant, "user": next_user}
                opening = end.removeprefix(assistant)
        except TemplateError:  # the template takes one turn only
            pass
        system = None
        try:
            messages = [{"role": "system", "content": _SYSTEM}, user]
            before, between, _ = self._split(template, messages, _SYSTEM, _USER)
            system = before if before.strip() and between == borders.get("user") else None
        except TemplateError:  # the template takes no system message
            pass
        return template, StrippedFormat(borders, first_user, system, opening)

    def _split(
        self, template: ChatTemplate, messages: Sequence[Mapping[str, Any]], *contents: str
    ) -> list[str]:
        """Return the text around each content.

        Raises:
            TemplateError: the template refuses the messages, or does not write each content once.
        """
        parts = re.split("|".join(contents), self._write(template, messages))
        if len(parts) != len(contents) + 1:
            raise TemplateError("the chat template does not write the content of each turn once")
        return parts

    def _write(self, template: ChatTemplate, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the text of a prompt in a trainer's log."""
        text = template.render(messages, add_generation_prompt=True)
        input_ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = self._tokenizer.decode(input_ids, skip_special_tokens=True)
        assert isinstance(decoded, str)
        return decoded


def _find_date(text: str) -> datetime.date | None:
    for pattern, date_format in _DATES:
        for match in re.finditer(pattern, text):
            try:
                return datetime.datetime.strptime(match[0], date_format).date()
            except ValueError:
                continue
    return None
