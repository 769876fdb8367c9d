"""Checkpoints that would score wrongly are refused; the error says why and what to do."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_config, edit_weights, refusal, set_one
from safetensors.torch import load_file, save_file

from rm_core import ModelConfig, RewardScorer, open_checkpoint
from rm_core.model.loading import load_model

PathOf = Callable[[str], Path]
CopyOf = Callable[..., Path]
HEAD = "score.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
Weights = dict[str, torch.Tensor]


def replace(name: str, *shape: int) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: torch.ones(shape)})


def drop(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(name)


WEIGHTS = {
    "no head": (drop(HEAD), "no score.weight", "Give the full reward model"),
    "two rows": (replace(HEAD, 2, 64), "has shape [2, 64]", "[1, hidden_size]"),
    "flat head": (replace(HEAD, 64), "has shape [64]", "[1, hidden_size]"),
    "head of another size": (replace(HEAD, 1, 32), HEAD, "do not match"),
    "NaN": (set_one(DOWN, float("nan")), f"{DOWN} of", "contains NaN or infinity"),
    "infinity": (set_one(DOWN, float("-inf")), f"{DOWN} of", "contains NaN or infinity"),
    "NaN in the head": (set_one(HEAD, float("nan")), f"{HEAD} of", "the checkpoint is damaged"),
    "missing": (drop(DOWN), f"are missing and would be random: {DOWN}", "do not match"),
    "missing norm": (drop("model.norm.weight"), "model.norm.weight", "would be random"),
    "unexpected": (
        replace("score.bias", 1),
        "do not belong to any module of the model: score.bias",
        "do not match",
    ),
    "a layer more": (
        replace("model.layers.4.mlp.down_proj.weight", 64, 128),
        "model.layers.4.mlp.down_proj.weight",
        "do not belong to any module of the model",
    ),
    "another shape": (replace(DOWN, 64, 64), DOWN, "a different shape than in the config"),
}


@pytest.mark.parametrize(("edit", "problem", "advice"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_checkpoint_with_wrong_weights_is_refused(
    edit: Callable[[Weights], object], problem: str, advice: str, copy_of: CopyOf
) -> None:
    folder = copy_of()
    edit_weights(folder, edit)
    detail = refusal(folder)
    assert problem in detail
    assert advice in detail
    assert str(folder) in detail


def test_error_counts_further_wrong_weights(copy_of: CopyOf) -> None:
    folder = copy_of()
    edit_config(folder, num_hidden_layers=5, layer_types=None)
    detail = refusal(folder)
    assert "model.layers.4." in detail
    assert "and 8 more" in detail


def test_harmless_extra_tensors_are_accepted(
    copy_of: CopyOf, scorer_of: Callable[..., RewardScorer]
) -> None:
    folder = copy_of()
    edit_weights(folder, replace("lm_head.weight", 8, 64))
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu"))
    assert scorer.score([conversation]) == scorer_of("qwen3").score([conversation])


CONFIGS = {
    "two labels": ({"id2label": {"0": "a", "1": "b"}}, "declares 2 labels", "exactly one"),
    "num_labels": ({"num_labels": 3, "id2label": None}, "declares 3 labels", "exactly one"),
    "architecture": (
        {"architectures": ["Qwen3Model"]},
        "architecture Qwen3Model",
        "give the setting `kind`",
    ),
    "no architecture": ({"architectures": None}, "architecture none", "give the setting `kind`"),
    "unknown model_type": (
        {"architectures": ["FooForSequenceClassification"], "model_type": "foo"},
        "model_type of",
        "not know as a language model",
    ),
    "no positions": ({"max_position_embeddings": None}, "no integer max_position_emb", "add it"),
    "positions": ({"max_position_embeddings": "many"}, "no integer max_position_emb", "add it"),
}


@pytest.mark.parametrize(("changes", "problem", "advice"), CONFIGS.values(), ids=CONFIGS.keys())
def test_checkpoint_with_wrong_config_is_refused(
    changes: dict[str, Any], problem: str, advice: str, copy_of: CopyOf
) -> None:
    folder = copy_of()
    edit_config(folder, **changes)
    detail = refusal(folder)
    assert problem in detail
    assert advice in detail


def test_tokenizer_with_remote_code_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"auto_map": {"AutoTokenizer": ["tok.Tok", None]}}))
    detail = refusal(folder)
    assert "tokenizer_config.json requests the checkpoint's own code" in detail
    assert "remote code is never run" in detail


@pytest.mark.parametrize("labels", [{"id2label": None}, {"num_labels": 1, "id2label": None}])
def test_config_without_labels_loads(labels: dict[str, Any], copy_of: CopyOf) -> None:
    folder = copy_of()
    edit_config(folder, label2id=None, **labels)
    assert load_model(ModelConfig(str(folder), device="cpu")).head.num_outputs == 1


def test_config_with_null_labels_loads(copy_of: CopyOf) -> None:
    folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": None, "label2id": None}))
    assert load_model(ModelConfig(str(folder), device="cpu")).head.num_outputs == 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "cannot be read as JSON"), ("[]", "not a JSON object"), (None, "has no config.json")],
)
def test_unreadable_config_is_refused(content: str | None, problem: str, copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    assert problem in refusal(folder)


def test_checkpoint_with_pickle_only_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    detail = refusal(folder)
    assert "only pytorch_model.bin" in detail
    assert "setting `allow_bin` is on (--allow-bin)" in detail
    assert "`skyreward convert`" in detail


def test_checkpoint_without_weights_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "model.safetensors").unlink()
    assert "no weight files" in refusal(folder)


def truncate(data: bytes) -> bytes:
    return data[:-1000]


def with_header(header: str) -> Callable[[bytes], bytes]:
    return lambda data: struct.pack("<Q", len(header)) + header.encode()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": truncate,
    "cut in the header": lambda data: data[:500],
    "empty": lambda data: b"",
    "all ones": lambda data: b"\xff" * 1000,
    "zeros": lambda data: bytes(1000),
    "a page of HTML": lambda data: b"<html>" + b"not found" * 100,
    "a huge header": lambda data: struct.pack("<Q", 1 << 40) + data[8:],
    "more than the header says": lambda data: data + b"more",
    "a list": with_header("[]"),
    "a number for a tensor": with_header('{"a": 1}'),
    "no offsets": with_header('{"a": {"shape": [1]}}'),
    "no shape": with_header('{"a": {"data_offsets": [0, 0]}}'),
    "deep": with_header("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_weight_file_is_refused(damage: Callable[[bytes], bytes], copy_of: CopyOf) -> None:
    file = copy_of() / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    detail = refusal(file.parent)
    assert str(file) in detail
    assert "download it again" in detail


def shard(folder: Path) -> None:
    """Split the weight file in two and write an index, as for large models on the hub."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {
        "model-00001-of-00002.safetensors": names[:20],
        "model-00002-of-00002.safetensors": names[20:],
    }
    for file, half in halves.items():
        save_file({n: weights[n] for n in half}, folder / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, half in halves.items() for name in half}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_missing_shard_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    shard(folder)
    assert open_checkpoint(ModelConfig(str(folder))).family == "qwen3"
    (folder / "model-00001-of-00002.safetensors").unlink()
    detail = refusal(folder)
    assert "lists 20 tensors that no file in the folder contains" in detail
    assert "a shard is missing: download the checkpoint again" in detail


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nowhere", "a b/c"])
def test_unknown_folder_is_refused(name: str) -> None:
    detail = refusal(name)
    assert f"folder {name!r} does not exist" in detail
    assert "a hub id (ORG/NAME)" in detail


