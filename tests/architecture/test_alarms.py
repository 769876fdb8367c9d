"""Alarms ask for metrics, labels and values that exist, and say what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any, get_args

import pytest
import yaml
from conftest import ROOT
from documents import current_pages
from prometheus_text import known_labels

from rm_core.errors import RewardError
from serve.api.error_responses import build_error_docs
from serve.errors import RetryReason

RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
ALARMS = [rule for group in RULES["groups"] for rule in group["rules"]]
MANUAL = ROOT / "docs" / "operations" / "alarms.md"
HEADING = re.compile(r"^#{2,3} (Skyreward\w+)$", re.MULTILINE)
by_name = pytest.mark.parametrize("alarm", ALARMS, ids=lambda alarm: alarm["alert"])


@pytest.fixture(scope="module")
def labels_of() -> dict[str, set[str]]:
    return {**known_labels(), "up": {"job"}}


def error_codes(cls: type[RewardError] = RewardError) -> set[str]:
    return {cls.code}.union(*(error_codes(sub) for sub in cls.__subclasses__()))


def selectors(node: Any) -> list[Any]:
    """Every selector of a parsed expression."""
    import promql_parser

    if isinstance(node, promql_parser.VectorSelector):
        return [node]
    found = []
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(node, name, None)
        if inner is not None and not isinstance(inner, str):
            found += selectors(inner)
    for argument in getattr(node, "args", ()):
        found += selectors(argument)
    return found


@by_name
def test_it_asks_for_what_exists(alarm: dict[str, Any], labels_of: dict[str, set[str]]) -> None:
    import promql_parser

    asked = selectors(promql_parser.parse(alarm["expr"]))
    written = set(re.findall(r"\b(?:skyreward_\w+|up)\b", re.sub(r'"[^"]*"', "", alarm["expr"])))
    assert {selector.name for selector in asked} == written
    known = set.union(*(labels_of[name] for name in written)) | {"le"}
    for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", alarm["expr"]):
        assert {label.strip() for label in group.split(",")} <= known
    for selector in asked:
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels_of[selector.name]


@by_name
def test_it_looks_for_values_that_occur(alarm: dict[str, Any]) -> None:
    """A label with a value that nothing has would never raise an alarm."""
    known = {
        "code": error_codes(),
        "reason": set(get_args(RetryReason)),
        "status": {str(status) for status in build_error_docs()},
        "outcome": {"scored", "error"},
        "job": {"skyreward"},
    }
    for label, values in re.findall(r'(\w+)=~?"([^"]*)"', alarm["expr"]):
        assert set(values.split("|")) <= known[label]


@by_name
def test_the_manual_says_what_to_do(alarm: dict[str, Any]) -> None:
    assert alarm["alert"] in HEADING.findall(MANUAL.read_text(encoding="utf-8"))
    assert alarm["labels"]["severity"] in ("critical", "warning", "info")
    assert alarm["annotations"]["summary"]
    # The anchor that the site gives the heading.
    runbook = f"{MANUAL.relative_to(ROOT).as_posix()}#{alarm['alert'].lower()}"
    assert alarm["annotations"]["runbook"] == runbook


def test_pages_name_no_alarm_that_is_gone() -> None:
    names = {alarm["alert"] for alarm in ALARMS}
    assert set(HEADING.findall(MANUAL.read_text(encoding="utf-8"))) == names
    for page in current_pages():
        named = re.findall(r"\bSkyreward[A-Z]\w+", page.read_text(encoding="utf-8"))
        assert set(named) <= names, page


def test_prometheus_itself_raises_each() -> None:
    """`tests/architecture/alarms.yml` lets each happen, and something near it that is none."""
    promtool = shutil.which("promtool")
    cases = ROOT / "tests" / "architecture" / "alarms.yml"
    tried = {
        check["alertname"]
        for case in yaml.safe_load(cases.read_text())["tests"]
        for check in case["alert_rule_test"]
        if check.get("exp_alerts")
    }
    assert tried == {alarm["alert"] for alarm in ALARMS}
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    done = subprocess.run(
        [promtool, "test", "rules", cases], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
