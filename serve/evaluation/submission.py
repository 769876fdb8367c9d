"""Submissions to leaderboards: the files of an evaluation in the form of each benchmark's runner.

RewardBench's form is that of `scripts/run_rm.py`, `scripts/run_generative.py` and
`scripts/run_v2.py` of github.com/allenai/reward-bench at 05a9005, whose files
`rewardbench.utils.save_to_hub` writes; RM-Bench's that of `scripts/run_rm.py` of
github.com/THU-KEG/RM-Bench at 73c52d7 and of the table of github.com/THU-KEG/RM-Bench-Leaderboard;
JudgeBench's that of `run_judge.py` of github.com/ScalerLab/JudgeBench at e2c52c2.

The repositories of the other benchmarks describe no submissions; that of PPE was not at hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rm_core import find_entry, load_encoder
from rm_core.benchmarks.base import Benchmark, DecomposableBenchmark, Item, ScoredItem
from rm_core.benchmarks.rewardbench import PRIOR_SETS
from rm_core.benchmarks.rewardbench2 import grade_best
from rm_core.benchmarks.rm_bench import NUM_STYLES
from rm_core.inputs.conversations import Messages, join
from rm_core.inputs.encoder import ChatEncoder
from rm_core.text import format_names
from serve.errors import EvaluationError
from serve.evaluation.compare import LoadedRun, load_run
from serve.evaluation.result import DIFFICULTY
from serve.jobs.atomic_io import reject_foreign_link, write_atomically
from serve.jobs.command import build_model_config
from serve.jobs.inputs.source import open_source
from serve.reports.format import format_percent

Render = Callable[[Messages], str | Messages]
_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_MAX_SHOWN = 3
_LEADERBOARD_COLUMNS = (
    *("Model Name", "Model Type", "Chat", "Math", "Code", "Safety", "Easy", "Normal", "Hard"),
    *("Domain Avg", "Difficulty Avg", "Overall", "Potentially Score Mismatch", "License Type"),
)


@dataclass(frozen=True, slots=True)
class Submission:
    """A complete evaluation, and what is known of its model.

    Attributes:
        run: the evaluation.
        model: name of the model, `ORG/NAME`.
        render: returns the text of a conversation, or the messages as they are.
        data: location of the published rows; None if not given.
    """

    run: LoadedRun
    model: str
    render: Render
    data: str | None

    @property
    def scored_items(self) -> Sequence[ScoredItem]:
        """Items with their rewards, in the order of the data."""
        return self.run.scored_items

    @property
    def has_verdicts(self) -> bool:
        """Whether a judge compared the responses."""
        return any(one.log_odds for one in self.scored_items)

    @property
    def has_step_rewards(self) -> bool:
        """Whether a step model scored the responses."""
        return any(one.step_rewards for one in self.scored_items)


def write_submission(
    folder: Path,
    output: Path,
    *,
    name: str | None,
    model: str | None,
    data: str | None,
    notify: Callable[[str], None],
) -> None:
    """Write the files of a submission.

    Args:
        folder: folder of the evaluation.
        output: folder to write to.
        name: name of the model, `ORG/NAME`; None for the name in the evaluation or the catalogue.
        model: local folder or hub id of the model, whose chat template renders texts; None for
            messages in place of texts.
        data: location of the published rows, for a form that repeats them.
        notify: prints a line for the user.

    Raises:
        EvaluationError: the benchmark has no form for submissions, the evaluation is partial or of
            another variant or kind of model, or `name` or `data` is missing.
        RewardError: the evaluation, the data or the chat template cannot be read.
    """
    run = load_run(folder, benchmark=None, data=None, split=None, notify=notify)
    build, instructions = _find_form(run.benchmark)
    if missing := run.result.missing:
        more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        raise EvaluationError(
            f"{folder} is a partial result of {run.benchmark.title}, and a submission needs all "
            f"items; missing: {'; '.join(missing[:_MAX_SHOWN])}{more}"
        )
    for option, value, names in (
        ("--model", model, ("rewardbench", "rewardbench2")),
        ("--data", data, ("judgebench",)),
    ):
        if value is not None and run.benchmark.name not in names:
            raise EvaluationError(f"{option} has no effect on {run.benchmark.name}; leave it out")
    submission = Submission(run, _choose_name(name, run), _build_render(model), data)
    files = build(submission)
    reject_foreign_link(output)
    for path, content in files.items():
        target = output / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content.encode())
        notify(f"wrote {target}")
    if model is None and any("-scores/" in path for path in files):
        notify(
            "the texts are messages; with --model NAME they are rendered by that model's chat "
            "template, as RewardBench's scripts do"
        )
    notify(instructions)


def _find_form(benchmark: Benchmark) -> tuple[Callable[[Submission], dict[str, str]], str]:
    if benchmark.name not in _FORMS:
        raise EvaluationError(
            f"no form of submissions is known for {benchmark.title}; there are forms for "
            f"{', '.join(_FORMS)}, and summary.md is a table for a model card"
        )
    return _FORMS[benchmark.name]


def _choose_name(name: str | None, run: LoadedRun) -> str:
    entry = None if name else find_entry(run.name)
    chosen = name or (entry.id if entry else run.name)
    if _MODEL_NAME.fullmatch(chosen) is None:
        raise EvaluationError(
            f"the name of the model is {chosen!r}; a submission needs ORG/NAME: give --name "
            "ORG/NAME"
        )
    return chosen


def _build_render(model: str | None) -> Render:
    if model is None:
        return lambda messages: messages
    encoder = load_encoder(build_model_config(model))
    if not isinstance(encoder, ChatEncoder):
        raise EvaluationError(
            f"{model} reads no conversations, so it cannot render their texts; leave out --model"
        )
    return encoder.render_with_transformers


def _build_rewardbench(submission: Submission) -> dict[str, str]:
    """Build accuracies by subset and rewards by row, for the core set and for prior sets."""
    judge_orders = submission.run.benchmark.options.to_dict()["judge_orders"]
    if submission.has_verdicts and judge_orders != "one":
        raise EvaluationError(
            "RewardBench shows a judge each pair in one order, and this evaluation has the variant "
            f"judge_orders={judge_orders}; give its scores.jsonl to `skyreward eval rewardbench "
            "--scores` without that variant"
        )
    model_type = "Seq. Classifier"
    if submission.has_verdicts:
        model_type = "Generative RM"
    elif submission.has_step_rewards:
        model_type = "Custom Classifier"
    template = None if submission.has_verdicts else "tokenizer"
    head = {"model": submission.model, "model_type": model_type}
    subsets = submission.run.result.subsets
    files = {}
    for folder, is_prior in (("eval-set", False), ("pref-sets", True)):
        rows = [
            one for one in submission.scored_items if (one.item.subset in PRIOR_SETS) is is_prior
        ]
        if not rows:
            continue
        accuracies = {one.item.subset: subsets[one.item.subset].score for one in rows}
        path = f"{submission.model}.json"
        files[f"{folder}/{path}"] = _dump(head | {"chat_template": template} | accuracies)
        # The scripts publish no rewards of custom classifiers.
        if model_type != "Custom Classifier":
            columns = _list_rewardbench_rows(submission, rows) | head
            if not submission.has_verdicts:
                columns["chat_template"] = template
            files[f"{folder}-scores/{path}"] = _dump(columns)
    return files


def _list_rewardbench_rows(submission: Submission, rows: Sequence[ScoredItem]) -> dict[str, Any]:
    benchmark = submission.run.benchmark
    assert isinstance(benchmark, DecomposableBenchmark)
    grades = [float(benchmark.grade_item(one).right) for one in rows]
    columns: dict[str, Any] = {
        "results": [grade if grade == 0.5 else int(grade) for grade in grades],
        "subset": [one.item.subset for one in rows],
        "id": [int(one.item.id) if one.item.id.isdecimal() else one.item.id for one in rows],
    }
    # Judges read messages, so that their texts are not rendered.
    render = (lambda messages: messages) if submission.has_verdicts else submission.render
    for index, name in enumerate(("chosen", "rejected")):
        columns[f"text_{name}"] = [render(_join(one.item)[index]) for one in rows]
        if not submission.has_verdicts:
            columns[f"scores_{name}"] = [one.rewards[index] for one in rows]
    return columns


def _build_rewardbench2(submission: Submission) -> dict[str, str]:
    """Build the scores of six subsets, and the rewards of all responses by row."""
    rows = submission.scored_items
    head = {
        "model": submission.model,
        "model_type": "Custom Classifier" if submission.has_step_rewards else "Seq. Classifier",
        "chat_template": "tokenizer",
    }
    scores = {name: one.score for name, one in submission.run.result.subsets.items()}
    path = f"{submission.model}.json"
    files = {f"eval-set/{path}": _dump(head | scores)}
    if not submission.has_step_rewards:
        columns = {
            "text": [[submission.render(one) for one in _join(row.item)] for row in rows],
            "scores": [list(row.rewards) for row in rows],
            # Of a row of Ties too, whose score is computed from several rows.
            "results": [float(grade_best(row).right) for row in rows],
            "subset": [row.item.subset for row in rows],
            "id": [row.item.id for row in rows],
            "num_correct": [row.item.metadata.get("num_correct", 1) for row in rows],
        }
        files[f"eval-set-scores/{path}"] = _dump(columns | head)
    return files


def _build_rm_bench(submission: Submission) -> dict[str, str]:
    """Build a row of the leaderboard's table, and the result file unless a judge has no scores."""
    result, model = submission.run.result, submission.model
    scores = [result.sections[name].score for name in ("chat", "math", "code", "safety")]
    scores += [result.extra[DIFFICULTY][name] for name in ("easy", "normal", "hard")]
    overall = result.overall  # which is the mean of the domains and that of the difficulties
    cells = [
        f"[{model.split('/')[1]}](https://huggingface.co/{model})",
        "GenRM" if submission.has_verdicts else "Scalar RM",
        *(format_percent(score, 1, unit="") for score in (*scores, overall, overall, overall)),
        *("False", "Unknown"),
    ]
    lines = (_LEADERBOARD_COLUMNS, ["---"] * len(cells), cells)
    files = {"row.md": "".join(f"| {' | '.join(line)} |\n" for line in lines)}
    if not submission.has_verdicts:
        rows = [
            {
                "id": int(one.item.id) if one.item.id.isdecimal() else one.item.id,
                "prompt": one.item.prompt[0]["content"],
                "chosen": one.item.responses[:NUM_STYLES],
                "rejected": one.item.responses[NUM_STYLES:],
                "domain": one.item.subset,
                "score_chosen": list(one.rewards[:NUM_STYLES]),
                "score_rejected": list(one.rewards[NUM_STYLES:]),
            }
            for one in submission.scored_items
        ]
        path = f"results/Seq_Classifier/{model}/total_dataset_{model.split('/')[1]}.json"
        files[path] = json.dumps(rows, indent=4, ensure_ascii=False)
    return files


