"""Reads the conversations of a record: prompt, answers, system message, history and tools.

`serve.jobs.columns` defines which columns count, and `serve.jobs.turns` reads the formats of other
tools.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rm_core import (
    ChatFormatName,
    ForeignTemplateError,
    InputError,
    InvalidConversationError,
    ScoreError,
    drop_nulls,
    join_parsed,
    parse_conversation,
    parse_prompt,
    parse_step_item,
    read_turns,
)
from rm_core.config import Kind
from rm_core.inputs.chat_formats import BOS_TEXTS, find_markers
from rm_core.inputs.conversations import Messages, validate_unicode
from rm_core.inputs.responses_items import read_rollout
from rm_core.inputs.stripped_turns import StrippedFormat, StrippedTurns, find_stripped_format
from rm_core.text import format_keys
from serve.jobs.columns import (
    CHOSEN,
    CONVERSATIONS,
    DEFAULT_COLUMNS,
    GENERATION,
    GROUPS,
    HISTORY,
    INPUT,
    JUDGED,
    PROMPTS,
    REJECTED,
    RESPONSES,
    SYSTEMS,
    TOOLS,
    VERL_DUMP,
    Columns,
    RecordKind,
    explain_unknown_kind,
    find_pair_columns,
    find_rollout,
    find_steps_column,
    find_unread_warnings,
    get_optional_path,
    get_path,
    infer_record_kinds,
    is_annotation,
    is_prompt,
    is_whole_conversation,
    require_readable,
)
from serve.jobs.inputs.image_files import ImageFiles
from serve.jobs.inputs.items import ScoringInput, list_orders
from serve.jobs.record_images import RecordImages
from serve.jobs.turns import (
    has_function_calls,
    load_messages,
    normalize_messages,
    parse_history,
    parse_json_turns,
    parse_prompt_transcript,
    parse_transcript,
    read_tools,
)

_ANSWER_HEADERS: Mapping[ChatFormatName, str] = {
    "chatml": r"<\|im_start\|>assistant\r?\n",
    "llama3": r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n",
    "gemma": r"<start_of_turn>model\r?\n",
    "mistral": r"\[/INST\] ?",
}
"""Patterns for the header of an answer."""
_TURN_MARKERS: Mapping[ChatFormatName, tuple[str, ...]] = {
    "chatml": ("<|im_start|>",),
    "llama3": ("<|start_header_id|>",),
    "gemma": ("<start_of_turn>",),
    "mistral": ("[INST]", "[SYSTEM_PROMPT]"),
}
"""Markers that begin a turn."""
_CONFIRM = "--transcripts read confirms that, --transcripts keep scores the text unchanged"
_TRANSCRIPT_READ = f"transcript_read: a text that is a transcript was read as turns; {_CONFIRM}"
_JSON_READ = (
    f"json_messages_read: a text that is a list of messages (JSON) was read as messages; {_CONFIRM}"
)
_MARK_WITHOUT_IMAGE = (
    "mark_without_image: the prompt has the text `<image>` and the row has no image, so the text "
    "was scored; give the image in a column `images` if there is one"
)
_ROLES_READ = (
    "role_names_read: the prompt is text of a chat template ({family}) without its special tokens, "
    "and was read as turns; --policy-template {family} confirms that, --policy-tokenizer checks "
    "it, and --transcripts keep scores the text unchanged"
)
_UNCERTAIN_TURNS = (
    "uncertain_turns: the special tokens between turns were removed, so turns were recognized by "
    "the names of roles alone, and other turns could have left the same text; --transcripts read "
    "confirms that"
)
_UNKNOWN_TURNS = (
    "the record is a rollout that verl wrote, so its prompt is text of the policy's chat template "
    "without special tokens, and its turns are unknown; name the policy's tokenizer by "
    "--policy-tokenizer, or score the text as one turn with --transcripts keep"
)
_CALL_AS_TEXT = (
    "function_call_as_text: a function_call turn was scored as text of the assistant; give "
    "`messages` with `tool_calls` to have the chat template render the call"
)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The prompt of an answer.

    Attributes:
        messages: the turns; empty if `rendered` has them.
        opening: beginning of the answer, if the prompt contains it.
        rendered: text that the policy's chat template rendered.
        stripped: how to read answers, if special tokens of the template were removed.
        is_transcript: whether the prompt is a transcript, where white space around answers
            separates turns.
        is_text: whether the column was plain text.
        is_whole: whether the column has all earlier turns, so that `history` is not inserted.
    """

    messages: Messages
    opening: str = ""
    rendered: str | None = None
    stripped: StrippedFormat | None = None
    is_transcript: bool = False
    is_text: bool = False
    is_whole: bool = False


