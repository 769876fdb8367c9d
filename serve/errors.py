"""The error tree of the service. Classes of `rm_core.errors` are in brackets.

[InputError]                        the caller can fix it
├── BadRequestError                   the body is malformed as a whole
│   └── EmptyInputError                 there is nothing to score, which the wire format refuses
├── UnknownModelError                 the model is not served
├── AuthenticationError               no API key, or an unknown one
├── BodyTooLargeError                 the body has more bytes than the limit
├── RequestTooLargeError              the request has more characters or tokens than the limit
├── UnsupportedMediaTypeError         the body is not plain JSON in UTF-8
├── MisdirectedRequestError           the Host header names another host
├── TimeExceededError                 the request took too long
│   ├── BodyTimeoutError                its body did not arrive in time
│   └── DeadlineExceededError           its deadline passed
├── EvaluationError                   files of an earlier evaluation cannot be used
│   └── ScoreFileError                  a score file does not match the items
├── MissingExtraError                 an extra of the package is not installed
├── UnknownShapeError                 the catalogue has no sizes for this model
├── PlanError                         no plan is possible
└── UnknownCheckpointError            the catalogue has no such checkpoint
[OverloadedError]                   try again later
├── TooManyRequestsError              one client has too many requests in flight
├── ReplicaBusyError                  the replica did not take the batch
└── ReplicaUnhealthyError             the replica cannot score any more; another one can
    └── ReplicaRejectedBatchError       the same, and nothing of the batch was tried
[ModelError]                        the operator can fix it
└── ConversationQuarantinedError      replicas died while they had this conversation
[RewardError]
├── ReplicaLostError                  a replica died while it had the batch
└── JobError                          a job cannot begin or go on; what is done stays done
    ├── JobInputError                   the input cannot be read, or is not what a job takes
    ├── JobOutputError                  the output's format cannot hold what is to be written
    ├── JobRefusedError                 another job, or another run of this one, is there
    ├── DiskFullError                   there is no room for what the job writes
    ├── BadRowError                     a row has an error, and --fail-fast was given
    └── JobStoppedError                 the job was asked to stop

Errors of the client are in `serve.client.errors`, since it imports nothing else of `serve`.
"""

from __future__ import annotations

from rm_core.errors import InputError, ModelError, OverloadedError, RewardError
from serve.telemetry.events import RetryReason


class BadRequestError(InputError):
    """The body is malformed as a whole; single bad conversations get errors of their own."""

    code = "bad_request"


class UnknownModelError(InputError):
    """The request names a model that is not served."""

    code = "model_not_found"


class ReplicaUnhealthyError(OverloadedError):
    """A replica cannot score any more and is being replaced; another one can."""

    code = "replica_unhealthy"


class ReplicaRejectedBatchError(ReplicaUnhealthyError):
    """It could not score any more before the batch came; nothing of the batch was tried."""


class AuthenticationError(InputError):
    """No key came where one is needed, or one that is not known."""

    code = "invalid_api_key"


class BodyTooLargeError(InputError):
    """The body has more bytes than are taken."""

    code = "body_too_large"


class RequestTooLargeError(InputError):
    """The request makes more characters or tokens than one request may."""

    code = "request_too_large"


class UnsupportedMediaTypeError(InputError):
    """The body is no plain JSON in UTF-8."""

    code = "unsupported_media_type"


class MisdirectedRequestError(InputError):
    """The request is for a host that is not this service's."""

    code = "misdirected_request"


class TimeExceededError(InputError):
    """The request took longer than it may."""

    code = "timeout"


class BodyTimeoutError(TimeExceededError):
    """The body did not arrive in time."""

    code = "body_timeout"


class DeadlineExceededError(TimeExceededError):
    """The request was not done by its deadline; it was given up."""

    code = "deadline_exceeded"


class TooManyRequestsError(OverloadedError):
    """One caller has as many requests running as it may."""

    code = "too_many_requests"


class ReplicaLostError(RewardError):
    """A replica went while it had the batch, which another one may score.

    Attributes:
        replica: which one; unique.
        reason: what became of it.
    """

    code = "replica_lost"
    replica = ""
    reason: RetryReason = "replica_lost"

    @classmethod
    def for_replica(
        cls, detail: str, replica: str, reason: RetryReason = "replica_lost"
    ) -> ReplicaLostError:
        """The error with all that is known."""
        error = cls(detail)
        error.replica, error.reason = replica, reason
        return error


class ReplicaBusyError(OverloadedError):
    """The batch was not taken; it may be a moment later."""

    code = "replica_busy"


class ConversationQuarantinedError(ModelError):
    """Every replica that had the conversation was lost; no other is risked for it."""

    code = "lost_replicas"


class EmptyInputError(BadRequestError):
    """There is nothing to score, and the client's own service refuses that."""

    code = "empty_input"


class JobError(RewardError):
    """The job cannot begin or go on."""

    code = "job_failed"


class JobInputError(JobError):
    """The input is missing, damaged, or of a kind that a job does not take."""

    code = "job_input"


class JobOutputError(JobError):
    """The output's format cannot hold the input's columns or the results."""

    code = "job_output"


class JobRefusedError(JobError):
    """Another job is there, or another run of this one."""

    code = "job_refused"


class DiskFullError(JobError):
    """There is no room for what the job writes."""

    code = "disk_full"


class BadRowError(JobError):
    """A row cannot be scored, and the job was to end at the first of these."""

    code = "bad_row"


class JobStoppedError(JobError):
    """The job was asked to stop; what was in flight is kept."""

    code = "job_stopped"


class EvaluationError(InputError):
    """What an earlier evaluation left is missing, damaged, or of something else."""

    code = "evaluation"


class ScoreFileError(EvaluationError):
    """A line of a file of rewards is none, or none of these items."""

    code = "scores_file"


class UnknownShapeError(InputError):
    """The catalogue has no sizes for this model, and it is not at hand."""

    code = "unknown_shape"


class MissingExtraError(InputError):
    """What was asked for needs an extra of the package that is not installed."""

    code = "missing_extra"


class PlanError(InputError):
    """A plan that cannot be made, and what would make it possible."""

    code = "no_plan"


class UnknownCheckpointError(InputError):
    """The catalogue has no such checkpoint."""

    code = "unknown_checkpoint"
