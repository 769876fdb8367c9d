"""The scoring engine: conversations in, rewards out. Needs torch and transformers, nothing else.

Start reading at `rm_core.scorer.RewardScorer`.

Names that need torch are imported when they are first used: a client of a service needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rm_core.cache import ScoreCache, cache_keys
from rm_core.catalog.entries import find_entry, load_catalog, load_not_served, seeds_dir
from rm_core.config import BatchConfig, ModelConfig
from rm_core.errors import (
    BenchmarkDataError,
    CompilerFailedError,
    ConversationTooLongError,
    DeviceFailedError,
    DeviceMemoryError,
    ForeignTemplateError,
    InputError,
    InvalidConversationError,
    ModelError,
    ModelLoadError,
    NonFiniteRewardError,
    NotReadyError,
    OverloadedError,
    RewardError,
    ScoringError,
    TemplateError,
)
from rm_core.inputs.chat_formats import DialectName, read_turns, without_end
from rm_core.inputs.conversations import (
    Chat,
    add_tools,
    drop_nulls,
    join,
    join_chat,
    join_parsed,
    messages_in,
    parse_arguments,
    parse_chat,
    parse_conversation,
    parse_pair,
    parse_prompt,
    parse_prompt_chat,
    parse_tools,
)
from rm_core.inputs.encoder import ChatEncoder, SharedStart, render_record
from rm_core.inputs.prerendered import PreparedReader
from rm_core.packing import Packing, pack
from rm_core.types import (
    Encoded,
    Fingerprint,
    Rendered,
    Reward,
    ScoredBatch,
    ScoreError,
    Tokens,
    Truncation,
)

if TYPE_CHECKING:
    from rm_core.model.checkpoint import Checkpoint, open_checkpoint
    from rm_core.model.loading import load_encoder
    from rm_core.scorer import RewardScorer, combine

__all__ = [
    "BatchConfig",
    "BenchmarkDataError",
    "Chat",
    "ChatEncoder",
    "Checkpoint",
    "CompilerFailedError",
    "ConversationTooLongError",
    "DeviceFailedError",
    "DeviceMemoryError",
    "DialectName",
    "Encoded",
    "Fingerprint",
    "ForeignTemplateError",
    "InputError",
    "InvalidConversationError",
    "ModelConfig",
    "ModelError",
    "ModelLoadError",
    "NonFiniteRewardError",
    "NotReadyError",
    "OverloadedError",
    "Packing",
    "PreparedReader",
    "Rendered",
    "Reward",
    "RewardError",
    "RewardScorer",
    "ScoreCache",
    "ScoreError",
    "ScoredBatch",
    "ScoringError",
    "SharedStart",
    "TemplateError",
    "Tokens",
    "Truncation",
    "add_tools",
    "cache_keys",
    "combine",
    "drop_nulls",
    "find_entry",
    "join",
    "join_chat",
    "join_parsed",
    "load_catalog",
    "load_encoder",
    "load_not_served",
    "messages_in",
    "open_checkpoint",
    "pack",
    "parse_arguments",
    "parse_chat",
    "parse_conversation",
    "parse_pair",
    "parse_prompt",
    "parse_prompt_chat",
    "parse_tools",
    "read_turns",
    "render_record",
    "seeds_dir",
    "without_end",
]

_WITH_TORCH = {
    "Checkpoint": "rm_core.model.checkpoint",
    "RewardScorer": "rm_core.scorer",
    "combine": "rm_core.scorer",
    "load_encoder": "rm_core.model.loading",
    "open_checkpoint": "rm_core.model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WITH_TORCH[name]), name)
    globals()[name] = value
    return value