@dataclass(frozen=True, slots=True)
class ParsedRecord:
    """The conversations of one record.

    Attributes:
        kind: kind of the record, which decides its result columns; None if unknown.
        conversations: conversations in order, or the orders of pairs that a judge reads; an error
            in place of an invalid response.
        error: why the record cannot be scored; it then has no conversations.
        warnings: warnings about how the record was read.
        num_image_bytes: size of the files of images that were read.
    """

    kind: RecordKind | None
    conversations: tuple[ScoringInput | ScoreError, ...] = ()
    error: ScoreError | None = None
    warnings: tuple[str, ...] = ()
    num_image_bytes: int = 0


def try_parse_record(
    record: object,
    columns: Columns = DEFAULT_COLUMNS,
    kind: Kind = "classifier",
    *,
    both_orders: bool = True,
    image_files: ImageFiles | None = None,
) -> ParsedRecord:
    """Parse a record; an invalid record gives a `ParsedRecord` with an error.

    Args:
        record: what a reader gives: a `ScoreError` if the row could not be read.
        columns: columns that the caller named.
        kind: kind of the model that reads the record.
        both_orders: whether a judge reads pairs in both orders; it always does so for groups.
        image_files: files of images that the record may name; None if the model reads only text.
    """
    if isinstance(record, ScoreError):
        return ParsedRecord(None, error=record)
    found: RecordKind | None = None
    try:
        parsed = parse_record(record, columns, kind, image_files)
        found = parsed.kind
        return _list_orders(parsed, both_orders) if kind == "judge" else parsed
    except InputError as error:
        if found is None and isinstance(record, Mapping):
            found = next(iter(infer_record_kinds(record, columns, kind)), None)
        if found and kind == "judge":
            found = JUDGED.get(found, found)
        return ParsedRecord(found, error=ScoreError.from_exception(error))


def _list_orders(parsed: ParsedRecord, both_orders: bool) -> ParsedRecord:
    """Return a pair or a group as what a judge reads of it.

    Raises:
        InvalidConversationError: the record is another one, or see `list_orders`.
    """
    if parsed.kind is None or parsed.kind not in JUDGED:
        raise InvalidConversationError(
            "a judge compares two answers to one prompt; give `chosen` and `rejected`, or "
            "`responses`, or score single conversations with another model"
        )
    answers = [
        ScoreError(one.code, f"`responses[{index}]`: {one.message}")
        if isinstance(one, ScoreError)
        else one
        for index, one in enumerate(parsed.conversations)
        if isinstance(one, list | dict | ScoreError)
    ]
    both_orders = both_orders or parsed.kind == "group"
    orders = tuple(list_orders(answers, both_orders=both_orders))
    return ParsedRecord(JUDGED[parsed.kind], orders, warnings=parsed.warnings)


