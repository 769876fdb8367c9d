"""The HTML report of an evaluation: results, plots, provenance and the worst mistakes.

`write_report` is the entry point; each section of the page has its own module.
"""

from serve.evaluation.report.page import write_report

__all__ = ["write_report"]
