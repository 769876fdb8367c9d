"""The scoring engine: conversations in, rewards out. Requires only torch and transformers.

Start reading at `rm_core.scorer.RewardScorer`.

Names that need torch or tokenizers are imported on first use, so that clients of a service run
without them.
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
from rm_core.inputs.chat_formats import ChatFormatName, read_turns, strip_end
from rm_core.inputs.conversations import (
    Chat,
    add_tools,
    drop_nulls,
    get_messages,
    join,
    join_chat,
    join_parsed,
    parse_arguments,
    parse_chat,
    parse_conversation,
    parse_pair,
    parse_prompt,
    parse_prompt_chat,
    parse_tools,
)
from rm_core.packing import Packing, pack
from rm_core.results import (
    AGGREGATIONS,
    NUM_OUTPUTS,
    Aggregation,
    aggregate,
    list_readouts,
    merge_results,
)
from rm_core.types import (
    BatchResult,
    Encoded,
    Fingerprint,
    ModelInfo,
    PrerenderedText,
    PrerenderedTokens,
    Reward,
    ScoreError,
    Truncation,
    sigmoid,
)

if TYPE_CHECKING:
    from rm_core.inputs.base_encoder import SharedPrefix
    from rm_core.inputs.encoder import ChatEncoder, to_render_json
    from rm_core.inputs.prerendered import PrerenderedReader
    from rm_core.model.checkpoint import Checkpoint, open_checkpoint
    from rm_core.model.loading import load_encoder
    from rm_core.scorer import RewardScorer

__all__ = [
    "AGGREGATIONS",
    "NUM_OUTPUTS",
    "Aggregation",
    "BatchConfig",
    "BatchResult",
    "BenchmarkDataError",
    "Chat",
    "ChatEncoder",
    "ChatFormatName",
    "Checkpoint",
    "CompilerFailedError",
    "ConversationTooLongError",
    "DeviceFailedError",
    "DeviceMemoryError",
    "Encoded",
    "Fingerprint",
    "ForeignTemplateError",
    "InputError",
    "InvalidConversationError",
    "ModelConfig",
    "ModelError",
    "ModelInfo",
    "ModelLoadError",
    "NonFiniteRewardError",
    "NotReadyError",
    "OverloadedError",
    "Packing",
    "PrerenderedReader",
    "PrerenderedText",
    "PrerenderedTokens",
    "Reward",
    "RewardError",
    "RewardScorer",
    "ScoreCache",
    "ScoreError",
    "ScoringError",
    "SharedPrefix",
    "TemplateError",
    "Truncation",
    "add_tools",
    "aggregate",
    "cache_keys",
    "drop_nulls",
    "find_entry",
    "get_messages",
    "join",
    "join_chat",
    "join_parsed",
    "list_readouts",
    "load_catalog",
    "load_encoder",
    "load_not_served",
    "merge_results",
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
    "seeds_dir",
    "sigmoid",
    "strip_end",
    "to_render_json",
]

_LAZY = {
    "ChatEncoder": "rm_core.inputs.encoder",
    "SharedPrefix": "rm_core.inputs.base_encoder",
    "to_render_json": "rm_core.inputs.encoder",
    "PrerenderedReader": "rm_core.inputs.prerendered",
    "Checkpoint": "rm_core.model.checkpoint",
    "RewardScorer": "rm_core.scorer",
    "load_encoder": "rm_core.model.loading",
    "open_checkpoint": "rm_core.model.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
