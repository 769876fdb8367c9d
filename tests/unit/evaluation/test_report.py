"""The HTML report of an evaluation: its sections, its order, and escaping of text."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from evaluations import NASTY, evaluation
from html_pages import check_page, text_of
from published_rows import read, whole

from rm_core.benchmarks.base import ScoredItem
from rm_core.benchmarks.registry import BENCHMARKS
from serve.evaluation.report import build_pairs, write_report
from serve.evaluation.result import Evaluation


def render(folder: Path, *evaluations: Evaluation) -> str:
    write_report(folder / "report.html", evaluations)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "plots"),
    [
        # Many subsets are plotted in two halves.
        ("rewardbench", {"Sections", "Subsets, first half", "Subsets, second half"}),
        ("rewardbench2", {"Sections"}),
        ("rm-bench", {"Sections", "Subsets", "Styles"}),
        ("ppe-correctness", {"Sections", "Best of n: overall", "Best of n: MATH"}),
    ],
)
def test_report_has_all_sections(tmp_path: Path, name: str, plots: set[str]) -> None:
    one = evaluation(name)
    page = render(tmp_path, one)
    check_page(page)
    labels = {label.split(":")[0] if "Best" not in label else label for label in _find_labels(page)}
    common = {"Margins", "Calibration", "characters", "characters of the prompt"}
    assert plots | common <= labels
    text = text_of(page)
    assert one.result.overall is not None
    for expected in (
        f"{one.result.overall:.2%} overall", "95% interval", "Partial result.",
        "1 item without rewards, excluded from all metrics.", "Comparison with published results",
        f"{100 * one.result.overall:.2f} 94.3", "calibration error (ECE)", "Brier score",
        "better response is longer", "Worst mistakes", "Not scored", "conversation_too_long",
        "max_length 2,048", "Scoring job: demo",
    ):  # fmt: skip
        assert expected in text, expected
    for missing in one.result.missing[:6]:
        assert missing in text
    for section in one.result.sections:
        assert section in text


def _find_labels(page: str) -> list[str]:
    return re.findall(r'<svg [^>]*aria-label="([^"]*)"', page)


@pytest.mark.parametrize(
    ("name", "plots", "texts"),
    [
        ("processbench", {"Sections", "Subsets"}, ["thresholds: GSM8K", "MATH/error"]),
        ("prmbench", {"Sections"}, ["negative f1", "mean of sections", "multi_solutions"]),
        (
            "best-of-n",
            {"Best of n: overall"},
            ["accuracy: product", "majority", "best response", "worst response"],
        ),
        ("judgebench", {"Sections", "Margins", "Worst mistakes"}, ["better response"]),
    ],
)
def test_report_of_step_models_and_judges(
    tmp_path: Path, name: str, plots: set[str], texts: list[str]
) -> None:
    benchmark, rng = BENCHMARKS[name], random.Random(2)
    items = read(benchmark, whole(name)[::15])
    scored = []
    for item in items:
        rewards = [rng.random() for _ in item.responses]
        if name == "judgebench":
            log_odds = [[rng.gauss(0, 1), rng.gauss(0, 1)] for _ in item.pairs]
            scored.append(ScoredItem(item, log_odds=log_odds))
        elif name == "best-of-n":
            scored.append(ScoredItem(item, rewards, step_rewards=[[r, 1 - r] for r in rewards]))
        else:
            scored.append(ScoredItem(item, rewards))
    one = Evaluation(benchmark, "demo", benchmark.compute_result(scored), tuple(scored))
    page = render(tmp_path, one)
    check_page(page)
    labels = set(_find_labels(page)) | set(re.findall(r"<h2>([^<]*)</h2>", page))
    assert plots <= labels
    for text in texts:
        assert text in text_of(page)


def test_report_is_reproducible_and_escapes_text(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = evaluation("rm-bench", model=NASTY + "\ud800")
    page = render(tmp_path / "a", one, evaluation("rm-bench", model="other", seed=1))
    second_page = render(
        tmp_path / "b",
        evaluation("rm-bench", model=NASTY + "\ud800"),
        evaluation("rm-bench", model="other", seed=1),
    )
    assert page == second_page
    check_page(page)
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page


def test_report_compares_several_models(tmp_path: Path) -> None:
    both = [evaluation("rm-bench", model=f"model-{n}", seed=n) for n in range(2)]
    page = render(tmp_path, *both)
    text = text_of(page)
    for one in both:
        assert one.result.overall is not None
        assert f"{one.model} {one.result.overall:.2%}" in text
        assert f"Worst mistakes: {one.model}" in text
        assert f"Styles: {one.model}" in text
        assert f"{one.model}: Partial result." in text
    best = max(one.result.overall or 0.0 for one in both)
    assert f'<td class="best">{best:.2%}</td>' in page


def test_worst_mistakes_are_largest_wrong_margins_per_item(tmp_path: Path) -> None:
    one = evaluation("rm-bench", size=30)
    page = render(tmp_path, one)
    worst: dict[object, float] = {}
    for pair in build_pairs(one.scored_items):
        if pair.margin <= 0:
            worst[pair.scored_item.item.key] = min(
                pair.margin, worst.get(pair.scored_item.item.key, 0.0)
            )
    expected = [f"{margin:.2f}".replace("-", "\N{MINUS SIGN}") for margin in sorted(worst.values())]
    assert len(expected) > 20
    assert re.findall(r'<span class="number">([^<]*)</span>', page) == expected[:20]


def test_pair_is_measured_from_better_response() -> None:
    one = evaluation("ppe-correctness")
    item, rewards, *_ = one.scored_items[0]
    first, second = build_pairs([ScoredItem(item, rewards)])
    # The two sampled pairs are the same pair, whose better response is the second one.
    assert first.preference == second.preference == (1, 0)
    assert first.margin == rewards[1] - rewards[0]
    assert first.length_difference == len(item.responses[1]) - len(item.responses[0])
    assert first.prompt_length == len(NASTY)
    assert first.correct == float(rewards[1] > rewards[0])


def test_report_without_scored_items(tmp_path: Path) -> None:
    full = evaluation("rewardbench", size=1)
    empty = Evaluation(full.benchmark, "demo", full.benchmark.compute_result([]), ())
    page = render(tmp_path, empty)
    check_page(page)
    assert "Partial result." in page
    assert "\N{EM DASH} overall" in text_of(page)


def test_report_says_that_items_are_too_few_for_intervals(tmp_path: Path) -> None:
    one = evaluation("rewardbench", size=1)
    tile = re.search(r"<b>[^<]*</b>[^<]*95% interval", page := render(tmp_path, one))
    assert tile is not None
    assert tile[0] == "<b>\N{EM DASH}</b>too few items for a 95% interval"
    assert "%, too few items for a 95% interval, 5 of " in page  # the section Chat
    (tmp_path / "report.html").unlink()
    text = text_of(render(tmp_path, one, evaluation("rewardbench", model="large")))
    assert f"demo {one.result.overall:.2%} too few items" in text
    assert re.search(r"large [\d.]+% [\d.]+ to [\d.]+ ", text)


def test_perfect_complete_result_has_no_warning(tmp_path: Path) -> None:
    one = evaluation("rewardbench", size=2)
    scored = tuple(ScoredItem(item, [1.0, 0.0]) for item, *_ in one.scored_items)
    result = one.benchmark.compute_result(scored)
    complete = type(result)(result.overall, result.sections, result.subsets, result.extra)
    page = render(tmp_path, Evaluation(one.benchmark, "demo", complete, scored))
    assert "Partial" not in page
    assert "Worst mistakes" not in page
    assert "100.00% overall" in text_of(page)


def test_report_refuses_several_benchmarks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one benchmark"):
        write_report(tmp_path / "x.html", [evaluation("rewardbench"), evaluation("rm-bench")])
