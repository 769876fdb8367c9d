"""Render a checkpoint's chat template as transformers does, with limits and a fixed clock.

A chat template is a program that is shipped with the weights. transformers runs it in Jinja's
sandbox, which restricts access to files and code, but not the use of time and memory. This module
adds limits to that sandbox:

- Operators, filters, calls and blocks refuse numbers and texts that are far too large, also while
  Jinja folds constants during compilation. The maximum length of a text depends on the
  conversation.
- A thread interrupts a rendering that uses `MAX_CPU_S` of processor time or `MAX_BYTES` of memory.
- `strftime_now` returns a fixed date, so that rewards do not change overnight.
- `lipsum` and the filter `random` are refused, because rewards would be random.

A single call into C between two such checks is not limited.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from packaging.version import Version

from rm_core.errors import ModelLoadError, TemplateError
from rm_core.inputs.answer_text import (
    AnswerText,
    UnprovenError,
    guard_search,
    join_texts,
    require_absent,
    require_allowed_call,
    require_allowed_filter,
    require_proven,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

MAX_CPU_S = 5.0
"""Maximum processor time of one rendering, in seconds. 1,000 messages of 32 KB take less than a
second."""
MAX_BYTES = 2 << 30
"""Maximum growth of the process's memory during one rendering, once the rendering has taken
`_SUSPICIOUS_S`."""
MAX_CHARACTERS = 64 << 20
"""Maximum length of a text that a rendering may build; lower for short conversations."""
_LEAST_CHARACTERS, _MOST_GROWTH = 1 << 20, 32
_MOST_ESCAPED = 12
"""Maximum number of characters into which a function escapes one, such as `%F0%9F%98%80`."""
MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_NUMBER = 1_000_000
"""Largest number that a template may contain, or pass to a filter or a call."""

_POLL_INTERVAL_S = 0.25
_REPEAT_S = 0.01
_SUSPICIOUS_S = 0.5
_MAX_BITS = 4096
# Functions that indent every line of a text, and the maximum number of columns.
_INDENTING, _MAX_INDENT = ("indent", "tojson"), 1_000
# Characters. A message of the template may quote the whole conversation.
_MAX_REASON_LENGTH = 200
_CLOCK = "strftime_now"
_WIDE_FORMAT = re.compile(r"[%:<>^=+\-.]0*[1-9]\d{5,}")


class _Limit(threading.local):
    """Limits of the rendering on this thread."""

    characters = _LEAST_CHARACTERS  # maximum length of a text that it may build
    has_any_answer = False  # whether it renders an `AnswerText`


_limit = _Limit()


class _TemplateLimitError(Exception):
    """The template exceeds a limit."""


class RenderingInterrupt(BaseException):
    """Raised in a rendering by the watchdog thread. Not an `Exception`, which code might catch."""


@dataclass(frozen=True, slots=True)
class TemplateSubject:
    """What a template is for, in messages."""

    name: str  # what it is
    owned_name: str  # what it is, and whose
    setting: str  # the setting that gives another one

    @property
    def hint(self) -> str:
        """What to do about a template that cannot be used."""
        option = self.setting.replace("_", "-")
        return f"give another template with --{option} (setting `{self.setting}`)"


_CHAT = TemplateSubject("the chat template", "the checkpoint's chat template", "chat_template")


class ChatTemplate:
    """The compiled chat template of one tokenizer.

    Args:
        tokenizer: tokenizer with its chat template. Named templates are selected as in
            transformers.
        date: day whose midnight `strftime_now` formats.

    Attributes:
        text: text of the template for conversations without tools.
        all_texts: concatenated texts of all templates that may render a conversation.
        date: the given date, or None if the template never reads the clock.

    Raises:
        ModelLoadError: the template is missing or cannot be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date: datetime.date) -> None:
        self._tokenizer = tokenizer
        self.text = _get_default_template(tokenizer.chat_template)
        named = tokenizer.chat_template
        named = named if isinstance(named, dict) else {}
        self.all_texts = self.text + (named.get("tool_use") or "")
        texts = list(named.values()) or [self.text]
        names = {name for text in texts for name in _check_template(text, _CHAT)}
        self.date = date if _CLOCK in names else None
        self._compiled = {text: _compile(text, _CHAT, date) for text in texts}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """Render a conversation to text, as `apply_chat_template(tokenize=False)` does."""
        return _run_rendering(
            lambda: self._render(messages, tools, add_generation_prompt),
            _size(messages) + _size(tools),
            _CHAT,
        )

    def list_literals(self) -> list[str]:
        """Return the texts that the template contains, without duplicates."""
        import jinja2

        tokens = jinja2.Environment().lexer.tokenize(self.all_texts)
        return list(dict.fromkeys(token.value for token in tokens if token.type == "string"))

    def render_around(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> AnswerText | None:
        """Render a conversation for any content of its last message; see `answer_text`.

        Returns:
            What the template writes; None if it refuses the conversation, or if what it does with
            the answer cannot be proven.
        """
        answer = AnswerText()
        _limit.has_any_answer = True
        try:
            text = _run_rendering(
                lambda: self._render(messages, tools, answer=answer),
                _size(messages) + _size(tools),
                _CHAT,
            )
            return require_proven(text)
        except (TemplateError, UnprovenError):
            return None
        finally:
            _limit.has_any_answer = False

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool = False,
        answer: AnswerText | None = None,
    ) -> str:
        from transformers.utils import chat_template_utils

        name = self._tokenizer.get_chat_template(None, tools)  # type: ignore[arg-type]
        # The same steps as transformers' `apply_chat_template` and `render_jinja_template`.
        plain = getattr(chat_template_utils, "_plain_template_data", _identity)
        alias = getattr(chat_template_utils, "_alias_reasoning_fields", _identity)
        if _drops_nulls():
            messages = [{k: v for k, v in message.items() if v is not None} for message in messages]
        messages = alias(plain(messages))
        if answer is not None:
            messages = [*messages[:-1], {**messages[-1], "content": answer}]
        text = self._compiled[name].render(
            messages=messages,
            tools=plain(None if tools is None else list(tools)),
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **plain(dict(self._tokenizer.special_tokens_map)),
        )
        assert isinstance(text, str)
        return text


