"""The records that travel through the engine. Frozen, plain data, picklable, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rm_core.errors import RewardError

Message: TypeAlias = Mapping[str, Any]
"""`role`, `content` (a string, or a list of text parts) and whatever else the template reads."""

Conversation: TypeAlias = Sequence[Message] | Mapping[str, Any]
"""Messages, oldest first; the last one is the assistant's and is what gets judged. Or a mapping of
`messages` and `tools`, where the chat template should render the functions on offer."""

Truncation: TypeAlias = Literal["error", "left", "right"]
"""What to do with a conversation over the limit: refuse it, or cut it on that side."""

TRUNCATIONS: tuple[Truncation, ...] = ("error", "left", "right")


@dataclass(frozen=True, slots=True)
class PrerenderedText:
    """A conversation that its sender rendered with the checkpoint's chat template.

    Attributes:
        text: the rendering, with or without BOS.
        close: end it as the template ends an answer: what a generation leaves behind an answer
            (an end marker, padding, or nothing where it was cut off) gives way to that.
    """

    text: str
    close: bool = False


@dataclass(frozen=True, slots=True)
class PrerenderedTokens:
    """A conversation that its sender rendered and tokenized.

    Attributes:
        input_ids: with or without BOS.
    """

    input_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation, ready for the model.

    Attributes:
        text: exactly what was tokenized, without the BOS that the tokenizer adds.
        input_ids: token ids, BOS included where the tokenizer has one.
        readout: index into `input_ids` of the token whose hidden state becomes the reward.
        truncated: whether anything of the conversation was cut off.
        warnings: what the caller should know although the conversation is scored.
        recognised: of `RenderResult` and `PrerenderedTokens`, what was made of them, such as `text:bos-added`,
            `text:bos-kept`, `tokens:bos-stripped`, `text:no-template,bos-added`; else empty.
    """

    text: str
    input_ids: tuple[int, ...]
    readout: int
    truncated: bool = False
    warnings: tuple[str, ...] = ()
    input_format: str = ""

    @property
    def num_tokens(self) -> int:
        """Length of `input_ids`."""
        return len(self.input_ids)


@dataclass(frozen=True, slots=True)
class Reward:
    """The score of one conversation.

    Attributes:
        reward: the raw float32 logit, never squashed; always finite.
        num_tokens: tokens of the conversation as it was scored.
        truncated: whether anything of the conversation was cut off.
        warnings: what the caller should know although the conversation was scored.
        recognised: see `Encoded`.
    """

    reward: float
    num_tokens: int
    truncated: bool = False
    warnings: tuple[str, ...] = ()
    input_format: str = ""


@dataclass(frozen=True, slots=True)
class ScoreError:
    """Stands in the place of a reward that could not be computed.

    Attributes:
        code: the `code` of the error class, see `rm_core.errors`.
        message: what came, what is allowed, what to do.
    """

    code: str
    message: str

    @classmethod
    def from_exception(cls, error: RewardError) -> ScoreError:
        """The record of a raised error."""
        return cls(code=error.code, message=error.detail)


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """The answer to a list of token sequences.

    Attributes:
        rewards: `[num_sequences]`, in the order of the input: a raw logit or an error each.
        num_computed_tokens: tokens that went through the model (duplicates go through once).
    """

    rewards: tuple[float | ScoreError, ...]
    num_computed_tokens: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What has to be equal for two rewards to be comparable bit for bit.

    Attributes:
        revision: commit of the hub repository, or `local-` and a digest of the files.
        template_sha256: SHA-256 of the chat template's text.
        dtype: dtype of the decoder (the head is float32 always).
        attention: the attention implementation.
        template_date: the day (ISO 8601) that the chat template gets as today's; None for a
            template that never asks.
    """

    revision: str
    template_sha256: str
    dtype: str
    attention: str
    template_date: str | None = None

    def as_dict(self) -> dict[str, str]:
        """The fields as plain data, without `template_date` where there is none."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if value is not None}
