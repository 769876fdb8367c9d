"""Errors of offline jobs.

JobError                      the job cannot go on; what is done stays done
├── JobInputError               the input cannot be read, or is not what a job takes
└── JobOutputError              the output cannot hold what is to be written
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
