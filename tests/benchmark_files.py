"""Rows of benchmarks in their published form, made up, and files of them."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

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


def processbench(num_rows: int = 6, seed: int = 0) -> RowsOf:
    rng = random.Random(seed)
    return {
        f"{subset}.json": [
            {
                "id": f"{subset}-{index}",
                "generator": "a-model",
                "problem": text(rng),
                "steps": [text(rng) for _ in range(3)],
                "final_answer_correct": index % 2 == 0,
                "label": -1 if index % 2 == 0 else index % 3,
            }
            for index in range(num_rows)
        ]
        for subset in ("gsm8k", "math", "olympiadbench", "omnimath")
    }


def prmbench(num_rows: int = 2, seed: int = 0) -> RowsOf:
    rng = random.Random(seed)
    names = ("circular", "confidence", "counterfactual", "deception", "domain_inconsistency")
    more = ("missing_condition", "redundency", "step_contradiction", "multi_solutions")
    return {
        f"prm_test_{name}.jsonl": [
            {
                "idx": f"prm_{index}",
                "modified_question": text(rng),
                "modified_process": [f"{step + 1}. {text(rng)}" for step in range(3)],
                "error_steps": [] if name == "multi_solutions" else [2],
                "classification": name,
            }
            for index in range(num_rows)
        ]
        for name in (*names, *more)
    }


def best_of_n(num_rows: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [
        {
            "id": f"set-{index}",
            "prompt": text(rng),
            "responses": [f"{text(rng)}\n{text(rng)}" for _ in range(4)],
            "correct": [True, False, index % 2 == 0, False],
            "answers": ["7", "8", "7", None],
        }
        for index in range(num_rows)
    ]


def png(seed: int = 0, size: tuple[int, int] = (8, 6)) -> bytes:
    """A small picture of random pixels."""
    pixels = random.Random(seed).randbytes(3 * size[0] * size[1])
    file = io.BytesIO()
    Image.frombytes("RGB", size, pixels).save(file, "PNG")
    return file.getvalue()


def vl_rewardbench(num_rows: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of every source; images as base64, some of them shared."""
    rng = random.Random(seed)
    ids = ("wildvision-battle-", "RLAIF-V-", "RLHF-V-", "hallucination_pair-", "mathverse_")
    return [
        {
            "id": f"{(*ids, 'mmmu_pro_test_Art_', 'svit-')[index % 7]}{index}",
            "query": ("<image>\n" if index % 7 == 3 else "") + text(rng),
            "response": [text(rng), text(rng)],
            "image": base64.b64encode(png(index // 2)).decode(),
            "human_ranking": [index % 2, 1 - index % 2],
            "models": ["one", "another"],
            "judge": "human",
            "rationale": None,
            "query_source": "made up",
        }
        for index in range(num_rows)
    ]


def rewardmath(num_problems: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Ten rows a problem, one solution each; the right one at another place in each problem."""
    rng = random.Random(seed)
    rows = []
    for problem in range(num_problems):
        question = text(rng)
        for place in range(10):
            is_right = place == problem
            rows.append(
                {
                    "id": 10 * problem + place,
                    "problem_id": 7 * problem,
                    "problem": question,
                    "answer": "1",
                    "eval_solution": [text(rng), text(rng)],
                    "solution_reference": "human_to_GPT-4" if is_right else f"model-{place}",
                    "solution_type": "chosen" if is_right else "rejected",
                    "subject": ("Algebra", "Geometry")[problem % 2],
                    "level": 1,
                }
            )
    return rows


def plan_rewardbench(num_rows: int = 2, seed: int = 0) -> RowsOf:
    """Two splits; the pairs of a split share their `uuid`."""
    rng = random.Random(seed)

    def trajectory(query: str) -> dict[str, Any]:
        call = {"name": "look_up", "arguments": '{"key": "' + text(rng) + '"}'}
        return {
            "messages": [
                {"role": "user", "content": query},
                {"role": "tool_call", "content": str(call)},
                {"role": "tool_response", "content": text(rng), "name": "look_up"},
                {"role": "assistant", "content": text(rng)},
            ]
        }

    def rows() -> list[dict[str, Any]]:
        query = text(rng)
        tools = [{"type": "function", "function": {"name": "look_up", "description": "Ü"}}]
        return [
            {
                "query": query,
                "tools": tools,
                "uuid": "one",
                "chosen": trajectory(query),
                "reject": trajectory(query),
            }
            for _ in range(num_rows)
        ]

    return {f"{name}.jsonl": rows() for name in ("planning_multi_easy", "tool_irrelevance")}


def m_rewardbench(num_rows: int = 12, seed: int = 0) -> RowsOf:
    """A file for each of two languages, of RewardBench's rows."""
    return {
        f"{language}/test-00000-of-00001.jsonl": [
            row | {"language": language, "source": row["subset"], "subset": "translated"}
            for row in rewardbench(num_rows, seed + place)
        ]
        for place, language in enumerate(("deu_Latn", "zho_Hans"))
    }


EVERY: dict[str, RowsOf] = {
    "rewardbench": {"filtered-00000-of-00001.jsonl": rewardbench()},
    "rewardbench2": {"test-00000-of-00001.jsonl": rewardbench2()},
    "rm-bench": rm_bench(),
    "rmb": rmb(),
    "judgebench": {"dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl": judgebench()},
    "ppe-preference": {"test-00000-of-00001.jsonl": ppe_preference()},
    "ppe-correctness": {"PPE-GPQA-Best-of-K/train-00000-of-00001.jsonl": ppe_correctness()},
    "processbench": processbench(),
    "prmbench": prmbench(),
    "best-of-n": {"sets.jsonl": best_of_n()},
    "vl-rewardbench": {"test-00000-of-00001.jsonl": vl_rewardbench()},
    "rewardmath": {"RewardMATH_direct.json": rewardmath()},
    "plan-rewardbench": plan_rewardbench(),
    "m-rewardbench": m_rewardbench(),
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
