"""Heads: what maps a token's hidden state to numbers, in float32."""

from rm_core.heads.base import Head
from rm_core.heads.judge import JudgeHead
from rm_core.heads.layout import HeadLayout, choose_layout
from rm_core.heads.linear import LinearHead, build_row_head
from rm_core.heads.mlp import MlpHead
from rm_core.heads.token_logits import CappedTokensHead

__all__ = [
    "CappedTokensHead",
    "Head",
    "HeadLayout",
    "JudgeHead",
    "LinearHead",
    "MlpHead",
    "build_row_head",
    "choose_layout",
]