def test_missing_tokenizer_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "tokenizer.json").unlink()
    detail = refusal(folder)
    assert f"the tokenizer of {folder} cannot be loaded" in detail
    assert "is tokenizer.json missing or incomplete?" in detail


def test_unreachable_hub_error_says_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **kwargs: object) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fails)
    detail = refusal("Skywork/Nothing", revision="v7")
    assert "'Skywork/Nothing' is not a local folder" in detail
    assert "at revision 'v7'" in detail
    assert "OSError: no route to host;" in detail
    assert "check the name, the revision, the network and HF_TOKEN" in detail


def test_hub_model_is_fetched_at_its_revision_without_pickles(
    checkpoint_of: PathOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--Skywork--Tiny" / "snapshots" / commit
    shutil.copytree(checkpoint_of("qwen3"), cached)
    calls: list[tuple[str, str | None, list[str]]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], **_: Any) -> str:
        calls.append((name, revision, allow_patterns))
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = ModelConfig("Skywork/Tiny", revision="main")
    assert open_checkpoint(config).revision == commit
    assert open_checkpoint(config, weights=False).revision == commit
    (name, revision, patterns), (_, _, without_weights) = calls
    assert (name, revision) == ("Skywork/Tiny", "main")
    assert "*.safetensors" in patterns
    assert "*.safetensors" not in without_weights
    assert not [p for p in patterns if p.endswith((".bin", ".pt", ".py"))]
    # The cache folder can also be given as a local folder, with its own commit as the revision.
    assert open_checkpoint(ModelConfig(str(cached), revision=commit)).revision == commit
    assert "omit the revision" in refusal(cached, revision=commit[::-1])


def test_open_checkpoint_without_weights_needs_no_weight_file(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "model.safetensors").unlink()
    assert open_checkpoint(ModelConfig(str(folder)), weights=False).family == "qwen3"


def test_max_length_is_trained_length_if_in_catalog(copy_of: CopyOf) -> None:
    folder = copy_of("qwen3", "Skywork-Reward-V2-Qwen3-0.6B")
    edit_config(folder, max_position_embeddings=40_960)
    assert open_checkpoint(ModelConfig(str(folder))).max_length == 16_384
    edit_config(folder, max_position_embeddings=1_000)
    assert open_checkpoint(ModelConfig(str(folder))).max_length == 1_000
    elsewhere = folder.rename(folder.parent / "elsewhere")
    edit_config(elsewhere, max_position_embeddings=40_960)
    assert open_checkpoint(ModelConfig(str(elsewhere))).max_length == 40_960


def test_demo_model_refuses_revision() -> None:
    assert "has no revisions" in refusal("demo", revision="v1")
