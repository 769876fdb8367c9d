"""Columns of records: which ones the caller names, and which are read, refused or warned of.

A column concerns scoring only if some format makes it part of the model's input. In this case:

1. The column is read if its content can be rendered: prompts, answers, `system`, `history`,
   `tools`.
2. The row gets an error if the answer is about something that the model does not read (videos,
   audio, and images unless it is a vision-language model), or if the row has no single answer
   (stepwise supervision unless the model is a step model, a prompt alone, an annotation tool's
   record).
3. Otherwise the row gets a warning `column_not_read` (`documents`, `context`, a second prompt),
   unless the conversation has the same text anyway.

All other columns (labels, ratings, ids, names of models, answers of another shape) do not change
the model's input and are copied. The names come from the formats of TRL, LLaMA-Factory, ms-swift,
Axolotl, distilabel, Argilla, OpenRLHF and OpenAI's fine-tuning files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from rm_core import ChatFormatName, InvalidConversationError
from rm_core.config import Kind
from rm_core.inputs.conversations import Messages, get_text
from rm_core.inputs.responses_items import ITEM_TYPES
from rm_core.text import format_keys
from serve.errors import JobInputError
from serve.jobs.turns import TranscriptMode, load_messages

RecordKind: TypeAlias = Literal[
    "conversation", "pair", "group", "judged_pair", "judged_group", "steps", "verdicts"
]
"""Kind of a record, which decides its result columns; see `serve.jobs.row_results`. The last two
are those of `serve.jobs.inputs.items`.
"""
JUDGED: Mapping[RecordKind, RecordKind] = {"pair": "judged_pair", "group": "judged_group"}
"""Kinds of the records that a judge reads."""

CHOSEN = ("chosen", "chosen_response", "chosen_messages")
"""Names of the better answer of a pair."""
REJECTED = ("rejected", "rejected_response", "rejected_messages")
"""Names of the worse answer of a pair; the last two also go with `messages` or `response`."""
GROUPS = ("responses", "generations")
"""Names of the answers of a group; the first name in the record counts."""
RESPONSES = ("response", "completion", "answer", "output")
"""Names of the only answer of a record."""
GENERATION = "generation"
"""Name of the only answer where the record has none of `RESPONSES`."""
CONVERSATIONS = ("messages", "conversations", "conversation")
"""Names of whole conversations, and of the messages before the answers of a pair or a group."""
PROMPTS = ("question", "instruction", "query")
"""Names of a prompt other than `prompt`."""
INPUT = "input"
"""Appended to an instruction; without another prompt column, the prompt itself."""
STEPS = "steps"
"""Name of the steps of a solution, for a step model."""
STEPWISE = ("completions", "labels")
"""Names of the steps of a solution and of their labels in TRL's stepwise supervision."""
ROLLOUT = ("responses_create_params", "response")
"""Names of a request of the Responses API and of its response, in a rollout of NeMo-Gym."""
VERL_DUMP = frozenset(("input", "output", "score", "step"))
"""Columns of verl's dumps, whose prompts are always text of a chat template."""
SYSTEMS = ("system", "system_prompt")
HISTORY = "history"
TOOLS = "tools"

