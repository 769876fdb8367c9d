"""The dashboard asks for metrics and labels that exist, and leaves no metric out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from conftest import ROOT
from prometheus_text import eventful, known_labels

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "skyreward.json").read_text())
# A label of figures that come from several gateways.
OF_ALL = {"gateway"}


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


@pytest.fixture(scope="module")
def labels_of() -> dict[str, set[str]]:
    return known_labels()


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bskyreward_\w+", text))


@pytest.mark.parametrize(("panel", "expression"), list(expressions()))
def test_what_it_asks_for_exists(
    labels_of: dict[str, set[str]], panel: str, expression: str
) -> None:
    names = names_in(expression)
    assert names, panel
    assert names <= set(labels_of)
    known = set.union(*(labels_of[name] for name in names)) | OF_ALL
    grouped = {
        label.strip()
        for group in re.findall(r"\bby \(([^)]*)\)", expression)
        for label in group.split(",")
    }
    selected = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression))
    assert grouped | selected <= known, panel


def test_every_metric_is_shown() -> None:
    """A metric that nobody looks at is one too many."""
    shown = set().union(*(names_in(expression) for _, expression in expressions()))
    for family in eventful().snapshot():
        names = {figure.name for figure in family.samples}
        assert names & shown, family.name


def test_counters_are_never_shown_bare() -> None:
    for panel, expression in expressions():
        for name in names_in(expression):
            if name.endswith(("_total", "_bucket", "_sum", "_count")):
                assert re.search(rf"(?:rate|increase)\({name}\b", expression), panel


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
