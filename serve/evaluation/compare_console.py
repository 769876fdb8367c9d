"""The comparison of two runs as tables and as JSON data."""

from __future__ import annotations

from typing import Any

from rm_core.benchmarks.base import Item
from serve.evaluation.compare import LoadedRun, RunComparison
from serve.evaluation.console import format_percent, print_table
from serve.evaluation.metric_names import collect_metrics

_MAX_PROMPT_CHARS = 60


def print_comparison(comparison: RunComparison, show: int) -> None:
    """Print a comparison as tables.

    Args:
        comparison: comparison to print.
        show: maximum number of flipped items to print.
    """
    first, second = comparison.runs
    names = _choose_names(first, second)
    rows = _align_metrics(comparison)
    print_table(
        first.benchmark.title,
        ["accuracy, %", *names, "difference"],
        (
            [name, format_percent(a), format_percent(b), _format_difference(a, b)]
            for name, a, b in rows
        ),
    )
    both, only_first, only_second, neither = comparison.counts
    lines = [
        ("items in both", f"{comparison.num_items:,}"),
        *(
            (f"items in {n} only", f"{m:,}")
            for n, m in zip(names, comparison.only, strict=True)
            if m
        ),
        (f"{comparison.unit} right in both", f"{both:,}"),
        (f"right in {names[0]} only", f"{only_first:,}"),
        (f"right in {names[1]} only", f"{only_second:,}"),
        ("wrong in both", f"{neither:,}"),
        ("agreement", f"{100 * comparison.agreement:.2f}%"),
        ("McNemar, exact p", f"{comparison.test.exact_p:.4g}"),
        (
            "McNemar, chi-square",
            f"{comparison.test.chi_square:.4g} (p {comparison.test.chi_square_p:.4g})",
        ),
    ]
    if comparison.correlation:
        lines.append(("rewards, Pearson", f"{comparison.correlation[0]:.4f}"))
        lines.append(("rewards, Spearman", f"{comparison.correlation[1]:.4f}"))
    print_table("What changed", ["", ""], lines)
    if comparison.flipped_items and show:
        print_table(
            f"Largest margin shifts, {min(show, len(comparison.flipped_items))} of "
            f"{len(comparison.flipped_items):,}",
            ["item", "subset", "", *(f"margin, {name}" for name in names), "prompt"],
            (
                [
                    one.item.id,
                    one.item.subset,
                    "now right" if one.now_right else "now wrong",
                    *(f"{margin:.3f}" for margin in one.margins),
                    _format_prompt(one.item),
                ]
                for one in comparison.flipped_items[:show]
            ),
        )


def to_dict(comparison: RunComparison) -> dict[str, Any]:
    """Return a comparison as JSON data."""
    first, second = comparison.runs
    both, only_first, only_second, neither = comparison.counts
    return {
        "benchmark": first.benchmark.name,
        "models": [first.name, second.name],
        "num_items": comparison.num_items,
        "only_first": comparison.only[0],
        "only_second": comparison.only[1],
        "figures": {name: [a, b] for name, a, b in _align_metrics(comparison)},
        "unit": comparison.unit,
        "right_in_both": both,
        "right_in_first_only": only_first,
        "right_in_second_only": only_second,
        "wrong_in_both": neither,
        "agreement": comparison.agreement,
        "mcnemar": comparison.test._asdict(),
        "pearson": comparison.correlation and comparison.correlation[0],
        "spearman": comparison.correlation and comparison.correlation[1],
        "changed": [
            {
                "id": one.item.id,
                "subset": one.item.subset,
                "now_right": one.now_right,
                "margins": list(one.margins),
            }
            for one in comparison.flipped_items
        ],
    }


def _align_metrics(comparison: RunComparison) -> list[tuple[str, float | None, float | None]]:
    both = [collect_metrics(run.result) for run in comparison.runs]
    names = dict.fromkeys(name for metrics in both for name in metrics)
    return [(name, both[0].get(name), both[1].get(name)) for name in names]


def _choose_names(first: LoadedRun, second: LoadedRun) -> tuple[str, str]:
    if first.name != second.name:
        return first.name, second.name
    return first.path, second.path


def _format_difference(a: float | None, b: float | None) -> str:
    return "-" if a is None or b is None else f"{100 * (b - a):+.2f}"


def _format_prompt(item: Item) -> str:
    text = " ".join(str(item.prompt[-1].get("content", "")).split())
    if len(text) <= _MAX_PROMPT_CHARS:
        return text
    return text[: _MAX_PROMPT_CHARS - 3] + "..."
