<<<<<<< HEAD
"""Rows of benchmarks in their published form, made up, and files of them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

RowsOf = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by the name of their file."""

_WORDS = [f"word{number}" for number in range(200)]


def text(rng: random.Random) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(3, 12)))


def rewardbench(num_rows: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    subsets = ["alpacaeval-easy", "llmbar-natural", "donotanswer", "math-prm", "hep-rust"]
    return [
        {
            "prompt": text(rng),
            "chosen": text(rng),
            "chosen_model": "one",
            "rejected": text(rng),
            "rejected_model": "another",
            "subset": subsets[index % len(subsets)],
            "id": index,
        }
        for index in range(num_rows)
    ]


def rewardbench2(seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = [
        {
            "id": str(index),
            "prompt": text(rng),
            "chosen": [text(rng)],
            "rejected": [text(rng) for _ in range(3)],
            "num_correct": 1,
            "subset": subset,
        }
        for index, subset in enumerate(["Factuality", "Focus", "Math", "Precise IF", "Safety"])
    ]
    for kind, right in (("ref", 1), ("tied", 3)):
        rows.append(
            {
                "id": f"{kind}:7",
                "prompt": text(rng),
                "chosen": [text(rng) for _ in range(right)],
                "rejected": [text(rng) for _ in range(2)],
                "num_correct": right,
                "subset": "Ties",
            }
        )
    return rows


def rm_bench(num_rows: int = 3, seed: int = 0) -> RowsOf:
    """The files of the repository; ids repeat in all of them."""
    rng = random.Random(seed)

    def rows() -> list[dict[str, Any]]:
        return [
            {
                "id": index,
                "subset": "alpacaeval",
                "prompt": text(rng),
                "chosen": [text(rng) for _ in range(3)],
                "rejected": [text(rng) for _ in range(3)],
            }
            for index in range(num_rows)
        ]

    names = ("chat", "code", "math", "safety-refuse", "safety-response")
    return {f"{name}_filtered.json": rows() for name in names}


def rmb(seed: int = 0) -> RowsOf:
    rng = random.Random(seed)

    def turns() -> list[dict[str, str]]:
        return [{"role": "user", "content": text(rng), "language": "English"}]

    found: dict[str, list[dict[str, Any]]] = {}
    for goal, scenario in (("Helpfulness", "Chat/Discussion"), ("Harmlessness", "S1")):
        pairs, groups = f"Pairwise_set/{goal}/{scenario}", f"BoN_set/{goal}/{scenario}"
        found[f"{pairs}.json"] = [
            {
                "pair_uid": str(index),
                "conversation_input": turns(),
                "chosen": {"answer": text(rng)},
                "reject": {"answer": text(rng)},
                "category_path": pairs,
            }
            for index in range(2)
        ]
        found[f"{groups}.json"] = [
            {
                "bon_uid": str(index),
                "conversation_input": turns(),
                "bon_best": {"answer": text(rng)},
                "loser_list": [{"answer": text(rng)} for _ in range(2 + index)],
                "category_path": groups,
            }
            for index in range(2)
        ]
    return found


def judgebench(num_rows: int = 6, seed: int = 0, model: str = "gpt-4o-2024-05-13") -> list[Any]:
    rng = random.Random(seed)
    sources = ["mmlu-pro-law", "livebench-math", "livecodebench", "livebench-reasoning"]
    return [
        {
            "pair_id": f"{model}-{index}",
            "source": sources[index % len(sources)],
            "question": text(rng),
            "response_model": model,
            "response_A": text(rng),
            "response_B": text(rng),
            "label": "A>B" if index % 2 else "B>A",
        }
        for index in range(num_rows)
    ]


def ppe_preference(num_rows: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    winners = ["model_a", "model_b", "tie"]
    return [
        {
            "question_id": f"v{index}",
            "prompt": text(rng),
            "response_1": text(rng),
            "response_2": text(rng),
            "winner": winners[index % 3],
            "language": "English",
        }
        for index in range(num_rows)
    ]


def ppe_correctness(num_rows: int = 3, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "question_id": f"q{index}",
            "prompt": text(rng),
            **{f"response_{number}": text(rng) for number in range(1, 5)},
            "scores": [True, False, True, False],
            "sampled_conflict_pairs": [[0, 1], [3, 2]],
            "model_name": "a-model",
        }
        for index in range(num_rows)
    ]


EVERY: dict[str, RowsOf] = {
    "rewardbench": {"filtered-00000-of-00001.jsonl": rewardbench()},
    "rewardbench2": {"test-00000-of-00001.jsonl": rewardbench2()},
    "rm-bench": rm_bench(),
    "rmb": rmb(),
    "judgebench": {"dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl": judgebench()},
    "ppe-preference": {"test-00000-of-00001.jsonl": ppe_preference()},
    "ppe-correctness": {"PPE-GPQA-Best-of-K/train-00000-of-00001.jsonl": ppe_correctness()},
}


def write(folder: Path, rows_of: RowsOf) -> Path:
    """Each file as its name says; returns the folder."""
    for name, rows in rows_of.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(list(rows)), path)
            continue
        written = json.dumps(rows) if ".json" in path.suffixes else lines(rows)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(written.encode()))
        else:
            path.write_text(written)
    return folder


def lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
=======
"""Rows as benchmarks publish them, with made-up texts, and rewards that are right as often as told.

`whole(NAME)` is a whole benchmark, of the published counts of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rm_core.benchmarks import judgebench, ppe, rewardbench, rewardbench2, rm_bench, rmb
from rm_core.benchmarks.records import Benchmark, Item, ScoredItem

Row = dict[str, Any]
Rewards = Sequence[float]
RIGHT, WRONG = (1.0, 0.0), (0.0, 1.0)

REWARDBENCH = {name: n for rows in rewardbench.SECTIONS.values() for name, n in rows.items()}
# Numbers of Ties, each with a ref and a tied row: 102 rows.
NUM_PAIRED_TIES = 51


def read(benchmark: Benchmark, rows: Iterable[tuple[Row, str]]) -> list[Item]:
    return [benchmark.read(row, origin) for row, origin in rows]


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


_WHOLE: Mapping[str, Callable[[], Iterator[tuple[Row, str]]]] = {
    "rewardbench": _rewardbench,
    "rewardbench2": _rewardbench2,
    "rm-bench": _rm_bench,
    "rmb": _rmb,
    "judgebench": _judgebench,
    "ppe-preference": _votes,
    "ppe-correctness": _graded,
}
>>>>>>> eval-a