MEDIA = (
    *("image", "images", "video", "videos", "audio", "audios"),
    *("rejected_image", "rejected_images", "rejected_videos", "rejected_audios"),
)
"""Columns with media that an answer is about."""
_MEDIA = frozenset(MEDIA)
IMAGE_COLUMNS = ("images", "image")
"""Columns with the images of a prompt, which vision-language models read."""
MODEL_INPUT_COLUMNS = (
    *("prompt", *PROMPTS, INPUT, *CONVERSATIONS, *SYSTEMS, HISTORY, TOOLS),
    *("documents", "context", "functions", "chat_template", "chat_template_kwargs", "objects"),
    *("context_messages", "system_message", "available_tools"),
)
"""Columns that some format makes part of the model's input; a warning names those not read."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of columns; without names, columns are recognized.

    `a.b` is the column of that name if there is one, else the field `b` of the struct `a`; in a
    list of structs, `b` of each struct; `a.0` is the first item of the list `a`.

    Attributes:
        messages: column with whole conversations.
        prompt: column with the prompt, text or messages.
        response: column with the only answer.
        responses: columns with the answers of a group, combined in this order.
        chosen: column with the better answer or conversation.
        rejected: column with the worse answer or conversation.
        system: column with the text of a system message, inserted before the other messages.
        history: column with earlier turns, inserted before the prompt.
        tools: column with function definitions for the chat template.
        ignored: columns that are copied and never read. An empty name for `prompt`, `system`,
            `history` or `tools` ignores all columns with that meaning.
        transcripts: how to read text that holds several turns.
        policy_template: family of the chat template that rendered prompts and answers; None if
            they are plain text.
        policy_tokenizer: name of the tokenizer that wrote the prompts, whose special tokens were
            removed; None if they are plain text.

    Raises:
        JobInputError: the columns belong to more than one shape, or options exclude each other.
    """

    messages: str | None = None
    prompt: str | None = None
    response: str | None = None
    responses: tuple[str, ...] = ()
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    history: str | None = None
    tools: str | None = None
    ignored: tuple[str, ...] = ()
    transcripts: TranscriptMode = "auto"
    policy_template: ChatFormatName | None = None
    policy_tokenizer: str | None = None

    def __post_init__(self) -> None:
        shapes = {
            "--messages-column": bool(self.messages),
            "--response-column": bool(self.response),
            "--responses-column": bool(self.responses),
            "--chosen-column and --rejected-column": bool(self.chosen or self.rejected),
        }
        named = [options for options, is_named in shapes.items() if is_named]
        if len(named) > 1:
            raise JobInputError(
                f"{' and '.join(named)} name columns of different shapes; a job with named "
                "columns has one shape: give the columns of one shape"
            )
        if self.messages and self.prompt:
            raise JobInputError(
                "--messages-column names whole conversations, which have no --prompt-column; "
                "leave one out"
            )
        if self.policy_template and self.policy_tokenizer:
            raise JobInputError(
                "--policy-template and --policy-tokenizer both say how to read prompts; give the "
                "template if the text has its markers, or else the tokenizer"
            )

    def as_options(self) -> dict[str, Any]:
        """Return the command line options for these columns, as JSON data."""
        columns = asdict(self)
        others = {name: columns.pop(name) for name in ("transcripts", "policy_template")}
        if tokenizer := columns.pop("policy_tokenizer"):
            from rm_core.model.checkpoint import open_text_files

            others["policy_tokenizer"] = f"{tokenizer} ({open_text_files(tokenizer)[1]})"
        named = {"ignore_column": list(columns.pop("ignored"))}
        named |= {
            f"{name}_column": list(value) if isinstance(value, tuple) else value
            for name, value in columns.items()
        }
        return {**named, **others}


DEFAULT_COLUMNS = Columns()