class PromptTemplate:
    """A compiled template that writes one text from named values, in the same sandbox.

    A template that reads the clock is refused.

    Args:
        text: Jinja text. A line feed at its end is kept, as in the text that it writes.
        subject: see `TemplateSubject`.
    """

    def __init__(self, text: str, subject: TemplateSubject) -> None:
        self.text = text
        self._subject = subject
        self.names = _check_template(text, subject)
        if _CLOCK in self.names:
            raise ModelLoadError(
                f"{subject.name} reads today's date by `{_CLOCK}`, so results would change with "
                "the day; write a date into it"
            )
        # Jinja drops one line feed at the end.
        self._compiled = _compile(text + "\n" if text.endswith("\n") else text, subject)

    def render(self, values: Mapping[str, Any]) -> str:
        """Write the text from the values of the template's variables, as plain JSON data."""
        return _run_rendering(lambda: self._compiled.render(values), _size(values), self._subject)


def _compile(text: str, subject: TemplateSubject, date: datetime.date | None = None) -> Any:
    """Compile a template in a sandbox with limits."""
    try:
        return run_within_limits(functools.partial(_compile_in_sandbox, text, date))
    except RenderingInterrupt:
        raise ModelLoadError(
            f"{subject.name} was not compiled within {MAX_CPU_S:g} s of processor time; "
            f"{subject.hint}"
        ) from None
    except Exception as error:
        raise ModelLoadError(
            f"{subject.name} is not a valid Jinja template: {_format_reason(error)}; fix it, or "
            f"{subject.hint}"
        ) from error


def _run_rendering(render: Callable[[], str], size: int, subject: TemplateSubject) -> str:
    """Run a rendering of input with about `size` characters; raise `TemplateError` if it fails."""
    _limit.characters = min(MAX_CHARACTERS, _LEAST_CHARACTERS + _MOST_GROWTH * size)
    try:
        return run_within_limits(render)
    except RenderingInterrupt as error:
        raise TemplateError(
            f"{subject.owned_name} did not render this conversation within {MAX_CPU_S:g} s of "
            f"processor time and {MAX_BYTES >> 30} GiB of memory; shorten the conversation, or fix "
            "the template"
        ) from error
    except _TemplateLimitError as error:
        raise TemplateError(
            f"{subject.owned_name} exceeded a limit on this conversation: {error}; fix the template"
        ) from error
    except UnprovenError:
        raise
    # A template may raise any exception for unusual messages.
    except Exception as error:
        raise TemplateError(_explain_failure(error, subject)) from error


