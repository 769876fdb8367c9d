"""Tables of the command line print text unchanged, even if it looks like Rich markup."""

from __future__ import annotations

from dataclasses import fields

import pytest

from rm_core import ModelInfo
from serve.cli.catalog import print_checks
from serve.cli.demo import print_pairs

ODD = "use skyreward[flash] [/INST] [red]"


def test_print_checks_keeps_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    info = ModelInfo(**dict.fromkeys((field.name for field in fields(ModelInfo)), ODD))
    print_checks(info, [])
    assert capsys.readouterr().out.count(ODD) == 6


def test_print_pairs_keeps_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"id": "one", "why": "x"}, {"id": "two", "why": "cut off"}]
    response = {
        "results": [
            {"error": {"code": "template_error", "message": ODD}},
            {"chosen_reward": 2.0, "rejected_reward": 0.5, "margin": 1.5, "probability": 0.8},
        ],
        "usage": {"num_tokens": 9, "num_computed_tokens": 9},
    }
    print_pairs(pairs, response)
    out = capsys.readouterr().out
    assert f"template_error: {ODD}" in out
    assert "1 of 2 margins are positive" in out
