"""Data types of the engine: frozen, picklable dataclasses without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeAlias

from rm_core.config import Kind, StepFormat
from rm_core.errors import RewardError

Message: TypeAlias = Mapping[str, Any]
"""`role`, `content` (a string, or a list of parts) and any other keys the template reads."""

Conversation: TypeAlias = Sequence[Message] | Mapping[str, Any]
"""Messages, oldest first; the last message is the assistant's and is scored. Or a mapping of
`messages` and `tools`, if the chat template should render the available functions."""

Truncation: TypeAlias = Literal["error", "left", "right"]
"""How to treat a conversation over the limit: refuse it, or truncate it on the given side."""

TRUNCATIONS: tuple[Truncation, ...] = ("error", "left", "right")


@dataclass(frozen=True, slots=True)
class PrerenderedText:
    """A conversation that the client rendered with the checkpoint's chat template.

    Attributes:
        text: the rendered conversation, with or without BOS.
        close: end the text as the template ends an answer. Replaces the end that generation left
            after the answer: an end marker, padding, or nothing if generation was cut off.
    """

    text: str
    close: bool = False


@dataclass(frozen=True, slots=True)
class PrerenderedTokens:
    """A conversation that the client rendered and tokenized.

    Attributes:
        input_ids: token ids, with or without BOS.
    """

    input_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One image, resized for the vision tower.

    Two are equal if their digests and placeholders are.
    """

    # uint8 `[height, width, 3]`, RGB, not normalized.
    pixels: bytes = field(repr=False, compare=False)
    height: int  # number of rows; a multiple of `patch_size * merge_size`
    width: int  # number of columns; a multiple of `patch_size * merge_size`
    patch_size: int  # pixels of a patch in each direction
    merge_size: int  # patches of a token in each direction
    temporal_patch_size: int  # number of frames in a patch; an image is repeated for each
    digest: bytes  # 32 bytes, a hash of pixels, height, width and the preprocessing
    placeholder_id: int  # id of the token that the chat template writes in place of the image

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of patches over time, height and width."""
        return 1, self.height // self.patch_size, self.width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the image has in a sequence."""
        _, rows, columns = self.grid
        return (rows // self.merge_size) * (columns // self.merge_size)

    @property
    def num_bytes(self) -> int:
        """Size of `pixels`."""
        return len(self.pixels)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """One negative id for each token, which no vocabulary has.

        The ids are the four 8-byte chunks of the digest in turn, reduced to 62 bits: images with
        equal ids are equal.
        """
        chunks = (self.digest[start : start + 8] for start in range(0, 32, 8))
        cycle = tuple(-1 - (int.from_bytes(chunk, "big") >> 2) for chunk in chunks)
        return (cycle * (self.num_tokens // 4 + 1))[: self.num_tokens]

    @property
    def key(self) -> int:
        """First id of `token_ids`, by which a batch finds the image."""
        return -1 - (int.from_bytes(self.digest[:8], "big") >> 2)


@dataclass(frozen=True, slots=True)
class PlacedImage:
    """An image of a sequence, and the index of its first token."""

    start: int
    image: EncodedImage

    @property
    def stop(self) -> int:
        """Index after the last token."""
        return self.start + self.image.num_tokens


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation, ready for the model."""

    text: str  # exactly the text that was tokenized, without the BOS that the tokenizer adds
    # Token ids, including BOS where the tokenizer adds it. Those of images are negative, see
    # `EncodedImage.token_ids`.
    input_ids: tuple[int, ...]
    # Indices into `input_ids` of the tokens whose hidden states are read, ascending: one for a
    # chat, one per step for a step model.
    readouts: tuple[int, ...]
    truncated: bool = False  # whether any part of the conversation was cut off
    warnings: tuple[str, ...] = ()  # problems that do not prevent scoring, for the caller
    # How `PrerenderedText` or `PrerenderedTokens` were interpreted, such as `text:bos-added`,
    # `text:bos-kept`, `tokens:bos-stripped`, `text:no-template,bos-added`. Empty for messages.
    input_format: str = ""
    steps: tuple[str, ...] = ()  # of a step model, the steps of the solution, one for each readout
    # The images among the tokens, in order. `text` has one placeholder for each.
    images: tuple[PlacedImage, ...] = ()

    @property
    def readout(self) -> int:
        """Index of the last token that is read."""
        return self.readouts[-1]

    @property
    def num_tokens(self) -> int:
        """Number of tokens in `input_ids`."""
        return len(self.input_ids)

    @property
    def vocabulary_ids(self) -> list[int]:
        """`input_ids` with the placeholder's id for every token of an image."""
        ids = list(self.input_ids)
        for placed in self.images:
            image = placed.image
            ids[placed.start : placed.stop] = [image.placeholder_id] * image.num_tokens
        return ids


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one conversation.

    Attributes:
        reward: the raw float32 logit, never squashed; always finite. Of a step model, the aggregate
            of `step_rewards`; of a judge, the log-odds that the first answer is better.
        num_tokens: number of tokens that were scored.
        truncated: whether any part of the conversation was cut off.
        warnings: problems that did not prevent scoring, for the caller.
        input_format: see `Encoded`.
        step_rewards: of a step model, the reward of each step, between 0 and 1; else empty.
        label_mass: of a judge, the probability of its two labels together.
    """

    reward: float
    num_tokens: int
    truncated: bool = False
    warnings: tuple[str, ...] = ()
    input_format: str = ""
    step_rewards: tuple[float, ...] = ()
    label_mass: float | None = None


@dataclass(frozen=True, slots=True)
class ScoreError:
    """The error of a conversation that could not be scored.

    Attributes:
        code: the `code` of the error class, see `rm_core.errors`.
        message: what was received, what is allowed, what to do.
    """

    code: str
    message: str

    @classmethod
    def from_exception(cls, error: RewardError) -> ScoreError:
        """Create a `ScoreError` from an exception."""
        return cls(code=error.code, message=error.detail)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Properties that must be equal for two rewards to be comparable bit by bit.

    Attributes:
        revision: commit of the hub repository, or `local-` and a digest of the files.
        template_sha256: SHA-256 of the chat template's text.
        dtype: dtype of the decoder (the head is always float32).
        attention: name of the attention backend.
        template_date: day (ISO 8601) that the chat template gets as today's date; None for a
            template that never reads the date.
        version: name of the weights that `reload` put in; None for those of the start.
    """

    revision: str
    template_sha256: str
    dtype: str
    attention: str
    template_date: str | None = None
    version: str | None = None

    def as_dict(self) -> dict[str, str]:
        """Return the fields as plain data, without those that are None."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The outputs for a list of token sequences. Is sent between processes."""

    # The head's outputs, or an error for each, at each readout of each sequence, in the order of
    # the input: a classifier's rewards, one for each sequence.
    outputs: tuple[float | ScoreError, ...]
    # Number of tokens that the model computed (duplicates and shared prefixes are computed once).
    num_computed_tokens: int
    # Seconds on the device, without the wait for it. Not compared.
    inference_s: float = field(compare=False)
    fingerprint: Fingerprint  # fingerprint of the model that computed the rewards
    # Number of further tokens whose keys and values came from the prefix cache.
    num_prefix_tokens: int = 0
    # Memory of the keys and values in the prefix cache after the batches.
    prefix_cache_bytes: int = 0
    replica: str = ""  # id of the replica on Ray Serve; empty in one process


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Effective settings of a loaded model. Is sent between processes."""

    kind: Kind  # `classifier`, `step` or `judge`; see `rm_core.kinds`
    kind_reason: str  # why the model is served as this kind
    # How a step model divides a solution into steps; None for other kinds.
    step_format: StepFormat | None
    catalogue_id: str | None  # id of the checkpoint in the catalogue; None if it has no entry
    family: str  # `model_type` of the decoder
    revision: str  # see `Fingerprint`
    template_sha256: str  # see `Fingerprint`
    encoding_sha256: str  # SHA-256 of everything that decides the token ids of a conversation
    template_depends_on_date: bool  # whether the chat template reads today's date
    template_date: str | None  # see `Fingerprint`
    version: str | None  # see `Fingerprint`
    dtype: str  # see `Fingerprint`
    head: str  # which tensors the head has, and which of its labels or tokens are read
    head_dtype: str  # dtype of the head
    # Whether the last layer runs on the tokens that are read only, and if not, why.
    readout_layer: str
    device: str  # devices of the model, separated by commas
    attention: str  # name of the attention backend
    attention_reason: str  # why this backend was chosen
    max_length: int  # maximum number of tokens in a conversation
    max_batch_tokens: int  # maximum number of tokens in a batch
    max_batch_tokens_reason: str  # why this budget was chosen
    prefix_cache_tokens: int  # maximum number of tokens in the prefix cache; 0 if there is none
    prefix_cache_bytes: int  # memory of that many tokens
    prefix_cache_reason: str  # why this size was chosen
    vision_cache_bytes: int  # maximum memory of the features of images that are kept; 0 for none
    vision_cache_reason: str  # why this size was chosen
    deterministic: bool  # whether a reward does not depend on its batch
    compiled: bool  # whether the layers are compiled
    compiled_reason: str  # why they are compiled, or not
    self_check: bool  # whether rewards were compared with plain transformers at load time
    tokenizer: str  # name of the library that tokenizes
    tokenizer_reason: str  # why this library is used

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the model's rewards."""
        return Fingerprint(**{f.name: getattr(self, f.name) for f in fields(Fingerprint)})

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, without those of the fingerprint that are None."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("template_date", "version") or value is not None
        }


def sigmoid(margin: float) -> float:
    """Return 1 / (1 + exp(-margin)) for any finite margin, without overflow.

    The probability that the first of two answers is preferred, by their rewards (Bradley-Terry).
    """
    if margin >= 0:
        return 1 / (1 + math.exp(-margin))
    power = math.exp(margin)
    return power / (1 + power)
