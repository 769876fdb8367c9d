"""Prompts without special tokens: the turns that left them are found, or they are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policies import CHATML, TEMPLATES, build_policy, log_prompt, turn

from rm_core import InvalidConversationError, ModelLoadError
from rm_core.inputs.conversations import Messages
from rm_core.inputs.policy_tokenizer import PolicyTokenizer
from rm_core.inputs.stripped_turns import find_stripped_format

# Some of these words are names of roles where they stand alone in a line.
WORDS = st.lists(
    st.sampled_from(["a", "b ", "user", "assistant", "system", "model", "tool", "\n", "\n\n", " "]),
    max_size=7,
).map("".join)
PLAIN = st.text(alphabet="ab Z.\n\t<>|[]/_:é😀", max_size=12)


def conversations(words: st.SearchStrategy[str]) -> st.SearchStrategy[Messages]:
    """Prompts of one or two questions, also with a system message."""

    def build(drawn: Any) -> Messages:
        system, earlier, question = drawn
        messages = [] if system is None else [turn("system", system)]
        for asked, answered in earlier:
            messages += [turn("user", asked), turn("assistant", answered)]
        return [*messages, turn("user", question)]

    earlier = st.lists(st.tuples(words, words), max_size=1)
    return st.tuples(st.none() | words, earlier, words).map(build)


READERS = {name: PolicyTokenizer(build_policy(text), name) for name, (_, text) in TEMPLATES.items()}
TRIMMED = ("llama3", "llama3.1", "gemma", "mistral")


def expect(name: str, messages: Messages) -> Messages:
    """Return the messages as the text of their prompt has them."""
    if name in TRIMMED:
        messages = [{**m, "content": m["content"].strip()} for m in messages]
    # These templates write the same text without a system message.
    own = {"qwen2.5": turn("system", "You are a helper."), "llama3.1": turn("system", "")}
    return messages[1:] if messages[0] == own.get(name) else messages


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=conversations(WORDS))
def test_policy_tokenizer_restores_turns_or_refuses(name: str, messages: Messages) -> None:
    """What is read writes the same text again, and a certain reading is what was written."""
    policy = build_policy(TEMPLATES[name][1])
    prompt = log_prompt(policy, messages)
    try:
        turns, _ = READERS[name].read_prompt(prompt)
    except InvalidConversationError:
        return
    assert log_prompt(policy, turns.messages) == prompt
    assert not turns.is_certain or turns.messages == expect(name, messages)


@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "llama3", "llama3.1", "gemma"])
@given(messages=conversations(PLAIN))
def test_turns_without_names_of_roles_are_always_read(name: str, messages: Messages) -> None:
    contents = [message["content"].strip() for message in messages]
    if name == "gemma" and messages[0]["role"] == "system":
        messages = messages[1:]  # without special tokens, it looks like a turn of an unknown role
    if name in TRIMMED and not all(contents):
        return  # an empty turn leaves two names next to each other
    prompt = log_prompt(build_policy(TEMPLATES[name][1]), messages)
    turns, _ = READERS[name].read_prompt(prompt)
    assert turns.messages == expect(name, messages)
    found = find_stripped_format(prompt, TEMPLATES[name][0])
    assert found
    expected = expect(name, messages)
    if name == "qwen2.5" and expected[0]["role"] != "system":
        expected = [turn("system", "You are a helper."), *expected]  # is a turn like any other
    assert found[1].read_prompt(prompt).messages == expected


QUESTION = [turn("user", "2+2?")]
THINKING = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
HYBRID = CHATML.replace(
    "assistant\n{% endif",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif",
)
NO_NAMES = (
    "{% for m in messages %}{{ '<s>' if m.role == 'user' else '</s>' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}</s><think>\n{% endif %}"
)
FOLDED = (
    "{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first else '' }}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
ONE_TURN = (
    "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}"
    "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n"
)
DATED_TODAY = (
    "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|eot_id|>"
    "{% for m in messages if m.role != 'system' %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
    "\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "options", "opening"),
    [
        (THINKING, {}, "<think>\n"),
        (HYBRID, {}, ""),
        (HYBRID, {"enable_thinking": False}, ""),
        (FOLDED, {}, ""),
        (ONE_TURN, {}, ""),
    ],
)
def test_template_is_read_up_to_its_answer(
    template: str, options: dict[str, Any], opening: str
) -> None:
    policy = build_policy(template)
    turns, _ = PolicyTokenizer(policy, "policy").read_prompt(
        log_prompt(policy, QUESTION, **options)
    )
    assert (turns.messages, turns.opening, turns.is_certain) == (QUESTION, opening, True)


def test_system_message_within_a_turn_stays_in_it() -> None:
    policy = build_policy(FOLDED)
    prompt = log_prompt(policy, [turn("system", "Be brief."), *QUESTION])
    turns, _ = PolicyTokenizer(policy, "policy").read_prompt(prompt)
    assert turns.messages == [turn("user", "Be brief.\n\n2+2?")]


def test_template_without_names_of_roles_is_never_certain() -> None:
    policy = build_policy(NO_NAMES)
    turns, stripped = PolicyTokenizer(policy, "policy").read_prompt(log_prompt(policy, QUESTION))
    assert (turns.messages, turns.opening, turns.is_certain) == (QUESTION, "<think>\n", False)
    assert stripped.read_answer("a</think>4").messages == [turn("assistant", "a</think>4")]


def test_prompt_of_another_day_is_rendered_with_its_date() -> None:
    policy = build_policy(DATED_TODAY)
    prompt = "system\n\nToday Date: 03 Feb 2024\n\nuser\n\nSince 2 Feb?assistant\n\n"
    turns, _ = PolicyTokenizer(policy, "policy").read_prompt(prompt)
    assert (turns.messages, turns.is_certain) == ([turn("user", "Since 2 Feb?")], True)


@pytest.mark.parametrize(
    ("prompt", "expected_text"),
    [
        ("2+2?\nassistant\n", "may have been cut"),
        ("user\n2+2?", "may have been cut"),
        ("system\nBe brief.\nassistant\n", "which of its lines begin turns is unknown"),
        ("system\na\nuser\nb\nuser\nc\nassistant\n", "which of its lines begin turns is unknown"),
        ("user\n2+2?<|im_end|>\nassistant\n", "has the special token <|im_end|> of policy"),
        ("user\ne\u0301\ud800\nassistant\n", "surrogate"),
    ],
)
def test_other_prompts_are_refused(prompt: str, expected_text: str) -> None:
    reader = PolicyTokenizer(build_policy(CHATML), "policy")
    with pytest.raises(InvalidConversationError) as caught:
        reader.read_prompt(prompt)
    assert expected_text in caught.value.detail


def test_prompt_of_another_template_is_refused() -> None:
    reader = PolicyTokenizer(
        build_policy(CHATML.replace("content", "content | replace('++', '+')")), "P"
    )
    assert reader.read_prompt("user\n2+2?\nassistant\n")[0].messages == QUESTION
    with pytest.raises(InvalidConversationError, match="is not what the tokenizer P writes"):
        reader.read_prompt("user\n2++2?\nassistant\n")


def test_template_that_hides_contents_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="renders no turn of a user"):
        PolicyTokenizer(build_policy("hello"), "policy")


@pytest.mark.parametrize(
    ("answer", "expected", "is_certain"),
    [
        ("4", [turn("assistant", "4")], True),
        ("The\nuser\nsays", [turn("assistant", "The\nuser\nsays")], True),
        (
            "f(2)\nuser\n<tool_response>4</tool_response>\nassistant\nIt is 4.",
            [
                turn("assistant", "f(2)"),
                turn("user", "<tool_response>4</tool_response>"),
                turn("assistant", "It is 4."),
            ],
            False,
        ),
        (
            "f(2)\ntool\n4\ntool\n5\nassistant\n",
            [
                turn("assistant", "f(2)"),
                turn("tool", "4"),
                turn("tool", "5"),
                turn("assistant", ""),
            ],
            False,
        ),
        ("a\nuser\nb\nassistant\nc\nassistant\nd", None, False),
    ],
)
def test_turns_of_answers(answer: str, expected: Messages | None, is_certain: bool) -> None:
    found = find_stripped_format("user\n2+2?\nassistant\n")
    assert found
    if expected is None:
        with pytest.raises(InvalidConversationError, match="turns of the answer"):
            found[1].read_answer(answer)
        return
    turns = found[1].read_answer(answer)
    assert (turns.messages, turns.is_certain) == (expected, is_certain)


@pytest.mark.parametrize(
    ("prompt", "family"),
    [
        ("user\n\n2+2?\nassistant\n", "chatml"),
        ("system\n\nuser\n2+2?\nassistant\n<think>\n", "chatml"),
        ("user\n\n2+2?assistant\n\n", "llama3"),
        ("user\n2+2?\nmodel\n", "gemma"),
        ("2+2?", None),
        ("the user\n2+2?\nassistant\n", None),
        ("[INST] 2+2? [/INST]", None),
    ],
)
def test_families_are_recognized_by_their_text(prompt: str, family: str | None) -> None:
    found = find_stripped_format(prompt)
    assert (found and found[0]) == family
    assert find_stripped_format(prompt, "mistral") is None
