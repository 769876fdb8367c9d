"""Reports in a real browser: no console errors, all plots are visible, no horizontal overflow.

Pages of leaderboards are also checked with axe-core.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import OpenPage, PageLog, find_violations
from evaluations import evaluation

from rm_core import Reward
from rm_core.benchmarks.registry import BENCHMARKS
from serve.evaluation.files import build_summary
from serve.evaluation.leaderboard import read_local_results
from serve.evaluation.leaderboard_page import write_leaderboard_page
from serve.evaluation.report import write_report
from serve.jobs.report import Report
from serve.jobs.row_results import RowResults
from serve.jobs.summary import Summary

_LONG = "Skywork/Skywork-Reward-" + "V2-" * 25 + "8B"
# A plot is drawn if all of its lines and texts have a size and are within the plot.
_PLOTS = """[...document.querySelectorAll('svg')].map(svg => {
  const box = svg.getBoundingClientRect(), shapes = [...svg.querySelectorAll(':not(g, title)')];
  const visible = shapes.filter(shape => {
    const bounds = shape.getBoundingClientRect();
    return bounds.width + bounds.height > 0
      && bounds.left >= box.left - 8 && bounds.right <= box.right + 8;
  });
  return [box.width, box.height, shapes.length, visible.length];
})"""
_OVERFLOWING = """[...document.querySelectorAll('body *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && box.right > document.documentElement.clientWidth + 1
    && !one.closest('.wide');
}).map(one => one.outerHTML.slice(0, 90))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of a job, and reports of evaluations."""
    folder = tmp_path_factory.mktemp("pages")
    names = ("job", "rewardbench", "rewardbench2", "rm-bench", "ppe-correctness")
    paths = {name: folder / f"{name}.html" for name in names}
    report = Report(paths["job"], "<scored>.jsonl")
    for number in range(200):
        report.add(
            RowResults("pair", [Reward(number / 7 % 9, number + 5), Reward(number / 3 % 5, 50)])
        )
    report.write(Summary(num_rows=200, num_tokens=1_000, seconds=2.0))
    for name in names[1:]:
        models = [_LONG, "b"] if name in ("rewardbench", "ppe-correctness") else [_LONG]
        write_report(
            paths[name], [evaluation(name, model, seed=n) for n, model in enumerate(models)]
        )
    return paths


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(
    ("name", "num_plots"),
    [("job", 3), ("rewardbench", 7), ("rewardbench2", 5), ("rm-bench", 7), ("ppe-correctness", 11)],
)
def test_report_fits_page_and_draws_all_plots(
    open_page: OpenPage, page_log: PageLog, pages: dict[str, Path], name: str, num_plots: int,
    width: int,
) -> None:  # fmt: skip
    url = pages[name].resolve().as_uri()
    page = open_page(url, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_OVERFLOWING) == []
        plots = page.evaluate(_PLOTS)
        assert len(plots) == num_plots
        for plot_width, plot_height, num_shapes, num_visible in plots:
            assert plot_width > 0.7 * min(width, 560)
            assert plot_height > 40
            assert num_shapes == num_visible > 3
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, background[4:-1].split(","))) < 60) == (scheme == "dark")
    assert page_log.complaints == []
    assert page_log.requests == [url]


NAMES = ("rewardbench", "rewardbench2", "rm-bench", "ppe-correctness")


@pytest.fixture(scope="module")
def leaderboards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of all benchmarks with many models, with two, and of one benchmark with one model."""
    models = [_LONG, "Skywork/Skywork-Reward-V2-Qwen3-0.6B", *(f"model-{n}" for n in range(10))]
    paths = {}
    for name, benchmarks, shown in (
        ("many", list(BENCHMARKS), models),
        ("two", list(NAMES), models[:2]),
        ("one", ["rm-bench"], models[:1]),
    ):
        folder = tmp_path_factory.mktemp(name)
        for benchmark in NAMES:
            for number, model in enumerate(shown):
                place = folder / f"{number}" / benchmark
                place.mkdir(parents=True)
                one = evaluation(benchmark, model, seed=number)
                (place / "summary.json").write_text(json.dumps(build_summary(one)))
                (place / "report.html").write_text("<title>report</title>")
        paths[name] = folder / "page.html"
        write_leaderboard_page(paths[name], benchmarks, read_local_results([folder]))
    return paths


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(("name", "num_plots"), [("many", 0), ("two", 4), ("one", 1)])
def test_leaderboard_fits_page_and_is_accessible(
    open_page: OpenPage, page_log: PageLog, leaderboards: dict[str, Path], name: str,
    num_plots: int, width: int,
) -> None:  # fmt: skip
    url = leaderboards[name].resolve().as_uri()
    page = open_page(url, width)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_OVERFLOWING) == []
        plots = page.evaluate(_PLOTS)
        assert len(plots) == num_plots
        for _, _, num_shapes, num_visible in plots:
            assert num_shapes == num_visible > 3
        assert find_violations(page) == []
    # The name of a model stays visible while its row is scrolled.
    table = page.locator(".wide").first
    head = table.locator("tbody .first").first
    before = head.bounding_box()
    table.evaluate("table => { table.scrollLeft = 300 }")
    after = head.bounding_box()
    assert before is not None
    assert after is not None
    assert after["x"] == pytest.approx(before["x"], abs=1)
    assert page_log.complaints == []
    assert page_log.requests == [url]


def test_leaderboard_links_to_reports_and_sections(
    open_page: OpenPage, leaderboards: dict[str, Path]
) -> None:
    page = open_page(leaderboards["two"].resolve().as_uri())
    page.click("thead a[href='#rm-bench']")
    assert page.url.endswith("#rm-bench")
    page.locator("#rm-bench a").first.click()
    assert page.title() == "report"