def _compile_in_sandbox(text: str, date: datetime.date | None) -> Any:
    from transformers.utils.chat_template_utils import _cached_compile_jinja_template

    # The environment of an empty template, since no other template shares that environment.
    environment = _cached_compile_jinja_template("").environment
    environment.optimized = False
    environment.code_generator_class = _limit_generator(environment.code_generator_class)
    environment.concat = _concat
    environment.intercepted_binops = frozenset({"+", "*", "**", "%"})
    environment.binop_table |= {"+": _add, "*": _multiply, "**": _power, "%": _modulo}
    environment.filters = {
        name: _limit_filter(name, function) for name, function in environment.filters.items()
    }
    environment.call = _limit_calls(environment.call)
    environment.guard_search = _guard_search
    environment.tests = environment.tests | {"in": lambda value, seq: value in _guard_search(seq)}
    if date is not None:
        environment.globals[_CLOCK] = datetime.datetime.combine(date, datetime.time()).strftime
    return environment.from_string(text)


def _get_default_template(template: Any) -> str:
    if isinstance(template, dict):  # named templates; transformers uses `default` for chats
        template = template.get("default")
    if not isinstance(template, str) or not template.strip():
        raise ModelLoadError(
            "the checkpoint has no chat template, and a guessed template would change every "
            "reward; put `chat_template.jinja` into its folder, or give a file with "
            "--chat-template (setting `chat_template`)"
        )
    return template


def _check_template(text: Any, subject: TemplateSubject) -> set[str]:
    """Refuse constructs that are not allowed in a template; return the names that it reads."""
    import jinja2

    if not isinstance(text, str):
        raise ModelLoadError(
            f"{subject.name} is {str(text)[:80]!r}, which is not a string; give the text of a "
            "template"
        )
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise ModelLoadError(
            f"{subject.name} has {len(text):,} characters, and at most "
            f"{MAX_TEMPLATE_CHARACTERS:,} are allowed; is this the right file?"
        )
    try:
        tokens = [(name, value) for _, name, value in jinja2.Environment().lex(text)]
    except jinja2.TemplateError as error:
        raise ModelLoadError(
            f"{subject.name} is not a valid Jinja template: {_format_reason(error)}; fix it, or "
            f"{subject.hint}"
        ) from error
    names = {value for token_kind, value in tokens if token_kind == "name"}
    for forbidden in sorted(_find_random_sources(tokens)):
        raise ModelLoadError(
            f"{subject.name} uses `{forbidden}`, so equal conversations would get different "
            "rewards; give a template without it"
        )
    for token_kind, value in tokens:
        too_large = token_kind in ("integer", "float") and _number(value) > MAX_NUMBER
        if too_large or (token_kind == "string" and _WIDE_FORMAT.search(value)):
            raise ModelLoadError(
                f"{subject.name} contains {value[:40]}, but only numbers up to {MAX_NUMBER:,} "
                "are allowed (and format widths up to 99,999); give a template without it"
            )
    return names


def _find_random_sources(tokens: Sequence[tuple[str, str]]) -> Iterator[str]:
    visible = [token for token in tokens if token[0] != "whitespace"]
    for before, (token_kind, value) in zip([("", ""), *visible], visible, strict=False):
        if token_kind == "name" and (
            (value == "lipsum" and before[1] != ".") or (value == "random" and before[1] == "|")
        ):
            yield value


