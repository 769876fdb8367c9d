"""Rows in the formats of TRL, LLaMA-Factory, ms-swift, Axolotl, distilabel and Argilla.

Each row is read as its tool reads it, gets an error, or gets a warning that names unread columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from reference import Reference

from rm_core import InvalidConversationError, ModelConfig, Reward, RewardScorer, ScoreError
from serve.jobs.columns import Columns
from serve.jobs.inputs.scan import scan_input
from serve.jobs.inputs.source import open_source
from serve.jobs.record_reader import parse_record

USUAL = Columns()
SYSTEM = {"role": "system", "content": "Be brief."}
PARIS = {"role": "user", "content": "Which river flows through Paris?"}
SEINE = {"role": "assistant", "content": "The Seine."}
ROME = {"role": "user", "content": "And through Rome?"}
TIBER = {"role": "assistant", "content": "The Tiber."}
ARNO = {"role": "assistant", "content": "The Arno."}
TIDE = {
    "type": "function",
    "function": {
        "name": "tide",
        "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
    },
}

ONE = [[ROME, TIBER]]
PAIR = [[ROME, TIBER], [ROME, ARNO]]
LATER = [[PARIS, SEINE, ROME, TIBER], [PARIS, SEINE, ROME, ARNO]]
WITH_SYSTEM = [[SYSTEM, *messages] for messages in PAIR]


def with_tools(conversations: list[Any]) -> list[Any]:
    return [{"messages": messages, "tools": [TIDE]} for messages in conversations]


def to_sharegpt(*turns: dict[str, str]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


Q, GOOD, BAD = ROME["content"], TIBER["content"], ARNO["content"]
HISTORY = [[PARIS["content"], SEINE["content"]]]

ROWS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "trl preference": ({"prompt": Q, "chosen": GOOD, "rejected": BAD, "margin": 2.0}, PAIR),
    "trl preference, conversational": (
        {"prompt": [ROME], "chosen": [TIBER], "rejected": [ARNO], "score_chosen": 9.0},
        PAIR,
    ),
    "trl preference, implicit prompt": ({"chosen": PAIR[0], "rejected": PAIR[1]}, PAIR),
    "trl preference with tools": (
        {"prompt": [ROME], "chosen": [TIBER], "rejected": [ARNO], "tools": [TIDE]},
        with_tools(PAIR),
    ),
    "trl tools as JSON text": (
        {"chosen": PAIR[0], "rejected": PAIR[1], "tools": json.dumps([TIDE])},
        with_tools(PAIR),
    ),
    "trl with an empty list of tools": (
        {"chosen": PAIR[0], "rejected": PAIR[1], "tools": []},
        [{"messages": messages, "tools": []} for messages in PAIR],
    ),
    "trl with tools as a struct of lists": (
        {"messages": ONE[0], "tools": {"type": ["function"], "function": [TIDE["function"]]}},
        with_tools(ONE),
    ),
    "trl unpaired": ({"prompt": [ROME], "completion": [TIBER], "label": True}, ONE),
    "trl unpaired, whole": ({"completion": ONE[0], "label": False}, ONE),
    "trl language modeling": ({"messages": ONE[0]}, ONE),
    "trl messages and a group": ({"messages": [ROME], "responses": [GOOD, BAD]}, PAIR),
    "llama-factory alpaca": (
        {"instruction": "Answer.", "input": Q, "output": GOOD, "system": "", "history": []},
        [[{"role": "user", "content": f"Answer.\n{Q}"}, TIBER]],
    ),
    "llama-factory alpaca with history": (
        {"instruction": Q, "input": "", "output": GOOD, "history": HISTORY},
        LATER[:1],
    ),
    "llama-factory alpaca ranking": (
        {"instruction": Q, "input": "", "chosen": GOOD, "rejected": BAD, "history": HISTORY},
        LATER,
    ),
    "llama-factory system and history": (
        {"instruction": Q, "output": GOOD, "system": "Be brief.", "history": HISTORY},
        [[SYSTEM, *LATER[0]]],
    ),
    "llama-factory kto": ({"instruction": Q, "output": GOOD, "kto_tag": False}, ONE),
    "llama-factory sharegpt": (
        {"conversations": to_sharegpt(ROME, TIBER), "system": "Be brief.", "tools": ""},
        WITH_SYSTEM[:1],
    ),
    "llama-factory sharegpt with tools": (
        {"conversations": to_sharegpt(ROME, TIBER), "tools": json.dumps([TIDE])},
        with_tools(ONE),
    ),
    "llama-factory sharegpt ranking": (
        {
            "conversations": to_sharegpt(PARIS, SEINE, ROME),
            "chosen": to_sharegpt(TIBER)[0],
            "rejected": to_sharegpt(ARNO)[0],
        },
        LATER,
    ),
    "llama-factory openai ranking": (
        {"messages": [SYSTEM, ROME], "chosen": TIBER, "rejected": ARNO},
        WITH_SYSTEM,
    ),
    "sharegpt as a struct of lists": (
        {"conversations": {"from": ["human", "gpt"], "value": [Q, GOOD], "weight": None}},
        ONE,
    ),
    "ranking as structs of lists": (
        {
            "conversations": {"from": ["human"], "value": [Q]},
            "chosen": {"from": ["gpt"], "value": [GOOD]},
            "rejected": {"from": ["gpt"], "value": [BAD]},
        },
        PAIR,
    ),
    "ms-swift messages": ({"messages": ONE[0], "label": True}, ONE),
    "ms-swift rejected_response": ({"messages": PAIR[0], "rejected_response": BAD}, PAIR),
    "ms-swift rejected_messages": ({"messages": PAIR[0], "rejected_messages": PAIR[1]}, PAIR),
    "ms-swift query and history": (
        {"query": Q, "response": GOOD, "rejected_response": BAD, "history": HISTORY},
        LATER,
    ),
    "ms-swift system": ({"system": "Be brief.", "query": Q, "response": GOOD}, WITH_SYSTEM[:1]),
    "ms-swift sharegpt": (
        {
            "system": "Be brief.",
            "conversation": [
                {"human": PARIS["content"], "assistant": SEINE["content"]},
                {"human": Q, "assistant": GOOD},
            ],
        },
        [[SYSTEM, *LATER[0]]],
    ),
    "axolotl chat_template.default": (
        {"messages": [PARIS, SEINE, ROME], "chosen": TIBER, "rejected": ARNO},
        LATER,
    ),
    "axolotl chat_template.default, text": (
        {"messages": [ROME], "chosen": GOOD, "rejected": BAD},
        PAIR,
    ),
    "axolotl chat_template.argilla_chat": ({"chosen": PAIR[0], "rejected": PAIR[1]}, PAIR),
    "axolotl intel": (
        {"system": "Be brief.", "question": Q, "chosen": GOOD, "rejected": BAD},
        WITH_SYSTEM,
    ),
    "axolotl argilla": (
        {"system": "", "instruction": Q, "chosen_response": GOOD, "rejected_response": BAD},
        PAIR,
    ),
    "axolotl icr": (
        {"system": "Be brief.", "input": Q, "chosen": GOOD, "rejected": BAD},
        WITH_SYSTEM,
    ),
    "axolotl ultra": (
        {"system": "Be brief.", "prompt": Q, "chosen": PAIR[0], "rejected": PAIR[1]},
        WITH_SYSTEM,
    ),
    "axolotl prompt_pairs": (
        {"system": "Be brief.", "prompt": Q, "chosen": GOOD, "rejected": BAD},
        WITH_SYSTEM,
    ),
    "axolotl kto": (
        {"system": "Be brief.", "instruction": Q, "completion": GOOD, "label": True},
        WITH_SYSTEM[:1],
    ),
    "distilabel ratings": (
        {"instruction": Q, "generations": [GOOD, BAD], "generation_models": ["a", "b"],
         "ratings": [5, 1], "rationales": ["x", "y"]},
        PAIR,
    ),
    "distilabel one generation": (
        {"system_prompt": "Be brief.", "instruction": Q, "generation": GOOD, "model_name": "a"},
        WITH_SYSTEM[:1],
    ),
    "distilabel dpo": (
        {"instruction": Q, "generations": [GOOD, BAD], "prompt": Q, "prompt_id": "0",
         "chosen": PAIR[0], "chosen_model": "a", "chosen_rating": 5.0,
         "rejected": PAIR[1], "rejected_model": "b", "rejected_rating": 1.0},
        PAIR,
    ),
    "distilabel dpo with a system prompt": (
        {"system_prompt": "Be brief.", "prompt": Q, "chosen": WITH_SYSTEM[0],
         "rejected": WITH_SYSTEM[1]},
        WITH_SYSTEM,
    ),
    "ultrafeedback binarized": (
        {"prompt": Q, "messages": PAIR[0], "chosen": PAIR[0], "rejected": PAIR[1]},
        PAIR,
    ),
    "prompt repeats a later turn": (
        {"prompt": f" {Q}\n", "chosen": LATER[0], "rejected": LATER[1]},
        LATER,
    ),
    "prompt repeats later messages": (
        {"prompt": [ROME], "chosen": WITH_SYSTEM[0], "rejected": WITH_SYSTEM[1]},
        WITH_SYSTEM,
    ),
    "messages as JSON text": (
        {"messages": json.dumps([ROME]), "chosen": GOOD, "rejected": BAD},
        PAIR,
    ),
    "history before messages of a prompt": (
        {"prompt": [SYSTEM, ROME], "response": GOOD, "history": HISTORY},
        [[SYSTEM, *LATER[0]]],
    ),
    "history before a group": (
        {"prompt": Q, "responses": [GOOD, BAD], "history": HISTORY},
        LATER,
    ),
    "history before answers that repeat the prompt": (
        {"prompt": Q, "chosen": PAIR[0], "rejected": PAIR[1], "history": HISTORY},
        LATER,
    ),
    "history of messages with text parts": (
        {"query": Q, "response": GOOD,
         "history": [{**m, "content": [{"type": "text", "text": m["content"]}]}
                     for m in (PARIS, SEINE)]},
        LATER[:1],
    ),
    "history that the messages have": ({"messages": LATER[0], "history": HISTORY}, LATER[:1]),
    "functions with nulls of a table": (
        {"messages": ONE[0], "tools": [{**TIDE, "strict": None}]},
        with_tools(ONE),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_row_of_format_is_read_as_its_tool_reads_it(name: str) -> None:
    row, expected = ROWS[name]
    parsed = parse_record(row)
    assert list(parsed.conversations) == expected
    assert parsed.warnings == ()


@pytest.mark.parametrize("name", ROWS)
def test_table_of_format_has_result_columns_of_its_kind(name: str, tmp_path: Path) -> None:
    """Parquet output gets its columns from column names, or from rows if names are ambiguous."""
    row, _ = ROWS[name]
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps(row) + "\n")
    found = scan_input(open_source(str(path)), tabular=True)
    assert found.kinds == {parse_record(row).kind}
    try:
        table = pa.Table.from_pylist([row])
    except pa.ArrowInvalid:  # an Arrow column cannot have both text and objects
        return
    pa.parquet.write_table(table, tmp_path / "in.parquet")
    source = open_source(str(tmp_path / "in.parquet"))
    (read,) = source.iter_rows()
    assert parse_record(read.record) == parse_record(row)
    assert parse_record(row).kind in scan_input(source, tabular=True).kinds


NAMED: list[tuple[dict[str, Any], str]] = [
    ({"messages": ONE[0], "documents": [{"text": "Rome lies on the Tiber."}]}, "`documents`"),
    ({"messages": ONE[0], "chat_template_kwargs": {"thinking": True}}, "`chat_template_kwargs`"),
    ({"messages": ONE[0], "functions": [TIDE["function"]]}, "`functions`"),
    ({"messages": ONE[0], "objects": {"ref": ["a"], "bbox": [[1, 2]]}}, "`objects`"),
    ({"question": Q, "answer": GOOD, "context": "Rome lies on the Tiber."}, "`context`"),
    ({"prompt": Q, "response": GOOD, "input": "Think of bridges."}, "`input`"),
    ({"prompt": Q, "response": GOOD, "instruction": "Think.", "query": "Of?"}, "`instruction`"),
    ({"messages": ONE[0], "prompt": "Something else?"}, "`prompt`"),
    ({"messages": ONE[0], "history": HISTORY}, "`history`"),
    ({"messages": [SYSTEM, *ONE[0]], "system": "Be long."}, "`system`"),
    ({"prompt": Q, "response": GOOD, "system_message": "Be long."}, "`system_message`"),
    ({"messages": ONE[0], "available_tools": [TIDE]}, "`available_tools`"),
    ({"chosen": PAIR[0], "rejected": PAIR[1], "context_messages": [PARIS, SEINE]},
     "`context_messages`"),
    ({"chosen": PAIR[0], "rejected": PAIR[1], "question": "Something else?"}, "`question`"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "column"), NAMED)
def test_warning_names_unread_column_that_may_belong_to_input(
    row: dict[str, Any], column: str
) -> None:
    parsed = parse_record(row)
    assert len(parsed.warnings) == 1
    assert parsed.warnings[0].startswith(f"column_not_read: {column}")
    name = column.strip("`")
    silenced = parse_record(row, Columns(ignored=(name, "query")))
    assert silenced.warnings == ()
    assert silenced.conversations == parsed.conversations


COPIED = ["label", "labels", "kto_tag", "margin", "score", "ratings", "source", "id", "model",
           "generation_model", "chosen_rating", "solution", "reward", "metadata"]  # fmt: skip


def test_labels_and_names_are_copied_without_warning() -> None:
    parsed = parse_record({"messages": ONE[0], **dict.fromkeys(COPIED, "value")})
    assert parsed.warnings == ()


EMPTY = [None, [], {}, "", " ", [None], {"path": None, "bytes": None}]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(
            (name, value)
            for name in ("documents", "context", "images", "prompt")
            for value in EMPTY
        ),
        *(("tools", value) for value in (None, "", " ", "null")),
        *(("history", value) for value in (None, [], "", "[]")),
        *(("system", value) for value in (None, "")),
    ],
)
def test_empty_column_gives_no_warning(column: str, value: Any) -> None:
    parsed = parse_record({"messages": ONE[0], column: value})
    assert (list(parsed.conversations), parsed.warnings) == (ONE, ())


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": ONE[0], "images": ["a.png"]}, "`images`.*--ignore-column images"),
    ({"prompt": Q, "chosen": GOOD, "rejected": BAD, "image": {"bytes": "aGk="}}, "`image`"),
    ({"messages": ONE[0], "videos": ["a.mp4"], "audios": ["b.wav"]}, "`videos`, `audios`"),
    ({"prompt": Q, "completions": ["One.", "Two."], "labels": [True, False]}, "stepwise"),
    ({"prompt": Q}, "`prompt` has no answer"),
    ({"text": f"{Q} {GOOD}"}, "no known shape"),
    (
        {"fields": {"prompt": Q, "response": GOOD}, "suggestions": {}, "responses": None},
        "Argilla record.*--prompt-column fields.prompt",
    ),
    (
        {"fields": {"prompt": Q}, "responses": [{"values": {"quality": {"value": 3}}}]},
        "annotator",
    ),
    ({"instruction": Q, "output": GOOD, "history": [["only a question"]]}, "`history` has"),
    ({"instruction": Q, "output": GOOD, "history": [[PARIS["content"], None]]}, "`history` has"),
    ({"instruction": Q, "output": GOOD, "history": "we spoke of rivers"}, "`history` has"),
    ({"instruction": Q, "output": GOOD, "history": {"turns": 2}}, "`history` has"),
    (
        {"fields": {"prompt": Q}, "suggestions": {}, "responses": {"quality": [{"value": 3}]}},
        "Argilla record",
    ),
    *(
        ({"prompt": Q, "response": GOOD, "context": "x", "history": [turn, SEINE]}, says)
        for turn, says in (
            ({"role": "user", "content": None}, "`history`: message 0 has no `content`"),
            ({"role": "user"}, "`history`: message 0 has no `content`"),
            ({"role": "user", "content": 5}, "`history`: message 0 has content that is a number"),
            ({"from": "bard", "value": "x"}, "`history`: message 0 has the role 'bard'"),
        )
    ),
    ({"prompt": Q, "response": GOOD, "history": [PARIS, SEINE, ROME]}, "ends with a turn of the u"),
    ({"messages": ONE[0], "tools": "a hammer"}, "`tools` is text.*--tools-column ''"),
    ({"messages": ONE[0], "tools": {"name": "tide"}}, "`tools` is an object.*--tools-column ''"),
    ({"messages": ONE[0], "tools": [1]}, "tool 0 is a number"),
    ({"messages": ONE[0], "tools": ["hammer"]}, "tool 0 is text"),
    ({"messages": ONE[0], "tools": [None]}, "tool 0 is null"),
    ({"messages": ONE[0], "system": 7}, "must be text.*--system-column ''"),
    (
        {"prompt": Q, "response": GOOD, "system": "a", "system_prompt": "b"},
        "choose one by --system-column",
    ),
    ({"prompt": "Other?", "chosen": LATER[0], "rejected": LATER[1]}, "--prompt-column ''"),
    (
        {"prompt": "The Tiber.", "chosen": LATER[0], "rejected": LATER[1]},
        "not the start of `prompt`",
    ),
    ({"messages": PAIR[0], "chosen": GOOD, "rejected": BAD}, "conversation and a pair at once"),
]


@pytest.mark.parametrize(("row", "says"), REFUSED)
def test_row_that_cannot_be_scored_explains_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConversationError) as caught:
        parse_record(row)
    assert re.search(says, caught.value.detail), caught.value.detail


OTHER_PROMPT = {"prompt": "Other?", "chosen": PAIR[0], "rejected": PAIR[1]}
OPTIONS: list[tuple[dict[str, Any], Columns, list[Any]]] = [
    (OTHER_PROMPT, Columns(prompt=""), PAIR),
    (OTHER_PROMPT, Columns(ignored=("prompt",)), PAIR),
    ({"system": "gpt-4", "prompt": Q, "response": GOOD}, Columns(system=""), ONE),
    ({"history": 3, "prompt": Q, "response": GOOD}, Columns(history=""), ONE),
    ({"tools": "hammer", "prompt": Q, "response": GOOD}, Columns(tools=""), ONE),
    ({"images": ["a.png"], "prompt": Q, "response": GOOD}, Columns(ignored=("images",)), ONE),
    (
        {"system": "Be brief.", "input": Q, "response": GOOD},
        Columns(prompt="input"),
        WITH_SYSTEM[:1],
    ),
    ({"before": HISTORY, "prompt": Q, "response": GOOD}, Columns(history="before"), LATER[:1]),
    ({"before": None, "prompt": Q, "response": GOOD}, Columns(history="before"), ONE),
    (
        {"input": {"messages": [ROME], "tools": [TIDE]}, "preferred_output": [TIBER],
         "non_preferred_output": [ARNO]},
        Columns(prompt="input.messages", tools="input.tools", chosen="preferred_output",
                rejected="non_preferred_output"),
        with_tools(PAIR),
    ),
    (
        {"fields": {"prompt": Q, "response": GOOD}, "responses": [{"values": {}}]},
        Columns(prompt="fields.prompt", response="fields.response"),
        ONE,
    ),
    (  # Stanford's SHP: the history is the question
        {"history": Q, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1},
        Columns(prompt="history", responses=("human_ref_A", "human_ref_B")),
        PAIR,
    ),
    ({"tools": Q, "response": GOOD}, Columns(prompt="tools", response="response"), ONE),
    ({"prompt": Q, "system": GOOD}, Columns(response="system"), ONE),
    ({"history": {"turns": ONE[0]}}, Columns(messages="history.turns"), ONE),
]  # fmt: skip


@pytest.mark.parametrize(("row", "columns", "expected"), OPTIONS)
def test_options_name_or_ignore_columns(
    row: dict[str, Any], columns: Columns, expected: list[Any]
) -> None:
    parsed = parse_record(row, columns)
    assert (list(parsed.conversations), parsed.warnings) == (expected, ())


def test_missing_column_named_by_option_is_refused() -> None:
    with pytest.raises(InvalidConversationError, match="nothing at `befroe`"):
        parse_record({"prompt": Q, "response": GOOD}, Columns(history="befroe"))


def test_sharegpt_function_call_is_scored_as_text_with_warning() -> None:
    call = '{"name": "tide", "arguments": {"port": "Brest"}}'
    turns = [
        {"from": "human", "value": "High tide in Brest?"},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "06:10"},
        {"from": "gpt", "value": "At ten past six."},
    ]
    parsed = parse_record({"conversations": turns})
    assert [m["role"] for m in parsed.conversations[0]] == [  # type: ignore[index]
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert [w.partition(":")[0] for w in parsed.warnings] == ["function_call_as_text"]


CALL = {"type": "function", "function": {"name": "tide", "arguments": {"port": "Brest"}}}


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        json.dumps([CALL]),
        {"type": ["function"], "function": [CALL["function"]], "id": None},
        [{**CALL, "id": None}],
        [{"type": "function", "function": {"name": "tide", "arguments": [("port", "Brest")]}}],
    ],
)
def test_tool_calls_of_tables_become_lists(calls: Any) -> None:
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    parsed = parse_record({"messages": [ROME, answer]})
    assert parsed.conversations[0] == [ROME, {**answer, "tool_calls": [CALL]}]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"tool_calls": "call tide"}, "message 1 has `tool_calls` that are not a list"),
        ({"tool_calls": {"name": "tide"}}, "message 1 has `tool_calls` that are not a list"),
        ({"images": ["a.png"]}, "message 1: the record has `images`"),
    ],
)
def test_key_that_no_template_can_render_is_error_of_its_conversation(
    keys: dict[str, Any], says: str
) -> None:
    bad = {"role": "assistant", "content": "x", **keys}
    parsed = parse_record({"prompt": Q, "responses": [[bad], GOOD]})
    failed, good = parsed.conversations
    assert isinstance(failed, ScoreError)
    assert says in failed.message
    assert good == ONE[0]


def test_extra_keys_of_sharegpt_turn_stay_in_message() -> None:
    answer = {"from": "gpt", "value": "", "tool_calls": json.dumps([CALL]), "name": None}
    turns = [{"from": "human", "value": Q, "weight": 0}, answer]
    parsed = parse_record({"conversations": turns})
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert parsed.conversations == ([ROME, called],)
    turns[0]["images"] = ["a.png"]
    (error,) = parse_record({"conversations": turns}).conversations
    assert isinstance(error, ScoreError)
    assert "message 0: the record has `images`" in error.message


@pytest.mark.parametrize("calls", ["", "null", "[]", {}, {"id": None, "function": None}])
def test_empty_tool_calls_of_table_are_dropped(calls: Any) -> None:
    parsed = parse_record({"messages": [ROME, {**TIBER, "tool_calls": calls}]})
    assert parsed.conversations == (ONE[0],)


def test_messages_printed_by_python_are_read() -> None:
    parsed = parse_record({"messages": str(ONE[0])})
    assert parsed.conversations == (ONE[0],)
    parsed = parse_record({"prompt": str([ROME]), "response": GOOD})
    assert parsed.conversations == (ONE[0],)
    assert [w.partition(":")[0] for w in parsed.warnings] == ["json_messages_read"]


TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
)


@pytest.fixture(scope="module")
def tool_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from checkpoints import SPECS, build_checkpoint

    folder = build_checkpoint(tmp_path_factory.mktemp("tools") / "qwen3", SPECS["qwen3"])
    (folder / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def score_with_transformers(tool_checkpoint: Path) -> Callable[[Any], float]:
    """Return a function that scores messages and tools with plain transformers."""
    reference = Reference(tool_checkpoint)

    def score(conversation: Any) -> float:
        messages, tools = conversation, None
        if isinstance(conversation, dict):
            messages, tools = conversation["messages"], conversation["tools"]
        text = reference.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        ids = reference.tokenizer(text).input_ids
        with torch.inference_mode():
            return float(reference.model(input_ids=torch.tensor([ids])).logits[0, 0])

    return score


@pytest.mark.parametrize(
    "name",
    [
        "trl preference with tools",
        "trl tools as JSON text",
        "llama-factory system and history",
        "llama-factory alpaca ranking",
        "ms-swift query and history",
        "axolotl icr",
    ],
)
def test_rewards_of_format_equal_plain_transformers(
    name: str, tool_checkpoint: Path, score_with_transformers: Callable[[Any], float]
) -> None:
    row, expected = ROWS[name]
    scorer = RewardScorer.load(ModelConfig(str(tool_checkpoint), device="cpu"))
    results = scorer.score(parse_record(row).conversations)
    rewards = [r.reward for r in results if isinstance(r, Reward)]
    assert rewards == pytest.approx([score_with_transformers(c) for c in expected], abs=1e-4)
