"""Errors of offline jobs. All leave a job so that the same command goes on with it.

JobError                      the job cannot begin or go on; what is done stays done
├── JobInputError               the input cannot be read, or is not what a job takes
├── JobOutputError              the output cannot hold what is to be written
├── JobRefusedError             another job is there, or another run of this one; nothing is changed
├── DiskFullError               there is no room for what the job writes
├── BadRowError                 a row has an error, and --fail-fast was given
└── JobStoppedError             it was asked to stop
"""

from __future__ import annotations

from rm_core import RewardError


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
