"""Reports without the extra that draws them: refused before anything is scored."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from serve.cli.main import main


@pytest.mark.parametrize("command", ["eval", "score"])
def test_missing_matplotlib_is_reported_before_scoring(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    arguments = {
        "eval": [
            "rewardbench", "--data", str(rows), "--model", "demo", "-o", str(tmp_path / "out"),
        ],
        "score": [
            str(rows), "--model", "demo", "-o", str(tmp_path / "out.jsonl"),
            "--report", str(tmp_path / "report.html"),
        ],
    }  # fmt: skip
    done = CliRunner().invoke(main, [command, *arguments[command]])
    assert done.exit_code != 0
    assert "pip install 'skyreward[reports]'" in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]
