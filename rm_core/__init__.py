"""The scoring engine: conversations in, rewards out. Requires only torch and transformers.

Start reading at `rm_core.scorer.RewardScorer`.

Names that need torch or tokenizers are imported on first use, so that clients of a service run
without them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rm_core.cache import ScoreCache, cache_keys
from rm_core.catalog.entries import find_entry, load_catalog, seeds_dir
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
    InvalidImageError,
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
from rm_core.inputs.judge_items import (
    JudgeAnswer,
    JudgePair,
    build_judge_pair,
    pair_answers,
    parse_judge_answer,
    parse_judge_pair,
)
from rm_core.inputs.step_items import StepItem, parse_step_item
from rm_core.inputs.turns import find_unshared_turns, split_turns
from rm_core.judging import (
    RankedAnswer,
    Verdict,
    combine_orders,
    combine_results,
    expand_orders,
    merge_orders,
    rank_answers,
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
    EncodedImage,
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
    from rm_core.inputs.base_encoder import Encoder, SharedPrefix
    from rm_core.inputs.encoder import ChatEncoder, to_render_json
    from rm_core.inputs.judge_encoder import JudgeEncoder
    from rm_core.inputs.prerendered import PrerenderedReader
    from rm_core.inputs.step_encoder import StepEncoder
    from rm_core.model.checkpoint import Checkpoint, open_checkpoint
    from rm_core.model.loading import load_encoder
    from rm_core.scorer import RewardScorer

__all__ = [
    "AGGREGATIONS", "NUM_OUTPUTS", "Aggregation", "BatchConfig", "BatchResult",
    "BenchmarkDataError", "Chat", "ChatEncoder", "ChatFormatName", "Checkpoint",
    "CompilerFailedError", "ConversationTooLongError", "DeviceFailedError", "DeviceMemoryError",
    "Encoded", "EncodedImage", "Encoder", "Fingerprint", "ForeignTemplateError", "InputError",
    "InvalidConversationError", "InvalidImageError", "JudgeAnswer", "JudgeEncoder", "JudgePair",
    "ModelConfig", "ModelError", "ModelInfo", "ModelLoadError", "NonFiniteRewardError",
    "NotReadyError", "OverloadedError", "Packing", "PrerenderedReader", "PrerenderedText",
    "PrerenderedTokens", "RankedAnswer", "Reward", "RewardError", "RewardScorer", "ScoreCache",
    "ScoreError", "ScoringError", "SharedPrefix", "StepEncoder", "StepItem", "TemplateError",
    "Truncation", "Verdict", "add_tools", "aggregate", "build_judge_pair", "cache_keys",
    "combine_orders", "combine_results", "drop_nulls", "expand_orders", "find_entry",
    "find_unshared_turns", "get_messages", "join", "join_chat", "join_parsed", "list_readouts",
    "load_catalog", "load_encoder", "merge_orders", "merge_results", "open_checkpoint", "pack",
    "pair_answers", "parse_arguments", "parse_chat", "parse_conversation", "parse_judge_answer",
    "parse_judge_pair", "parse_pair", "parse_prompt", "parse_prompt_chat", "parse_step_item",
    "parse_tools", "rank_answers", "read_turns", "seeds_dir", "sigmoid", "split_turns", "strip_end",
    "to_render_json",
]  # fmt: skip

_LAZY = {
    "ChatEncoder": "rm_core.inputs.encoder",
    "Encoder": "rm_core.inputs.base_encoder",
    "JudgeEncoder": "rm_core.inputs.judge_encoder",
    "StepEncoder": "rm_core.inputs.step_encoder",
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
