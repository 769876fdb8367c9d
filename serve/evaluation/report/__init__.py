"""The page of an evaluation: figures, how they are spread, what decides them, the worst mistakes.

`write_report` is all that others need; one module for each part of the page.
"""

from serve.evaluation.report.page import write_report

__all__ = ["write_report"]
