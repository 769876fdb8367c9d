"""The command line: score, render, models, verify.

Two tests start a process, for the exit code, the streams and the entry point; all others invoke the
command in this one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import invoke, run
from peer_service import Served
from reference import Reference
from waiting import PATIENCE_S

from rm_core import load_catalog

QUESTION = {"role": "user", "content": "What is the capital of France?"}
PARIS = {"role": "assistant", "content": "The capital of France is Paris."}
LYON = {"role": "assistant", "content": "Lyon."}
RECORDS: list[Any] = [
    {"id": 1, "messages": [QUESTION, PARIS], "note": {"keep": ["me"]}},
    {"id": 2, "prompt": QUESTION["content"], "chosen": "Paris.", "rejected": "Lyon."},
    {"id": 3, "chosen": [QUESTION, PARIS], "rejected": [QUESTION, LYON]},
    {"id": 4, "prompt": QUESTION["content"], "responses": ["Paris.", 5, "Lyon."]},
    {"id": 5, "text": "no known shape"},
    {"id": 6, "messages": [QUESTION]},
    {"id": 7, "messages": [QUESTION, LYON]},
]


def get_model_options(where: str, served: Served) -> list[str]:
    if where == "url":
        return ["--url", served.url, "--model", "llama"]
    return ["--model", str(served.folders["llama"])]


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines[:4], "", "not json", *lines[4:]]) + "\n")
    return tmp_path


@pytest.mark.parametrize("where", ["model", "url"])
def test_score_writes_records_with_rewards(jobs: Path, served: Served, where: str) -> None:
    model = get_model_options(where, served)
    arguments = ("score", jobs / "in.jsonl", "-o", jobs / "out.jsonl", *model)
    if where == "url":
        process = run(*arguments)
        code, stderr = process.returncode, process.stderr
    else:
        result = invoke(*arguments)
        code, stderr = result.exit_code, result.stderr
    assert code == 3, stderr
    summary = dict(line.rsplit(maxsplit=1) for line in stderr.splitlines() if line.strip())
    assert (summary["rows"], summary["with an error"]) == ("8", "4")
    reference = Reference(served.folders["llama"])
    paris, lyon = reference.reward([QUESTION, PARIS]), reference.reward([QUESTION, LYON])
    out = [json.loads(line) for line in (jobs / "out.jsonl").read_text().splitlines()]
    first, pair, preference, group, broken, shapeless, unanswered, last = out
    assert first == {**RECORDS[0], "reward": pytest.approx(paris, abs=1e-4)}
    assert pair["margin"] == pytest.approx(pair["chosen_reward"] - pair["rejected_reward"])
    assert pair["rejected_reward"] == pytest.approx(lyon, abs=1e-4)
    assert preference["chosen_reward"] == pytest.approx(paris, abs=1e-4)
    assert preference["rejected_reward"] == pytest.approx(lyon, abs=1e-4)
    assert group["rewards"][0] == pytest.approx(pair["chosen_reward"], abs=1e-4)
    assert group["rewards"][1] is None
    assert group["rewards"][2] == pytest.approx(lyon, abs=1e-4)
    assert "the response is a number" in group["error"]["message"]
    assert broken["line"] == "not json"
    assert broken["error"]["code"] == "invalid_json"
    assert "`messages`" in shapeless["error"]["message"]
    assert "append the answer" in unanswered["error"]["message"]
    assert last["reward"] == pytest.approx(lyon, abs=1e-4)
    assert "error" not in last
    assert [r.get("id") for r in out] == [1, 2, 3, 4, None, 5, 6, 7]
    assert sorted(f.name for f in jobs.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.job"]
    rerun = invoke(*arguments)
    assert rerun.exit_code == 3
    assert "is complete already" in rerun.stderr


@pytest.mark.parametrize("where", ["model", "url"])
def test_record_with_invalid_json_fails_alone(tmp_path: Path, served: Served, where: str) -> None:
    """NaN, and a lone surrogate in a column, in a key of a message and in a text."""
    half = {"role": "user", "content": "Hi \ud83d"}
    records = [
        {"messages": [QUESTION, LYON], "note": "\ud83d"},
        {"messages": [{**QUESTION, "name": "\ud83d"}, LYON]},
        {"messages": [half, LYON]},
        {"messages": [QUESTION, LYON]},
        {"messages": [QUESTION, LYON], "before": float("nan")},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    model = get_model_options(where, served)
    result = invoke("score", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", *model)
    assert result.exit_code == 3, result.stderr
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert out[0]["reward"] == pytest.approx(out[3]["reward"], abs=1e-4)
    assert out[1]["reward"] == pytest.approx(out[3]["reward"], abs=1e-4)
    assert out[4]["error"]["code"] == "invalid_json"
    assert "NaN" in out[4]["error"]["message"]
    assert out[0]["note"] == "\ud83d"
    assert "lone surrogate" in out[2]["error"]["message"]
    assert out[2]["messages"][0] == half


def test_score_without_errors_exits_with_0(jobs: Path, served: Served) -> None:
    (jobs / "in.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    model = get_model_options("model", served)
    result = invoke("score", jobs / "in.jsonl", "-o", jobs / "o.jsonl", *model)
    assert result.exit_code == 0, result.stderr


def test_score_with_unreachable_service_fails(jobs: Path) -> None:
    paths = [jobs / "in.jsonl", "-o", jobs / "o.jsonl"]
    result = invoke("score", *paths, "--url", "http://127.0.0.1:9", "--retry-s", "0")
    assert result.exit_code == 1
    assert "is the service running there?" in result.stderr
    assert not (jobs / "o.jsonl").exists()


def test_render_matches_service(served: Served) -> None:
    folder = served.folders["llama"]
    lines = "\n".join(json.dumps(r) for r in (RECORDS[0], RECORDS[2], RECORDS[4]))
    rendered = run("render", "-", "--model", folder, stdin=lines)
    assert rendered.returncode == 3
    printed = [json.loads(line) for line in rendered.stdout.splitlines()]
    conversations = [[QUESTION, PARIS], [QUESTION, PARIS], [QUESTION, LYON]]
    body = {"model": "llama", "conversations": conversations}
    response = httpx.post(
        f"{served.url}/v1/render", json=body, trust_env=False, timeout=PATIENCE_S
    ).json()
    results = [{k: v for k, v in s.items() if k != "index"} for s in response["results"]]
    assert [line.pop("line") for line in printed] == [0, 1, 1, 2]
    assert printed[:3] == results
    assert "error" in printed[3]


def test_models_lists_catalogue() -> None:
    listed = invoke("models")
    assert listed.exit_code == 0
    for entry in load_catalog():
        assert entry.id in listed.stdout
    assert "softcap" in listed.stdout
    one = invoke("models", "Skywork-Reward-V2-Qwen3-0.6B")
    assert "unconfirmed" in one.stdout
    assert "85.2" in one.stdout
    as_json = json.loads(invoke("models", "--json").stdout)
    assert [model["kind"] for model in as_json["models"]].count("classifier") == 13
    assert "Served as judges" in listed.stdout
    assert (
        "served as: step, step format skywork"
        in invoke("models", "Skywork-o1-Open-PRM-Qwen-2.5-7B").stdout
    )
    unknown = invoke("models", "Skywork-Reward-V3")
    assert unknown.exit_code == 1
    assert "Skywork-Reward-V2-Llama-3.1-8B" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["score", "IN", "-o", "no/such/out.jsonl"],
            "/no/such does not exist; create it first",
        ),
        (["score", "IN", "-o", "OUT", "--url", "http://h:80x"], "is not a valid address"),
        (["score", "IN", "-o", "OUT", "--model", ""], "the model's name is empty"),
        (["score", "IN", "-o", "OUT", "--model", "demo@v1"], "has no revisions"),
        (["render", "--model", "~nobody-at-all/x", "IN"], "does not exist"),
        (["serve", "--local", "--replicas", "2"], "--local is a single process"),
    ],
)
def test_user_error_is_one_line(jobs: Path, arguments: list[str], message: str) -> None:
    paths = {"IN": str(jobs / "in.jsonl"), "OUT": str(jobs / "out.jsonl")}
    result = invoke(*(paths.get(argument, argument) for argument in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_loading_options_are_refused_with_url(jobs: Path) -> None:
    paths = [jobs / "in.jsonl", "-o", jobs / "o.jsonl"]
    result = invoke("score", *paths, "--url", "http://127.0.0.1:9", "--max-length", "20")
    assert result.exit_code == 2
    assert "--max-length is a setting of the service" in result.stderr


def test_verify_passes_for_good_checkpoint(served: Served) -> None:
    result = invoke("verify", "--model", served.folders["llama"])
    assert result.exit_code == 0, result.stdout + result.stderr
    assert "0 wrong" in result.stdout
    refused = invoke("verify", "--model", "no/such/folder")
    assert refused.exit_code == 1
    assert "Error: " in refused.stderr


@pytest.mark.parametrize("command", ["serve", "score", "models", "render", "verify"])
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: skyreward {command}" in invoke(command, "--help").stdout
