"""Rewards of conversations with images equal those of plain transformers, one at a time."""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import limit_examples
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_vision import PlainVisionModel
from vision import MAX_PIXELS, build_vision_model

from rm_core import BatchConfig, ModelConfig, RewardScorer
from rm_core.inputs.sample_image import write_png
from rm_core.model.placement import install_transfer_hooks
from rm_core.model.vision import build_mrope_positions
from rm_core.types import Encoded, Reward, ScoreError

WIDE, HIGH, LARGE = write_png(100, 60), write_png(57, 90), write_png(300, 200)
FAMILIES = ["qwen2_5_vl", "qwen3_vl"]
CHECKPOINTS = [*itertools.product(FAMILIES, ["old", "new"]), ("qwen2_vl", "old")]
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="compiling for CPUs needs g++"
)


def image(source: bytes) -> dict[str, Any]:
    return {"type": "image", "image": source}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def ask(answer: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": answer}]


GROUP = [ask(f"Answer {i}: " + "word " * i, image(LARGE), text("Rate it.")) for i in range(8)]
CONVERSATIONS = [
    ask("4", text("2+2?")),
    ask("A cat.", image(WIDE), text("What is it?")),
    ask("A dog, maybe.", image(WIDE), text("What is it?")),
    ask("Three.", image(WIDE), text("How many"), image(HIGH), text(" are "), image(LARGE)),
    ask("The same.", image(HIGH), image(HIGH), text("Which differs?")),
    [*ask("A cat.", text("Before "), image(LARGE), text("after")), *ask("Fine.", image(WIDE))],
    [{"role": "system", "content": "Be brief."}, *ask("So.", text("Look:"), image(HIGH))],
    *GROUP,
]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folders: dict[tuple[str, str], Path] = {}

    def build(family: str = "qwen2_5_vl", layout: str = "old") -> Path:
        if (family, layout) not in folders:
            folder = tmp_path_factory.mktemp("vision") / f"{family}-{layout}"
            folders[family, layout] = build_vision_model(folder, family, layout)
        return folders[family, layout]

    return build


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, folder_of: Callable[[str, str], Path]) -> Path:
    return folder_of(request.param, "old")


@pytest.fixture(scope="module")
def plain(folder: Path) -> PlainVisionModel:
    return PlainVisionModel(folder)


@pytest.fixture(scope="module")
def scorer(folder: Path) -> RewardScorer:
    return RewardScorer.load(ModelConfig(str(folder)))


def rewards(results: list[Reward | ScoreError]) -> list[float]:
    assert not [result for result in results if isinstance(result, ScoreError)]
    return [result.reward for result in results if isinstance(result, Reward)]


@pytest.mark.parametrize(("family", "layout"), CHECKPOINTS)
def test_rewards_are_those_of_plain_transformers(
    family: str, layout: str, folder_of: Callable[[str, str], Path]
) -> None:
    folder = folder_of(family, layout)
    expected = PlainVisionModel(folder).score_all(CONVERSATIONS)
    scorer = RewardScorer.load(ModelConfig(str(folder)))
    together = rewards(scorer.score(CONVERSATIONS))
    alone = [rewards(scorer.score([messages]))[0] for messages in CONVERSATIONS]
    assert together == pytest.approx(expected, abs=1e-4)
    assert alone == pytest.approx(expected, abs=1e-4)
    assert len({round(reward, 2) for reward in expected}) > 10  # images and answers matter


@pytest.mark.parametrize("batching", [BatchConfig(60), BatchConfig(prefix_cache_bytes=0)])
def test_rewards_do_not_depend_on_batches_or_caches(
    batching: BatchConfig, folder: Path, plain: PlainVisionModel
) -> None:
    scorer = RewardScorer.load(ModelConfig(str(folder)), batching)
    expected = pytest.approx(plain.score_all(CONVERSATIONS), abs=1e-4)
    assert rewards(scorer.score(CONVERSATIONS)) == expected
    assert rewards(scorer.score(CONVERSATIONS)) == expected


