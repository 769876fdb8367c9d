"""Rollouts that trainers wrote to disk: verl's dumps, TRL's completions, NeMo-Gym's rows."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from checkpoints import SPECS, build_tokenizer
from job_runs import FakeExecutor, run_job, write_lines
from openai.types.responses import Response
from peers import peer_path
from policies import CHATML, LLAMA, build_policy, turn

from serve.errors import JobInputError
from serve.jobs.columns import Columns
from serve.jobs.record_reader import ParsedRecord, try_parse_record
from serve.jobs.summary import format_summary

SYSTEM, USER, FOUR = turn("system", "Be brief."), turn("user", "2+2?"), turn("assistant", "4")
CHAT = [SYSTEM, USER]


def verl_functions(file: str, stand_ins: dict[str, Any], *names: str) -> list[Callable[..., Any]]:
    """Functions of one of verl's files, without what the file imports."""
    source = (peer_path("verl") / file).read_text()
    nodes = {n.name: n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)}
    for name in names:
        nodes[name].decorator_list = []
        nodes[name].returns = None
        for argument in nodes[name].args.args:
            argument.annotation = None
    module = ast.Module([nodes[name] for name in names], [])
    namespace = {"os": os, "json": json, "np": np, **stand_ins}
    exec(compile(module, file, "exec"), namespace)
    return [namespace[name] for name in names]


def dump_with_verl(
    folder: Path, policy: Any, rollouts: Sequence[tuple[list[Any], str]], file: str
) -> Path:
    """Have verl log rollouts: prompts, and the texts of answers."""
    prompts = [
        policy.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt, _ in rollouts
    ]
    answers = [policy(answer)["input_ids"] + [policy.eos_token_id] for _, answer in rollouts]
    longest = [max(map(len, rows)) for rows in (prompts, answers)]
    pad = policy.pad_token_id
    tensors = {
        "prompts": torch.tensor([[pad] * (longest[0] - len(row)) + row for row in prompts]),
        "responses": torch.tensor([row + [pad] * (longest[1] - len(row)) for row in answers]),
        "token_level_scores": torch.tensor([[0.25, 0.5]] * len(rollouts)),
    }

    class Batch(SimpleNamespace):
        def __iter__(self) -> Any:
            row = SimpleNamespace(non_tensor_batch={"reward_model": {"ground_truth": "4"}})
            return iter([row] * len(rollouts))

    requests = {"request_id": np.array(["r"] * len(rollouts))}
    batch = Batch(batch=tensors, non_tensor_batch=requests)
    stand_ins = {"marked_timer": lambda *_, **__: contextlib.nullcontext()}
    log, write = verl_functions(file, stand_ins, "_log_rollout_data", "_write_generations")

    def dump(**columns: Any) -> None:
        write(*columns.values(), 7)

    trainer = SimpleNamespace(tokenizer=policy, _dump_generations=dump)
    log(trainer, batch, {"acc": np.array([True] * len(rollouts))}, {}, str(folder))
    return folder / "7.jsonl"


def as_policy(template: str) -> Any:
    policy = build_policy(template)
    policy.eos_token = policy.pad_token
    return policy


@pytest.mark.parametrize(("template", "family"), [(CHATML, "chatml"), (LLAMA, "llama3")])
def test_dump_of_verl_is_scored_as_messages(
    tmp_path: Path, template: str, family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = [(CHAT, "4"), ([USER], "5\n\nor 6"), ([USER, FOUR, turn("user", "3+3?")], "6")]
    dump = dump_with_verl(tmp_path, as_policy(template), rollouts, "trainer/ppo/ray_trainer.py")
    rows = [json.loads(line) for line in dump.read_text().splitlines()]
    assert {"input", "output", "gts", "score", "step", "acc", "request_id"} == rows[0].keys()
    assert "<|" not in rows[0]["input"]
    executor, output = FakeExecutor(), tmp_path / "out.jsonl"
    summary = run_job(dump, output, executor)
    expected = [[*prompt, turn("assistant", answer)] for prompt, answer in rollouts]
    assert [c for call in executor.calls for c in call] == expected
    assert summary.warnings == {"role_names_read": 3, "uncertain_turns": 1}
    scored = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{name: row[name] for name in rows[0]} for row in scored] == rows
    assert {row["score"] for row in scored} == {0.75}

    # The option confirms what was recognized.
    for row, conversation in zip(rows, expected, strict=True):
        parsed = try_parse_record(row, Columns(policy_template=family, transcripts="read"))  # type: ignore[arg-type]
        assert (parsed.conversations, parsed.warnings) == ((conversation,), ())