def _build_judgebench(submission: Submission) -> dict[str, str]:
    """Build the published rows with the scores and the decisions of both orders."""
    if submission.has_verdicts:
        raise EvaluationError(
            "JudgeBench's form has the prompt and the reply of a judge, and a judge is read here "
            "at one token of its reply; submit the judge's implementation without results"
        )
    if submission.data is None:
        raise EvaluationError(
            "JudgeBench's form repeats the published rows; give their location with --data PATH"
        )
    rows = _read_rows(submission.run, submission.data)
    lines, response_models = [], set()
    for one in submission.scored_items:
        row = rows[one.item.id]
        response_models.add(str(row.get("response_model")))
        judgments = [
            {
                "judgment": {"judge_model": submission.model, "scores": scores},
                "decision": "A>B" if scores[0] > scores[1] else "B>A",
            }
            for scores in (list(one.rewards), list(one.rewards)[::-1])
        ]
        line = {**row, "judge_name": "reward_model", "judgments": judgments}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    path = (
        f"outputs/dataset=judgebench,response_model={'+'.join(sorted(response_models))},"
        f"judge_name=reward_model,judge_model={submission.model.replace('/', '_')}.jsonl"
    )
    return {path: "".join(lines)}


def _read_rows(run: LoadedRun, data: str) -> dict[str, Mapping[str, Any]]:
    """Return the published row of each item by id.

    Raises:
        EvaluationError: an item has no row, or a row has other texts.
    """
    items = {one.item.id: one.item for one in run.scored_items}
    rows: dict[str, Mapping[str, Any]] = {}
    for row in open_source(data).iter_rows():
        record = row.record
        if isinstance(record, Mapping) and (item := items.get(str(record.get("pair_id")))):
            if run.benchmark.read(record, data) != item:
                raise EvaluationError(
                    f"{item.label} has other texts in {data} than in {run.path}; give the rows of "
                    "the evaluation"
                )
            rows[item.id] = record
    if missing := items.keys() - rows.keys():
        raise EvaluationError(
            f"{data} lacks {len(missing)} rows of the evaluation: {format_names(sorted(missing))}"
        )
    return rows


def _join(item: Item) -> Sequence[Messages]:
    return [join(item.prompt, response) for response in item.responses]


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=4, sort_keys=True, allow_nan=False)


_FORMS: Mapping[str, tuple[Callable[[Submission], dict[str, str]], str]] = {
    "rewardbench": (
        _build_rewardbench,
        "to submit: open an issue at github.com/allenai/reward-bench with the name of the model; "
        "the files have the form of the data set allenai/reward-bench-results",
    ),
    "rewardbench2": (
        _build_rewardbench2,
        "to submit: open an issue at github.com/allenai/reward-bench with the name of the model; "
        "the files have the form of the data set allenai/reward-bench-2-results",
    ),
    "rm-bench": (
        _build_rm_bench,
        "to submit: open a pull request at github.com/THU-KEG/RM-Bench-Leaderboard with the row of "
        "row.md, its license type, a link to your paper or project, and the result file",
    ),
    "judgebench": (
        _build_judgebench,
        "to submit: open a pull request at github.com/ScalerLab/JudgeBench with the implementation "
        "of the judge, and an issue that names it; the file belongs to its folder outputs/",
    ),
}
