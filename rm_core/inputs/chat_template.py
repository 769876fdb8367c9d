"""Renders a checkpoint's chat template as transformers does, within limits and with a fixed clock.

A template is a program that came with the weights. transformers runs it in Jinja's sandbox, which
keeps it from files and code, but not from time and memory. Here the same sandbox gets limits:

- operators, filters, calls and blocks refuse numbers and texts that are far too large, also when
  Jinja folds constants while it compiles; how long a text may be depends on the conversation;
- a thread interrupts a rendering that takes `MAX_CPU_S` of processor time or `MAX_BYTES` of memory;
- `strftime_now` returns one date, so that a reward does not change overnight;
- `lipsum` and the filter `random` are refused, because rewards would be random.

Not limited: a single call into C between two such checks.
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

from rm_core.errors import ModelLoadError, TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

MAX_CPU_S = 5.0
"""Processor time of one rendering; 1,000 messages of 32 KB take less than a second."""
MAX_BYTES = 2 << 30
"""Memory by which the process may grow during one rendering that already took `_SUSPICIOUS_S`."""
MAX_CHARACTERS = 64 << 20
"""Length of a text that a rendering may build; less for a conversation that is short."""
_LEAST_CHARACTERS, _MOST_GROWTH = 1 << 20, 32
_MOST_ESCAPED = 12
"""Characters that a function may write for one, such as `%F0%9F%98%80` for an emoji."""
MAX_TEMPLATE_CHARACTERS = 1 << 20
MAX_NUMBER = 1_000_000
"""Largest number that a template may write, or pass to a filter or a call."""

_POLL_INTERVAL_S = 0.25
_REPEAT_S = 0.01
_SUSPICIOUS_S = 0.5
_MAX_BITS = 4096
# Columns by which these may indent every line of a text.
_INDENTING, _MAX_INDENT = ("indent", "tojson"), 1_000
# A template's own message may quote the conversation.
_MAX_REASON_LENGTH = 200
_CLOCK = "strftime_now"
_WIDE_FORMAT = re.compile(r"[%:<>^=+\-.]0*[1-9]\d{5,}")


class _Limit(threading.local):
    """Length of a text that the rendering on this thread may build."""

    characters = _LEAST_CHARACTERS


_limit = _Limit()


class _TemplateLimitError(Exception):
    """A template asked for something too large."""


class RenderingInterrupt(BaseException):
    """Raised inside a rendering by the watching thread; no `except Exception` may swallow it."""


class ChatTemplate:
    """The compiled chat template of one tokenizer.

    Args:
        tokenizer: with its chat template; named templates are chosen as transformers does.
        date: what `strftime_now` returns, at midnight.

    Attributes:
        text: the template for conversations without tools.
        all_texts: of all templates that a conversation may be rendered with, put together.
        date: None for a template that never reads the clock.

    Raises:
        ModelLoadError: there is no template, or it is no template that can be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date: datetime.date) -> None:
        self._tokenizer = tokenizer
        self._now = datetime.datetime.combine(date, datetime.time())
        self.text = _get_default_template(tokenizer.chat_template)
        self._compiled: dict[str, Any] = {}
        named = tokenizer.chat_template
        named = named if isinstance(named, dict) else {}
        self.all_texts = self.text + (named.get("tool_use") or "")
        texts = list(named.values()) or [self.text]
        names = {name for text in texts for name in _check_template(text)}
        self.date = date if _CLOCK in names else None
        try:
            for text in texts:
                self._compiled[text] = run_within_limits(functools.partial(self._compile, text))
        except RenderingInterrupt:
            raise ModelLoadError(
                f"the chat template was not compiled within {MAX_CPU_S:g} s of processor time; "
                "give a correct one with --chat-template (setting `chat_template`)"
            ) from None
        except Exception as error:
            raise ModelLoadError(
                f"the chat template is no valid Jinja template: {_format_reason(error)}; correct it, or "
                "give another one with --chat-template (setting `chat_template`)"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation, as `apply_chat_template(tokenize=False)` returns it.

        Args:
            messages: plain JSON data.
            tools: JSON schemas of functions; None for no tools.

        Raises:
            TemplateError: the template raised an error or reached a limit.
        """
        size = _size(messages) + _size(tools)
        _limit.characters = min(MAX_CHARACTERS, _LEAST_CHARACTERS + _MOST_GROWTH * size)
        try:
            text = run_within_limits(lambda: self._render(messages, tools))
        except RenderingInterrupt as error:
            raise TemplateError(
                "the checkpoint's chat template did not finish this conversation within "
                f"{MAX_CPU_S:g} s of processor time and {MAX_BYTES >> 30} GiB of memory; shorten "
                "the conversation, or correct the template"
            ) from error
        except _TemplateLimitError as error:
            raise TemplateError(
                f"the checkpoint's chat template was stopped at this conversation: {error}; "
                "correct the template"
            ) from error
        # A template may raise anything on odd messages.
        except Exception as error:
            raise TemplateError(_explain_failure(error)) from error
        return text

    def _render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> str:
        from transformers.utils import chat_template_utils

        name = self._tokenizer.get_chat_template(None, tools)  # type: ignore[arg-type]
        # The steps of transformers' `apply_chat_template` and `render_jinja_template`.
        plain = getattr(chat_template_utils, "_plain_template_data", _identity)
        alias = getattr(chat_template_utils, "_alias_reasoning_fields", _identity)
        present = [{k: v for k, v in message.items() if v is not None} for message in messages]
        text = self._compiled[name].render(
            messages=alias(plain(present)),
            tools=plain(None if tools is None else list(tools)),
            documents=None,
            add_generation_prompt=False,
            **plain(dict(self._tokenizer.special_tokens_map)),
        )
        assert isinstance(text, str)
        return text

    def _compile(self, text: str) -> Any:
        from transformers.utils.chat_template_utils import _cached_compile_jinja_template

        # Of an empty template for its environment, which no other template shares.
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
        environment.globals[_CLOCK] = self._now.strftime
        return environment.from_string(text)


def _get_default_template(template: Any) -> str:
    if isinstance(template, dict):  # several named ones; transformers takes this one for chats
        template = template.get("default")
    if not isinstance(template, str) or not template.strip():
        raise ModelLoadError(
            "the checkpoint has no chat template, and guessing one would change every reward; "
            "put `chat_template.jinja` into its folder, or name a file with --chat-template "
            "(setting `chat_template`)"
        )
    return template


def _check_template(text: Any) -> set[str]:
    """The names that a template reads.

    Raises:
        ModelLoadError: it is no text, or contains what no chat template needs.
    """
    import jinja2

    if not isinstance(text, str):
        raise ModelLoadError(f"a chat template is {str(text)[:80]!r}; give the text of a template")
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        raise ModelLoadError(
            f"the chat template has {len(text):,} characters, and {MAX_TEMPLATE_CHARACTERS:,} are "
            "allowed; is this the right file?"
        )
    try:
        tokens = [(kind, value) for _, kind, value in jinja2.Environment().lex(text)]
    except jinja2.TemplateError as error:
        raise ModelLoadError(
            f"the chat template is no valid Jinja template: {_format_reason(error)}; correct it, or give "
            "another one with --chat-template (setting `chat_template`)"
        ) from error
    names = {value for kind, value in tokens if kind == "name"}
    for forbidden in sorted(_find_random_sources(tokens)):
        raise ModelLoadError(
            f"the chat template uses `{forbidden}`, so that equal conversations would get "
            "different rewards; give a template without it"
        )
    for kind, value in tokens:
        too_large = kind in ("integer", "float") and _number(value) > MAX_NUMBER
        if too_large or (kind == "string" and _WIDE_FORMAT.search(value)):
            raise ModelLoadError(
                f"the chat template contains {value[:40]}, and numbers up to {MAX_NUMBER:,} are "
                "allowed (widths of formats up to 99,999); give a template without it"
            )
    return names


def _find_random_sources(tokens: Sequence[tuple[str, str]]) -> Iterator[str]:
    visible = [token for token in tokens if token[0] != "whitespace"]
    for before, (kind, value) in zip([("", ""), *visible], visible, strict=False):
        if kind == "name" and (
            (value == "lipsum" and before[1] != ".") or (value == "random" and before[1] == "|")
        ):
            yield value


def _number(text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:  # binary, octal or hexadecimal
        return float(int(text.replace("_", ""), 0))


def _explain_failure(error: Exception) -> str:
    """What a template's exception means for a caller."""
    import jinja2

    reason = str(error).strip()[:_MAX_REASON_LENGTH]
    # What `raise_exception` of a template raises, with the words of the template's author.
    if type(error) is jinja2.TemplateError and reason:
        return (
            f"the checkpoint's chat template refused the conversation: {reason}; the words are the "
            "template's own: change the conversation to what the template allows"
        )
    return (
        f"the checkpoint's chat template refused the conversation: it failed with "
        f"{type(error).__name__}{f' ({reason})' if reason else ''}; compare the keys and types of "
        "the messages, tools and tool calls with what the template reads (`chat_template` of the "
        "checkpoint)"
    )


def _format_reason(error: BaseException) -> str:
    return str(error).strip()[:_MAX_REASON_LENGTH] or type(error).__name__


def _identity(value: T) -> T:
    return value


def _size(value: Any) -> int:
    """About the number of characters of JSON data."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(str(key)) + _size(inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return 8


def _limit_generator(generator: type[Any]) -> type[Any]:
    """Jinja's writer of code, with `~` as a call that has a limit."""

    class Limited(generator):  # type: ignore[misc]
        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.concat(map(str, (")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write(")))")

    return Limited


def _concat(parts: Iterable[str]) -> str:
    """What a template, a block, a macro or `~` puts together."""
    texts, length = [], 0
    for part in parts:
        length += len(part)
        if length > _limit.characters:
            _require_length(length)
        texts.append(part)
    return "".join(texts)


def _add(left: Any, right: Any) -> Any:
    if hasattr(left, "__len__") and hasattr(right, "__len__"):
        _require_length(len(left) + len(right))
    return left + right


def _require_length(length: int) -> None:
    if length > _limit.characters:
        raise _TemplateLimitError(
            f"it builds a text or list of {length:,}, and {_limit.characters:,} are allowed for a "
            "conversation of this length"
        )


def _check_result(result: T) -> T:
    """The result of a function, which may be longer than what it was given."""
    if isinstance(result, str | list | tuple):
        _require_length(len(result))
    return result


def _require_numbers(values: Any, most: int = MAX_NUMBER) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > most:
            shown = f"{value:,}" if value.bit_length() < 100 else "of more than 30 digits"
            raise _TemplateLimitError(
                f"it passes the number {shown} to a function, and up to {most:,} is allowed there"
            )


def _require_format(text: Any, values: Any) -> None:
    if isinstance(text, str) and _WIDE_FORMAT.search(text):
        raise _TemplateLimitError("it formats with a width of more than 99,999")
    values = values if isinstance(values, tuple) else (values,)
    if isinstance(text, str) and "*" in text:
        _require_numbers(values)
    lengths = [len(value) for value in values if isinstance(value, str)]
    if isinstance(text, str) and sum(lengths) > _limit.characters // _MOST_ESCAPED:
        # Each may be written as often as there are places.
        places = max(1, text.count("%") + text.count("{"))
        _require_length(
            len(text) + (max(lengths) * places if places > len(values) else sum(lengths))
        )


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
            f"it computes a number of {bits:,} bits, and {_MAX_BITS:,} are allowed"
        )


