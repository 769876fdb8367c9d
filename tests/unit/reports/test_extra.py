"""Without the extra `reports`: pages are written, and a comparison is refused at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from serve.cli.main import main

_WRITE = """
import sys
from pathlib import Path
sys.modules |= dict.fromkeys(("matplotlib", "scipy", "statsmodels"))
from evaluations import evaluation
from serve.evaluation.report import write_report
write_report(Path(sys.argv[1]), [evaluation("rm-bench")])
"""


def test_missing_scipy_is_reported_before_runs_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    scores = tmp_path / "scores.jsonl"
    scores.write_text(json.dumps({"id": "1", "rewards": [1, 0]}))
    done = CliRunner().invoke(main, ["compare-runs", str(scores), str(scores)])
    assert done.exit_code != 0
    assert "pip install 'skyreward[reports]'" in done.output


def test_report_needs_no_extra(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    command = [sys.executable, "-c", _WRITE, str(page)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert "<svg" in page.read_text(encoding="utf-8")