def test_deterministic_rewards_are_equal_alone_and_together(
    folder: Path, plain: PlainVisionModel
) -> None:
    scorer = RewardScorer.load(ModelConfig(str(folder), deterministic=True))
    together = rewards(scorer.score(CONVERSATIONS))
    assert together == [rewards(scorer.score([messages]))[0] for messages in CONVERSATIONS]
    assert together == pytest.approx(plain.score_all(CONVERSATIONS), abs=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_backend_reads_images(
    attention: str, folder: Path, plain: PlainVisionModel
) -> None:
    scorer = RewardScorer.load(ModelConfig(str(folder), attention=attention))  # type: ignore[arg-type]
    expected = plain.score_all(CONVERSATIONS)
    assert rewards(scorer.score(CONVERSATIONS)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(
    "compiler", ["trace_only", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])]
)
def test_compiled_layers_read_images(
    compiler: str, folder: Path, plain: PlainVisionModel, request: pytest.FixtureRequest
) -> None:
    if compiler == "trace_only":
        request.getfixturevalue("trace_only")
    scorer = RewardScorer.load(ModelConfig(str(folder), compile=True))
    expected = plain.score_all(CONVERSATIONS)
    assert rewards(scorer.score(CONVERSATIONS)) == pytest.approx(expected, abs=1e-4)
    assert scorer.describe().compiled is True


def test_two_stages_read_images(folder: Path) -> None:
    """Both stages are on the CPU; rewards are equal to the last bit."""
    stages = (torch.device("cpu"), torch.device("cpu"))
    plain, split = (
        RewardScorer.load(ModelConfig(str(folder)), BatchConfig(60)).loaded_model for _ in range(2)
    )
    install_transfer_hooks(split.model, stages)
    split = dataclasses.replace(split, devices=stages)
    expected, results = (RewardScorer(m, BatchConfig(60)).score(GROUP) for m in (plain, split))
    assert results == expected


def test_one_dimensional_positions_would_be_noticed(plain: PlainVisionModel) -> None:
    """transformers falls back to them without a word where token types are missing."""
    messages = CONVERSATIONS[1]
    inputs = plain.encode(messages)
    ids = inputs["input_ids"]
    flat = torch.arange(ids.shape[1]).expand(3, 1, -1)
    assert abs(plain.score(messages, position_ids=flat) - plain.score(messages)) > 0.1


def test_positions_are_those_of_transformers(scorer: RewardScorer, plain: PlainVisionModel) -> None:
    for messages in CONVERSATIONS[1:7]:
        inputs = plain.encode(messages)
        expected, _ = plain.model.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
        )
        encoded = scorer.encoder.encode(messages)
        images = {placed.image.key: placed.image for placed in encoded.images}
        ours = build_mrope_positions(encoded.input_ids, images)
        assert torch.equal(ours, expected[:, 0])
        assert encoded.vocabulary_ids == inputs["input_ids"][0].tolist()


def test_tower_runs_once_for_an_image(folder: Path) -> None:
    scorer = RewardScorer.load(ModelConfig(str(folder)), BatchConfig(prefix_cache_bytes=0))
    tower = scorer.loaded_model.vision_tower
    assert tower is not None
    tower.clear()
    before = tower.num_encoded
    scorer.score(GROUP)
    assert tower.num_encoded == before + 1
    for messages in GROUP:  # in batches of their own
        scorer.score([messages])
    assert tower.num_encoded == before + 1
    scorer.score(CONVERSATIONS)
    assert tower.num_encoded == before + 3


def test_shared_image_is_computed_once(scorer: RewardScorer) -> None:
    encoded = [scorer.encoder.encode(messages) for messages in GROUP]
    distinct = scorer.pack([e.input_ids for e in encoded]).num_tokens
    assert distinct < sum(e.num_tokens for e in encoded) / 2


