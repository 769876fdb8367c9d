"""`skyreward select` over files that `skyreward score` wrote, and over others."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import SKYREWARD, invoke
from job_runs import FakeExecutor, run_job, write_lines

from serve.selection import answer_store

Record = dict[str, Any]


def read(path: Path) -> list[Record]:
    if path.suffix == ".parquet":
        rows: list[Record] = pq.read_table(path).to_pylist()
        return rows
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def select(source: Path, *flags: object, output: str = "out.jsonl") -> list[Record]:
    path = source.with_name(output)
    result = invoke("select", source, "-o", path, *flags)
    assert result.exit_code == 0, result.output
    return read(path)


def read_report(source: Path, output: str = "out.jsonl") -> Record:
    report: Record = json.loads(source.with_name(f"{output}.selection.json").read_text())
    return report


def fail(source: Path, *flags: object, output: str = "out.jsonl") -> str:
    before = {path.name for path in source.parent.iterdir()}
    result = invoke("select", source, "-o", source.with_name(output), *flags)
    assert result.exit_code in (1, 2)
    assert {path.name for path in source.parent.iterdir()} == before
    return result.output


def write(folder: Path, *rows: Record) -> Path:
    return write_lines(folder / "scored.jsonl", rows)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def answers_apart(num_prompts: int, num_answers: int) -> list[Record]:
    """Single rows whose answers to one prompt are far apart."""
    chance = random.Random(0)
    return [
        {
            "id": f"{prompt}/{index}",
            "prompt": f"question {prompt}",
            "response": " ".join(["word"] * chance.randint(1, 9)) + str(index),
            "reward": float(chance.randint(-3, 3)),
        }
        for index in range(num_answers)
        for prompt in range(num_prompts)
    ]


def test_best_answers_of_rows_far_apart(tmp_path: Path) -> None:
    rows = answers_apart(30, 5)
    selected = select(write(tmp_path, *rows), "--best-of-n", "--keep-column", "id")
    expected = []
    for number in range(30):
        own = [row for row in rows if row["prompt"] == f"question {number}"]
        best = max(own, key=lambda row: row["reward"])
        expected.append(
            {
                "prompt": best["prompt"],
                "completion": best["response"],
                "reward": best["reward"],
                "id": best["id"],
            }
        )
    assert selected == expected
    report = read_report(tmp_path / "scored.jsonl")
    assert report["rows"] == {"read": 150, "used": 150}
    assert report["prompts"]["read"] == report["selected"]["rows"] == 30
    assert report["prompts"]["ties"] > 0


@pytest.mark.parametrize("scored", ["scored.jsonl", "scored.jsonl.gz", "scored.parquet"])
@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_groups_as_a_job_writes_them(tmp_path: Path, scored: str, output: str) -> None:
    rows: list[Record] = [
        {"prompt": f"question {n}", "responses": [f"{n} answer {i}" for i in range(4)]}
        for n in range(20)
    ]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_job(source, tmp_path / scored, FakeExecutor())
    pairs = select(tmp_path / scored, "--pairs", output=output)
    for pair, row in zip(pairs, read(tmp_path / scored), strict=True):
        rewards = row["rewards"]
        best, worst = rewards.index(max(rewards)), rewards.index(min(rewards))
        assert pair == {
            "prompt": row["prompt"],
            "chosen": row["responses"][best],
            "rejected": row["responses"][worst],
            "chosen_reward": max(rewards),
            "rejected_reward": min(rewards),
            "margin": max(rewards) - min(rewards),
        }


def test_pairs_are_turned_to_the_better_reward(tmp_path: Path) -> None:
    question = [message("user", "q"), message("assistant", "a"), message("user", "r")]
    row = {
        "chosen": [*question, message("assistant", "worse")],
        "rejected": [*question, message("assistant", "better")],
        "chosen_reward": -1.0,
        "rejected_reward": 2.5,
        "margin": "of my own",
        "skyreward_margin": -3.5,
    }
    assert select(write(tmp_path, row), "--pairs") == [
        {
            "prompt": question,
            "chosen": [message("assistant", "better")],
            "rejected": [message("assistant", "worse")],
            "chosen_reward": 2.5,
            "rejected_reward": -1.0,
            "margin": 3.5,
        }
    ]


def test_own_columns_are_not_taken_for_results(tmp_path: Path) -> None:
    row = {"prompt": "q", "response": "a", "reward": 9.0, "skyreward_reward": 1.0, "error": "x"}
    assert select(write(tmp_path, row), "--best-of-n")[0]["reward"] == 1.0


def test_mixed_text_and_messages_become_messages(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    rows = (
        {"prompt": "q", "response": "a", "reward": 1.0},
        {"messages": [message("user", "p"), message("assistant", "b")], "reward": 2.0},
        {"prompt": "q", "response": "with tools", "tools": tools, "reward": 3.0},
    )
    first, second, third = select(write(tmp_path, *rows), "--best-of-n")
    assert first["prompt"] == [message("user", "q")]
    assert first["completion"] == [message("assistant", "a")]
    assert second["prompt"] == [message("user", "p")]
    assert (first["tools"], third["tools"]) == (None, tools)


def test_top_share_takes_the_highest_rewards(tmp_path: Path) -> None:
    rows = answers_apart(10, 5)
    source = write(tmp_path, *rows)
    selected = select(source, "--top", "20%")
    ranked = sorted(rows, key=lambda row: -row["reward"])[:10]
    expected = [row for row in rows if row in ranked]
    assert [row["completion"] for row in selected] == [row["response"] for row in expected]
    lowest = min(row["reward"] for row in ranked)
    ties = sum(row["reward"] >= lowest for row in rows) - 10
    assert read_report(source)["prompts"]["ties"] == ties
    assert len(select(source, "--top", "7")) == 7
    assert len(select(source, "--top", "0.1%")) == 1


def test_what_is_dropped_is_counted(tmp_path: Path) -> None:
    failure = {"code": "conversation_too_long", "message": "50 tokens"}
    rows = (
        {
            "prompt": "q",
            "responses": ["a", "b", "c"],
            "rewards": [1.0, None, 3.0],
            "error": failure,
        },
        {"prompt": "q", "responses": ["a", "d"], "rewards": [1.0, 0.5]},
        {"prompt": "equal", "responses": ["a", "b"], "rewards": [1.0, 1.0]},
        {"prompt": "alone", "responses": ["a"], "rewards": [1.0]},
        {"prompt": "failed", "responses": ["a", "b"], "error": failure},
        {"prompt": "not scored", "responses": ["a", "b"]},
        {"prompt": "misfit", "responses": ["a", "b"], "rewards": [1.0]},
    )
    (pair,) = select(write(tmp_path, *rows), "--pairs")
    assert (pair["chosen"], pair["rejected"]) == ("c", "d")
    report = read_report(tmp_path / "scored.jsonl")
    used = {"with_error": 1, "without_reward": 1, "unreadable": 1}
    assert report["rows"] == {"read": 7, "used": 4, **used}
    assert report["answers"] == {"different": 6, "repeated": 1, "without_reward": 1}
    assert report["prompts"]["dropped"] == {"equal_rewards": 1, "one_answer": 1}
    assert report["selected"]["margin"] == dict.fromkeys(("min", "median", "mean", "max"), 2.5)
    assert set(report["examples"]) == set(used)


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    source = write(tmp_path, *answers_apart(40, 6))

    def draw(seed: int, output: str) -> bytes:
        select(source, "--pairs", "--against", "random", "--seed", seed, output=output)
        return (tmp_path / output).read_bytes() + json.dumps(read_report(source, output)).encode()

    for output in ("out.jsonl", "out.jsonl.gz", "out.parquet"):
        assert draw(1, output) == draw(1, output) != draw(2, output)


def test_kill_leaves_the_output_as_it_was(tmp_path: Path) -> None:
    source = write(tmp_path, *answers_apart(2000, 4))
    expected = select(source, "--pairs")
    content = (tmp_path / "out.jsonl").read_bytes()
    arguments = ["select", str(source), "-o", str(tmp_path / "out.jsonl"), "--pairs"]
    program = (
        "import os, sys\n"
        "from serve.selection import answer_store\n"
        "from serve.cli.main import main\n"
        "answer_store.AnswerStore.{} = lambda *_: os.kill(os.getpid(), 9)\n"
        "main()\n"
    )
    for moment in ("add", "finish_reading", "iter_selected"):
        command = [SKYREWARD[0], "-c", program.format(moment), *arguments]
        assert subprocess.run(command, check=False).returncode == -9
        names = {path.name for path in tmp_path.iterdir()} - {"out.jsonl.selection.json"}
        assert names <= {"scored.jsonl", "out.jsonl", "out.jsonl.partial"}
        assert (tmp_path / "out.jsonl").read_bytes() == content
    assert select(source, "--pairs") == expected
    assert (tmp_path / "out.jsonl").read_bytes() == content
    assert {path.name for path in tmp_path.iterdir()} == {
        *("scored.jsonl", "out.jsonl", "out.jsonl.selection.json")
    }


def test_folder_is_read_without_output_and_report(tmp_path: Path) -> None:
    write(tmp_path, *answers_apart(3, 2))
    output = tmp_path / "best.jsonl"
    for _ in range(2):
        assert invoke("select", tmp_path, "-o", output, "--best-of-n").exit_code == 0
        assert len(read(output)) == 3


SINGLE = {"prompt": "q", "response": "a", "reward": 1.0}


@pytest.mark.parametrize(
    ("rows", "flags", "text"),
    [
        ([{"prompt": "q", "response": "a"}], ["--best-of-n"], "no row with a reward"),
        ([], ["--best-of-n"], "it has no rows"),
        ([{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1.5}], ["--pairs"],
         "no row with a reward"),
        ([SINGLE, {"prompt": "q", "responses": ["b"], "rewards": [1.0]}], ["--pairs"],
         "row 1 is a group and row 0 is a conversation"),
        ([{"prompt": "q", "chosen": "a", "rejected": "b", "chosen_reward": None,
           "rejected_reward": None, "margin": 1.5, "probability": 0.8}], ["--pairs"],
         "a judge's verdict"),
        ([SINGLE], ["--pairs"], "no prompt gives a row (1 one_answer)"),
        ([SINGLE], ["--best-of-n", "--keep-column", "source"], "no column `source`"),
        ([SINGLE], ["--best-of-n", "--keep-column", "reward"], "cannot be kept"),
        ([SINGLE], ["--best-of-n", "--prompt-column", "text"], "nothing at `text`"),
        ([SINGLE], [], "give one of"),
        ([SINGLE], ["--pairs", "--best-of-n"], "give one of"),
        ([SINGLE], ["--best-of-n", "--min-margin", "1"], "--min-margin goes with --pairs;"),
        ([SINGLE], ["--pairs", "--seed", "1"], "--seed goes with --pairs --against random;"),
        ([SINGLE], ["--pairs", "--min-margin", "nan"], "finite"),
        ([SINGLE], ["--top", "0%"], "neither a number"),
        ([SINGLE], ["--top", "1/0%"], "neither a number"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, rows: list[Record], flags: list[str], text: str) -> None:
    assert text in " ".join(fail(write(tmp_path, *rows), *flags).split())


def test_input_and_unknown_formats_are_no_output(tmp_path: Path) -> None:
    source = write(tmp_path, SINGLE)
    assert "is also the input" in fail(source, "--best-of-n", output="scored.jsonl")
    assert "cannot be written" in fail(source, "--best-of-n", output="out.csv")


def test_answers_to_one_prompt_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_store, "MAX_ANSWERS", 4)
    assert len(select(write(tmp_path, *answers_apart(2, 4)), "--best-of-n")) == 2
    (tmp_path / "more").mkdir()
    source = write(tmp_path / "more", *answers_apart(2, 5))
    assert "more than 4 answers" in fail(source, "--best-of-n")
