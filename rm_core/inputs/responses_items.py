"""Items of OpenAI's Responses API as the messages of a chat.

Reasoning items are left out: reward models read the answer, and most templates drop a turn's
reasoning. Items of tools that the provider runs itself have no place in a chat and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_core.errors import InvalidConversationError
from rm_core.inputs.conversations import add_tools, parse_arguments
from rm_core.text import describe_type, quote

ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")
"""Types of items that can be read; `message` is also that of an item without a type."""
_TEXTS = ("input_text", "output_text", "text")


def read_rollout(params: Mapping[str, Any], response: Mapping[str, Any]) -> Any:
    """Return the conversation of a request and its response.

    Args:
        params: the request, of which `input`, `instructions` and `tools` are read.
        response: the response, of which `output` is read.

    Raises:
        InvalidConversationError: an item cannot be read; the message names it.
    """
    instructions = params.get("instructions")
    if isinstance(instructions, list):  # as a response repeats them
        system = _read_items(instructions, "instructions")
    else:
        system = [] if instructions is None else [{"role": "system", "content": instructions}]
    messages = [*system, *read_input(params.get("input")), *read_output(response)]
    return add_tools(messages, read_tools(params.get("tools")))


def read_input(value: Any) -> list[Any]:
    """Return the messages of `input`, which is text or a list of items."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return _read_items(value, "input")


def read_output(response: Mapping[str, Any]) -> list[Any]:
    """Return the messages of a response: the turns of the assistant, and results of tools."""
    return _read_items(response.get("output"), "output")


def read_tools(tools: Any) -> Any:
    """Return tools as a chat declares them; values of another shape are returned unchanged."""
    return [_read_tool(tool) for tool in tools] if isinstance(tools, list) and tools else None


def _read_tool(tool: Any) -> Any:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or "function" in tool:
        return tool
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {n: tool[n] for n in names if tool.get(n) is not None}}


def _read_items(items: Any, field: str) -> list[Any]:
    if not isinstance(items, list):
        raise InvalidConversationError(
            f"`{field}` is {describe_type(items)}; it must be a list of items of the Responses API"
        )
    messages: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        kind = item.get("type") or "message" if isinstance(item, Mapping) else None
        if kind == "message":
            role = "system" if item.get("role") == "developer" else item.get("role")
            messages.append({"role": role, "content": _read_parts(item.get("content"))})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            content = _read_parts(item.get("output"))
            messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
            )
        elif kind != "reasoning":
            raise InvalidConversationError(
                f"item {index} of `{field}` has the type {quote(kind)}; "
                "`message`, `function_call`, `function_call_output` and `reasoning` can be read"
            )
    parsed: list[Any] = parse_arguments(messages)
    return parsed


def _read_parts(content: Any) -> Any:
    return [_read_part(part) for part in content] if isinstance(content, list) else content


def _read_part(part: Any) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in _TEXTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    return part