def parse_record(
    record: object,
    columns: Columns = DEFAULT_COLUMNS,
    kind: Kind = "classifier",
    image_files: ImageFiles | None = None,
) -> ParsedRecord:
    """Parse a record of any known shape; steps of solutions only if `kind` is `step`.

    The arguments are those of `try_parse_record`.

    Raises:
        InvalidConversationError: the record has no known shape, or a conversation is invalid.
    """
    if not isinstance(record, Mapping):
        raise InvalidConversationError(
            f"a record must be a JSON object, got {type(record).__name__}"
        )
    kinds = infer_record_kinds(record, columns, kind)
    if not kinds:
        raise InvalidConversationError(explain_unknown_kind(record))
    if len(kinds) > 1:
        raise InvalidConversationError(
            f"the record is a {' and a '.join(kinds)} at once; name the columns to score by "
            "--messages-column, by --chosen-column and --rejected-column, or by --responses-column"
        )
    if kinds[0] == "conversation" and (rollout := find_rollout(record, columns)):
        chat = read_rollout(*(drop_nulls(part) for part in rollout))
        record = chat if isinstance(chat, dict) else {"messages": chat}
        columns = replace(columns, messages="messages")
    reader = _RecordReader(record, columns, image_files, reads_steps=kind == "step")
    return reader.read(kinds[0])