def test_policy_tokenizer_reads_dump_of_verl(tmp_path: Path) -> None:
    policy = as_policy("Be brief.\n" + CHATML)
    policy.save_pretrained(tmp_path / "policy")
    dump = dump_with_verl(tmp_path, policy, [([USER], "4")], "trainer/ppo/ray_trainer.py")
    record = json.loads(dump.read_text())
    # Without the tokenizer, what the template writes first makes the turns unknown.
    assert get_error(try_parse_record(record)).startswith("the record is a rollout that verl wrote")
    columns = Columns(policy_tokenizer=str(tmp_path / "policy"))
    assert try_parse_record(record, columns).conversations == ([USER, FOUR],)
    record["input"] = record["input"].replace("Be", "be")
    assert "may have been cut" in get_error(try_parse_record(record, columns))
    assert columns.as_options()["policy_tokenizer"].startswith(f"{tmp_path / 'policy'} (")
    with pytest.raises(JobInputError, match="both say how to read prompts"):
        Columns(policy_tokenizer="policy", policy_template="chatml")


def test_changed_policy_tokenizer_refuses_to_resume(tmp_path: Path) -> None:
    build_policy(CHATML).save_pretrained(tmp_path)
    columns = Columns(policy_tokenizer=str(tmp_path))
    before = columns.as_options()
    build_policy(CHATML + " ").save_pretrained(tmp_path)
    assert columns.as_options() != before


def get_error(parsed: ParsedRecord) -> str:
    assert parsed.error
    assert parsed.conversations == ()
    return parsed.error.message


# As verl 0.4 and 0.6 write them.
OLD_ROWS = [
    {"input": "user\n2+2?\nassistant\n", "output": "4", "score": 1.0, "step": 3},
    {"input": "user\n2+2?\nassistant\n", "output": "4", "gts": None, "score": 1.0, "step": 3},
]


@pytest.mark.parametrize("row", OLD_ROWS)
def test_rows_of_older_verl_are_read(row: dict[str, Any]) -> None:
    assert try_parse_record(row).conversations == ([USER, FOUR],)


@pytest.mark.parametrize("row", OLD_ROWS)
@pytest.mark.parametrize(
    ("prompt", "columns", "expected_text"),
    [
        ("2+2?<think>\n", Columns(), "its turns are unknown"),
        ("2+2?", Columns(transcripts="read"), "its turns are unknown"),
        ("2+2?", Columns(policy_template="chatml"), "its turns are unknown"),
        ("2+2?", Columns(policy_template="mistral"), "its turns are unknown"),
        ("<|im_start|>user\n2+2?", Columns(), "begins with <|im_start|>"),
        ("system\na\nuser\nb\nuser\nc\nassistant\n", Columns(), "begin turns is unknown"),
    ],
)
def test_unclear_prompt_of_verl_is_refused(
    row: dict[str, Any], prompt: str, columns: Columns, expected_text: str
) -> None:
    assert expected_text in get_error(try_parse_record({**row, "input": prompt}, columns))


def test_text_of_verl_is_kept_only_if_the_user_says_so() -> None:
    row = OLD_ROWS[0]
    kept = try_parse_record(row, Columns(transcripts="keep"))
    assert kept.conversations == ([turn("user", row["input"]), FOUR],)
    # Another column with the prompt is no text of a template.
    for columns in (Columns(prompt="question"), Columns()):
        named = try_parse_record({**row, "question": "2+2?", "input": "text"}, columns)
        assert named.conversations == ([USER, FOUR],)