def test_equal_texts_with_other_images_share_nothing_after_the_image(
    scorer: RewardScorer, plain: PlainVisionModel
) -> None:
    """Two images of one size have equal placeholders."""
    other = bytearray(write_png(100, 61))
    pair = [ask("A cat.", image(source), text("What?")) for source in (WIDE, bytes(other))]
    encoded = [scorer.encoder.encode(messages) for messages in pair]
    assert encoded[0].vocabulary_ids == encoded[1].vocabulary_ids
    assert encoded[0].input_ids != encoded[1].input_ids
    first, second = rewards(scorer.score(pair))
    assert [first, second] == pytest.approx(plain.score_all(pair), abs=1e-4)
    assert first != second


@pytest.mark.parametrize("cache_bytes", [0, 3000, 6000, 10**6])
def test_cache_of_features_is_bounded(
    cache_bytes: int, folder: Path, plain: PlainVisionModel
) -> None:
    batching = BatchConfig(prefix_cache_bytes=0, vision_cache_bytes=cache_bytes)
    scorer = RewardScorer.load(ModelConfig(str(folder)), batching)
    tower = scorer.loaded_model.vision_tower
    assert tower is not None
    expected = plain.score_all(CONVERSATIONS)
    for _ in range(2):
        assert rewards(scorer.score(CONVERSATIONS)) == pytest.approx(expected, abs=1e-4)
        assert tower.num_cache_bytes <= cache_bytes


def test_unknown_image_ids_are_refused(scorer: RewardScorer) -> None:
    encoded = scorer.encoder.encode(CONVERSATIONS[1])
    good = scorer.encoder.encode(CONVERSATIONS[0])
    result = scorer.score_ids([encoded.input_ids, good.input_ids])
    assert isinstance(result.outputs[0], ScoreError)
    assert isinstance(result.outputs[1], float)


@settings(max_examples=limit_examples(15), deadline=None)
@given(seed=st.integers(0, 10**6), num_kept=st.integers(0, 4), budget=st.sampled_from([40, 4096]))
def test_any_mixture_of_shared_turns_and_images(
    seed: int, num_kept: int, budget: int, folder: Path, plain: PlainVisionModel
) -> None:
    """Trees whose branches part before, within and after images, with part of them cached."""
    rng = random.Random(seed)
    sources = [write_png(rng.randint(20, 200), rng.randint(20, 200)) for _ in range(3)]

    def build() -> list[dict[str, Any]]:
        turns = []
        for _ in range(rng.randint(1, 2)):
            parts = [
                image(rng.choice(sources)) if rng.random() < 0.5 else text(rng.choice("ab") * 5)
                for _ in range(rng.randint(1, 3))
            ]
            turns += ask(rng.choice(["Yes.", "No."]), *parts)
        return turns

    conversations = [build() for _ in range(8)]
    key = folder, budget
    if key not in SCORERS:
        SCORERS[key] = RewardScorer.load(ModelConfig(str(folder)), BatchConfig(budget))
    scorer = SCORERS[key]
    scorer.score(conversations[:num_kept])
    expected = plain.score_all(conversations)
    assert rewards(scorer.score(conversations)) == pytest.approx(expected, abs=1e-4)


SCORERS: dict[tuple[Path, int], RewardScorer] = {}


def test_images_are_resized_as_settings_say(folder: Path) -> None:
    scorer = RewardScorer.load(ModelConfig(str(folder), max_pixels=MAX_PIXELS // 4))
    smaller = scorer.encoder.encode(GROUP[0])
    larger = RewardScorer.load(ModelConfig(str(folder))).encoder.encode(GROUP[0])
    assert isinstance(smaller, Encoded)
    assert smaller.num_tokens < larger.num_tokens
    assert smaller.images[0].image.digest != larger.images[0].image.digest


def test_preprocessing_is_part_of_the_fingerprint(folder: Path) -> None:
    plain, changed = (
        RewardScorer.load(ModelConfig(str(folder), max_pixels=pixels)).fingerprint
        for pixels in (None, MAX_PIXELS // 4)
    )
    assert plain != changed
