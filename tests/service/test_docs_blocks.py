"""Blocks of the documentation are run, page by page, against one real service in one process.

Run are Python, `curl` and those commands of `skyreward` that need neither a hub, a GPU nor files
that only a reader has. Where the next block shows output, it has to be that of the command. A page
has a folder of its own, in which its blocks find the sample pairs and what earlier blocks wrote.
`tests/architecture/test_docs.py` looks at all other blocks without running them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from conftest import ROOT, PathOf
from document_runner import Page, free_names, matches, run_page
from documents import name_of, pages, read_blocks
from kinds import build_judge, build_step_model
from preloaded import run_service

from rm_core import seeds_dir
from serve.client import ScoringClient

CONVERSATION = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]


@pytest.fixture(scope="module")
def reward(demo_url: str) -> float:
    with ScoringClient(demo_url) as client:
        return client.score([CONVERSATION])[0]


def prints_the_reward(printed: str, reward: float) -> bool:
    found = [first_number(line) for line in printed.splitlines()]
    return found == pytest.approx([reward] * (len(found) or 1), abs=1e-5)


def prints_as_the_clients(printed: str, reward: float) -> bool:
    lines = printed.splitlines()
    failed = "1 of 2 conversations got no reward: conversation 1: invalid_conv"
    assert lines[-3].startswith(failed)
    return all(prints_the_reward(line, reward) for line in (lines[0], lines[-2], lines[-1]))


def prints_step_rewards_and_log_odds(printed: str, _: float) -> bool:
    *solutions, verdict, margin = printed.splitlines()
    for line in solutions:
        step_rewards, reward = ast.literal_eval(line.replace(") ", "), "))
        assert min(step_rewards) == reward
    log_odds, label_mass = map(float, verdict.split())
    return 0 < label_mass < 1 and float(margin) != log_odds


def first_number(line: str) -> float:
    return float(line.strip("[]").split(",")[0])


# What examples print, by a call that they make. Every one of them is on some page.
EXAMPLES: Mapping[str, Callable[[str, float], bool]] = {
    "AsyncScoringClient(": prints_as_the_clients,
    "verl.compute_score(": prints_the_reward,
    "verl.compute_score_batch(": prints_the_reward,
    "openrlhf.reward_func(": prints_the_reward,
    "ms_swift.SkyRewardORM()(": prints_the_reward,
    "slime.custom_rm(": prints_the_reward,
    "areal.reward_fn(": prints_the_reward,
    'orms["skyreward"]': lambda printed, _: not printed,
    "GRPOTrainer(": lambda printed, _: "rewards/skyreward/mean" in printed,
    "combine_orders(given": prints_step_rewards_and_log_odds,
    'RewardScorer.load(ModelConfig("demo"))': lambda printed, _: "invalid_conversation" in printed,
}


# An example on this page reads a step model and a judge from folders.
LIBRARY_PAGE = ROOT / "docs" / "guides" / "library.md"
# The models of this page are a step model, a judge and a classifier.
KINDS_PAGE = ROOT / "docs" / "guides" / "steps-and-judges.md"
# The models of this page are two classifiers besides the demo.
MODELS_PAGE = ROOT / "docs" / "guides" / "several-rewards.md"


@pytest.mark.parametrize(
    "page", [page for page in pages() if page not in (KINDS_PAGE, MODELS_PAGE)], ids=name_of
)
def test_blocks_of_a_page_run(page: Path, demo_url: str, reward: float, tmp_path: Path) -> None:
    if page == LIBRARY_PAGE:
        build_step_model(tmp_path / "prm")
        build_judge(tmp_path / "judge")
    for block, printed in run_page(page, Page(tmp_path, demo_url)):
        for call, check in EXAMPLES.items():
            if call in block.text:
                assert check(printed, reward), f"{block}\n{printed}"


@pytest.fixture
def kinds_url(tmp_path: Path) -> Iterator[str]:
    models = [
        {"name": "demo"},
        {"name": str(build_step_model(tmp_path / "prm")), "alias": "prm"},
        {"name": str(build_judge(tmp_path / "judge")), "alias": "judge", "kind": "judge"},
    ]
    config = tmp_path / "models.yaml"
    config.write_text(json.dumps({"models": models, "log_level": "WARNING"}))
    with run_service("--config", str(config)) as url:
        yield url


def test_blocks_about_step_models_and_judges_run(kinds_url: str, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    ((_, printed),) = run_page(KINDS_PAGE, Page(tmp_path / "page", kinds_url))
    assert printed.splitlines()[0].startswith("2 (0.")
    assert printed.splitlines()[3].endswith("]")


def test_blocks_about_several_models_run(checkpoint_of: PathOf, tmp_path: Path) -> None:
    demo, safe = str(seeds_dir() / "demo"), str(checkpoint_of("llama-v0.2"))
    models = [{"name": "demo"}, {"name": demo, "alias": "helpful"}, {"name": safe, "alias": "safe"}]
    config = tmp_path / "models.yaml"
    config.write_text(json.dumps({"models": models, "log_level": "WARNING"}))
    with run_service("--config", str(config)) as url:
        (tmp_path / "page").mkdir()
        ((_, printed),) = run_page(MODELS_PAGE, Page(tmp_path / "page", url))
    assert printed.startswith("{'demo': -0.72")
    assert (tmp_path / "page" / "demo-calibration.json").exists()


def test_every_example_is_on_a_page() -> None:
    text = "".join(b.text for page in pages() for b in read_blocks(page) if b.language == "python")
    assert [call for call in EXAMPLES if call not in text] == []


def test_names_that_a_block_takes_from_earlier_ones_are_found() -> None:
    code = "import os\ndef f(a):\n    b = [c for c in a]\n    return os, client, b\nprint(f(x))"
    assert free_names(code) == {"client", "x"}


def test_output_is_compared_with_what_is_shown() -> None:
    shown = {"id": "score-...", "results": [{"reward": 1.2345, "truncated": False}]}
    assert matches(shown, {"id": "score-1f", "results": [{"reward": 1.23449, "truncated": False}]})
    assert not matches(shown, {"id": "score-1f", "results": [{"reward": 1.25, "truncated": False}]})
    assert not matches(shown, {"id": "score-1f", "results": []})
