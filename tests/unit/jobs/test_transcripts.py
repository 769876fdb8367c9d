"""Text with several turns: transcripts, messages as JSON, text rendered by a chat template."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rm_core import ForeignTemplateError, InputError, InvalidConversationError, ScoreError
from serve.jobs.columns import Columns
from serve.jobs.record_reader import parse_record, try_parse_record

READ, KEEP = Columns(transcripts="read"), Columns(transcripts="keep")


def make_turns(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": ("user", "assistant")[index % 2], "content": content}
        for index, content in enumerate(contents)
    ]


GOOD, BAD = (
    make_turns("1+1?", "Two.", "3+4?", "Seven."),
    make_turns("1+1?", "Two.", "3+4?", "Eight."),
)
HH = "\n\nHuman: 1+1?\n\nAssistant: Two.\n\nHuman: 3+4?\n\nAssistant:"


def get_codes(warnings: tuple[str, ...]) -> list[str]:
    return [warning.partition(":")[0] for warning in warnings]


HH_ROWS: list[dict[str, Any]] = [
    {"chosen": f"{HH} Seven.", "rejected": f"{HH} Eight."},
    {"chosen": f"{HH} Seven.\n", "rejected": f"{HH} Eight.", "prompt": None},
    {"prompt": HH, "chosen": "Seven.", "rejected": " Eight."},
    {"prompt": f"{HH} ", "chosen": f"{HH} Seven.", "rejected": f"{HH} Eight."},
    {"prompt": HH, "responses": ["Seven.", " Eight.\n"]},
    {"prompt": HH, "responses": [[{"role": "assistant", "content": "Seven."}], "Eight."]},
    {"prompt": "3+4?", "chosen": f"{HH} Seven.", "rejected": f"{HH} Eight."},
    {
        "chosen": f"{HH} Seven.\n".replace("\n", "\r\n"),
        "rejected": f"{HH} Eight.".replace("\n", "\r\n"),
    },
    {"prompt": HH.replace("\n", "\r\n"), "responses": ["Seven.", " Eight.\r\n"]},
]


@pytest.mark.parametrize("row", HH_ROWS)
def test_hh_transcripts_are_read_with_warning(row: dict[str, Any]) -> None:
    parsed = parse_record(row)
    assert list(parsed.conversations) == [GOOD, BAD]
    assert get_codes(parsed.warnings) == ["transcript_read"]
    confirmed = parse_record(row, READ)
    assert (confirmed.conversations, confirmed.warnings) == (parsed.conversations, ())


def test_answer_continues_transcript_of_prompt() -> None:
    row = {"prompt": f"{HH} The answer is", "responses": [" seven.", make_turns("x")[:1]]}
    parsed = parse_record(row)
    answer = {"role": "assistant", "content": "The answer is seven."}
    assert parsed.conversations[0] == [*GOOD[:3], answer]
    assert isinstance(parsed.conversations[1], ScoreError)


@pytest.mark.parametrize(
    "text",
    [
        "Human: 1+1?\n\nAssistant: Two.",  # HH begins with two line ends
        "\n\nHuman: 1+1?",  # has no answer
        "He said:\n\nHuman: 1+1?\n\nAssistant: Two.",
        "### Human: 1+1?### Assistant: Two.",
        "USER: 1+1? ASSISTANT: Two.",
    ],
)
def test_ambiguous_text_is_error_that_names_option(text: str) -> None:
    with pytest.raises(InvalidConversationError, match="--transcripts read"):
        parse_record({"chosen": text, "rejected": text})


WHOLE = [
    f"{HH} Seven.",
    f"{HH} Seven.".lstrip(),
    "<extra_id_1>User\n1+1?\n<extra_id_1>Assistant\nTwo.\n<extra_id_1>User\n3+4?\n"
    "<extra_id_1>Assistant\nSeven.",
    "1+1?\n<extra_id_1>Assistant\nTwo.\n<extra_id_1>User\n3+4?\n<extra_id_1>Assistant\nSeven.\n",
    "### Human: 1+1?### Assistant: Two.### Human: 3+4?### Assistant: Seven.",
    "### Human: 1+1?\n### Assistant: Two.\n### Human: 3+4?\n### Assistant: Seven.",
    "USER: 1+1? ASSISTANT: Two.</s>USER: 3+4? ASSISTANT: Seven.</s>",
]


@pytest.mark.parametrize("text", WHOLE)
def test_other_transcripts_are_read_with_read_mode(text: str) -> None:
    other = text.replace("Seven", "Eight")
    parsed = parse_record({"chosen": text, "rejected": other}, READ)
    assert (list(parsed.conversations), parsed.warnings) == ([GOOD, BAD], ())
    whole = parse_record({"text": text}, Columns(messages="text", transcripts="read"))
    assert whole.conversations == (GOOD,)
    cut = text.rindex("Seven")
    prompted = parse_record({"prompt": text[:cut], "response": "Seven."}, READ)
    assert prompted.conversations == (GOOD,)


def test_preamble_of_vicuna_and_system_of_helpsteer_are_system_messages() -> None:
    vicuna = "A chat with a helper. USER: 1+1? ASSISTANT: Two.</s>"
    extra = (
        "<extra_id_0>System\nA chat with a helper.\n<extra_id_1>User\n1+1?\n"
        "<extra_id_1>Assistant\nTwo."
    )
    expected = [{"role": "system", "content": "A chat with a helper."}, *GOOD[:2]]
    for text in (vicuna, extra):
        assert parse_record({"chosen": text, "rejected": text}, READ).conversations[0] == expected


def test_labels_in_transcript_are_refused() -> None:
    text = "1+1?\n<extra_id_1>Assistant\n<extra_id_2>quality:4\nTwo."
    with pytest.raises(InvalidConversationError, match="does not begin a turn"):
        parse_record({"chosen": text, "rejected": text}, READ)


def test_plain_text_stays_text_in_read_mode() -> None:
    parsed = parse_record({"prompt": "What does USER: mean?", "response": "Human: a role."}, READ)
    assert parsed.conversations == (make_turns("What does USER: mean?", "Human: a role."),)


def test_ms_swift_answers_that_mention_turns_stay_text() -> None:
    other = "USER: is what a prompt says, ASSISTANT: what an answer says."
    row = {"messages": make_turns("What do they mean?", "Roles."), "rejected_response": other}
    parsed = parse_record(row, READ)
    assert list(parsed.conversations) == [row["messages"], make_turns("What do they mean?", other)]
    row = {"messages": GOOD, "rejected_messages": json.dumps(BAD)}
    assert list(parse_record(row).conversations) == [GOOD, BAD]


def test_keep_mode_scores_text_unchanged() -> None:
    parsed = parse_record({"prompt": HH, "responses": [" Seven."]}, KEEP)
    assert (parsed.conversations, parsed.warnings) == ((make_turns(HH, " Seven."),), ())
    assert try_parse_record({"chosen": f"{HH} 7", "rejected": f"{HH} 8"}, KEEP).error is not None


def test_invalid_transcript_in_group_does_not_affect_others() -> None:
    other = "\n\nHuman: 5+5?\n\nAssistant: Ten."
    parsed = parse_record({"prompt": HH, "responses": ["Seven.", other, "Eight."]})
    assert [c if isinstance(c, list) else "error" for c in parsed.conversations] == [
        GOOD,
        "error",
        BAD,
    ]


def test_json_text_of_messages_is_read_with_warning() -> None:
    row = {"prompt": json.dumps(GOOD[:3]), "chosen": json.dumps(GOOD[3:]), "rejected": "Eight."}
    parsed = parse_record(row)
    assert list(parsed.conversations) == [GOOD, BAD]
    assert get_codes(parsed.warnings) == ["json_messages_read"]
    assert parse_record(row, READ).warnings == ()
    kept = parse_record({"prompt": row["prompt"], "response": "Seven."}, KEEP)
    assert kept.conversations == (make_turns(row["prompt"], "Seven."),)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "[]", '[{"role": "user"}]', "[not JSON", '[{"a": 1, "b": 2}]', "[" * 100_000]
)
def test_other_json_text_stays_text(text: str) -> None:
    parsed = parse_record({"prompt": text, "response": "Seven."})
    assert (parsed.conversations, parsed.warnings) == ((make_turns(text, "Seven."),), ())


def test_json_answer_to_text_question_stays_text() -> None:
    answer = json.dumps([{"role": "assistant", "content": "Hi"}])
    parsed = parse_record({"prompt": "Write a chat as JSON.", "response": answer})
    assert parsed.conversations == (make_turns("Write a chat as JSON.", answer),)


RENDERED = {
    "chatml": "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
    "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1+1?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\n3+4?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\n1+1?<end_of_turn>\n<start_of_turn>model\nTwo."
    "<end_of_turn>\n<start_of_turn>user\n3+4?<end_of_turn>\n<start_of_turn>model\n",
    "mistral": "<s>[INST] 1+1? [/INST] Two.</s>[INST] 3+4? [/INST]",
}
ENDS = {
    "chatml": "<|im_end|>\n",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>\n",
    "mistral": "</s>",
}


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_text_is_refused_without_policy_template(name: Any) -> None:
    prompt, end = RENDERED[name], ENDS[name]
    row = {"prompt": prompt, "chosen": f"Seven.{end}", "rejected": f"Eight.{end}"}
    with pytest.raises(ForeignTemplateError, match="--policy-template"):
        parse_record(row)
    columns = Columns(policy_template=name)
    assert list(parse_record(row, columns).conversations) == [GOOD, BAD]
    whole = {"chosen": f"{prompt}Seven.{end}", "rejected": f"{prompt}Eight.{end}"}
    with pytest.raises(InvalidConversationError, match="--policy-template"):
        parse_record(whole)
    assert list(parse_record(whole, columns).conversations) == [GOOD, BAD]
    group = {"prompt": prompt, "responses": [f"Seven.{end}", make_turns("x")]}
    assert parse_record(group, columns).conversations[0] == GOOD
    assert not isinstance(parse_record(group, columns).conversations[1], list)


@pytest.mark.parametrize(
    "prompt",
    [
        "<|user|>\n3+4?</s>\n<|assistant|>\n",
        "<|system|>\nBe brief.</s>\n<|user|>\n3+4?</s>\n",
        "<|endoftext|><|user|>\n3+4?\n<|assistant|>\n",
        "[gMASK]<sop><|user|>\n3+4?<|assistant|>\n",
        "<|start|>system<|message|>Be brief.<|end|><|start|>user<|message|>3+4?<|end|>",
        "<|start|>user<|message|>3+4?<|end|><|start|>assistant",
        "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>3+4?<\uff5cAssistant\uff5c>",
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>3+4?<|END_OF_TURN_TOKEN|>",
        "<|im_system|>system<|im_middle|>Be brief.<|im_end|>",
        "[|system|]Be brief.[|endofturn|]\n[|user|]3+4?\n[|assistant|]",
        "<|startoftext|><|im_start|>user\n3+4?<|im_end|>\n",
    ],
)
def test_prompt_rendered_by_any_known_template_is_refused(prompt: str) -> None:
    with pytest.raises(ForeignTemplateError, match="a chat template rendered it"):
        parse_record({"prompt": prompt, "response": "Seven."})


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_answer_may_repeat_its_prompt(name: Any) -> None:
    prompt, end = RENDERED[name], ENDS[name]
    row = {"prompt": prompt, "chosen": f"{prompt}Seven.{end}", "rejected": f"Eight.{end}"}
    columns = Columns(policy_template=name)
    assert list(parse_record(row, columns).conversations) == [GOOD, BAD]
    other = prompt.replace("1+1?", "5+6?")
    with pytest.raises(InvalidConversationError, match="does not begin with `prompt`"):
        parse_record({**row, "chosen": f"{other}Seven.{end}"}, columns)


@pytest.mark.parametrize("name", RENDERED)
def test_rendered_prompt_is_never_scored_as_an_answer(name: Any) -> None:
    prompt, columns = RENDERED[name], Columns(policy_template=name)
    with pytest.raises(InvalidConversationError, match="ends where an answer begins"):
        parse_record({"messages": prompt}, columns)
    with pytest.raises(InvalidConversationError, match="`messages` is text and there is an answer"):
        parse_record({"messages": prompt, "response": "Seven."}, columns)
    row = {"instruction": prompt, "input": "Think.", "output": "Seven."}
    with pytest.raises(InvalidConversationError, match="`input` would follow it"):
        parse_record(row, columns)
    without_input = Columns(policy_template=name, ignored=("input",))
    assert parse_record(row, without_input).conversations == (GOOD,)
    plain = parse_record({**row, "instruction": "3+4?"}, columns)
    assert plain.conversations == (make_turns("3+4?\nThink.", "Seven."),)


def test_transcript_in_messages_with_an_answer_is_refused() -> None:
    row = {"messages": HH, "response": "Seven."}
    with pytest.raises(InvalidConversationError, match="--prompt-column messages"):
        parse_record(row)
    named = Columns(prompt="messages", response="response")
    assert parse_record(row, named).conversations == (GOOD,)


def test_json_text_with_duplicate_keys_stays_text() -> None:
    text = '[{"role": "user", "content": "It\'s 3+4?", "content": "5+6?"}]'
    parsed = parse_record({"prompt": text, "response": "Seven."})
    assert parsed.conversations == (make_turns(text, "Seven."),)
    with pytest.raises(InvalidConversationError, match="`messages` is text"):
        parse_record({"messages": text, "response": "Seven."})
    history = '[["1+1?", "Two."], {"role": "user", "role": "assistant", "content": "x"}]'
    with pytest.raises(InvalidConversationError, match="`history` has"):
        parse_record({"prompt": "3+4?", "response": "Seven.", "history": history})


def test_text_without_assistant_turn_is_refused() -> None:
    row = {"chosen": "Seven.", "rejected": "Eight."}
    with pytest.raises(InputError, match="without a turn of the assistant"):
        parse_record(row, Columns(policy_template="chatml"))


def test_rendered_text_is_one_turn_in_keep_mode() -> None:
    prompt = RENDERED["chatml"]
    parsed = parse_record({"prompt": prompt, "response": "Seven."}, KEEP)
    assert parsed.conversations == (make_turns(prompt, "Seven."),)


def test_system_and_tools_are_added_to_transcripts() -> None:
    row = {"prompt": HH, "response": "Seven.", "system": "Be brief.", "tools": [{"name": "sum"}]}
    (conversation,) = parse_record(row, READ).conversations
    assert conversation == {
        "messages": [{"role": "system", "content": "Be brief."}, *GOOD],
        "tools": [{"name": "sum"}],
    }