def get_path(record: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path; see `Columns`.

    Raises:
        InvalidConversationError: the record has no value there, or null.
    """
    try:
        value = _walk_path(record, path)
    except (LookupError, TypeError):
        value = None
    if value is None:
        raise InvalidConversationError(
            f"the record has nothing at `{path}`, which an option names; it has "
            f"{format_keys(record)}"
        )
    return value


def get_optional_path(record: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path, which may be null; without that column, raise as `get_path`."""
    try:
        return _walk_path(record, path)
    except (LookupError, TypeError):
        return get_path(record, path)


def _walk_path(value: Any, path: str) -> Any:
    head, _, rest = path.partition(".")
    if isinstance(value, Mapping):
        if path in value:
            return value[path]
        return _walk_path(value[head], rest) if rest else value[head]
    if isinstance(value, list):
        if head.isdecimal():
            return _walk_path(value[int(head)], rest) if rest else value[int(head)]
        return [_walk_path(item, path) for item in value]
    raise TypeError(path)


def require_readable(record: Mapping[str, Any], *, reads_images: bool) -> None:
    """Raise an `InvalidConversationError` if a record has media that the model does not read.

    Args:
        record: columns of the record that may be read.
        reads_images: whether the columns of images in `serve.jobs.record_images` are read.
    """
    if _MEDIA.isdisjoint(record):
        return
    media = [
        name
        for name in MEDIA
        if not (reads_images and name in IMAGE_COLUMNS) and _is_filled(record.get(name))
    ]
    if media:
        what = "text, and images of the prompt" if reads_images else "text"
        raise InvalidConversationError(
            f"the record has {format_keys(media)}, and this model reads only {what}; an answer "
            "about something that the model does not see would get a wrong reward. If the answer "
            f"does not depend on it, ignore the column: {_format_ignore_options(media)}"
        )


def explain_unknown_kind(record: Mapping[str, Any]) -> str:
    """Return a message that explains why a record has no known shape, and what to do."""
    if isinstance(record.get("fields"), Mapping):
        return (
            "no known shape; this is an Argilla record with its texts in `fields`: name the "
            "columns, for example --prompt-column fields.prompt --response-column fields.response"
        )
    if isinstance(record.get("labels"), list) and isinstance(record.get("completions"), list):
        return (
            "no known shape; `completions` with `labels` is stepwise supervision, which labels "
            "single steps, and a reward is given to a whole answer: join the steps into "
            "`response`, or score with a step model"
        )
    if isinstance(record.get(STEPS), list):
        return (
            "no known shape; `steps` are read for step models only: join the steps into "
            "`response`, or score with a step model"
        )
    prompts = [name for name in ("prompt", *PROMPTS) if name in record]
    hint = f"; {format_keys(prompts)} has no answer" if prompts else ""
    return (
        "no known shape; a record has `messages`, or `chosen` and `rejected` (and `prompt`), "
        "or `prompt` and `responses`, or `prompt` and `response`; this one has "
        f"{format_keys(record)}{hint}: rename the columns, or name them by options such as "
        "--messages-column"
    )


def find_rollout(
    record: Mapping[str, Any], columns: Columns
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return the request and the response of a record in the format of the Responses API.

    This is a rollout of NeMo-Gym, or a record with `input` and a list of items in `output`. None
    for other records, and if options name the columns of a conversation.
    """
    named = (columns.messages, columns.prompt, columns.response, columns.chosen, columns.rejected)
    if columns.responses or any(named) or not ("output" in record or ROLLOUT[0] in record):
        return None
    record = {name: value for name, value in record.items() if name not in columns.ignored}
    params, response = (record.get(name) for name in ROLLOUT)
    if isinstance(params, Mapping) and isinstance(response, Mapping):
        return params, response
    items = record.get("output")
    has_items = isinstance(items, list) and any(
        isinstance(item, Mapping) and item.get("type") in ITEM_TYPES for item in items
    )
    return (record, record) if has_items and record.get(INPUT) is not None else None


def find_unread_warnings(
    record: Mapping[str, Any], read_columns: Collection[str], conversations: Sequence[Messages]
) -> list[str]:
    """Return warnings about columns that may belong to the model's input and were not read.

    Args:
        record: record without the columns that the caller ignores.
        read_columns: names of the columns from which `conversations` were built.
        conversations: conversations of the record.
    """
    unread = [
        name
        for name in MODEL_INPUT_COLUMNS
        if name in record
        and name not in read_columns
        and _is_filled(record[name])
        and not _is_repeated(name, record[name], conversations)
    ]
    if not unread:
        return []
    return [
        f"column_not_read: {format_keys(unread)} may belong to the model's input, and was not "
        f"read; name the columns to read by options, or give {_format_ignore_options(unread)}"
    ]


def _is_repeated(name: str, value: Any, conversations: Sequence[Messages]) -> bool:
    """Return whether conversations have a column's text anyway; for messages, one is enough."""
    is_covered = [_is_covered(value, messages) for messages in conversations]
    return any(is_covered) if name in CONVERSATIONS else all(is_covered)


def _is_covered(value: Any, messages: Messages) -> bool:
    if isinstance(value, str):
        return any(value.strip() in get_text(message["content"]) for message in messages)
    if isinstance(value, list):
        return all(
            isinstance(turn, Mapping)
            and isinstance(content := turn.get("content", turn.get("value")), str)
            and _is_covered(content, messages)
            for turn in value
        )
    return False


def _is_filled(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, list | tuple):
        return any(item is not None for item in value)
    if isinstance(value, Mapping):
        return any(item is not None for item in value.values())
    return value is not None and value is not False


def _format_ignore_options(names: Sequence[str]) -> str:
    return " ".join(f"--ignore-column {name}" for name in names)


def find_pair_columns(names: Collection[str]) -> tuple[str, str] | None:
    """Return the names of the chosen and the rejected column, or None if a side is missing."""
    chosen = [name for name in CHOSEN if name in names]
    rejected = [name for name in REJECTED if name in names]
    if chosen and rejected:
        return chosen[0], rejected[0]
    others = [name for name in rejected if name != "rejected"]
    better = [name for name in ("messages", *RESPONSES) if name in names]
    return (better[0], others[0]) if others and better else None


def is_prompt(messages: Any) -> bool:
    """Return whether messages end before an answer."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") in ("user", "tool")


def is_whole_conversation(answer: Any) -> bool:
    """Return whether an answer is a whole conversation: messages that begin before the answer."""
    first = answer[0] if isinstance(answer, list) and answer else None
    return isinstance(first, Mapping) and first.get("role") in ("system", "user")


def is_annotation(record: Mapping[str, Any], responses: Any) -> bool:
    """Return whether responses are those of annotators, as Argilla exports them."""
    if isinstance(responses, Mapping):
        return isinstance(record.get("fields"), Mapping)
    return (
        isinstance(responses, list)
        and bool(responses)
        and all(isinstance(r, Mapping) and "values" in r for r in responses)
    )


def find_steps_column(names: Collection[str], columns: Columns = DEFAULT_COLUMNS) -> str | None:
    """Return the name of the column with the steps of a solution, if no option names an answer."""
    if columns.messages or columns.response:
        return None
    if STEPS in names:
        return STEPS
    return STEPWISE[0] if all(name in names for name in STEPWISE) else None


def infer_kinds(
    names: Set[str], columns: Columns = DEFAULT_COLUMNS, kind: Kind = "classifier"
) -> list[RecordKind]:
    """Return the possible kinds of a record with columns of these names, for a kind of model."""
    if columns.chosen or columns.rejected:
        return ["pair"]
    if columns.responses:
        return ["group"]
    if columns.messages or columns.response or names >= {*ROLLOUT}:
        return ["conversation"]
    pair = find_pair_columns(names)
    kinds: list[RecordKind] = []
    if "messages" in names and (pair is None or pair[0] != "messages"):
        kinds.append("conversation")
    if pair:
        kinds.append("pair")
    if "responses" in names:
        kinds.append("group")
    if not kinds and "generations" in names:
        kinds.append("group")
    if not kinds and names & {*CONVERSATIONS, *RESPONSES, GENERATION}:
        kinds.append("conversation")
    if not kinds and kind == "step" and find_steps_column(names):
        kinds.append("conversation")
    if not kinds and names & {*CHOSEN, *REJECTED}:
        kinds.append("pair")  # one side only: the other side is reported as missing
    return kinds


def infer_record_kinds(
    record: Mapping[str, Any], columns: Columns, kind: Kind = "classifier"
) -> list[RecordKind]:
    """Return the possible kinds of a record, from its columns that are not null.

    Where `infer_kinds` finds a conversation by its name, the values decide: `messages`
    that end before an answer are the prompt of a pair, a group or an answer in the same record, and
    `messages` that are equal to `chosen` add nothing to a pair.
    """
    names = {
        name for name, value in record.items() if value is not None and name not in columns.ignored
    }
    kinds = infer_kinds(names, columns, kind)
    if "messages" not in names or "conversation" not in kinds:
        return kinds
    messages = load_messages(record["messages"])
    if is_prompt(messages):
        return infer_kinds(names - {"messages"}, columns, kind) or kinds
    if kinds == ["conversation", "pair"] and messages == load_messages(record.get("chosen")):
        return ["pair"]
    return kinds
