"""Errors of evaluations, beside those of jobs and of a benchmark's data.

EvaluationError               what an earlier evaluation left cannot be used
└── ScoresError                 a file of rewards does not go with the items
"""

from __future__ import annotations

from rm_core import InputError


class EvaluationError(InputError):
    """What an earlier evaluation left is missing, damaged, or of something else."""

    code = "evaluation"


class ScoresError(EvaluationError):
    """A line of a file of rewards is none, or none of these items."""

    code = "scores_file"