def _number(text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:  # binary, octal or hexadecimal
        return float(int(text.replace("_", ""), 0))


def _explain_failure(error: Exception, subject: TemplateSubject) -> str:
    """Explain an exception of a template to the caller."""
    import jinja2

    reason = str(error).strip()[:_MAX_REASON_LENGTH]
    # Raised by `raise_exception` in a template, with a message of the template's author.
    if type(error) is jinja2.TemplateError and reason:
        return (
            f"{subject.owned_name} refused the conversation: {reason}; this message is "
            "the template's own: change the conversation to what the template allows"
        )
    return (
        f"{subject.owned_name} refused the conversation: it failed with "
        f"{type(error).__name__}{f' ({reason})' if reason else ''}; compare the keys and types of "
        f"the messages, tools and tool calls with what the template reads (`{subject.setting}`)"
    )


def _format_reason(error: BaseException) -> str:
    return str(error).strip()[:_MAX_REASON_LENGTH] or type(error).__name__


def _identity(value: T) -> T:
    return value


@functools.cache
def _drops_nulls() -> bool:
    """Return whether transformers leaves fields of a message that are null out: since 5.23."""
    from transformers import __version__

    return Version(__version__) >= Version("5.23")


def _size(value: Any) -> int:
    """Return the approximate number of characters of JSON data."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(key)) + _size(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return 8


def _limit_generator(generator: type[Any]) -> type[Any]:
    """Return a subclass of Jinja's code generator that compiles `~` and `in` to guarded calls."""

    class Limited(generator):  # type: ignore[misc]
        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.concat(map(str, (")
            for operand in node.nodes:
                self.visit(operand, frame)
                self.write(", ")
            self.write(")))")

        def visit_Operand(self, node: Any, frame: Any) -> None:
            if node.op not in ("in", "notin"):
                super().visit_Operand(node, frame)
                return
            self.write(f" {'not ' * (node.op == 'notin')}in environment.guard_search(")
            self.visit(node.expr, frame)
            self.write(")")

    return Limited


def _guard_search(container: Any) -> Any:
    return guard_search(container) if _limit.has_any_answer else container


def _concat(texts: Iterable[str]) -> str:
    """Join the output of a template, a block, a macro or `~`, up to the limit."""
    joined, length = [], 0
    for text in texts:
        length += len(text)
        if length > _limit.characters:
            _require_length(length)
        joined.append(text)
    return join_texts(joined) if _limit.has_any_answer else "".join(joined)


def _add(left: Any, right: Any) -> Any:
    if hasattr(left, "__len__") and hasattr(right, "__len__"):
        _require_length(len(left) + len(right))
    return left + right


def _require_length(length: int) -> None:
    if length > _limit.characters:
        raise _TemplateLimitError(
            f"it builds a text or list of length {length:,}, and at most {_limit.characters:,} is "
            "allowed for a conversation of this length"
        )


def _check_result(result: T) -> T:
    """Check the length of a function's result, and return the result."""
    if isinstance(result, str | list | tuple):
        _require_length(len(result))
    return result


def _require_numbers(values: Any, maximum: int = MAX_NUMBER) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > maximum:
            number = (
                f"the number {value:,}"
                if value.bit_length() < 100
                else "a number of more than 30 digits"
            )
            raise _TemplateLimitError(
                f"it passes {number} to a function, and at most {maximum:,} is allowed there"
            )


def _require_format(text: Any, values: Any) -> None:
    if isinstance(text, str) and _WIDE_FORMAT.search(text):
        raise _TemplateLimitError("it uses a format with a width of more than 99,999")
    values = values if isinstance(values, tuple) else (values,)
    if isinstance(text, str) and "*" in text:
        _require_numbers(values)
    lengths = [len(value) for value in values if isinstance(value, str)]
    if isinstance(text, str) and sum(lengths) > _limit.characters // _MOST_ESCAPED:
        # Every placeholder may insert the longest value.
        num_placeholders = max(1, text.count("%") + text.count("{"))
        inserted = (
            max(lengths) * num_placeholders if num_placeholders > len(values) else sum(lengths)
        )
        _require_length(len(text) + inserted)


def _multiply(left: Any, right: Any) -> Any:
    for sequence, number in ((left, right), (right, left)):
        if hasattr(sequence, "__len__") and isinstance(number, int):
            _require_length(len(sequence) * max(0, number))
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() + right.bit_length())
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _require_bits(left.bit_length() * abs(right))
    return left**right


def _require_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise _TemplateLimitError(
            f"it computes a number of {bits:,} bits, and at most {_MAX_BITS:,} are allowed"
        )


def _modulo(left: Any, right: Any) -> Any:
    if _limit.has_any_answer:
        require_absent((left, right))
    _require_format(left, right)
    return left % right


def _require_growth(name: str, subject: Any, arguments: Sequence[Any]) -> None:
    """Limit functions whose result may be far longer than their arguments."""
    if name == "replace" and isinstance(subject, str) and len(arguments) >= 2:
        old, new = str(arguments[0]), str(arguments[1])
        growth = len(new) - len(old)
        if growth > 0 and (len(subject) + 1) * len(new) > _limit.characters:
            _require_length(len(subject) + subject.count(old) * growth)
    if name in _INDENTING:
        _require_numbers(arguments, _MAX_INDENT)


def _require_join(items: Any, separator: Any) -> None:
    if hasattr(items, "__len__"):
        length = sum(len(item) for item in items if isinstance(item, str))
        _require_length(length + len(str(separator)) * len(items))


def _limit_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps the attributes by which Jinja passes its context
    def limited(*arguments: Any, **options: Any) -> Any:
        num_context = int(hasattr(function, "jinja_pass_arg"))
        context, (subject, *rest) = arguments[:num_context], arguments[num_context:]
        if _limit.has_any_answer:
            require_allowed_filter(name, subject, (*rest, *options.values()))
        _require_numbers((*rest, *options.values()))
        if name == "format":
            _require_format(subject, tuple(rest))
        if name == "join":
            if not hasattr(subject, "__len__"):
                subject = list(subject)  # a generator can be iterated only once
            _require_join(subject, [*rest, *options.values(), ""][0])
        _require_growth(name, subject, (*rest, *options.values()))
        return _check_result(function(*context, subject, *rest, **options))

    return limited


def _limit_calls(call: Callable[..., Any]) -> Callable[..., Any]:
    def limited(context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        _require_numbers((*arguments, *options.values()))
        if _limit.has_any_answer:
            given = [v for k, v in options.items() if k not in ("_loop_vars", "_block_vars")]
            require_allowed_call(function, (*arguments, *given))
        name = getattr(function, "__name__", "")
        method = getattr(function, "__wrapped__", function)
        subject = getattr(method, "__self__", None)
        if name in ("format", "format_map"):
            _require_format(subject, (*arguments, *options.values()))
        elif name == "join" and isinstance(subject, str) and arguments:
            items = arguments[0] if hasattr(arguments[0], "__len__") else list(arguments[0])
            _require_join(items, subject)
            arguments = (items,)
        elif isinstance(subject, str):
            _require_growth(str(name), subject, arguments)
        return _check_result(call(context, function, *arguments, **options))

    return limited


@dataclass(slots=True)
class _Rendering:
    """A running rendering of one thread."""

    started_s: float
    bytes_before: int | None = None
    is_interrupted: bool = False


class _RenderingWatchdog:
    """The thread that interrupts renderings. One per process, started with the first rendering."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            # A forked process gets the lock in its current state, but no other thread.
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Drop all renderings and the thread, which a forked process does not have."""
        self._lock = threading.Lock()
        self._renderings: dict[int, _Rendering] = {}
        self._thread: threading.Thread | None = None

    def enter(self, thread: int) -> None:
        rendering = _Rendering(_cpu_seconds(thread))
        with self._lock:
            self._renderings[thread] = rendering
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name="template-watcher", daemon=True
                )
                self._thread.start()

    def leave(self, thread: int) -> None:
        with self._lock:
            rendering = self._renderings.pop(thread, None)
        if rendering is not None and rendering.is_interrupted:
            _drain_interrupt()

    def _run(self) -> None:
        pause_s = _POLL_INTERVAL_S
        while True:
            time.sleep(pause_s)
            pause_s = _POLL_INTERVAL_S
            # Under the lock, since the clock of a thread must not be read after the thread ended.
            with self._lock:
                for thread, rendering in self._renderings.items():
                    if _exceeds_limits(thread, rendering):
                        rendering.is_interrupted = True
                        _interrupt(thread)
                        # Python ignores the exception in a callback of the garbage collector, which
                        # runs often while a rendering builds a large value. So repeat it soon.
                        pause_s = _REPEAT_S


_watchdog = _RenderingWatchdog()


def run_within_limits(work: Callable[[], T]) -> T:
    """Run a function on the calling thread, and interrupt it at `MAX_CPU_S` or `MAX_BYTES`."""
    thread = threading.get_ident()
    try:
        _watchdog.enter(thread)
        try:
            return work()
        finally:
            _watchdog.leave(thread)
    except RenderingInterrupt:
        _watchdog.leave(thread)  # the interrupt may have prevented the first call
        raise


def _exceeds_limits(thread: int, rendering: _Rendering) -> bool:
    seconds, resident = _cpu_seconds(thread) - rendering.started_s, _resident_bytes()
    # On a busy machine the first poll may be late.
    if seconds < _SUSPICIOUS_S or rendering.bytes_before is None:
        rendering.bytes_before = resident
    if seconds > MAX_CPU_S:
        return True
    return resident is not None and resident - (rendering.bytes_before or resident) > MAX_BYTES


def _cpu_seconds(thread: int) -> float:
    """Return the processor time of a running thread, which excludes other load on the machine."""
    if hasattr(time, "pthread_getcpuclockid"):
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    return time.monotonic()


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * 4096
    except (OSError, ValueError, IndexError):  # not Linux
        return None


def _interrupt(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(RenderingInterrupt)
    )


def _drain_interrupt() -> None:
    """Consume an asynchronous exception that is pending for this thread.

    Otherwise the exception would interrupt later code. Clearing it by setting None leaves Python's
    flag for asynchronous exceptions set (observed in 3.11), which slows down all code, and under a
    profiler the thread hangs.
    """
    with contextlib.suppress(RenderingInterrupt):
        for _ in range(2):  # Python checks for such exceptions when a loop jumps back
            pass
