"""Weights in pickle files: read without running code, where allowed, and converted."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import build_decoder, edit_config, refusal
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rm_core import ModelConfig, ModelLoadError, RewardScorer, open_checkpoint
from serve.cli.main import main

PRM_CODE = {
    "AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig",
    "AutoModel": "modeling_qwen2_rm.Qwen2ForRewardModel",
}


@pytest.fixture(scope="module")
def prm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as the step models of Skywork are published: one pickle file, and code."""
    folder = tmp_path_factory.mktemp("prm")
    build_decoder(folder, "qwen2", AutoModelForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    weights = OrderedDict(load_file(folder / "model.safetensors"))
    weights["v_head.summary.weight"] = torch.randn(1, 64, generator=generator)
    weights["v_head.summary.bias"] = torch.tensor([0.1])
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    edit_config(folder, architectures=["Qwen2ForPrmModel"], auto_map=PRM_CODE)
    for name in ("configuration_qwen2_rm.py", "modeling_qwen2_rm.py"):
        (folder / name).write_text("raise RuntimeError('code of the checkpoint was run')\n")
    return folder


def copy_of(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder, dirs_exist_ok=True))


def load(folder: Path, **settings: Any) -> RewardScorer:
    return RewardScorer.load(ModelConfig(str(folder), device="cpu", **settings))


SEQUENCES = [tuple(range(20, 30 + 7 * n)) for n in range(10)]


def outputs(scorer: RewardScorer) -> list[float]:
    values = scorer.score_ids(SEQUENCES).outputs
    return [value for value in values if isinstance(value, float)]


def compute_outputs(folder: Path) -> list[float]:
    """Compute the value at the last token of each sequence with plain transformers."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    row, bias = weights["v_head.summary.weight"], weights["v_head.summary.bias"]
    with torch.inference_mode():
        states = [model.base_model(torch.tensor([ids])).last_hidden_state for ids in SEQUENCES]
        return [float(state[0, -1] @ row[0] + bias[0]) for state in states]


def shard(folder: Path) -> None:
    """Divide the pickle file into two, with an index."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    names = sorted(weights)
    mapping = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, folder / file)
        mapping |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": mapping}))
    (folder / "pytorch_model.bin").unlink()


def test_step_model_is_read_from_pickle_without_running_its_code(
    prm: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(prm, tmp_path)
    open_checkpoint(ModelConfig(str(folder)), weights=False)
    scorer = load(folder, allow_bin=True)
    assert outputs(scorer) == pytest.approx(compute_outputs(folder), abs=1e-4)
    assert scorer.describe().head == "v_head.summary"
    assert scorer.loaded_model.checkpoint.kind.step_format == "skywork"
    assert caplog.text.count("which is never run") == 1


def test_shards_give_the_rewards_of_one_file(prm: Path, tmp_path: Path) -> None:
    folder = copy_of(prm, tmp_path)
    shard(folder)
    assert outputs(load(folder, allow_bin=True)) == outputs(load(prm, allow_bin=True))


def test_pickle_needs_permission_and_the_error_says_how(prm: Path) -> None:
    detail = refusal(prm)
    assert "only pytorch_model.bin" in detail
    assert "(--allow-bin)" in detail
    assert "`skyreward convert`" in detail
    # A process that only tokenizes reads no weights.
    assert open_checkpoint(ModelConfig(str(prm)), weights=False).kind.kind == "step"


def test_catalog_permits_pickle_of_checkpoints_published_so(
    prm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Entry:
        kind = "step"
        step_format = "skywork"
        id = "Org/Model"
        recommended_max_length = 100
        system_prompt_advised_against = False

        def __init__(self, in_bin: bool | None) -> None:
            self.weights_in_bin = None if in_bin is None else type("Fact", (), {"value": in_bin})

    def find(in_bin: bool | None) -> Callable[[str], Any]:
        return lambda _: Entry(in_bin)

    monkeypatch.setattr("rm_core.model.checkpoint.find_entry", find(True))
    assert load(prm).describe().catalogue_id == "Org/Model"
    for in_bin in (False, None):
        monkeypatch.setattr("rm_core.model.checkpoint.find_entry", find(in_bin))
        assert "only pytorch_model.bin" in refusal(prm)


def test_pickle_is_fetched_from_the_hub_only_where_nothing_else_is(
    prm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = copy_of(prm, tmp_path / "models--Org--Tiny" / "snapshots" / commit)
    calls: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        calls.append(allow_patterns)
        return str(cached)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    checkpoint = open_checkpoint(ModelConfig("Org/Tiny", allow_bin=True))
    assert checkpoint.files is not None
    assert checkpoint.files.is_pickle
    assert ["pytorch_model*.bin" in patterns for patterns in calls] == [False, True]
    assert not [p for patterns in calls for p in patterns if p.endswith((".py", ".pt"))]
    with pytest.raises(ModelLoadError, match="--allow-bin"):
        open_checkpoint(ModelConfig("Org/Tiny"))
    assert len(calls) == 3


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_pickle_with_code_is_refused_and_not_run(prm: Path, tmp_path: Path) -> None:
    folder = copy_of(prm, tmp_path / "checkpoint")
    torch.save({"a": Attack(tmp_path / "was-run")}, folder / "pytorch_model.bin")
    detail = refusal(folder, allow_bin=True)
    assert "pytorch_model.bin cannot be read without running code" in detail
    assert "mkdir" in detail
    assert "weights_only" not in detail  # torch advises to run the code
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read without running code"),
        (b"PK\x03\x04", "cannot be read without running code"),
        ([1, 2], "is not a mapping of names to tensors"),
        ({"a": {"b": torch.zeros(1)}}, "is not a mapping of names to tensors"),
        ({1: torch.zeros(1)}, "is not a mapping of names to tensors"),
    ],
)
def test_pickle_that_is_not_weights_is_refused(
    content: object, says: str, prm: Path, tmp_path: Path
) -> None:
    folder = copy_of(prm, tmp_path)
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")
    assert says in refusal(folder, allow_bin=True)


def test_compressed_archive_is_refused(prm: Path, tmp_path: Path) -> None:
    """Torch would take the compressed bytes for weights, and a pickle in it may be of any size."""
    folder = copy_of(prm, tmp_path)
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    assert "has compressed files, such as pytorch_model/data.pkl" in refusal(folder, allow_bin=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.to_sparse(), "is a sparse, quantized or empty tensor"),
        (lambda t: t.to("meta"), "is a sparse, quantized or empty tensor"),
        (lambda t: t[:, :1].expand(1 << 20, 1 << 20), "they repeat a part of it"),
        (lambda t: t.int(), "has the dtype int32; weights are float32, float16 or bfloat16"),
        (lambda t: t.to(torch.float8_e4m3fn), "has the dtype float8_e4m3fn"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch 2.11
def test_tensors_of_other_kinds_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], says: str, prm: Path, tmp_path: Path
) -> None:
    folder = copy_of(prm, tmp_path)
    weights = torch.load(folder / "pytorch_model.bin")
    name = "v_head.summary.weight"
    torch.save({**weights, name: change(weights[name])}, folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadError) as caught:
        load(folder, allow_bin=True)
    assert says in caught.value.detail


