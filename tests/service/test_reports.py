"""Reports in a real browser: no console errors, all plots are visible, no horizontal overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import OpenPage, PageLog
from evaluations import evaluation

from rm_core import Reward
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
