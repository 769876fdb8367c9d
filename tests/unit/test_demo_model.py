"""The embedded demo model: its files, its tokenizer, and whether it can tell what it claims to."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from seeds.demo.training import corruptions
from seeds.demo.training.architecture import render
from seeds.demo.training.corpus import split_of, synthetic
from seeds.demo.training.evaluate import PlainScorer, make_cases, right

DEMO = Path(__file__).resolve().parents[2] / "seeds" / "demo"
FRESH_SEED = 20_240_601
ANSWER = "Boil the water first. Then add the salt, and cook the pasta for nine minutes."


@pytest.fixture(scope="module")
def scorer() -> PlainScorer:
    return PlainScorer(DEMO)


def test_folder_is_small_and_holds_no_code() -> None:
    files = [path for path in DEMO.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert not [path for path in files if path.suffix == ".py"]


def test_checkpoint_loads_without_missing_or_unexpected_keys() -> None:
    model, info = AutoModelForSequenceClassification.from_pretrained(DEMO, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.config.architectures == ["Qwen3ForSequenceClassification"]
    assert model.config.num_labels == 1
    assert model.config.pad_token_id != model.config.eos_token_id
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_tells_good_answers_from_corrupted_ones(scorer: PlainScorer) -> None:
    examples = synthetic(FRESH_SEED, 60) + synthetic(FRESH_SEED, 60, held_out=True)
    cases = make_cases(examples, FRESH_SEED)
    correct = right(scorer, cases)
    assert {case.kind for case in cases} == set(corruptions.KINDS)
    assert sum(correct) / len(correct) >= 0.80


def test_padding_does_not_change_a_reward(scorer: PlainScorer) -> None:
    short = scorer.encode((("user", "2+2?"),), "4")
    long = scorer.encode((("user", "How do I cook pasta?"),), ANSWER)
    alone = scorer.rewards([short])[0]
    assert scorer.rewards([long, short])[1] == pytest.approx(alone, abs=1e-4)


@given(text=st.text())
def test_tokenizer_gives_any_text_back(scorer: PlainScorer, text: str) -> None:
    ids = scorer.tokenizer.encode(text, add_special_tokens=False)
    assert scorer.tokenizer.decode(ids) == text


def test_template_is_what_training_rendered(scorer: PlainScorer) -> None:
    turns = (("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "And 3+3?"))
    messages = [{"role": role, "content": content} for role, content in turns]
    apply = scorer.tokenizer.apply_chat_template
    prompt, answer = render(turns, "6")
    assert apply(messages, tokenize=False, add_generation_prompt=True) == prompt
    messages.append({"role": "assistant", "content": "6"})
    assert apply(messages, tokenize=False) == prompt + answer


def test_template_refuses_an_unknown_role(scorer: PlainScorer) -> None:
    with pytest.raises(Exception, match="role must be"):
        scorer.tokenizer.apply_chat_template([{"role": "critic", "content": "?"}], tokenize=False)


@pytest.mark.parametrize("spoil", [corruptions.shuffled, corruptions.cut])
@pytest.mark.parametrize("answer", [ANSWER, "先把鸡蛋打散。锅里放油烧热。加入适量的盐和糖。"])
def test_corruptions_change_the_text_and_follow_the_seed(spoil, answer) -> None:  # type: ignore[no-untyped-def]
    texts = [spoil(random.Random(seed), answer) for seed in range(20)]
    assert texts == [spoil(random.Random(seed), answer) for seed in range(20)]
    assert answer not in texts
    assert len(set(texts)) > 1


@given(answer=st.text(max_size=200), seed=st.integers(0, 9))
def test_corruptions_take_any_text(answer: str, seed: int) -> None:
    words = corruptions.shuffled(random.Random(seed), answer)
    assert words is None or (
        words != answer and sorted("".join(words.split())) == sorted("".join(answer.split()))
    )
    piece = corruptions.cut(random.Random(seed), answer)
    assert piece is None or (answer.strip().startswith(piece) and piece != answer.strip())


def test_short_answers_are_left_alone() -> None:
    assert corruptions.shuffled(random.Random(0), "4") is None
    assert corruptions.cut(random.Random(0), "Paris.") is None


def test_shorter_keeps_whole_sentences() -> None:
    assert corruptions.shorter(random.Random(0), ANSWER, 40) == "Boil the water first."
    assert corruptions.shorter(random.Random(0), "1. One\n2. Two", 5) == ""


def test_synthetic_text_follows_the_seed_and_holds_families_out() -> None:
    assert synthetic(1, 50) == synthetic(1, 50)
    assert synthetic(1, 50) != synthetic(2, 50)
    seen = {example.source for example in synthetic(1, 400)}
    assert not seen & {example.source for example in synthetic(1, 400, held_out=True)}


def test_split_is_by_first_question() -> None:
    examples = synthetic(3, 300)
    assert {split_of(example) for example in examples} == {"train", "test"}
    for example in examples:
        longer = replace(example, turns=(*example.turns, ("user", "Why?")), answer="Because.")
        assert split_of(longer) == split_of(example)
    questions = [replace(examples[0], turns=(("user", f"Question {i}?"),)) for i in range(400)]
    share = sum(split_of(question) == "test" for question in questions) / len(questions)
    assert 0.06 < share < 0.18