class _RecordReader:
    """Reads one record and tracks which columns were read.

    Args:
        record: a record of a known shape.
        columns: columns that the caller named.
        image_files: see `try_parse_record`.
        reads_steps: whether the answer may be given as steps.

    Raises:
        InvalidConversationError: the record is about something that the model does not read.
    """

    def __init__(
        self,
        record: Mapping[str, Any],
        columns: Columns,
        image_files: ImageFiles | None,
        *,
        reads_steps: bool = False,
    ) -> None:
        self._columns = columns
        self._original = record
        self._record = {
            name: value
            for name, value in record.items()
            if value is not None and name not in columns.ignored
        }
        self._read_columns: set[str] = set()
        self._warnings: list[str] = []
        self._steps = find_steps_column(self._record, columns) if reads_steps else None
        require_readable(self._record, reads_images=image_files is not None)
        self._images = RecordImages(self._record, image_files)
        for path, names in (
            (columns.prompt, ("prompt", *PROMPTS, INPUT)),
            (columns.system, SYSTEMS),
            (columns.history, (HISTORY,)),
            (columns.tools, (TOOLS,)),
        ):
            if path == "":
                self._read_columns.update(names)
        named = (columns.messages, columns.prompt, columns.response, columns.chosen)
        more = (columns.rejected, columns.system, columns.history, columns.tools)
        # Their own names have no meaning.
        self._named_columns = {
            self._find_column(path) for path in (*named, *more, *columns.responses) if path
        }
        history = self._read_optional(columns.history, (HISTORY,), "--history-column")
        self._history = [] if history is None else parse_history(history)
        self._read_columns.add(TOOLS)
        tools = self._read_optional(columns.tools, (TOOLS,), "--tools-column")
        self._tools = read_tools(tools)

    def read(self, kind: RecordKind) -> ParsedRecord:
        """Read the record as one of this kind."""
        conversations: list[Messages | ScoreError]
        steps = self._steps if kind == "conversation" else None
        if steps:
            conversations = [self._read_solution(steps)]
        elif kind == "conversation":
            conversations = [self._read_conversation()]
        else:
            conversations = self._read_pair() if kind == "pair" else self._read_group()
        system, tools = self._parse_system(), self._tools
        extended = [
            c if isinstance(c, ScoreError) else _check_keys(_add_system(c, system))
            for c in [self._fill_images(one, kind) for one in conversations]
        ]
        good = [c for c in extended if not isinstance(c, ScoreError)]
        if all(message in c for message in self._history for c in good):
            self._read_columns.add(HISTORY)
        if good:
            self._warnings += find_unread_warnings(self._record, self._read_columns, good)
            if self._images.misses_images(good[0][:-1]):
                self._warnings.append(_MARK_WITHOUT_IMAGE)
        completed: tuple[ScoringInput | ScoreError, ...] = tuple(
            c if tools is None or isinstance(c, ScoreError) else {"messages": c, "tools": tools}
            for c in extended
        )
        if steps and good:
            item = {"prompt": good[0][:-1], "steps": self._record[steps]}
            completed = (parse_step_item(item),)
        warnings = tuple(dict.fromkeys(self._warnings))
        return ParsedRecord(kind, completed, None, warnings, self._images.num_bytes)

    def _fill_images(
        self, conversation: Messages | ScoreError, kind: RecordKind
    ) -> Messages | ScoreError:
        try:
            filled = conversation
            return filled if isinstance(filled, ScoreError) else self._images.fill(filled)
        except InvalidConversationError as error:
            if kind != "group":
                raise
            return ScoreError.from_exception(error)

    def _read_conversation(self) -> Messages:
        """Read the only conversation of the record."""
        columns = self._columns
        if columns.messages:
            return self._parse_whole(self._read_path(columns.messages), columns.messages)
        if columns.response:
            name, answer = columns.response, self._read_path(columns.response)
            return self._join(self._parse_prompt(), [answer], [name])[0]
        has_answer = any(name in self._record for name in (*RESPONSES, GENERATION))
        for name in CONVERSATIONS:
            if name in self._record:
                value = self._load_messages(name)
                is_text = isinstance(value, str)
                if has_answer and is_text and name == "messages":
                    raise InvalidConversationError(
                        "`messages` is text and there is an answer as well; give --messages-column "
                        "messages if it is a whole conversation, or --prompt-column messages if it "
                        "is the prompt"
                    )
                if not (has_answer and (is_prompt(value) or is_text)):
                    self._read_columns.add(name)
                    return self._parse_whole(value, name)
        name = self._find_only_column(RESPONSES, "--response-column") or GENERATION
        return self._join(self._parse_prompt(), [self._take(name)], [name])[0]

    def _read_solution(self, name: str) -> Messages:
        """Read a prompt and the steps of its solution, joined by line feeds into an answer."""
        others = [other for other in (*RESPONSES, GENERATION) if other in self._record]
        others += [
            other
            for other in CONVERSATIONS
            if other in self._record and not is_prompt(self._load_messages(other))
        ]
        if others:
            raise InvalidConversationError(
                f"the record has {format_keys([*others, name])}, and each may be the solution; "
                "ignore all but one of them with --ignore-column"
            )
        if self._tools is not None:
            raise InvalidConversationError(
                "the record has tools, which a step model does not read; ignore the column with "
                "--tools-column ''"
            )
        steps, prompt = self._take(name), self._parse_prompt()
        if prompt is None or prompt.opening:
            raise InvalidConversationError(
                f"a record with `{name}` needs a `prompt` that ends before the solution"
            )
        # `parse_step_item` refuses what is not a list of texts.
        texts = steps if isinstance(steps, list) else []
        text = "\n".join(step for step in texts if isinstance(step, str))
        return self._add_history(self._join_one(prompt, text, name), prompt)

    def _read_pair(self) -> list[Messages | ScoreError]:
        """Read a pair: the chosen conversation, then the rejected one."""
        (chosen, better), (rejected, worse) = sides = self._read_sides()
        if missing := [name for name, side in sides if side is None]:
            raise InvalidConversationError(
                f"the pair has no {format_keys(missing)}; it has {format_keys(self._record)}"
            )
        if chosen == "messages" and not self._columns.chosen:
            return [*self._read_messages_pair(rejected, worse)]
        prompt = self._parse_pair_prompt(better, worse)
        return [*self._join(prompt, [better, worse], [chosen, rejected])]

    def _read_group(self) -> list[Messages | ScoreError]:
        """Read a group: one conversation per answer, with an error in place of an invalid one."""
        name = next((name for name in GROUPS if name in self._record), GROUPS[0])
        responses: Any = self._take(name)
        if self._columns.responses:
            responses = []
            for path in self._columns.responses:
                value = self._read_path(path)
                responses += value if isinstance(value, list) else [value]
        if is_annotation(self._record, responses):
            raise InvalidConversationError(
                "the responses are annotators' answers to questions about a text (an Argilla "
                "record); name the columns to score, for example --prompt-column fields.prompt "
                "--response-column fields.response"
            )
        prompt = self._parse_prompt()
        if not isinstance(responses, list) or not responses or prompt is None:
            raise InvalidConversationError(
                "a record with `responses` needs a `prompt` and a list of at least one response"
            )
        return [self._lenient_join(prompt, response) for response in responses]

    def _parse_pair_prompt(self, better: Any, worse: Any) -> _Prompt | None:
        columns = self._columns
        named = columns.prompt or "prompt" in self._record or self._has_leading_messages()
        if not named and all(
            is_whole_conversation(normalize_messages(side)) for side in (better, worse)
        ):
            return None
        return self._parse_prompt()

    def _read_messages_pair(self, name: str, value: Any) -> list[Messages]:
        """Read a pair of ms-swift: `messages`, and another answer or conversation."""
        chosen = self._parse_whole(self._load_messages("messages"), "messages")
        if name == "rejected_messages":
            other = self._normalize(value, load_messages)
        else:
            other = self._parse_answer(value, _Prompt([], is_text=True))
        if is_whole_conversation(other):
            return [chosen, self._parse_whole(other, name)]
        if isinstance(other, str):  # replaces the last answer
            return [chosen, join_parsed(chosen[:-1], other, name)]
        last = max((i for i, m in enumerate(chosen) if m["role"] == "user"), default=-1)
        return [chosen, join_parsed(chosen[: last + 1], other, name)]

    def _read_sides(self) -> tuple[tuple[str, Any], tuple[str, Any]]:
        columns = self._columns
        if columns.chosen or columns.rejected:
            better, worse = (
                (path, self._read_path(path)) if path else (name, self._take(name))
                for path, name in ((columns.chosen, "chosen"), (columns.rejected, "rejected"))
            )
            return better, worse
        pair = find_pair_columns(self._record)
        chosen, rejected = pair or (
            next((name for name in names if name in self._record), names[0])
            for names in (CHOSEN, REJECTED)
        )
        if chosen in RESPONSES:
            chosen = self._find_only_column(RESPONSES, "--chosen-column") or chosen
        return (chosen, self._take(chosen)), (rejected, self._take(rejected))

    def _lenient_join(self, prompt: _Prompt, response: object) -> Messages | ScoreError:
        # An invalid response of a group does not affect the other responses.
        try:
            (conversation,) = self._join(prompt, [response], ["response"])
        except InputError as error:
            return ScoreError.from_exception(error)
        return conversation

    def _join(
        self, prompt: _Prompt | None, values: Sequence[Any], names: Sequence[str]
    ) -> list[Messages]:
        """Join the prompt with each answer.

        Answers that are whole conversations may have a prompt that is not their beginning, if the
        messages before they differ contain the prompt; the answers are then used unchanged.
        """
        answers = [self._parse_answer(value, prompt) for value in values]
        if prompt is None:
            return [self._parse_whole(a, n) for a, n in zip(answers, names, strict=True)]
        if prompt.rendered is None and all(is_whole_conversation(answer) for answer in answers):
            conversations = [self._parse_whole(a, n) for a, n in zip(answers, names, strict=True)]
            repeats = all(c[: len(prompt.messages)] == prompt.messages for c in conversations)
            if not repeats and _is_covered_by(prompt, _common_prefix(conversations)):
                return conversations
        return [
            self._add_history(self._join_one(prompt, answer, name), prompt)
            for answer, name in zip(answers, names, strict=True)
        ]

    def _join_one(self, prompt: _Prompt, answer: Any, name: str) -> Messages:
        template = self._columns.policy_template
        if prompt.rendered is not None and template is not None:
            if isinstance(answer, str) and _begins_conversation(answer, template):
                return self._read_repeated(prompt.rendered, answer, name)
            if isinstance(answer, str):
                return read_turns(prompt.rendered + answer, prompt.rendered, template)
            raise InvalidConversationError(
                f"the prompt is text rendered by a chat template (--policy-template) and `{name}` "
                "is messages; give both as text, or both as messages without the option"
            )
        if isinstance(answer, str) and prompt.stripped:
            turns = self._check_turns(prompt.stripped.read_answer(f"{prompt.opening}{answer}"))
            return [*prompt.messages, *turns.messages]
        if isinstance(answer, str):
            text = f"{prompt.opening}{answer}"
            content = validate_unicode(text.strip() if prompt.is_transcript else text, name)
            return [*prompt.messages, {"role": "assistant", "content": content}]
        if prompt.opening:
            raise InvalidConversationError(
                f"the prompt has the beginning of an answer and `{name}` is messages; give "
                f"`{name}` as text that continues the prompt"
            )
        try:
            return join_parsed(prompt.messages, answer, name)
        except InvalidConversationError as error:
            if not is_whole_conversation(answer):
                raise
            raise InvalidConversationError(
                f"{error.detail} (--prompt-column '' ignores the prompt)"
            ) from error

    def _read_repeated(self, prompt: str, text: str, name: str) -> Messages:
        """Read rendered text that repeats its prompt at the start."""
        if not _strip_bos(text).startswith(_strip_bos(prompt)):
            raise InvalidConversationError(
                f"`{name}` begins a conversation that does not begin with `prompt`; give only the "
                "text after the prompt, or ignore the prompt with --prompt-column ''"
            )
        return self._parse_whole_text(text, name)

    def _parse_whole(self, value: Any, name: str) -> Messages:
        """Parse a whole conversation, given as messages or as text in a known format."""
        value = self._normalize(value)
        return parse_conversation(
            self._parse_whole_text(value, name) if isinstance(value, str) else value
        )

    def _parse_whole_text(self, text: str, name: str) -> Messages:
        if template := self._columns.policy_template:
            headers = [*re.finditer(_ANSWER_HEADERS[template], text)]
            if headers and not text[headers[-1].end() :].strip():
                raise InvalidConversationError(
                    f"`{name}` ends where an answer begins, so it is a prompt; name this column "
                    "by --prompt-column, and the answer by --response-column"
                )
            if headers:
                return read_turns(text, text[: headers[-1].end()], template)
            raise InvalidConversationError(
                f"`{name}` is text without a turn of the assistant in the template of "
                f"--policy-template ({template}); name the template that rendered the text"
            )
        if (turns := self._parse_turns(text, self._columns.transcripts)) is not None:
            return turns
        raise InvalidConversationError(
            f"`{name}` is a string and the record has no `prompt`; add the `prompt`, or make "
            f"`{name}` a whole conversation (a list of messages); --transcripts read reads "
            "transcripts, --policy-template reads text that a chat template rendered"
        )

    def _parse_answer(self, value: Any, prompt: _Prompt | None) -> Any:
        """Parse an answer: text, or messages, also as JSON text or a transcript."""
        value = self._normalize(value)
        if not isinstance(value, str) or self._columns.policy_template:
            return value
        if prompt is not None and prompt.stripped:
            return value
        mode = self._columns.transcripts
        if prompt is not None:
            # An answer may mention turns; only the unmistakable kind is read as a transcript.
            mode = "keep" if mode == "keep" else "auto"
        if prompt is not None and prompt.is_text and parse_json_turns(value) is not None:
            return value
        turns = self._parse_turns(value, mode)
        return value if turns is None else turns

    def _parse_turns(self, text: str, mode: Any) -> Messages | None:
        """Return the turns of a transcript or of JSON text, or None for other text."""
        if mode == "keep":
            return None
        if (turns := parse_json_turns(text)) is not None:
            self._warn(_JSON_READ)
            return self._images.load(turns)  # type: ignore[no-any-return]
        transcript = parse_transcript(text, mode)
        if transcript is not None:
            self._warn(_TRANSCRIPT_READ)
        return transcript

    def _parse_prompt(self) -> _Prompt | None:
        value, is_complete = self._read_prompt_value()
        if value is None:
            return None
        value = self._normalize(value)
        if not isinstance(value, str):
            return _Prompt(parse_prompt(value), is_whole=is_complete)
        if stripped := self._parse_stripped(value):
            return stripped
        is_verl = VERL_DUMP.issubset(self._original) and value == self._record.get(INPUT)
        if is_verl and self._columns.transcripts != "keep" and not find_markers(value):
            raise ForeignTemplateError(_UNKNOWN_TURNS)
        if self._columns.policy_template:
            return _Prompt([], rendered=value)
        mode = self._columns.transcripts
        if mode != "keep":
            if (turns := parse_json_turns(value)) is not None:
                self._warn(_JSON_READ)
                return _Prompt(parse_prompt(self._images.load(turns)))
            if (transcript := parse_prompt_transcript(value, mode)) is not None:
                self._warn(_TRANSCRIPT_READ)
                return _Prompt(*transcript, is_transcript=True)
            _reject_rendered(value)
        return _Prompt(parse_prompt(value), is_text=True)

    def _parse_stripped(self, text: str) -> _Prompt | None:
        """Read a prompt of a chat template without its special tokens; None for other text."""
        columns = self._columns
        if columns.policy_tokenizer:
            from rm_core.model.loading import load_policy_tokenizer

            turns, stripped = load_policy_tokenizer(columns.policy_tokenizer).read_prompt(text)
        else:
            if columns.transcripts == "keep" and not columns.policy_template:
                return None
            found = find_stripped_format(text, columns.policy_template)
            if found is None:
                return None
            family, stripped = found
            turns = stripped.read_prompt(text)
            if not columns.policy_template:
                self._warn(_ROLES_READ.format(family=family))
        turns = self._check_turns(turns)
        return _Prompt(turns.messages, turns.opening, stripped=stripped)

    def _check_turns(self, turns: StrippedTurns) -> StrippedTurns:
        if not turns.is_certain:
            self._warn(_UNCERTAIN_TURNS)
        return turns

    def _read_prompt_value(self) -> tuple[Any, bool]:
        """Return the value of the prompt's column, and whether it has all earlier turns."""
        columns = self._columns
        if columns.prompt is not None:
            return (self._read_path(columns.prompt) if columns.prompt else None), False
        if self._has_leading_messages():
            self._read_columns.add("messages")
            return self._load_messages("messages"), True
        if "prompt" in self._record:
            return self._take("prompt"), False
        name = self._find_only_column(PROMPTS, "--prompt-column")
        if name is None:
            for conversations in CONVERSATIONS[1:]:
                if conversations in self._record:
                    self._read_columns.add(conversations)
                    return self._load_messages(conversations), True
            prompt = self._take(INPUT)
            return (prompt if prompt != "" else None), False
        prompt, more = self._take(name), self._record.get(INPUT)
        if name == "instruction" and isinstance(prompt, str) and isinstance(more, str) and more:
            self._read_columns.add(INPUT)
            if self._columns.policy_template and find_markers(prompt):
                raise InvalidConversationError(
                    "`instruction` is text rendered by a chat template (--policy-template), and "
                    "`input` would follow it, where the answer begins; give the prompt in one "
                    "column, or ignore the other one with --ignore-column input"
                )
            return (f"{prompt}\n{more}" if prompt else more), False
        return prompt, False

    def _has_leading_messages(self) -> bool:
        """Return whether `messages` end before an answer."""
        return is_prompt(self._load_messages("messages"))

    def _load_messages(self, name: str) -> Any:
        return self._normalize(self._record.get(name), load_messages)

    def _normalize(self, value: Any, normalize: Callable[[Any], Any] = normalize_messages) -> Any:
        if has_function_calls(value):
            self._warnings.append(_CALL_AS_TEXT)
        return self._images.load(normalize(value))

    def _find_column(self, path: str) -> str:
        return path if path in self._record else path.partition(".")[0]

    def _parse_system(self) -> str:
        system = self._read_optional(self._columns.system, SYSTEMS, "--system-column")
        if system is not None and not isinstance(system, str):
            raise InvalidConversationError(
                f"the system message of the record has type {type(system).__name__}; it must be "
                "text: correct it, or ignore it with --system-column ''"
            )
        return validate_unicode(system or "", "system")

    def _read_optional(self, path: str | None, names: tuple[str, ...], option: str) -> Any:
        """Return the value of a column that the record need not have.

        `path` is None to look for `names`, and empty to ignore the column; `option` is the one
        that names it, for the error if the record has several.
        """
        if path is None:
            free = tuple(name for name in names if name not in self._named_columns)
            name = self._find_only_column(free, option)
            return self._record[name] if name else None
        return get_optional_path(self._original, path) if path else None

    def _add_history(self, messages: Messages, prompt: _Prompt) -> Messages:
        if prompt.is_whole:
            return messages
        if self._history and self._history[-1]["role"] == "user":
            raise InvalidConversationError(
                "`history` ends with a turn of the user, and the prompt is another one; end "
                "`history` with an answer, or ignore the column with --history-column ''"
            )
        self._read_columns.add(HISTORY)
        start = int(messages[0]["role"] == "system")
        return [*messages[:start], *self._history, *messages[start:]]

    def _warn(self, warning: str) -> None:
        if self._columns.transcripts == "auto":
            self._warnings.append(warning)

    def _take(self, name: str) -> Any:
        self._read_columns.add(name)
        return self._record.get(name)

    def _read_path(self, path: str) -> Any:
        self._read_columns.add(self._find_column(path))
        return get_path(self._record, path)

    def _find_only_column(self, names: tuple[str, ...], option: str) -> str | None:
        found = [name for name in names if name in self._record]
        if len(found) > 1:
            raise InvalidConversationError(
                f"the record has {format_keys(found)}, which is ambiguous; choose one by {option}"
            )
        return found[0] if found else None


