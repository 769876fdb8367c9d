"""Heads: what maps a token's hidden state to numbers, in float32."""

from rm_core.heads.heads import (
    CappedTokensHead,
    Head,
    JudgeHead,
    LinearHead,
    MlpHead,
    build_row_head,
)
from rm_core.heads.layout import HeadLayout, choose_layout

__all__ = [
    "CappedTokensHead", "Head", "HeadLayout", "JudgeHead", "LinearHead", "MlpHead",
    "build_row_head", "choose_layout",
]  # fmt: skip
