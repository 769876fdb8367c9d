"""The error tree of the service. Classes of `rm_core.errors` are in brackets.

[InputError]                        the caller can fix it
├── BadRequestError                   the body is malformed as a whole
│   └── EmptyInputError                 there is nothing to score, which the wire format refuses
├── UnknownModelError                 the model is not served
├── WrongKindError                    the route does not fit the kind of the model
├── AuthenticationError               no API key, or an unknown one
├── PermissionDeniedError             the client may not control models
├── BodyTooLargeError                 the body has more bytes than the limit
├── RequestTooLargeError              the request has more characters or tokens than the limit
├── UnsupportedMediaTypeError         the body is not plain JSON in UTF-8
├── MisdirectedRequestError           the Host header names another host
├── TimeExceededError                 the request took too long
│   ├── BodyTimeoutError                the body did not arrive in time
│   └── DeadlineExceededError           the deadline passed
├── EvaluationError                   files of an earlier evaluation cannot be used
│   └── ScoreFileError                  a score file does not match the items
├── MissingExtraError                 an extra of the package is not installed
├── UnknownShapeError                 the catalogue has no sizes for this model
├── PlanError                         no plan is possible
└── UnknownCheckpointError            the catalogue has no such checkpoint
[OverloadedError]                   try again later
├── ModelAsleepError                  the model sleeps while a trainer uses its device
├── TooManyRequestsError              one client has too many requests in flight
└── ReplicaBusyError                  the replica did not try the batch
[ModelError]                        the operator can fix it
└── ConversationQuarantinedError      replicas died while scoring this conversation
[RewardError]
├── ReloadRefusedError                new weights cannot be used; the old ones serve on
├── ReplicaLostError                  a replica died or failed while it had the batch
└── JobError                          a job cannot start or continue; finished chunks are kept
    ├── JobInputError                   the input cannot be read, or a job does not support it
    ├── JobOutputError                  the output's format cannot hold the columns or results
    ├── StorageError                    a file at an address cannot be read or written
    ├── JobRefusedError                 another job, or another run of this job, uses the output
    ├── DiskFullError                   the disk is full
    ├── HubError                        the output cannot be pushed to the hub
    ├── BadRowError                     a row has an error, and --fail-fast was given
    └── JobStoppedError                 the job was asked to stop

Errors of the client are in `serve.client.errors`, since it imports nothing else of `serve`.
"""

from __future__ import annotations

from typing import Literal

from rm_core.errors import InputError, ModelError, OverloadedError, RewardError

RetryReason = Literal["replica_lost", "replica_unhealthy", "overloaded"]
"""Why a batch is sent again."""


class BadRequestError(InputError):
    """The body is malformed as a whole; a single bad conversation gets an error in its result."""

    code = "bad_request"


class UnknownModelError(InputError):
    """The request names a model that is not served."""

    code = "model_not_found"


class WrongKindError(InputError):
    """The route does not fit the kind of the model; the message names the routes that do."""

    code = "wrong_kind"


class AuthenticationError(InputError):
    """The API key is missing or unknown."""

    code = "invalid_api_key"


class PermissionDeniedError(InputError):
    """The client may score, but may not put models to sleep, wake them or reload them."""

    code = "permission_denied"


class BodyTooLargeError(InputError):
    """The body has more bytes than the limit."""

    code = "body_too_large"


class RequestTooLargeError(InputError):
    """The request has more characters or tokens than the limit."""

    code = "request_too_large"


class UnsupportedMediaTypeError(InputError):
    """The body is not plain JSON in UTF-8."""

    code = "unsupported_media_type"


class MisdirectedRequestError(InputError):
    """The Host header names a host that is not this service's."""

    code = "misdirected_request"


class TimeExceededError(InputError):
    """The request took too long."""

    code = "timeout"


class BodyTimeoutError(TimeExceededError):
    """The body did not arrive in time."""

    code = "body_timeout"


class DeadlineExceededError(TimeExceededError):
    """The deadline passed before the request completed; the request was cancelled."""

    code = "deadline_exceeded"


class ModelAsleepError(OverloadedError):
    """The model sleeps; it scores again once it is woken."""

    code = "model_asleep"


class ReloadRefusedError(RewardError):
    """The new weights cannot be used; the old ones serve on."""

    code = "reload_refused"


class TooManyRequestsError(OverloadedError):
    """One client has too many requests in flight."""

    code = "too_many_requests"


class ReplicaLostError(RewardError):
    """A replica died or failed while it had the batch; another replica may score the batch.

    Attributes:
        replica: unique id of the lost replica.
        reason: why the batch has to be retried.
    """

    code = "replica_lost"

    def __init__(self, detail: str, *, replica: str, reason: RetryReason = "replica_lost") -> None:
        super().__init__(detail)
        self.replica = replica
        self.reason = reason


class ReplicaBusyError(OverloadedError):
    """The replica did not try the batch; a retry, or another replica, may succeed."""

    code = "replica_busy"


class ConversationQuarantinedError(ModelError):
    """Every replica that scored the conversation was lost; it is not sent to another replica."""

    code = "lost_replicas"


class EmptyInputError(BadRequestError):
    """The body has nothing to score, which the wire format does not allow."""

    code = "empty_input"


class JobError(RewardError):
    """The job cannot start or continue."""

    code = "job_failed"


class JobInputError(JobError):
    """The input is missing, damaged, or of a kind that jobs do not support."""

    code = "job_input"


class JobOutputError(JobError):
    """The output's format cannot hold the input's columns or the results."""

    code = "job_output"


class StorageError(JobError):
    """A file at an address cannot be read or written.

    Attributes:
        is_temporary: whether the same operation may succeed later.
    """

    code = "storage"

    def __init__(self, detail: str, *, is_temporary: bool = False) -> None:
        super().__init__(detail)
        self.is_temporary = is_temporary


class JobRefusedError(JobError):
    """The output belongs to another job, or another run of this job is in progress."""

    code = "job_refused"


class DiskFullError(JobError):
    """The disk is full."""

    code = "disk_full"


class HubError(JobError):
    """The output cannot be pushed to the hub; the files on this machine are not affected."""

    code = "hub"


class BadRowError(JobError):
    """A row cannot be scored, and --fail-fast ends the job at the first such row."""

    code = "bad_row"


class JobStoppedError(JobError):
    """The job was asked to stop; results of conversations in flight are kept."""

    code = "job_stopped"


class EvaluationError(InputError):
    """Files of an earlier evaluation are missing, damaged, or of another evaluation."""

    code = "evaluation"


class ScoreFileError(EvaluationError):
    """A line of a score file is malformed, or does not match an item of the benchmark."""

    code = "scores_file"


class UnknownShapeError(InputError):
    """The catalogue has no sizes for this model, and the checkpoint is not available locally."""

    code = "unknown_shape"


class MissingExtraError(InputError):
    """What was asked for needs an extra of the package that is not installed."""

    code = "missing_extra"


class PlanError(InputError):
    """No plan is possible; the message says what would make one possible."""

    code = "no_plan"


class UnknownCheckpointError(InputError):
    """The catalogue has no such checkpoint."""

    code = "unknown_checkpoint"