def _check_keys(messages: Messages) -> Messages | ScoreError:
    """Return the messages, or an error for a key that no template can render."""
    for index, message in enumerate(messages):
        if len(message) == 2:
            continue
        calls = message.get("tool_calls")
        if not isinstance(calls, list | None):
            return ScoreError(
                InvalidConversationError.code,
                f"message {index} has `tool_calls` that are not a list; give a list of objects, or "
                "the list as JSON text",
            )
        try:
            require_readable(message, reads_images=False)
        except InvalidConversationError as error:
            return ScoreError(error.code, f"message {index}: {error.detail}")
    return messages


def _add_system(messages: Messages, system: str) -> Messages:
    if not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _is_covered_by(prompt: _Prompt, start: Messages) -> bool:
    """Return whether the common beginning of whole conversations contains a prompt."""
    if prompt.opening:
        return False
    prompt_turns, start_turns = map(_strip_turns, (prompt.messages, start))
    if not any(content for _, content in prompt_turns):
        return True
    return any(
        start_turns[i : i + len(prompt_turns)] == prompt_turns for i in range(len(start_turns))
    )


def _strip_turns(messages: Messages) -> list[tuple[str, Any]]:
    """Return role and content of each message, without white space around text."""
    contents = ((message["role"], message["content"]) for message in messages)
    return [(role, c.strip() if isinstance(c, str) else c) for role, c in contents]


