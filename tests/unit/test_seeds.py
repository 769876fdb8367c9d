"""Golden rewards against values copied by hand, and required contents of the sample pairs."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from rm_core.catalog.entries import find_entry, load_sources, seeds_dir
from rm_core.catalog.golden import get_golden_rewards, load_conversations

LLAMA, GEMMA = "Skywork/Skywork-Reward-Llama-3.1-8B", "Skywork/Skywork-Reward-Gemma-2-27B"
V2 = "Skywork/Skywork-Reward-V2-"
SCRAMBLED = "words in scrambled order"
CUT = "breaks off in the middle of a sentence"
OFF_TOPIC = "answers a different question"
REFUSED = "refuses without a reason or any help"


@pytest.mark.parametrize(
    ("model", "right", "wrong"),
    [
        (LLAMA, 12.625, -15.25),
        (GEMMA, 9.1875, -17.875),
        (LLAMA + "-v0.2", 13.6875, -9.1875),
        (GEMMA + "-v0.2", 4.59375, -18.125),
        (V2 + "Llama-3.1-8B", 23.0, 3.59375),
    ],
)
def test_golden_rewards_of_apples(model: str, right: float, wrong: float):
    golden = get_golden_rewards(model)
    assert {s.conversation: s.reward for s in golden.scores} == {
        "apples-right": right,
        "apples-wrong": wrong,
    }
    assert {s.dtype for s in golden.scores} == {"bfloat16"}
    assert golden.token_lengths == ()


def test_apple_conversations_are_verbatim():
    question, answer = load_conversations()["apples-right"]
    assert (question.role, answer.role) == ("user", "assistant")
    assert question.content.startswith("Jane has 12 apples. She gives 4 apples to her friend Mark,")
    assert question.content.endswith("How many apples does each person get?")
    assert answer.content.count("\n") == 2
    assert "9 ÷ 3 = 3 apples each. Each person gets 3 apples." in answer.content
    wrong_question, wrong = load_conversations()["apples-wrong"]
    assert wrong_question == question
    assert wrong.content.endswith("9 ÷ 2 = 4.5 apples each. Each person gets 4 apples.")


def test_golden_rewards_and_token_count_of_capitals():
    golden = get_golden_rewards("Skywork-Reward-V2-Qwen3-0.6B")
    paris = next(s for s in golden.scores if s.conversation == "france-paris")
    brasilia = next(s for s in golden.scores if s.conversation == "france-brasilia")
    assert (paris.reward, brasilia.reward) == (2.6719, -5.25)
    assert [o.reward for o in brasilia.also_observed] == [-5.375, -5.4062]
    assert {s.status for s in golden.scores} == {"third_party"}
    assert {s.stated_tolerance for s in golden.scores} == {0.1}
    assert paris.messages[0].content == "What is the capital of France?"
    assert brasilia.messages[1].content == "The capital of Brazil is Brasilia."
    (length,) = golden.token_lengths
    assert length.num_tokens == 39
    assert length.messages[0].content == "What is the capital of France? (test 0)"
    assert length.messages[1].content == "The capital of Brazil is Brasilia. (response 0)"


def test_reward_of_other_engine_is_one_bfloat16_step_away():
    for score, observed in zip(
        get_golden_rewards(V2 + "Llama-3.1-8B").scores, (23.125, 3.578125), strict=True
    ):
        (other,) = score.also_observed
        assert other.reward == observed
        assert "SGLang" in other.engine
        assert abs(other.reward - score.reward) == score.bfloat16_step


@pytest.mark.parametrize(
    ("model", "steps"),
    [(LLAMA, [0.0625, 0.0625]), (GEMMA + "-v0.2", [0.03125, 0.125])],
)
def test_bfloat16_steps(model: str, steps: list[float]):
    assert [s.bfloat16_step for s in get_golden_rewards(model).scores] == steps


def test_golden_scores_name_known_models_and_sources():
    raw = json.loads((seeds_dir() / "golden_scores.json").read_text(encoding="utf-8"))
    models = {s["model"] for s in raw["scores"]}
    assert len(raw["scores"]) == 12
    assert len(models) == 6
    for model in models:
        entry = find_entry(model)
        assert entry is not None
        assert get_golden_rewards(entry) == get_golden_rewards(model)
        assert len(get_golden_rewards(entry).scores) == 2
    assert {s["source"] for s in raw["scores"]} <= load_sources().keys()
    official = {s["model"] for s in raw["scores"] if s["status"] == "confirmed"}
    assert official == models - {LLAMA, V2 + "Qwen3-0.6B"}
    assert get_golden_rewards("someone/else").scores == ()
    assert get_golden_rewards(V2 + "Qwen3-8B").scores == ()


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    lines = (seeds_dir() / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def words(text: str) -> list[str]:
    return text.split()


def with_flaw(pairs: list[dict[str, Any]], why: str) -> list[dict[str, Any]]:
    return [pair for pair in pairs if pair["why"] == why]


def test_pairs_are_complete(pairs: list[dict[str, Any]]):
    assert len(pairs) >= 24
    assert len({pair["id"] for pair in pairs}) == len(pairs)
    assert len({json.dumps(pair["prompt"]) for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert list(pair) == ["id", "topic", "prompt", "chosen", "rejected", "why"]
        assert pair["chosen"] != pair["rejected"]
        for key in ("id", "topic", "chosen", "rejected", "why"):
            assert isinstance(pair[key], str)
            assert pair[key] == pair[key].strip() != ""
        assert pair["topic"].startswith(pair["id"].split("-")[0])


def test_pairs_cover_the_topics(pairs: list[dict[str, Any]]):
    topics = Counter(pair["topic"] for pair in pairs)
    for topic in [
        "facts",
        "arithmetic",
        "code",
        "multi-turn",
        "system-prompt",
        "chinese",
        "emoji",
        "refusal",
        "long",
        "travel",
        "cooking",
        "health",
        "writing",
        "translation",
        "concept",
        "list",
        "table",
        "json",
        "poem",
        "planning",
    ]:
        assert topics[topic] >= 1, topic
    assert topics["chinese"] >= 2
    assert topics["multi-turn"] >= 2


def test_pair_roles_are_valid(pairs: list[dict[str, Any]]):
    lists = [pair for pair in pairs if not isinstance(pair["prompt"], str)]
    assert len(lists) >= 4
    for pair in lists:
        roles = [message["role"] for message in pair["prompt"]]
        assert all(set(message) == {"role", "content"} for message in pair["prompt"])
        if roles[0] == "system":
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        if pair["topic"] == "multi-turn":
            assert len(roles) >= 3
        if pair["topic"] == "system-prompt":
            assert pair["prompt"][0]["role"] == "system"


def test_long_prompt_is_long(pairs: list[dict[str, Any]]):
    (pair,) = [pair for pair in pairs if pair["topic"] == "long"]
    text = words(pair["prompt"])
    assert len(text) >= 1500
    assert len(set(text)) >= 500, "real text, not one paragraph repeated"


def test_flaws_are_mixed_and_match_their_description(pairs: list[dict[str, Any]]):
    scrambled, cut = with_flaw(pairs, SCRAMBLED), with_flaw(pairs, CUT)
    off_topic, refused = with_flaw(pairs, OFF_TOPIC), with_flaw(pairs, REFUSED)
    assert len(scrambled) >= 4
    assert min(len(cut), len(off_topic), len(refused)) >= 5
    subtle = len(pairs) - len(scrambled) - len(cut) - len(off_topic) - len(refused)
    assert subtle >= 4
    for pair in scrambled:
        assert sorted(words(pair["rejected"])) == sorted(words(pair["chosen"]))
    for pair in cut:
        assert pair["chosen"].startswith(pair["rejected"])
        assert len(pair["rejected"]) < 0.8 * len(pair["chosen"])
        assert pair["rejected"][-1] not in ".!?。！？"
    for pair in refused:
        assert len(pair["rejected"]) < 60
    for pair in off_topic:
        assert not pair["chosen"].startswith(pair["rejected"][:20])


def test_pairs_contain_chinese_and_emoji(pairs: list[dict[str, Any]]):
    for pair in pairs:
        if pair["topic"] == "chinese":
            assert sum("一" <= letter <= "鿿" for letter in pair["chosen"]) > 40
    (emoji,) = [pair for pair in pairs if pair["topic"] == "emoji"]
    assert "🎉" in emoji["prompt"]
    assert sum(ord(letter) > 0x1F300 for letter in emoji["chosen"]) >= 3


def test_json_answer_is_valid_json(pairs: list[dict[str, Any]]):
    (pair,) = [pair for pair in pairs if pair["topic"] == "json"]
    answer = json.loads(pair["chosen"].removeprefix("```json").removesuffix("```"))
    assert answer["guests"] == ["Mira", "Jonas", "Li"]


def test_code_pair_has_a_bug(pairs: list[dict[str, Any]]):
    (pair,) = [pair for pair in pairs if pair["id"] == "code-median-01"]

    def run(answer: str) -> Any:
        scope: dict[str, Any] = {}
        exec(answer.split("```python")[1].split("```")[0], scope)
        return scope["median"]([5, 1, 4, 2])

    assert run(pair["chosen"]) == 3
    with pytest.raises(TypeError):
        run(pair["rejected"])