def _modulo(left: Any, right: Any) -> Any:
    _require_format(left, right)
    return left % right


def _require_growth(name: str, subject: Any, arguments: Sequence[Any]) -> None:
    """Refuse the functions whose result may be far longer than what they are given."""
    if name == "replace" and isinstance(subject, str) and len(arguments) >= 2:
        old, new = str(arguments[0]), str(arguments[1])
        grown = len(new) - len(old)
        if grown > 0 and (len(subject) + 1) * len(new) > _limit.characters:
            _require_length(len(subject) + subject.count(old) * grown)
    if name in _INDENTING:
        _require_numbers(arguments, _MAX_INDENT)


def _require_join(items: Any, glue: Any) -> None:
    if hasattr(items, "__len__"):
        texts = sum(len(item) for item in items if isinstance(item, str))
        _require_length(texts + len(str(glue)) * len(items))


def _limit_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps the marks by which Jinja passes its context
    def limited(*arguments: Any, **options: Any) -> Any:
        passes = int(hasattr(function, "jinja_pass_arg"))
        context, (subject, *rest) = arguments[:passes], arguments[passes:]
        _require_numbers((*rest, *options.values()))
        if name == "format":
            _require_format(subject, tuple(rest))
        if name == "join":
            if not hasattr(subject, "__len__"):
                subject = list(subject)  # a generator could be counted only once
            _require_join(subject, [*rest, *options.values(), ""][0])
        _require_growth(name, subject, (*rest, *options.values()))
        return _check_result(function(*context, subject, *rest, **options))

    return limited


