"""Plan-RewardBench: flattened trajectories, ties, published counts, and rows that are refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import benchmark_files
import pytest
from conftest import BENCHMARK_DATA
from peers import peer_functions
from published_rows import read, scored, trajectory_row, whole

from rm_core.benchmarks.base import Item, ScoredItem
from rm_core.benchmarks.plan_rewardbench import (
    SPLITS,
    PlanRewardBench,
    PlanRewardBenchOptions,
)
from rm_core.errors import BenchmarkDataError
from rm_core.inputs.conversations import join
from serve.evaluation.data import load_data

BENCHMARK = PlanRewardBench()
MESSAGES = PlanRewardBench(PlanRewardBenchOptions(trajectories="messages"))
DATA = BENCHMARK_DATA / "plan-rewardbench"
ORIGIN = "benchmark/safety_refusal.jsonl"


def load(path: Path, benchmark: PlanRewardBench = BENCHMARK) -> tuple[Item, ...]:
    return load_data(benchmark, str(path), split=None, exclude=Path("nowhere"), notify=print).items


def test_trajectory_is_one_response() -> None:
    row = trajectory_row(7)
    row["tools"] = [{"type": "function", "function": {"name": "größe", "parameters": {}}}]
    row["reject"]["messages"][1:1] = [
        {"role": "tool_response", "content": {"größe": 1}},
        {"role": "assistant", "content": "a", "name": "not shown"},
        {"role": "system", "content": ""},
    ]
    item = BENCHMARK.read(row, ORIGIN)
    assert (item.id, item.subset) == ("pair-7", "safety_refusal")
    assert item.prompt == [
        {
            "role": "user",
            "content": "<tool_environment>\n"
            '[\n  {\n    "type": "function",\n    "function": {\n      "name": "größe",\n'
            '      "parameters": {}\n    }\n  }\n]\n'
            "</tool_environment>\n<user_query>\nWhat is 7?\n</user_query>",
        }
    ]
    assert item.responses == (
        "[USER] What is 7?\n\n[TOOL_CALL] {'name': 'look_up', 'arguments': '{}'}\n\n"
        "[TOOL_RESPONSE name=look_up] A number.\n\n[ASSISTANT] This.",
        '[USER] What is 7?\n\n[TOOL_RESPONSE] {"größe": 1}\n\n[ASSISTANT] a\n\n[SYSTEM] \n\n'
        "[ASSISTANT] I do not know.",
    )


def test_each_message_of_a_trajectory_may_be_a_message() -> None:
    row = trajectory_row(7)
    row["reject"]["messages"][1:1] = [
        {"role": "tool_response", "content": {"größe": 1}},
        {"role": "system", "content": ""},
        {"role": "user", "content": "And?", "name": "not shown"},
    ]
    item = MESSAGES.read(row, ORIGIN)
    assert item.prompt == BENCHMARK.read(row, ORIGIN).prompt
    assert item.responses == (
        [
            *item.prompt,
            {"role": "user", "content": "What is 7?"},
            {
                "role": "assistant",
                "content": "[TOOL_CALL] {'name': 'look_up', 'arguments': '{}'}",
            },
            {"role": "assistant", "content": "[TOOL_RESPONSE name=look_up] A number."},
            {"role": "assistant", "content": "This."},
        ],
        [
            *item.prompt,
            {"role": "user", "content": "What is 7?"},
            {"role": "assistant", "content": '[TOOL_RESPONSE] {"größe": 1}'},
            {"role": "assistant", "content": "[SYSTEM] "},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "I do not know."},
        ],
    )
    assert item.texts[1].startswith("[USER] What is 7?\n\n[ASSISTANT] [TOOL_RESPONSE] ")


@pytest.mark.skipif(not DATA.is_dir(), reason="the published files of Plan-RewardBench are missing")
@pytest.mark.parametrize(
    ("benchmark", "evaluator"),
    [(BENCHMARK, "RemoteBTRewardEvaluator"), (MESSAGES, "BTRewardEvaluator")],
)
def test_conversations_equal_those_of_the_runner(
    benchmark: PlanRewardBench, evaluator: str
) -> None:
    """The runner's own code makes the same messages of every published row, in both forms."""
    runner = "Plan-RewardBench/eval/evaluate_benchmark_final.py"
    names = peer_functions(runner, ("format_tools", "_convert_messages_to_chat"), cls=evaluator)
    formatter = SimpleNamespace(format_tools=partial(names["format_tools"], None))
    convert = partial(names["_convert_messages_to_chat"], formatter)
    num_conversations = 0
    for path in sorted(DATA.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            item = benchmark.read(row, path.name)
            for side, response in zip(("chosen", "reject"), item.responses, strict=True):
                theirs = convert(row["query"], row.get("tools", []), row[side]["messages"])
                assert join(item.prompt, response) == theirs
                num_conversations += 1
    assert num_conversations == 2 * sum(SPLITS[path.stem] for path in DATA.glob("*.jsonl"))


def test_null_tools_and_other_id_are_read_as_by_the_runner() -> None:
    row = trajectory_row(1) | {"tools": None, "uuid": "", "parent_uuid": "parent"}
    item = BENCHMARK.read(row, ORIGIN)
    assert item.id == "parent"
    assert item.prompt[0]["content"].startswith("<tool_environment>\nnull\n</tool_environment>\n")


def test_row_may_have_rejected_and_no_tools() -> None:
    row = trajectory_row(1)
    row["rejected"] = row.pop("reject")
    del row["tools"]
    item = BENCHMARK.read(row, "tool_irrelevance_unified.jsonl")
    assert item.subset == "tool_irrelevance"
    assert item.prompt[0]["content"].startswith("<tool_environment>\n[]\n</tool_environment>\n")
    assert item.responses[1].endswith("[ASSISTANT] I do not know.")


def test_published_counts_give_published_results() -> None:
    """The row of Skywork-Reward-V2: halves are ties. That of planning_multi_hard is no count."""
    halves = dict(zip(SPLITS, (161, 90, 201, 228, 470, 55, 357), strict=True))
    items = []
    for item in read(BENCHMARK, whole("plan-rewardbench")):
        points = min(2, halves[item.subset])
        halves[item.subset] -= points
        items.append(ScoredItem(item, ((0.0, 1.0), (1.0, 1.0), (1.0, 0.0))[points]))
    assert not any(halves.values())
    result = BENCHMARK.compute_result(items)
    shown = {name: round(100 * section.score, 2) for name, section in result.sections.items()}
    published = (73.85, 61.64, 69.79, 72.15, 65.10, 53.92, 64.91)
    assert shown == dict(zip(SPLITS, published, strict=True))
    assert result.overall == pytest.approx(sum(published) / 700, abs=1e-4)
    assert result.missing == ()


@pytest.mark.parametrize(
    ("margin", "right"), [(1.5e-4, 1.0), (1e-4, 0.5), (0.0, 0.5), (-1e-4, 0.5), (-1.5e-4, 0.0)]
)
def test_small_difference_is_half_right(margin: float, right: float) -> None:
    items = [BENCHMARK.read(trajectory_row(0), ORIGIN)]
    result = BENCHMARK.compute_result(scored(items, lambda _: (margin, 0.0)))
    assert result.overall == right
    assert "subset safety_refusal: has 1 of 51 items" in result.missing
    assert "subset robust_recovery: has none of 361 items" in result.missing


@pytest.mark.parametrize("benchmark", [BENCHMARK, MESSAGES])
def test_pairs_of_equal_uuid_are_numbered(benchmark: PlanRewardBench, tmp_path: Path) -> None:
    path = benchmark_files.write(tmp_path, benchmark_files.plan_rewardbench())
    items = load(path, benchmark)
    assert [item.key for item in items] == [
        ("one", "planning_multi_easy"),
        ("one#2", "planning_multi_easy"),
        ("one", "tool_irrelevance"),
        ("one#2", "tool_irrelevance"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uuid": None}, "the column `uuid` is null"),
        ({"query": 3}, "the column `query` is 3; it must be text"),
        ({"tools": "look_up"}, "the column `tools` is 'look_up'; it must be a list"),
        ({"chosen": {"messages": []}}, "the column `chosen.messages` is an empty list"),
        ({"chosen": "text"}, "the column `chosen.messages` is null; it must be a list"),
        ({"reject": None}, "the column `rejected.messages` is missing"),
        ({"reject": {"messages": ["text"]}}, "`reject.messages` must be a message with"),
        ({"reject": {"messages": [{"role": "user", "content": None}]}}, "must be a message with"),
        ({"reject": {"messages": [{"content": "text"}]}}, "must be a message with"),
        ({"query": "\ud800"}, "`query`"),
        ({"tools": [{"name": "\ud800"}]}, "`tools`"),
        ({"reject": {"messages": [{"role": "user", "content": "\ud800"}]}}, "`reject.messages`"),
    ],
)
def test_invalid_row_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchmarkDataError, match=message):
        BENCHMARK.read(trajectory_row(0) | changes, ORIGIN)


def test_file_of_unknown_split_is_refused() -> None:
    with pytest.raises(BenchmarkDataError, match="must be one of planning_multi_easy, "):
        BENCHMARK.read(trajectory_row(0), "pairs.jsonl")


@pytest.mark.skipif(not DATA.is_dir(), reason="the published files of Plan-RewardBench are missing")
def test_published_files_are_whole_splits() -> None:
    items = load(DATA)
    result = BENCHMARK.compute_result(scored(items, lambda _: (1.0, 0.0)))
    counts = {name: subset.num_items for name, subset in result.subsets.items()}
    assert counts == {path.stem: SPLITS[path.stem] for path in DATA.glob("*.jsonl")}
    assert len(result.missing) == len(SPLITS) - len(counts)
    for item in items:
        assert item.texts[0].startswith("[USER] ")
        assert item.responses[0] != item.responses[1]