def test_marked_prompt_of_verl_is_read_with_its_template() -> None:
    row = {**OLD_ROWS[0], "input": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"}
    parsed = try_parse_record(row, Columns(policy_template="chatml"))
    assert parsed.conversations == ([USER, FOUR],)


def test_thoughts_that_the_prompt_begins_belong_to_the_answer() -> None:
    row = {**OLD_ROWS[0], "input": "user\n2+2?\nassistant\n<think>\n", "output": "a\n</think>4"}
    answer = turn("assistant", "<think>\na\n</think>4")
    assert try_parse_record(row).conversations == ([USER, answer],)


def log_with_trl(folder: Path, name: str, logs: dict[str, list[Any]]) -> Path:
    """Have one of TRL's trainers write its table of completions."""
    trl = pytest.importorskip("trl")
    kind = getattr(trl, name)
    trainer = kind.__new__(kind)
    (folder / "completions").mkdir()
    trainer.model = SimpleNamespace(training=True)
    trainer._metrics = {"train": defaultdict(list)}
    trainer.accelerator = SimpleNamespace(is_main_process=True)
    trainer.log_completions, trainer.num_completions_to_print = True, 1
    trainer.args = SimpleNamespace(report_to=[], output_dir=str(folder))
    trainer.state = SimpleNamespace(global_step=3)
    trainer._logs = logs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.Trainer.log", lambda *_: None)
        trainer.log({})
    (file,) = (folder / "completions").iterdir()
    return file


TOOL_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
COMPLETIONS = {
    "text": ("2+2?", "4", [USER, FOUR]),
    "messages": (CHAT, [FOUR], [*CHAT, FOUR]),
    "tools": (
        [USER],
        [
            {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
            {"role": "tool", "name": "f", "content": "4"},
            FOUR,
        ],
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]},
            {"role": "tool", "name": "f", "content": "4"},
            FOUR,
        ],
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", COMPLETIONS)
def test_completions_of_grpo_are_scored(tmp_path: Path, case: str) -> None:
    prompt, completion, expected = COMPLETIONS[case]
    logs: dict[str, Any] = {
        "prompt": [prompt, prompt],
        "completion": [completion, completion],
        "rewards": {"length": [1.0, float("nan")]},
        "extra": {"reward": ["x", "y"]},
        "advantages": [0.5, -0.5],
        "images": [],
    }
    file = log_with_trl(tmp_path, "GRPOTrainer", logs)
    assert file.name == "completions_00003.parquet"
    executor, output = FakeExecutor(), tmp_path / "out.parquet"
    summary = run_job(file.parent, output, executor)
    assert (summary.num_failed, executor.calls) == (0, [[expected]])
    table = pq.read_table(output)
    assert table.column_names[:6] == [
        *("step", "prompt", "completion", "length", "reward", "advantage"),
    ]
    assert table["reward"].to_pylist() == ["x", "y"]  # the trainer's column is kept
    assert len(set(table["skyreward_reward"].to_pylist())) == 1


@pytest.mark.filterwarnings("ignore")
def test_prompts_that_trl_decoded_are_read_as_turns(tmp_path: Path) -> None:
    """The distillation trainer logs as TRL 0.24 to 0.29 did: text without special tokens."""
    logs = {"prompt": ["system\nBe brief.\nuser\n2+2?\nassistant\n"], "completion": ["4"]}
    file = log_with_trl(tmp_path, "DistillationTrainer", logs)
    executor = FakeExecutor()
    summary = run_job(file, tmp_path / "out.jsonl", executor)
    assert executor.calls == [[[*CHAT, FOUR]]]
    assert summary.warnings == {"role_names_read": 1}


def test_marked_prompts_of_older_trl_need_their_template() -> None:
    """TRL 0.19 logged prompts with markers, and completions without."""
    row = {
        "step": "3",
        "prompt": "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n",
        "completion": "4",
        "length": 1.0,
        "advantage": 0.5,
    }
    assert "--policy-template" in get_error(try_parse_record(row))
    parsed = try_parse_record(row, Columns(policy_template="chatml"))
    assert parsed.conversations == ([USER, FOUR],)


def build_response(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a response as OpenAI's SDK and NeMo-Gym write it, with null for absent fields."""
    response = Response.model_validate(
        {
            **{"id": "r", "created_at": 0, "model": "policy", "object": "response"},
            **{"output": items, "parallel_tool_calls": False, "tool_choice": "auto", "tools": []},
            **fields,
        }
    )
    return response.model_dump()


ANSWER: dict[str, Any] = {
    **{"type": "message", "id": "m", "role": "assistant", "status": "completed"},
    "content": [{"type": "output_text", "text": "4", "annotations": []}],
}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
RESULT = {
    **{"type": "function_call_output", "id": "o", "call_id": "c", "output": "4"},
    "status": "completed",
}
REASONING = {"type": "reasoning", "id": "t", "summary": []}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}


def build_rollout(**fields: Any) -> dict[str, Any]:
    """Return a row of NeMo-Gym, with columns of the data that were copied to it."""
    return {
        "responses_create_params": {
            "input": [{**USER, "type": "message", "phase": None}],
            "instructions": None,
            "tools": [],
            "temperature": 1.0,
        },
        "response": build_response(REASONING, ANSWER),
        "reward": 1.0,
        **{"_ng_task_index": 0, "_ng_rollout_index": 1, "question": "other", "answer": "5"},
        **{"messages": [turn("user", "other")], "tools": [{"name": "g"}], "uuid": "u"},
        **fields,
    }


def test_rollouts_of_nemo_gym_are_scored(tmp_path: Path) -> None:
    params = {"input": "2+2?", "instructions": "Be brief.", "tools": [TOOL]}
    output = [CALL, RESULT, ANSWER]
    response = {**build_response(), "output": output}
    rows = [build_rollout(), build_rollout(responses_create_params=params, response=response)]
    rows.append(build_rollout(response={**response, "output": [{"type": "mcp_call"}]}))
    executor, file = FakeExecutor(), tmp_path / "out.jsonl"
    summary = run_job(write_lines(tmp_path / "in.jsonl", rows), file, executor)
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert [c for one in executor.calls for c in one] == [
        [USER, FOUR],
        {
            "messages": [
                *CHAT,
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "4"},
                FOUR,
            ],
            "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
            ],
        },
    ]
    assert (summary.errors, summary.warnings) == ({"invalid_conversation": 1}, {})
    scored = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["reward"] for row in scored] == [1.0] * 3
    assert isinstance(scored[0]["skyreward_reward"], float)
    assert "item 0 of `output` has the type 'mcp_call'" in scored[2]["error"]["message"]


