"""Rows as benchmarks publish them, with made-up texts, and rewards that are right as often as told.

`whole(NAME)` is a whole benchmark, of the published counts of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rm_core.benchmarks import (
    judgebench,
    m_rewardbench,
    plan_rewardbench,
    ppe,
    prmbench,
    processbench,
    rewardbench,
    rewardbench2,
    rewardmath,
    rm_bench,
    rmb,
    vl_rewardbench,
)
from rm_core.benchmarks.base import Benchmark, Item, ItemKey, JoinedBenchmark, ScoredItem

Row = dict[str, Any]
Rewards = Sequence[float]
RIGHT, WRONG = (1.0, 0.0), (0.0, 1.0)

REWARDBENCH = {name: n for rows in rewardbench.SECTIONS.values() for name, n in rows.items()}
# Numbers of Ties, each with a ref and a tied row: 102 rows.
NUM_PAIRED_TIES = 51


def read(benchmark: Benchmark, rows: Iterable[tuple[Row, str]]) -> list[Item]:
    items: dict[ItemKey, Item] = {}
    for row, origin in rows:
        item = benchmark.read(row, origin)
        if isinstance(benchmark, JoinedBenchmark) and item.key in items:
            item = benchmark.join(items[item.key], item)
        assert isinstance(benchmark, JoinedBenchmark) or item.key not in items
        items[item.key] = item
    return list(items.values())


def scored(items: Iterable[Item], rewards: Callable[[Item], Rewards]) -> list[ScoredItem]:
    return [ScoredItem(item, rewards(item)) for item in items]


def rewardbench_row(number: int, subset: str) -> Row:
    return {
        "id": number,
        "subset": subset,
        "prompt": f"Question {number}?",
        "chosen": "A good answer.",
        "chosen_model": "someone",
        "rejected": "A bad one.",
        "rejected_model": "somebody",
    }


def rewardbench2_row(row_id: str, subset: str, right: int = 1, wrong: int = 3) -> Row:
    return {
        "id": row_id,
        "subset": subset,
        "prompt": f"Question {row_id}?",
        "chosen": [f"Right {i}." for i in range(right)],
        "rejected": [f"Wrong {i}." for i in range(wrong)],
        "num_correct": right,
        "num_incorrect": wrong,
        "total_completions": right + wrong,
        "models": ["someone"] * (right + wrong),
        "additional_metadata": None,
    }


def rm_bench_row(number: int) -> Row:
    return {
        "id": number,
        "prompt": f"Question {number}?",
        "chosen": ["Plain.", "More words.", "**More** words."],
        "rejected": ["Wrong.", "Wrong words.", "**Wrong** words."],
        "subset": "alpacaeval",
    }


def rmb_pair(number: int, path: str) -> Row:
    return {
        "pair_uid": str(number),
        "conversation_input": [{"role": "user", "content": "Why?", "language": "English"}],
        "chosen": {"llm_name": "someone", "answer": "Because."},
        "reject": {"llm_name": "somebody", "answer": "Why not?"},
        "category_path": path,
    }


def rmb_group(number: int, path: str, num_losers: int = 2) -> Row:
    return {
        "bon_uid": number,
        "conversation_input": [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because."},
            {"role": "user", "content": "And then?"},
        ],
        "bon_best": {"llm_name": "someone", "answer": "The best."},
        "loser_list": [{"llm_name": "x", "answer": f"Loser {i}."} for i in range(num_losers)],
        "category_path": path,
    }


def judgebench_row(number: int, source: str, label: str = "A>B") -> Row:
    return {
        "pair_id": f"pair-{number}",
        "original_id": str(number),
        "source": source,
        "question": "Which?",
        "response_model": "gpt-4o-2024-05-13",
        "response_A": "This.",
        "response_B": "That.",
        "label": label,
    }


def vote_row(number: int, winner: str, language: str = "English") -> Row:
    return {
        "question_id": f"vote-{number}",
        "prompt": "Which?",
        "response_1": "This.",
        "response_2": "That.",
        "model_a": "someone",
        "model_b": "somebody",
        "winner": winner,
        "language": language,
    }


def graded_row(number: int, scores: Sequence[float], pairs: Sequence[Sequence[int]]) -> Row:
    row: Row = {
        "question_id": f"question-{number}",
        "prompt": "How much?",
        "scores": list(scores),
        "sampled_conflict_pairs": [list(pair) for pair in pairs],
        "model_name": "someone",
    }
    return row | {f"response_{i + 1}": f"Answer {i}." for i in range(len(scores))}


def process_row(number: int, subset: str, label: int, num_steps: int = 4) -> Row:
    return {
        "id": f"{subset}-{number}",
        "generator": "someone",
        "problem": "How many?",
        "steps": [f"So {i}." for i in range(num_steps)],
        "final_answer_correct": label == -1,
        "label": label,
    }


def prm_row(
    number: int, classification: str, error_steps: Sequence[int], num_steps: int = 4
) -> Row:
    steps = [f"{i}. So {i}." for i in range(1, num_steps + 1)]
    return {
        "idx": f"row_{number}",
        "original_question": "How many?",
        "modified_question": "How many, then?",
        "original_process": steps,
        "modified_process": steps,
        "modified_steps": list(error_steps),
        "error_steps": list(error_steps),
        "reason": "",
        "classification": classification,
    }


def response_set_row(
    number: int, correct: Sequence[bool], answers: Sequence[str | None] | None = None
) -> Row:
    return {
        "id": number,
        "prompt": "How many?",
        "responses": [f"First {i}.\nThen {i}." for i in range(len(correct))],
        "correct": list(correct),
        "answers": answers and list(answers),
    }


def whole(name: str) -> list[tuple[Row, str]]:
    """All rows of a benchmark, each with the path of its file."""
    return list(_WHOLE[name]())


def _rewardbench() -> Iterator[tuple[Row, str]]:
    for subset, count in REWARDBENCH.items():
        for number in range(count):
            yield rewardbench_row(number, subset), "filtered-00000-of-00001.parquet"


def _rewardbench2() -> Iterator[tuple[Row, str]]:
    origin = "test-00000-of-00001.parquet"
    for subset, count in rewardbench2.SUBSETS.items():
        if subset != rewardbench2.TIES:
            for number in range(count):
                yield rewardbench2_row(f"{subset}-{number}", subset), origin
    for number in range(NUM_PAIRED_TIES):
        yield rewardbench2_row(f"ref:{number}", "Ties", 1, 4), origin
        yield rewardbench2_row(f"tied:{number}", "Ties", 3, 4), origin


def image_row(row_id: str, ranking: Sequence[int] = (0, 1)) -> Row:
    return {
        "id": row_id,
        "query": f"Question {row_id}?",
        "response": ["One answer.", "Another answer."],
        "image": {"bytes": f"image of {row_id}".encode(), "path": None},
        "human_ranking": list(ranking),
        "query_source": "somewhere",
    }


def solution_row(problem: int, place: int, *, right: bool = False) -> Row:
    return {
        "id": 10 * problem + place,
        "problem_id": problem,
        "problem": f"How much is {problem}?",
        "answer": "1",
        "eval_solution": [f"First {place}.", f"Then {place}."],
        "solution_reference": rewardmath.RIGHT_SOURCE if right else f"model-{place}",
        "solution_type": "chosen" if right else "rejected",
        "subject": ("Algebra", "Geometry")[problem % 2],
        "level": 1,
    }


def trajectory_row(number: int) -> Row:
    user = {"role": "user", "content": f"What is {number}?"}
    call = {"role": "tool_call", "content": "{'name': 'look_up', 'arguments': '{}'}"}
    answer = {"role": "tool_response", "content": "A number.", "name": "look_up"}
    return {
        "query": f"What is {number}?",
        "tools": [{"type": "function", "function": {"name": "look_up"}}],
        "uuid": f"pair-{number}",
        "chosen": {"messages": [user, call, answer, {"role": "assistant", "content": "This."}]},
        "reject": {"messages": [user, {"role": "assistant", "content": "I do not know."}]},
    }


def translated_row(number: int, language: str, source: str) -> Row:
    return rewardbench_row(number, "unused") | {"language": language, "source": source}


def _rm_bench() -> Iterator[tuple[Row, str]]:
    for subset, count in rm_bench.SUBSETS.items():
        for number in range(count):
            yield rm_bench_row(number), f"data/{subset}_filtered.json"


def _rmb() -> Iterator[tuple[Row, str]]:
    for section, count in rmb.SECTIONS.items():
        kind, goal = section.split("/")
        path = f"{'Pairwise_set' if kind == 'pairwise' else 'BoN_set'}/{goal.capitalize()}/S"
        make = rmb_pair if kind == "pairwise" else rmb_group
        for number in range(count):
            scenario = f"{path}{number % 3}"
            yield make(number, scenario), f"{scenario}.json"


def _judgebench() -> Iterator[tuple[Row, str]]:
    sources = {name: start for start, name in judgebench.CATEGORIES.items()}
    number = 0
    for category, count in judgebench.GPT_COUNTS.items():
        for _ in range(count):
            source = sources[category] + ("-law" if category == "knowledge" else "")
            yield judgebench_row(number, source, ("A>B", "B>A")[number % 2]), "gpt.jsonl"
            number += 1


def _votes() -> Iterator[tuple[Row, str]]:
    winners = ("model_a", "model_b", "tie", "tie (bothbad)")
    for number in range(ppe.NUM_VOTES):
        language = ("English", "Chinese")[number % 3 == 0]
        yield vote_row(number, winners[number % 4], language), "test-00000-of-00001.parquet"


def _graded() -> Iterator[tuple[Row, str]]:
    for name in ppe.SETS:
        for number in range(ppe.NUM_PROMPTS // len(ppe.SETS)):
            scores = [(number + place) % 3 == 0 for place in range(32)]
            right = [place for place, score in enumerate(scores) if score]
            wrong = [place for place, score in enumerate(scores) if not score]
            pairs = [(right[0], wrong[0]), (wrong[1], right[1])]
            yield graded_row(number, scores, pairs), f"PPE-{name}-Best-of-K/train.parquet"


def _process() -> Iterator[tuple[Row, str]]:
    for subset, title in processbench.TITLES.items():
        num_errors = processbench.COUNTS[f"{title}/error"]
        for number in range(num_errors + processbench.COUNTS[f"{title}/correct"]):
            label = number % 4 if number < num_errors else -1
            yield process_row(number, subset, label), f"{subset}.json"


def _prm() -> Iterator[tuple[Row, str]]:
    for name, count in prmbench.CLASSES.items():
        for number in range(count):
            errors = [] if name == prmbench.WITHOUT_ERRORS else [2, 3 + number % 3]
            yield prm_row(number, name, errors), f"prm800k_test_p1_4o_{name}.jsonl"


def _response_sets() -> Iterator[tuple[Row, str]]:
    for number in range(40):
        correct = [(number + place) % 3 == 0 for place in range(5)]
        yield response_set_row(number, correct, ["1", "2", None, "1", "2"]), "sets.jsonl"


def _images() -> Iterator[tuple[Row, str]]:
    prefixes = {source: prefix for prefix, source in vl_rewardbench.SOURCES.items()}
    for sources in vl_rewardbench.GROUPS.values():
        for source, count in sources.items():
            for number in range(count):
                row_id = f"{prefixes.get(source, 'svit')}-{source}-{number}"
                yield image_row(row_id, [number % 2, 1 - number % 2]), "test.parquet"


def _solutions() -> Iterator[tuple[Row, str]]:
    for problem in range(rewardmath.NUM_PROBLEMS):
        for place in range(1 + rewardmath.NUM_WRONG):
            yield solution_row(problem, place, right=place == problem % 10), "direct.json"


def _trajectories() -> Iterator[tuple[Row, str]]:
    for split, count in plan_rewardbench.SPLITS.items():
        for number in range(count):
            yield trajectory_row(number), f"benchmark/{split}.jsonl"


def _languages() -> Iterator[tuple[Row, str]]:
    sources = {"Chat": "mt-bench-easy", "Chat Hard": "llmbar-natural", "Safety": "donotanswer"}
    sources |= {"math-prm": "math-prm", "code": "hep-rust"}
    for language in m_rewardbench.LANGUAGES:
        number = 0
        for parts in m_rewardbench.PARTS.values():
            for part, count in parts.items():
                for _ in range(count):
                    number += 1
                    yield translated_row(number, language, sources[part]), "test.parquet"


_WHOLE: Mapping[str, Callable[[], Iterator[tuple[Row, str]]]] = {
    "rewardbench": _rewardbench,
    "rewardbench2": _rewardbench2,
    "rm-bench": _rm_bench,
    "rmb": _rmb,
    "judgebench": _judgebench,
    "ppe-preference": _votes,
    "ppe-correctness": _graded,
    "processbench": _process,
    "prmbench": _prm,
    "best-of-n": _response_sets,
    "vl-rewardbench": _images,
    "rewardmath": _solutions,
    "plan-rewardbench": _trajectories,
    "m-rewardbench": _languages,
}
