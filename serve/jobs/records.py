"""The shapes of a job's records: what is to be scored in one.

Conversation, pair and group are the service's own; the columns of ShareGPT and plain prompts with
answers are made into them. What a record gets for its rewards is in `serve.jobs.results`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rm_core import (
    InputError,
    InvalidConversationError,
    ScoreError,
    join,
    join_parsed,
    parse_conversation,
    parse_prompt,
)
from rm_core.conversations import Messages, checked_text
from serve.jobs.columns import AS_USUAL, Columns, listed, reach
from serve.jobs.turns import as_messages

Shape = Literal["conversation", "pair", "group"]
RESPONSES = ("response", "completion", "answer", "output")
"""What the only answer of a record may be called."""
PROMPTS = ("question", "instruction")
"""What a prompt may be called besides `prompt`."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one record asks for.

    Attributes:
        shape: decides which columns the answer gets; None if the record has none.
        conversations: in order; an error in the place of a response that has no valid shape.
        error: why nothing of it can be scored; there are no conversations then.
    """

    shape: Shape | None
    conversations: tuple[Messages | ScoreError, ...] = ()
    error: ScoreError | None = None


def read_work(record: object, columns: Columns = AS_USUAL) -> Work:
    """What a record asks for; what is wrong with it becomes the error of the `Work`.

    Args:
        record: as a reader gives it, also a `ScoreError` for what could not be read.
        columns: where the caller said its parts are.
    """
    if isinstance(record, ScoreError):
        return Work(None, error=record)
    try:
        return parse_record(record, columns)
    except InputError as error:
        shapes = shapes_in(record, columns) if isinstance(record, Mapping) else []
        return Work(shapes[0] if shapes else None, error=ScoreError.of(error))


def parse_record(record: object, columns: Columns = AS_USUAL) -> Work:
    """The conversations of a record.

    Args:
        record: of any known shape.
        columns: where the caller said its parts are.

    Raises:
        InvalidConversationError: no known shape, or a conversation that cannot be scored.
    """
    if not isinstance(record, Mapping):
        raise InvalidConversationError(
            f"a record must be a JSON object, got {type(record).__name__}"
        )
    shapes = shapes_in(record, columns)
    if not shapes:
        raise InvalidConversationError(
            "no known shape; a record has `messages`, or `chosen` and `rejected` (and `prompt`), "
            "or `prompt` and `responses`, or `prompt` and `response`; this one has "
            f"{listed(record)}: rename them, or name them by options such as --messages-column"
        )
    if len(shapes) > 1:
        raise InvalidConversationError(
            f"the record is a {' and a '.join(shapes)} at once; name the columns of the one to "
            "score, with --messages-column, --chosen-column and --rejected-column, or "
            "--responses-column"
        )
    system = _system(record, columns)
    conversations = _READERS[shapes[0]](record, columns)
    if system is not None:
        conversations = [_with_system(c, system) for c in conversations]
    return Work(shapes[0], tuple(conversations))


def shapes_among(has: Callable[[str], bool], columns: Columns = AS_USUAL) -> list[Shape]:
    """Which shapes there are where certain columns are; more than one is for the caller to solve.

    Args:
        has: whether there is a column of that name.
        columns: where the caller said a record's parts are.
    """
    if columns.chosen or columns.rejected:
        return ["pair"]
    if columns.responses:
        return ["group"]
    if columns.messages or columns.response:
        return ["conversation"]
    shapes: list[Shape] = []
    if has("messages"):
        shapes.append("conversation")
    if has("chosen") and has("rejected"):
        shapes.append("pair")
    if has("responses"):
        shapes.append("group")
    if not shapes and any(has(name) for name in ("conversations", *RESPONSES)):
        shapes.append("conversation")
    if not shapes and (has("chosen") or has("rejected")):
        shapes.append("pair")  # half of one: the other half is told to be missing
    return shapes


def shapes_in(record: Mapping[str, Any], columns: Columns) -> list[Shape]:
    """Which shapes a record has by its columns, null ones left aside; see `shapes_among`."""
    return shapes_among(lambda name: record.get(name) is not None, columns)


def _conversation(record: Mapping[str, Any], columns: Columns) -> list[Messages | ScoreError]:
    if columns.messages:
        return [parse_conversation(as_messages(reach(record, columns.messages)))]
    if columns.response:
        answer, what = reach(record, columns.response), columns.response
    else:
        for name in ("messages", "conversations"):
            if record.get(name) is not None:
                return [parse_conversation(as_messages(record[name]))]
        what = _only(record, RESPONSES, "--response-column") or ""
        answer = record[what]
    return [join(_prompt(record, columns), as_messages(answer), what)]


def _pair(record: Mapping[str, Any], columns: Columns) -> list[Messages | ScoreError]:
    names = (columns.chosen or "chosen", columns.rejected or "rejected")
    sides = [
        as_messages(reach(record, name) if is_named else record.get(name))
        for name, is_named in zip(names, (columns.chosen, columns.rejected), strict=True)
    ]
    if missing := [name for name, side in zip(names, sides, strict=True) if side is None]:
        raise InvalidConversationError(
            f"the pair has no {listed(missing)}; it has {listed(record)}"
        )
    is_whole = all(_is_whole(side) for side in sides)
    named = columns.prompt or record.get("prompt") is not None
    prompt = None if is_whole and not named else _prompt(record, columns)
    return [join(prompt, side, name) for side, name in zip(sides, names, strict=True)]


def _is_whole(answer: Any) -> bool:
    first = answer[0] if isinstance(answer, list) and answer else None
    return isinstance(first, Mapping) and first.get("role") in ("system", "user")


def _group(record: Mapping[str, Any], columns: Columns) -> list[Messages | ScoreError]:
    prompt = _prompt(record, columns)
    responses: Any = record.get("responses")
    if columns.responses:
        responses = []
        for path in columns.responses:
            value = reach(record, path)
            responses += value if isinstance(value, list) else [value]
    if not isinstance(responses, list) or not responses or prompt is None:
        raise InvalidConversationError(
            "a record with `responses` needs a `prompt` and a list of at least one response"
        )
    messages = parse_prompt(prompt)
    return [_lenient_join(messages, as_messages(response)) for response in responses]


def _prompt(record: Mapping[str, Any], columns: Columns) -> Any:
    if columns.prompt:
        return as_messages(reach(record, columns.prompt))
    if record.get("prompt") is not None:
        return as_messages(record["prompt"])
    name = _only(record, PROMPTS, "--prompt-column")
    if name is None:
        return as_messages(record.get("conversations"))
    prompt, more = record[name], record.get("input")
    if name == "instruction" and isinstance(prompt, str) and isinstance(more, str) and more:
        return f"{prompt}\n{more}"
    return as_messages(prompt)


def _only(record: Mapping[str, Any], names: tuple[str, ...], option: str) -> str | None:
    there = [name for name in names if record.get(name) is not None]
    if len(there) > 1:
        raise InvalidConversationError(
            f"the record has {listed(there)}, any of which may be meant; say which by {option}"
        )
    return there[0] if there else None


def _system(record: Mapping[str, Any], columns: Columns) -> str | None:
    if columns.system:
        system = reach(record, columns.system)
    elif record.get("messages") is not None or record.get("prompt") is not None:
        return None  # the service's own shapes have no such column: it is something else
    elif any(record.get(name) is not None for name in ("conversations", *PROMPTS)):
        system = record.get("system")
    else:
        return None
    if system is not None and not isinstance(system, str):
        raise InvalidConversationError(
            f"the system message of the record is of type {type(system).__name__}; it must be text"
        )
    return system or None


def _with_system(messages: Messages | ScoreError, system: str) -> Messages | ScoreError:
    if isinstance(messages, ScoreError) or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": checked_text(system, "system")}, *messages]


def _lenient_join(prompt: Messages, response: object) -> Messages | ScoreError:
    # A bad response of a group must not spoil its neighbours.
    try:
        return join_parsed(prompt, response)
    except InputError as error:
        return ScoreError.of(error)


_READERS: Mapping[Shape, Callable[[Mapping[str, Any], Columns], list[Messages | ScoreError]]] = {
    "conversation": _conversation,
    "pair": _pair,
    "group": _group,
}