def test_rollout_read_from_parquet_is_the_same(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [build_rollout(), build_rollout(response=build_response(REASONING, ANSWER, CALL))]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "in.parquet")
    executor = FakeExecutor()
    run_job(tmp_path / "in.parquet", tmp_path / "out.parquet", executor)
    expected = [try_parse_record(row).conversations[0] for row in rows]
    assert [c for call in executor.calls for c in call] == expected


@pytest.mark.parametrize(
    ("fields", "expected_text"),
    [
        ({"response": build_response()}, "the last message has role 'user'"),
        ({"response": {"output": "4"}}, "`output` is a string"),
        ({"response": {}}, "`output` is null"),
        ({"responses_create_params": {}}, "`input` is null"),
        ({"response": {"output": [CALL | {"arguments": "{"}, ANSWER]}}, "`arguments` of message 0"),
        ({"response": {"output": [CALL, RESULT]}}, "the last message has role 'tool'"),
    ],
)
def test_broken_rollout_gets_an_error(fields: dict[str, Any], expected_text: str) -> None:
    parsed = try_parse_record(build_rollout(**fields))
    assert expected_text in get_error(parsed)
    assert parsed.kind == "conversation"


def test_options_name_columns_of_a_rollout() -> None:
    columns = Columns(prompt="question", response="answer", tools="", ignored=("messages",))
    parsed = try_parse_record(build_rollout(), columns)
    assert parsed.conversations == ([turn("user", "other"), turn("assistant", "5")],)


