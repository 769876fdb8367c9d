"""The playground's functions that read and save files, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from conftest import ROOT

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="Node is not installed")
SCRIPTS = ROOT / "serve" / "api" / "playground" / "script"


def run(expression: str, value: Any) -> Any:
    """Evaluate a JavaScript expression, which can use the variable `value`."""
    assert NODE
    scripts = [(SCRIPTS / f"{name}.js").read_text(encoding="utf-8") for name in ("shapes", "file")]
    code = "".join(scripts) + f"\nprocess.stdout.write(JSON.stringify((({expression}))));"
    code = f"const value = {json.dumps(value)};\n{code}"
    done = subprocess.run([NODE, "-"], input=code, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_non_utf8_file_is_rejected(encoding: str) -> None:
    content = list('{"prompt": "né"}'.encode(encoding))
    refusal = (
        "try { return decodeUtf8(new Uint8Array(value).buffer); } catch (e) { return [e.message]; }"
    )
    read = f"(() => {{ {refusal} }})()"
    (message,) = run(read, content)
    assert message.startswith("is not UTF-8")
    assert ("UTF-16" in message) == encoding.startswith("utf")
    assert run(read, list("\ufeffné".encode())) == "né"


def test_number_too_large_for_double_is_row_error() -> None:
    text = '{"messages": [], "w": 1e400}\n{"messages": [], "w": 1e300}'
    bad, good = run("parseRows(value)", text)
    assert "too large" in bad["error"]["message"]
    assert bad["line"] == '{"messages": [], "w": 1e400}'
    assert good["record"]["w"] == 1e300


def test_saved_results_do_not_overwrite_columns() -> None:
    rows = [
        {
            "record": {"a": 1, "margin": 2},
            "kind": "pair",
            "reward": 3,
            "others": [1],
            "margin": 2.5,
        },
        {"record": {"error": "mine", "skyreward_error": 1}, "error": {"code": "c"}},
        {"line": "no json", "error": {"code": "invalid_json"}},
    ]
    lines = run("value.map((row) => JSON.parse(toLine(row, resultNames(value))))", rows)
    scored = {"chosen_reward": 3, "rejected_reward": 1, "skyreward_margin": 2.5}
    error = "skyreward_skyreward_error"
    assert lines == [
        {"a": 1, "margin": 2, **scored},
        {"error": "mine", "skyreward_error": 1, error: {"code": "c"}},
        {"line": "no json", error: {"code": "invalid_json"}},
    ]
