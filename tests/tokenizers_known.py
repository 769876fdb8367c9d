"""Tokenizers with the components of the known families, and small vocabularies."""

from __future__ import annotations

import functools
import json
from typing import Any

from checkpoints import SPECS, build_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from rm_core import seeds_dir

QWEN = PRETOKENIZE_REGEX
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
_CORPUS = [
    "What is the capital of France? The capital, of France: 1234567890 12 345 2024.",
    "don't we'll it's   spaces    and\n\n\tlines; x = 12; y=34\r\n!!! ??? ... ,,, 77777",
    "中国的首都是北京。今天天气很好，我们去公园散步吧。 か\u3099 カタカナ 한국어 😀😀 👩‍👧",
    "สวัสดี नमस्ते é e\u0301",
] * 3
ADDED = ["<|im_start|>", "<|im_end|>", "<s12>", "<s1>"]


def trained_with(expression: str, normalizer: Any = None) -> Any:
    tokenizer = Tokenizer(models.BPE(ignore_merges=expression == LLAMA))
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=ADDED,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@functools.cache
def like_llama3() -> Any:
    return trained_with(LLAMA)


@functools.cache
def like_qwen3() -> Any:
    return trained_with(QWEN, normalizers.NFC())


@functools.cache
def like_gemma2() -> Any:
    """BPE over the whole text, with tokens that cross positions that look like boundaries."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = BpeTrainer(vocab_size=400, show_progress=False)
    trained.train_from_iterator(_CORPUS, trainer)
    state = json.loads(trained.to_str())["model"]
    names = {f"<0x{byte:02X}>": i + len(state["vocab"]) for i, byte in enumerate(range(256))}
    model = models.BPE(
        vocab=state["vocab"] | names,
        merges=[tuple(merge) for merge in state["merges"]],
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens([*ADDED, "<unused99>", "\n\n"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@functools.cache
def demo() -> Any:
    return AutoTokenizer.from_pretrained(seeds_dir() / "demo")


@functools.cache
def by_gpt2_expression() -> Any:
    return build_tokenizer(SPECS["qwen3"])


KNOWN = [like_llama3, like_qwen3, like_gemma2, demo, by_gpt2_expression]
NAMES = ["llama3", "qwen3", "gemma2", "demo", "gpt2"]
