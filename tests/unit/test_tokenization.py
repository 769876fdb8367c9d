"""Token ids equal those of transformers, whatever the tokenizer's file configures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from rm_core import ChatEncoder, ModelConfig, load_encoder

EncoderOf = Callable[[str], ChatEncoder]
PathOf = Callable[[str], Path]
CopyOf = Callable[..., Path]

CONVERSATIONS = [
    [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
    [{"role": "user", "content": "首都在哪里?"}, {"role": "assistant", "content": "北京 😀 é"}],
]


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "llama-v0.2"])
@given(content=st.text(max_size=60), answer=st.text(max_size=200))
def test_token_ids_equal_those_of_tokenizer(
    name: str, content: str, answer: str, encoder_of: EncoderOf, checkpoint_of: PathOf
) -> None:
    encoded = encoder_of(name).encode(
        [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    )
    tokenizer = _tokenizer(checkpoint_of(name))
    assert list(encoded.input_ids) == tokenizer(encoded.text)["input_ids"]


@functools.cache
def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_truncation_and_padding_of_tokenizer_file_are_ignored(
    encoder_of: EncoderOf, copy_of: CopyOf
) -> None:
    folder = copy_of("qwen3")
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.enable_truncation(4)
    file.enable_padding(length=64)
    file.save(str(folder / "tokenizer.json"))
    encoder = load_encoder(ModelConfig(str(folder)))
    for messages in CONVERSATIONS:
        assert encoder.encode(messages).input_ids == encoder_of("qwen3").encode(messages).input_ids
