"""A comparison of two runs as tables, and as JSON data."""

from __future__ import annotations

from typing import Any

from rm_core.benchmarks.base import Item
from serve.evaluation.compare import Comparison, LoadedRun
from serve.evaluation.console import percent, print_table
from serve.evaluation.metric_names import named_figures

_WIDEST = 60


def print_comparison(found: Comparison, show: int) -> None:
    """The comparison as tables.

    Args:
        found: what to print.
        show: most changed items.
    """
    first, second = found.runs
    names = _distinct(first, second)
    rows = _side_by_side(found)
    print_table(
        first.benchmark.title,
        ["accuracy, %", *names, "difference"],
        ([name, percent(a), percent(b), _difference(a, b)] for name, a, b in rows),
    )
    both, only_first, only_second, neither = found.counts
    lines = [
        ("items in both", f"{found.num_items:,}"),
        *((f"items in {n} only", f"{m:,}") for n, m in zip(names, found.only, strict=True) if m),
        (f"{found.unit} right in both", f"{both:,}"),
        (f"right in {names[0]} only", f"{only_first:,}"),
        (f"right in {names[1]} only", f"{only_second:,}"),
        ("wrong in both", f"{neither:,}"),
        ("agreement", f"{100 * found.agreement:.2f}%"),
        ("McNemar, exact p", f"{found.test.exact_p:.4g}"),
        ("McNemar, chi-square", f"{found.test.chi_square:.4g} (p {found.test.chi_square_p:.4g})"),
    ]
    if found.correlation:
        lines.append(("rewards, Pearson", f"{found.correlation[0]:.4f}"))
        lines.append(("rewards, Spearman", f"{found.correlation[1]:.4f}"))
    print_table("What changed", ["", ""], lines)
    if found.changed and show:
        print_table(
            f"Largest shifts of the margin, {min(show, len(found.changed))} of "
            f"{len(found.changed):,}",
            ["item", "subset", "", *(f"margin, {name}" for name in names), "prompt"],
            (
                [
                    one.item.id,
                    one.item.subset,
                    "now right" if one.now_right else "now wrong",
                    *(f"{margin:.3f}" for margin in one.margins),
                    _prompt(one.item),
                ]
                for one in found.changed[:show]
            ),
        )


def as_plain(found: Comparison) -> dict[str, Any]:
    """The comparison as JSON data."""
    first, second = found.runs
    both, only_first, only_second, neither = found.counts
    return {
        "benchmark": first.benchmark.name,
        "models": [first.name, second.name],
        "num_items": found.num_items,
        "only_first": found.only[0],
        "only_second": found.only[1],
        "figures": {name: [a, b] for name, a, b in _side_by_side(found)},
        "unit": found.unit,
        "right_in_both": both,
        "right_in_first_only": only_first,
        "right_in_second_only": only_second,
        "wrong_in_both": neither,
        "agreement": found.agreement,
        "mcnemar": found.test._asdict(),
        "pearson": found.correlation and found.correlation[0],
        "spearman": found.correlation and found.correlation[1],
        "changed": [
            {
                "id": one.item.id,
                "subset": one.item.subset,
                "now_right": one.now_right,
                "margins": list(one.margins),
            }
            for one in found.changed
        ],
    }


def _side_by_side(found: Comparison) -> list[tuple[str, float | None, float | None]]:
    both = [named_figures(run.figures) for run in found.runs]
    names = dict.fromkeys(name for figures in both for name in figures)
    return [(name, both[0].get(name), both[1].get(name)) for name in names]


def _distinct(first: LoadedRun, second: LoadedRun) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return first.place, second.place


def _difference(a: float | None, b: float | None) -> str:
    return "-" if a is None or b is None else f"{100 * (b - a):+.2f}"


def _prompt(item: Item) -> str:
    text = " ".join(str(item.prompt[-1].get("content", "")).split())
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."