def _limit_calls(call: Callable[..., Any]) -> Callable[..., Any]:
    def limited(context: Any, function: Any, /, *arguments: Any, **options: Any) -> Any:
        _require_numbers((*arguments, *options.values()))
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
    """A rendering under way, on the thread that it is registered for."""

    started_s: float
    bytes_before: int | None = None
    is_interrupted: bool = False


class _RenderingWatchdog:
    """The thread that interrupts renderings; one in a process, started with the first one."""

    def __init__(self) -> None:
        self.forget()
        if hasattr(os, "register_at_fork"):
            # A fork copies the lock as it is at that moment, and no other thread.
            os.register_at_fork(after_in_child=self.forget)

    def forget(self) -> None:
        """Forget all renderings and the thread, which a forked process does not have."""
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
            # Under the lock, since the clock of a thread that ended must not be read.
            with self._lock:
                for thread, rendering in self._renderings.items():
                    if _exceeds_limits(thread, rendering):
                        rendering.is_interrupted = True
                        _interrupt(thread)
                        # Python ignores it inside a callback of the garbage collector, which is
                        # busy when a rendering builds a large value.
                        pause_s = _REPEAT_S


_watchdog = _RenderingWatchdog()


def run_within_limits(work: Callable[[], T]) -> T:
    """Run some work of the calling thread within `MAX_CPU_S` and `MAX_BYTES`.

    Raises:
        RenderingInterrupt: it reached one of them.
    """
    thread = threading.get_ident()
    try:
        _watchdog.enter(thread)
        try:
            return work()
        finally:
            _watchdog.leave(thread)
    except RenderingInterrupt:
        _watchdog.leave(thread)  # it may have been raised before the rendering was unregistered
        raise


def _exceeds_limits(thread: int, rendering: _Rendering) -> bool:
    seconds, resident = _cpu_seconds(thread) - rendering.started_s, _resident_bytes()
    # On a busy machine the first look may come late.
    if seconds < _SUSPICIOUS_S or rendering.bytes_before is None:
        rendering.bytes_before = resident
    if seconds > MAX_CPU_S:
        return True
    return resident is not None and resident - (rendering.bytes_before or resident) > MAX_BYTES


def _cpu_seconds(thread: int) -> float:
    """Processor time of a living thread: other load on the machine does not count."""
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
    """Have an exception that was set for this thread, and not raised yet, raised here.

    Else it would hit what comes next. To set None in its place leaves Python's flag for such
    exceptions up (seen in 3.11): all code is slower then, and under a profiler the thread hangs.
    """
    with contextlib.suppress(RenderingInterrupt):
        for _ in range(2):  # where a loop goes back, Python looks for exceptions
            pass