def test_ignored_columns_of_a_rollout_are_not_read() -> None:
    columns = Columns(ignored=("response", "messages", "tools"))
    record = build_rollout(completion="4")
    del record["answer"]
    assert try_parse_record(record, columns).conversations == ([turn("user", "other"), FOUR],)
    # An empty name ignores other prompts, as for any record.
    parsed = try_parse_record(build_rollout(), Columns(prompt="", system=""))
    assert parsed.conversations == ([USER, FOUR],)


def test_responses_next_to_their_input_are_read() -> None:
    record = {**build_response(REASONING, ANSWER, instructions="Be brief."), "input": "2+2?"}
    assert try_parse_record(record).conversations == ([*CHAT, FOUR],)
    record = {"input": [USER], "output": [ANSWER]}
    assert try_parse_record(record).conversations == ([USER, FOUR],)
    # A list of messages without types of items is one of messages, as before.
    assert try_parse_record({"input": "2+2?", "output": [FOUR]}).conversations == ([USER, FOUR],)


def test_forms_of_trainers_may_be_mixed(tmp_path: Path) -> None:
    rows = [OLD_ROWS[0], build_rollout(), {"prompt": "2+2?", "completion": "4", "step": 1}]
    executor = FakeExecutor()
    summary = run_job(write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", executor)
    assert (summary.num_failed, executor.calls) == (0, [[[USER, FOUR]]])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["verl", "nemo_gym"])
def test_rewards_are_compared_with_the_trainers(tmp_path: Path, form: str, ending: str) -> None:
    rows, old = [], [0.0, 1.0, 0.5, None, 0.25, 1]
    for index, reward in enumerate(old):
        row = {**OLD_ROWS[0], "output": f"{index}", "score": reward}
        if form == "nemo_gym":
            params = {"input": "HUGE" if index == 4 else f"{index}+2?"}
            row = build_rollout(responses_create_params=params, reward=reward)
        rows.append(row)
    source, output = tmp_path / "in.jsonl", tmp_path / f"out.{ending}"
    write_lines(source, rows)
    if ending == "parquet":
        datasets = pytest.importorskip("datasets")
        source = tmp_path / "in.parquet"
        floats = [
            {**r, **{n: r[n] and float(r[n]) for n in ("score", "reward") if n in r}} for r in rows
        ]
        datasets.Dataset.from_list(floats).to_parquet(source)
    summary = run_job(source, output, FakeExecutor())
    run_job(source, tmp_path / "copy.jsonl", FakeExecutor())
    scored = [json.loads(line) for line in (tmp_path / "copy.jsonl").read_text().splitlines()]
    column, result = ("score", "reward") if form == "verl" else ("reward", "skyreward_reward")
    pairs = [(r[column], r[result]) for r in scored if r[column] is not None and result in r]
    assert len(pairs) == (5 if form == "verl" else 4)
    expected = statistics.correlation(*zip(*pairs, strict=True))
    assert summary.correlations == {column: pytest.approx(expected, abs=1e-12)}
    assert (f"correlation with `{column}`", f"{expected:.4f}") in format_summary(summary)


def test_rewards_of_other_rows_are_not_compared(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2?", "response": f"{n}", "score": n, "step": 1} for n in range(3)]
    rows += [{**OLD_ROWS[0], "score": value} for value in ("high", True, None, 1.0)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    assert run_job(source, tmp_path / "out.jsonl", FakeExecutor()).correlations == {}


def test_special_tokens_of_policy_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    """Thoughts are special tokens of this tokenizer, so none of them are in its prompts."""
    tokenizer = build_tokenizer(SPECS["qwen3"])
    tokenizer.chat_template = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    tokenizer.save_pretrained(tmp_path)
    row = {**OLD_ROWS[0], "input": "user\n2+2?\nassistant\n\n"}
    columns = Columns(policy_tokenizer=str(tmp_path))
    assert try_parse_record(row, columns).conversations == ([USER, turn("assistant", "\n4")],)
