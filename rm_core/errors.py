"""The error tree of the engine.

RewardError                       `code`: a stable snake_case word; `detail`: safe to show a caller
├── InputError                    the caller can fix it
│   ├── InvalidConversationError    empty, unknown role, last turn not the assistant's, ...
│   │   ├── TemplateError             the checkpoint's own chat template refused it
│   │   └── ForeignTemplateError      text that another model's chat template has written
│   ├── ConversationTooLongError    says how long it is and what is allowed
│   └── BenchmarkDataError          rows or options that are not the benchmark's
├── OverloadedError               try again later
│   └── NotReadyError               the model is still loading, or failed to load
└── ModelError                    the operator can fix it
    ├── ModelLoadError              start-up only: the model never becomes ready
    ├── DeviceFailedError           a CUDA error: the process cannot score any more
    │   └── CompilerFailedError       a kernel could not be compiled: the same
    ├── DeviceMemoryError           names the setting to lower
    ├── NonFiniteRewardError        NaN or infinity never leaves as a number
    └── ScoringError                the forward pass raised something else

Every class takes one positional argument, so that each survives pickling between processes.
"""

from __future__ import annotations

from typing import ClassVar


class RewardError(Exception):
    """Base of every error that this project raises on purpose.

    Args:
        detail: what came, what is allowed and what to do; never contains a stack trace.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str) -> None:
        # What a caller sent may be quoted in it: broken Unicode must not break the answer too.
        self.detail = detail.encode(errors="backslashreplace").decode()
        super().__init__(self.detail)


class InputError(RewardError):
    """The caller sent something that cannot be scored."""

    code = "invalid_input"


class InvalidConversationError(InputError):
    """The conversation has no shape that a chat reward model can score."""

    code = "invalid_conversation"


class TemplateError(InvalidConversationError):
    """The checkpoint's chat template raised on this conversation."""

    code = "template_error"


class ForeignTemplateError(InvalidConversationError):
    """A text came that was rendered by another model's chat template."""

    code = "foreign_template"


class ConversationTooLongError(InputError):
    """More tokens than the model takes, and the caller did not ask to cut."""

    code = "conversation_too_long"


class BenchmarkDataError(InputError):
    """A row, a file of rewards or an option is not what the benchmark has."""

    code = "benchmark_data"


class OverloadedError(RewardError):
    """Nothing is wrong with the request; the same request will work later.

    Attributes:
        retry_after_s: seconds after which it is worth another try; None if nothing is known.
    """

    code = "overloaded"
    retry_after_s: float | None = None


class NotReadyError(OverloadedError):
    """The model is not loaded yet, or is being replaced."""

    code = "not_ready"


class ModelError(RewardError):
    """Something about the model or the machine that only its operator can change."""

    code = "model_error"


class ModelLoadError(ModelError):
    """The checkpoint would score wrongly, or cannot be loaded at all."""

    code = "model_load_error"


class DeviceFailedError(ModelError):
    """The device reported an error that it does not recover from while this process lives."""

    code = "device_failed"


class CompilerFailedError(DeviceFailedError):
    """A kernel could not be compiled; a new process starts with no compiled kernels."""

    code = "compiler_failed"


class DeviceMemoryError(ModelError):
    """The device has too little memory for this conversation."""

    code = "device_memory"


class NonFiniteRewardError(ModelError):
    """The model answered NaN or infinity."""

    code = "non_finite_reward"


class ScoringError(ModelError):
    """The forward pass failed for a reason with no class of its own."""

    code = "scoring_failed"
