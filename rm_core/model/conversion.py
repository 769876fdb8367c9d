"""Writes the weights of a checkpoint with pickle files as safetensors, with the same rewards."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch

from rm_core.config import ModelConfig
from rm_core.errors import ModelLoadError
from rm_core.model.checkpoint import open_weight_files
from rm_core.model.checkpoint_files import TEMPLATES_FOLDER, TEXT_PATTERNS
from rm_core.model.weight_files import WeightFiles, load_pickle


def convert_checkpoint(config: ModelConfig, output: Path) -> Path:
    """Write a checkpoint with safetensors files and its other files; return the absolute path.

    The folder appears with all its files, or not at all. The output must be empty or not exist.
    """
    output = output.expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ModelLoadError(f"{output} exists and is not empty; give another folder")
    path, files = open_weight_files(config)
    if not any(file.suffix == ".bin" for file in (*files.files, files.value_head) if file):
        raise ModelLoadError(f"{config.name} has no pickle files, so there is nothing to convert")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        written = Path(folder) / "checkpoint"
        written.mkdir()
        _write_weights(files, written)
        for pattern in TEXT_PATTERNS:
            for file in path.glob(pattern):
                if not file.name.endswith(".index.json"):
                    shutil.copyfile(file, written / file.name)
        if (templates := path / TEMPLATES_FOLDER).is_dir():
            shutil.copytree(templates, written / TEMPLATES_FOLDER)
        if output.exists():
            output.rmdir()
        written.rename(output)
    return output


def _write_weights(weight_files: WeightFiles, folder: Path) -> None:
    """Write one safetensors file for each file of weights, and the index of several."""
    from safetensors.torch import save_file

    files, value_head = weight_files.files, weight_files.value_head
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    weight_map: dict[str, str] = {}
    size = 0
    for file, name in zip(files, names, strict=True):
        tensors = _read_file(file)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        size += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    if value_head is not None:
        save_file(_read_file(value_head), folder / "value_head.safetensors", {"format": "pt"})


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, each in memory that no other tensor has."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    tensors = load_pickle(file, map_location="cpu")
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