def test_head_in_two_files_is_ambiguous(prm: Path, tmp_path: Path) -> None:
    folder = copy_of(prm, tmp_path)
    save_file({"summary.weight": torch.ones(1, 64)}, folder / "value_head.safetensors")
    detail = refusal(folder, allow_bin=True)
    assert "both have v_head.summary.weight, so the intended head is ambiguous" in detail


def test_integers_are_no_weights_in_safetensors_either(prm: Path, tmp_path: Path) -> None:
    folder = copy_of(prm, tmp_path)
    weights = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: weights[name].to(torch.int8)}, folder / "model.safetensors")
    assert f"{name} of {folder / 'model.safetensors'} has the dtype I8" in refusal(folder)


def test_link_to_pickle_outside_the_folder_is_refused(prm: Path, tmp_path: Path) -> None:
    folder = copy_of(prm, tmp_path / "checkpoint")
    (folder / "pytorch_model.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "pytorch_model.bin").symlink_to(tmp_path / "elsewhere.bin")
    assert "outside the checkpoint" in refusal(folder, allow_bin=True)


def test_missing_shard_is_refused(prm: Path, tmp_path: Path) -> None:
    folder = copy_of(prm, tmp_path)
    shard(folder)
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "a shard is missing" in refusal(folder, allow_bin=True)
    (folder / "pytorch_model.bin.index.json").unlink()
    assert "neither pytorch_model.bin nor pytorch_model.bin.index.json" in refusal(
        folder, allow_bin=True
    )


def test_revision_changes_with_every_tensor_of_a_pickle(prm: Path, tmp_path: Path) -> None:
    folder = copy_of(prm, tmp_path)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    revisions = set()
    for name in ("v_head.summary.bias", "model.layers.3.mlp.up_proj.weight", "lm_head.weight"):
        weights[name].view(-1)[-1] += 1
        torch.save(weights, folder / "pytorch_model.bin")
        revisions.add(open_checkpoint(ModelConfig(str(folder)), weights=False).revision)
    assert len(revisions) == 3


@pytest.mark.parametrize("shards", [1, 2])
def test_converted_checkpoint_gives_the_same_rewards(
    shards: int, prm: Path, tmp_path: Path
) -> None:
    folder = copy_of(prm, tmp_path / "checkpoint")
    if shards == 2:
        shard(folder)
    output = tmp_path / "new" / "converted"
    arguments = ["convert", str(folder), "-o", str(output), "--allow-bin"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert f"wrote {output}" in result.output
    assert len(list(output.glob("*.safetensors"))) == shards
    assert not list(output.glob("*.bin*")) + list(output.glob("*.py"))
    assert [path.name for path in output.parent.iterdir()] == ["converted"]
    assert outputs(load(output)) == pytest.approx(outputs(load(prm, allow_bin=True)), abs=1e-5)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "is not empty; give another folder" in again.output


def test_conversion_of_value_head_alone(prm: Path, tmp_path: Path) -> None:
    folder = copy_of(prm, tmp_path / "checkpoint")
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    head = {name: weights.pop(name) for name in list(weights) if name.startswith("v_head.")}
    torch.save(weights, folder / "pytorch_model.bin")
    torch.save(head, folder / "value_head.bin")
    assert "has its head in value_head.bin, a pickle file" in refusal(folder)
    output = tmp_path / "converted"
    arguments = ["convert", str(folder), "-o", str(output), "--allow-bin"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert set(load_file(output / "value_head.safetensors")) == set(head)
    assert outputs(load(output)) == pytest.approx(outputs(load(prm, allow_bin=True)), abs=1e-5)


def test_refused_conversion_leaves_nothing(prm: Path, tmp_path: Path) -> None:
    output = tmp_path / "converted"
    result = CliRunner().invoke(main, ["convert", str(prm), "-o", str(output)])
    assert result.exit_code == 1
    assert "(--allow-bin)" in result.output
    assert "skyreward convert" not in result.output
    result = CliRunner().invoke(main, ["convert", "demo", "-o", str(output)])
    assert "there is nothing to convert" in result.output
    assert list(tmp_path.iterdir()) == []
