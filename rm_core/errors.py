"""The error classes of the engine.

RewardError                       `code`: a stable snake_case word; `detail`: safe to show a caller
├── InputError                    the caller can fix the error
│   ├── InvalidConversationError    empty, unknown role, last turn not the assistant's, ...
│   │   ├── TemplateError             the checkpoint's chat template refused the conversation
│   │   ├── ForeignTemplateError      text rendered by another model's chat template
│   │   └── InvalidImageError         not an image, damaged, animated, too large, ...
│   ├── ConversationTooLongError    reports the length and the limit
│   └── BenchmarkDataError          rows or options that do not fit the benchmark
├── OverloadedError               try again later
│   └── NotReadyError               the model is still loading, or failed to load
└── ModelError                    the operator can fix the error
    ├── ModelLoadError              at startup only: the model never becomes ready
    ├── DeviceFailedError           a CUDA error: the process cannot score any more
    │   └── CompilerFailedError       a kernel could not be compiled, with the same effect
    ├── DeviceMemoryError           names the setting to lower
    ├── NonFiniteRewardError        NaN or infinity is never returned as a number
    └── ScoringError                the forward pass raised any other error

Every class takes the detail, and its own fields by keyword. Every class can be pickled, see
`RewardError.__reduce__`.
"""

from __future__ import annotations

import copyreg
from typing import Any, ClassVar


class RewardError(Exception):
    """Base class of every error that this project raises on purpose.

    Args:
        detail: what was received, what is allowed and what to do. Never contains a stack trace.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, detail: str) -> None:
        # The detail may quote input of the caller: invalid Unicode must not break the response.
        self.detail = detail.encode(errors="backslashreplace").decode()
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[Any, ...]:
        """Restore a pickled error from its attributes, so that any constructor is possible."""
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class InputError(RewardError):
    """The caller sent something that cannot be scored."""

    code = "invalid_input"


class InvalidConversationError(InputError):
    """The conversation does not have a shape that a chat reward model can score."""

    code = "invalid_conversation"


class TemplateError(InvalidConversationError):
    """The checkpoint's chat template raised an error for this conversation."""

    code = "template_error"


class ForeignTemplateError(InvalidConversationError):
    """The text was rendered by another model's chat template."""

    code = "foreign_template"


class InvalidImageError(InvalidConversationError):
    """An image of the conversation cannot be decoded, or exceeds a limit."""

    code = "invalid_image"


class ConversationTooLongError(InputError):
    """The conversation has too many tokens for the model, and truncation was not requested."""

    code = "conversation_too_long"


class BenchmarkDataError(InputError):
    """A row, a file of rewards or an option does not fit the benchmark."""

    code = "benchmark_data"


class OverloadedError(RewardError):
    """The service cannot take the request now; the same request can succeed later.

    Attributes:
        retry_after_s: seconds to wait before a retry; None if unknown.
    """

    code = "overloaded"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class NotReadyError(OverloadedError):
    """The model is not loaded yet, or its replacement is loading."""

    code = "not_ready"


class ModelError(RewardError):
    """A problem with the model or the machine that only the operator can fix."""

    code = "model_error"


class ModelLoadError(ModelError):
    """The checkpoint cannot be loaded, or would give wrong rewards."""

    code = "model_load_error"


class DeviceFailedError(ModelError):
    """The device reported an error from which this process cannot recover."""

    code = "device_failed"


class CompilerFailedError(DeviceFailedError):
    """A kernel could not be compiled; a new process starts with no compiled kernels."""

    code = "compiler_failed"


class DeviceMemoryError(ModelError):
    """The device has too little memory for this conversation."""

    code = "device_memory"


class NonFiniteRewardError(ModelError):
    """The model returned NaN or infinity."""

    code = "non_finite_reward"


class ScoringError(ModelError):
    """The forward pass failed for any other reason."""

    code = "scoring_failed"