def _common_prefix(conversations: Sequence[Messages]) -> Messages:
    """Return the common beginning of conversations, without the last message of the shortest."""
    shortest = min(conversations, key=len)[:-1]
    same = itertools.takewhile(
        lambda i: all(c[i] == shortest[i] for c in conversations), range(len(shortest))
    )
    return [shortest[i] for i in same]


def _begins_conversation(answer: str, template: ChatFormatName) -> bool:
    """Return whether the text of an answer begins with a turn before the answer."""
    text = _strip_bos(answer)
    begins_turn = any(text.startswith(marker) for marker in _TURN_MARKERS[template])
    return begins_turn and re.match(_ANSWER_HEADERS[template], text) is None


def _strip_bos(text: str) -> str:
    text = text.lstrip()
    while bos := next((bos for bos in BOS_TEXTS if text.startswith(bos)), None):
        text = text.removeprefix(bos).lstrip()
    return text


def _reject_rendered(prompt: str) -> None:
    """Refuse a prompt that begins with a turn rendered by a chat template."""
    text = _strip_bos(prompt)
    marker = next((marker for marker in find_markers(text) if text.startswith(marker)), None)
    if marker:
        raise ForeignTemplateError(
            f"the prompt begins with {marker}: a chat template rendered it. Name the template by "
            "--policy-template (chatml, llama3, gemma, mistral), so that its turns are read, or "
            "the policy's tokenizer by --policy-tokenizer if special tokens were removed, give "
            "messages, or score the text as one turn with --transcripts keep"
        )
