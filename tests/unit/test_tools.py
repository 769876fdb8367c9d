"""Conversations with `tools` and tool calls: rendered as in transformers, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference import Reference

from rm_core import ModelConfig, Reward, RewardScorer, ScoreError, load_encoder
from rm_core.errors import InvalidConversationError
from rm_core.inputs.conversations import (
    add_tools,
    drop_nulls,
    join_chat,
    parse_arguments,
    parse_chat,
    parse_pair,
    parse_prompt_chat,
    parse_tools,
)

CopyOf = Callable[..., Path]

# Writes tools and calls as Qwen's templates do, and tests keys with `in` as Llama's template does.
TEMPLATE = (
    "{% if tools is not none %}<|im_start|>system\nTools:{% for t in tools %}\n{{ t | tojson }}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if 'name' in m %} {{ m.name }}{% endif %}\n"
    "{{ m.content }}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('exactly one call') }}{% endif %}{% for c in m.tool_calls %}"
    "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
)
ASK = {"role": "user", "content": "High tide in Brest?"}
ANSWER = {"role": "assistant", "content": "At six."}
MESSAGES = [ASK, ANSWER]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "Height of the tide",
            "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
        },
    }
]


def with_call(arguments: object) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "tide", "arguments": arguments}}
    return [
        ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "06:00"},
        ANSWER,
    ]


@pytest.fixture(scope="module")
def folder(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    copy = tmp_path_factory.mktemp("tools") / "checkpoint"
    shutil.copytree(checkpoint_of("qwen3"), copy)
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return copy


@pytest.fixture(scope="module")
def scorer(folder: Path) -> RewardScorer:
    return RewardScorer.load(ModelConfig(str(folder), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def reward_of(reference: Reference, messages: Any, tools: Any) -> float:
    """Return the reward of plain transformers, with its own handling of `tools`."""
    import torch

    sent = [{**m, "content": m["content"] or ""} for m in messages]
    found = reference.tokenizer.apply_chat_template(
        sent, tools=tools, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return float(reference.model(input_ids=found["input_ids"]).logits[0, 0])


def rewards(results: list[Reward | ScoreError]) -> list[float]:
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


def test_rewards_with_tools_equal_transformers(scorer: RewardScorer, reference: Reference) -> None:
    calls = with_call({"port": "Brest", "day": None})
    sent: list[tuple[Any, Any]] = [
        (MESSAGES, TOOLS),
        (MESSAGES, []),
        (MESSAGES, None),
        (calls, TOOLS),
        (MESSAGES, [*TOOLS, {"name": "bare", "default": None}]),
    ]
    ours = scorer.score([{"messages": messages, "tools": tools} for messages, tools in sent])
    right = [reward_of(reference, messages, tools) for messages, tools in sent]
    assert rewards(ours) == pytest.approx(right, abs=1e-4)
    # Tools, an empty list and no tools give three different texts.
    assert len({round(value, 4) for value in right[:3]}) == 3
    assert all(not result.warnings for result in ours if isinstance(result, Reward))


def test_tools_as_json_text_equal_tools_as_objects(scorer: RewardScorer) -> None:
    forms = (TOOLS, tuple(TOOLS), json.dumps(TOOLS), [json.dumps(tool) for tool in TOOLS])
    texts = {scorer.encoder.encode({"messages": MESSAGES, "tools": tools}).text for tools in forms}
    assert len(texts) == 1
    assert "Height of the tide" in texts.pop()
    without = scorer.encoder.encode(MESSAGES)
    for nothing in (None, "", " \n", "null"):
        assert scorer.encoder.encode({"messages": MESSAGES, "tools": nothing}) == without


REFUSED = {
    "number": (5, "`tools` is a number; it must be a list of functions"),
    "object": (TOOLS[0], "`tools` is an object; it must be a list"),
    "names": (["tide"], "tool 0 is text that cannot be read as JSON"),
    "a function": ([len], "tool 0 is a builtin_function_or_method"),
    "null inside": ([None], "tool 0 is null"),
    "equal keys": ('[{"name": "a", "name": "b"}]', "the key 'name' occurs twice in one object"),
    "equal keys below": ('[{"a": {"b": 1, "b": 2}}]', "the key 'b' occurs twice"),
    "infinite": ('[{"maximum": 1e400}]', "the number 1e400 is too large for a double"),
    "no JSON": ("tide(port)", "`tools` is text that cannot be read as JSON"),
    "NaN": ('[{"a": NaN}]', "it has NaN"),
    "text of a text": ('["tide"]', "tool 0 is text that cannot be read as JSON"),
    "too deep": ("[" * 5_000 + "]" * 5_000, "more than 100 lists and objects"),
    "deep": ("[" * 150 + "]" * 150, "more than 100 lists and objects"),
    "long number": ("[" + "9" * 5_000 + "]", "cannot be read as JSON"),
}


@pytest.mark.parametrize(("tools", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_tools_fail_only_their_conversation(
    scorer: RewardScorer, tools: Any, message: str
) -> None:
    good = {"messages": MESSAGES, "tools": TOOLS}
    bad = {"messages": MESSAGES, "tools": tools}
    first, second, third = scorer.score([good, bad, good])
    assert isinstance(first, Reward)
    assert first == third
    assert isinstance(second, ScoreError)
    assert second.code == "invalid_conversation"
    assert message in second.message
    assert len(second.message) < 400


@pytest.mark.parametrize("key", ["documents", "chat_template_kwargs", "system", "Tools"])
def test_unknown_key_is_refused_and_named(scorer: RewardScorer, key: str) -> None:
    (result,) = scorer.score([{"messages": MESSAGES, "tools": TOOLS, key: []}])
    assert isinstance(result, ScoreError)
    assert f"has the unknown keys `{key}`" in result.message


def test_truncation_keeps_tools_and_the_last_turn(scorer: RewardScorer) -> None:
    older = [{"role": "user", "content": "word " * 80}, {"role": "assistant", "content": "Yes."}]
    chat = {"messages": [*older, *MESSAGES], "tools": TOOLS}
    whole = scorer.encoder.encode(chat)
    shortest = scorer.encoder.encode({"messages": [ANSWER], "tools": TOOLS})
    cut = scorer.encoder.encode(chat, "left", shortest.num_tokens + 20)
    assert cut.truncated
    assert cut.num_tokens <= shortest.num_tokens + 20 < whole.num_tokens
    assert "Height of the tide" in cut.text
    assert cut.text.endswith("At six.<|im_end|>\n")
    (error,) = scorer.encoder.encode_all([chat], "left", shortest.num_tokens - 1)
    assert isinstance(error, ScoreError)
    assert "never cuts the last turn and `tools`" in error.message


def test_template_that_ignores_tools_warns(
    encoder_of: Callable[[str], Any], scorer: RewardScorer
) -> None:
    chat = {"messages": MESSAGES, "tools": TOOLS}
    (warning,) = encoder_of("qwen3").encode(chat).warnings
    assert warning.startswith("template_ignores_tools: ")
    assert encoder_of("qwen3").encode(chat).text == encoder_of("qwen3").encode(MESSAGES).text
    assert encoder_of("qwen3").encode({"messages": MESSAGES, "tools": []}).warnings == ()
    assert scorer.encoder.encode(chat).warnings == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("function_call", {"name": "tide", "arguments": "{}"}),
        ("tools", TOOLS),
        ("images", ["a.png"]),
        ("audio", {"id": "1"}),
    ],
)
def test_key_that_the_template_ignores_warns(key: str, value: Any, scorer: RewardScorer) -> None:
    messages = [MESSAGES[0], {**MESSAGES[-1], key: value}]
    (warning,) = scorer.encoder.encode(messages).warnings
    assert warning.startswith("template_ignores_keys: ")
    assert f"`{key}` of message(s) 1," in warning
    for empty in (None, [], ""):
        plain = scorer.encoder.encode([MESSAGES[0], {**MESSAGES[-1], key: empty}])
        assert plain.warnings == ()


def test_tool_calls_that_the_template_ignores_warn(
    scorer: RewardScorer, encoder_of: Callable[[str], Any]
) -> None:
    calls = with_call({"port": "Brest"})
    assert scorer.encoder.encode(calls).warnings == ()
    (warning,) = encoder_of("llama-v0.2").encode(calls).warnings
    assert warning.startswith("template_ignores_keys: ")
    assert "`tool_calls` of message(s) 1," in warning


def test_arguments_as_text_warn_if_rendered_differently(
    scorer: RewardScorer, reference: Reference
) -> None:
    as_text, as_object = with_call('{"port": "Brest"}'), with_call({"port": "Brest"})
    text, obj = scorer.score([as_text, as_object])
    assert isinstance(text, Reward)
    assert isinstance(obj, Reward)
    assert text.reward == pytest.approx(reward_of(reference, as_text, None), abs=1e-4)
    assert text.reward != pytest.approx(obj.reward, abs=1e-3)
    (warning,) = text.warnings
    assert warning.startswith("arguments_as_text: `arguments` of message(s) 1 are JSON text")
    assert obj.warnings == ()
    assert scorer.encoder.encode(with_call("not JSON")).warnings == ()


def test_arguments_as_text_do_not_warn_if_rendered_equally(copy_of: CopyOf) -> None:
    folder = copy_of()
    same = "{{ f if f is string else f | tojson }}"
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
        "{% set f = c.function.arguments %}" + same + "{% endfor %}\n{% endfor %}"
    )
    encoder = load_encoder(ModelConfig(str(folder)))
    assert encoder.encode(with_call('{"port": "Brest"}')).warnings == ()


def test_named_tool_template_is_selected_as_in_transformers(copy_of: CopyOf) -> None:
    folder = copy_of()
    default = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": default}, {"name": "tool_use", "template": TEMPLATE}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    encoder = load_encoder(ModelConfig(str(folder)))
    for tools in (None, [], TOOLS):
        right = Reference(folder).tokenizer.apply_chat_template(
            MESSAGES, tools=tools, tokenize=True, return_dict=True
        )["input_ids"]
        assert list(encoder.encode({"messages": MESSAGES, "tools": tools}).input_ids) == right
    assert "tide" in encoder.encode({"messages": MESSAGES, "tools": TOOLS}).text


def test_null_keys_and_empty_tool_calls_count_as_absent(
    scorer: RewardScorer, reference: Reference
) -> None:
    right = reward_of(reference, MESSAGES, None)
    variants = [
        [{**ASK, "name": None}, ANSWER],
        [ASK, {**ANSWER, "tool_calls": None, "refusal": None}],
        [ASK, {**ANSWER, "tool_calls": []}],
        [ASK, {**ANSWER, "tool_calls": ()}],
    ]
    assert rewards(scorer.score(variants)) == pytest.approx([right] * 4, abs=1e-4)
    # A null in arguments is a value.
    null, absent = with_call({"port": "Brest", "day": None}), with_call({"port": "Brest"})
    texts = [scorer.encoder.encode(messages).text for messages in (null, absent)]
    assert '"day": null' in texts[0]
    assert '"day"' not in texts[1]


def test_template_failure_is_reported_without_a_guessed_cause(scorer: RewardScorer) -> None:
    two = with_call({})
    two[1]["tool_calls"] *= 2
    refused, failed = scorer.score([two, [ASK, {**ANSWER, "tool_calls": [{"id": 1}]}]])
    assert isinstance(refused, ScoreError)
    assert "refused the conversation: exactly one call; this message is the template's" in (
        refused.message
    )
    assert isinstance(failed, ScoreError)
    assert failed.code == "template_error"
    assert "it failed with UndefinedError" in failed.message
    assert "roles" not in refused.message + failed.message


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        ('{"a": [1, null]}', {"a": [1, None]}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
    ],
)
def test_arguments_are_parsed_as_in_vllm(arguments: object, parsed: object) -> None:
    found = parse_arguments(with_call(arguments))
    assert found[1]["tool_calls"][0]["function"]["arguments"] == parsed
    assert found[0] == ASK


@pytest.mark.parametrize("arguments", ["{", "[]", "4", '"text"', '{"a": NaN}', "[" * 9_999])
def test_arguments_that_are_not_a_json_object_are_refused(arguments: str) -> None:
    with pytest.raises(InvalidConversationError, match="`arguments` of message 1 is"):
        parse_arguments(with_call(arguments))


@pytest.mark.parametrize(
    "odd",
    [None, 5, "text", [None], [{"role": "assistant", "tool_calls": 5}],
     [{"role": "assistant", "tool_calls": [None, {"function": 5}]}],
     [{"role": "user", "tool_calls": [{"function": {"arguments": "{"}}]}]],
)  # fmt: skip
def test_parse_arguments_keeps_values_without_arguments(odd: Any) -> None:
    assert parse_arguments(odd) == odd


def test_parse_pair_and_join_chat_take_tools_from_any_level() -> None:
    other = [{"name": "other"}]
    chat = {"messages": MESSAGES, "tools": TOOLS}
    pair = {"prompt": [ASK], "chosen": [ANSWER], "rejected": "No.", "tools": TOOLS}
    chosen, rejected = parse_pair(pair)
    assert chosen == chat
    assert isinstance(rejected, dict)
    assert rejected["tools"] == TOOLS
    assert parse_pair({**pair, "tools": json.dumps(TOOLS)}) == (chosen, rejected)
    of_prompt = {**pair, "prompt": {"messages": [ASK], "tools": TOOLS}, "tools": None}
    assert parse_pair(of_prompt) == (chosen, rejected)
    each = {"chosen": chat, "rejected": {"messages": MESSAGES, "tools": other}}
    assert parse_pair(each) == (chat, each["rejected"])
    for twice in ({**each, "tools": TOOLS}, {**of_prompt, "tools": other}):
        with pytest.raises(InvalidConversationError, match="`tools` were given twice for"):
            parse_pair(twice)
    assert join_chat(parse_prompt_chat({"messages": [ASK], "tools": TOOLS}), "At six.") == chat
    with pytest.raises(
        InvalidConversationError, match="the prompt has the unknown keys `documents`"
    ):
        parse_prompt_chat({"messages": [ASK], "documents": []})


def test_add_tools_keeps_tools_of_the_conversation() -> None:
    assert add_tools(MESSAGES, TOOLS) == {"messages": MESSAGES, "tools": TOOLS}
    own = {"messages": MESSAGES, "tools": []}
    assert add_tools(own, TOOLS) == own
    assert add_tools({"messages": MESSAGES, "tools": None}, TOOLS)["tools"] == TOOLS  # type: ignore[index]
    assert add_tools(MESSAGES, None) is MESSAGES
    for odd in (None, 5, "text"):
        assert add_tools(odd, TOOLS) == odd


def test_drop_nulls_at_every_depth() -> None:
    numpy = pytest.importorskip("numpy")
    row = numpy.array(
        [{"content": "a", "name": None, "calls": numpy.array([{"x": None, "y": [None, 1.5]}])}],
        dtype=object,
    )
    assert drop_nulls(row) == [{"content": "a", "calls": [{"y": [None, 1.5]}]}]
    assert drop_nulls(("text", None, 0, False, "")) == ["text", None, 0, False, ""]


def test_conversation_as_json_text_is_refused() -> None:
    for text in (json.dumps(MESSAGES), " " + json.dumps({"messages": MESSAGES})):
        with pytest.raises(InvalidConversationError, match=r"looks like JSON; send the list itse"):
            parse_chat(text)
    assert parse_tools(None) is None
