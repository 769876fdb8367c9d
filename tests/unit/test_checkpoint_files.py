"""Forbidden contents of a checkpoint folder are refused with file, reason and what to do."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_config, edit_weights, refusal
from safetensors.torch import load_file, save_file

from rm_core import ModelConfig, ModelLoadError, open_checkpoint
from rm_core.model.checkpoint_files import (
    MAX_CONFIG_BYTES,
    MAX_HEADER_BYTES,
    MAX_JSON_BYTES,
    MAX_TEXT_BYTES,
)

CopyOf = Callable[..., Path]


def get_refusal(folder: Path, **options: Any) -> str:
    """Open a checkpoint that must be refused, and return the reason."""
    with pytest.raises(ModelLoadError) as caught:
        open_checkpoint(ModelConfig(str(folder)), **options)
    return caught.value.detail


@pytest.mark.parametrize(
    "name", ["chat_template.jinja", "config.json", "tokenizer.json", "model.safetensors", "x.txt"]
)
def test_link_out_of_the_folder_is_refused(name: str, copy_of: CopyOf, tmp_path: Path) -> None:
    folder, outside = copy_of(), tmp_path / "outside"
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.write_text("secret")
    (folder / name).symlink_to(outside)
    detail = get_refusal(folder)
    assert f"{folder / name} is a link to {outside.resolve()}, outside the checkpoint" in detail
    assert "copy the file into the folder" in detail


def test_link_of_a_named_template_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").symlink_to("/etc/passwd")
    assert "is a link to /etc/passwd" in get_refusal(folder, weights=False)


def test_folder_of_templates_that_is_a_link_is_refused(copy_of: CopyOf, tmp_path: Path) -> None:
    folder = copy_of()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "tool_use.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "others")
    assert "outside the checkpoint" in get_refusal(folder)


def test_links_inside_the_folder_and_of_the_hub_cache_are_followed(
    copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of()
    (folder / "blob").mkdir()
    (folder / "config.json").rename(folder / "blob" / "config.json")
    (folder / "config.json").symlink_to("blob/config.json")
    assert open_checkpoint(ModelConfig(str(folder))).family == "qwen3"
    through_link = tmp_path / "link"
    through_link.symlink_to(folder)
    assert open_checkpoint(ModelConfig(str(through_link))).family == "qwen3"

    cached = tmp_path / "models--Org--Tiny"
    snapshot = cached / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (cached / "blobs").mkdir()
    for number, file in enumerate(sorted(copy_of(folder="source").iterdir())):
        shutil.copy(file, cached / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert open_checkpoint(ModelConfig(str(snapshot))).revision == snapshot.name
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "blob" / "config.json")
    assert "outside the checkpoint" in get_refusal(snapshot)


def test_dangling_link_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "extra.json").symlink_to("nowhere.json")
    assert "is it a link to a file that no longer exists?" in get_refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "extra.txt", "model.safetensors"])
def test_named_pipe_is_refused_without_waiting(name: str, copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{folder / name} is a named pipe, not a regular file" in get_refusal(folder)


def test_folder_and_socket_in_place_of_a_file_are_refused(
    copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of()
    (folder / "x.json").mkdir()
    assert "x.json is a folder, not a regular file" in get_refusal(folder)
    (folder / "x.json").rmdir()
    monkeypatch.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.json")
        assert "x.json is a socket, not a regular file" in get_refusal(folder)


def test_device_is_refused_without_reading(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "extra.txt").symlink_to("/dev/zero")
    assert "extra.txt is a link to /dev/zero" in get_refusal(folder)


@pytest.mark.parametrize(
    ("name", "size", "allowed"),
    [
        ("config.json", MAX_CONFIG_BYTES + 1, MAX_CONFIG_BYTES),
        ("tokenizer_config.json", MAX_JSON_BYTES + 1, MAX_JSON_BYTES),
        ("tokenizer.json", MAX_TEXT_BYTES + 1, MAX_TEXT_BYTES),
        ("merges.txt", MAX_TEXT_BYTES + 1, MAX_TEXT_BYTES),
    ],
)
def test_file_that_is_too_large_is_refused(
    name: str, size: int, allowed: int, copy_of: CopyOf
) -> None:
    folder = copy_of()
    with (folder / name).open("ab") as stream:
        stream.truncate(size)  # sparse: takes no space on disk
    problem = f"{folder / name} has {size:,} bytes, and at most {allowed:,} are allowed"
    assert problem in get_refusal(folder)


@pytest.mark.parametrize("length", [MAX_HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_header_with_too_large_size_is_not_read(length: int, copy_of: CopyOf) -> None:
    file = copy_of() / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", length))
        stream.truncate(3 << 30)  # sparse
    detail = get_refusal(file.parent)
    assert f"{file} declares a header of {length:,} bytes" in detail
    assert "download it again" in detail


TENSOR: dict[str, Any] = {"dtype": "F32", "shape": [1, 64], "data_offsets": [0, 256]}
HEADERS: dict[str, Any] = {
    "negative offsets": {"data_offsets": [-256, 0]},
    "huge offsets": {"data_offsets": [-(10**30), 0]},
    "a single offset": {"data_offsets": [0]},
    "offsets that are text": {"data_offsets": "ab"},
    "offsets of another length": {"data_offsets": [0, 128]},
    "negative shape": {"shape": [-1, 64]},
    "shape of text": {"shape": ["x"]},
    "shape of booleans": {"shape": [True, 64]},
    "huge shape": {"shape": [10**30, 64]},
    "unknown dtype": {"dtype": "F7"},
    "dtype that is a list": {"dtype": ["F32"]},
}


@pytest.mark.parametrize("change", HEADERS.values(), ids=HEADERS.keys())
def test_impossible_header_is_refused(change: dict[str, Any], copy_of: CopyOf) -> None:
    file = copy_of() / "model.safetensors"
    header = json.dumps({"score.weight": TENSOR | change}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(256))
    detail = get_refusal(file.parent)
    assert str(file) in detail
    assert "download it again" in detail


MALFORMED = {
    "a number": b"5",
    "a list": b"[]",
    "null": b"null",
    "a text": b'"x"',
    "nothing": b"",
    "white space": b" \n",
    "half": b'{"a": ',
    "two objects": b"{}{}",
    "a comma too many": b'{"a": 1,}',
    "NaN": b'{"rope_theta": NaN}',
    "infinity": b'{"rope_theta": -Infinity}',
    "a number beyond a double": b'{"rope_theta": 1e400}',
    "a number of 5,000 digits": b'{"vocab_size": ' + b"9" * 5000 + b"}",
    "deep lists": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "invalid UTF-8": b'{"a": "\xff"}',
    "a NUL": b'{"a": "\x00"}',
    "HTML": b"<html>not found</html>",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "adapter_config.json"])
def test_malformed_json_is_refused(name: str, content: bytes, copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / name).write_bytes(content)
    detail = get_refusal(folder)
    assert str(folder / name) in detail
    assert "download it again" in detail


def shard(folder: Path, mapping: Any = None) -> None:
    """Rename the weight file to a shard and write an index; `mapping` replaces its weight_map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    complete = dict.fromkeys(weights, "model-00001-of-00001.safetensors")
    index = {"weight_map": complete if mapping is None else mapping}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("mapping", [[], {}, 5, "x", {"score.weight": 5}, {"score.weight": ["a"]}])
def test_malformed_index_is_refused(mapping: Any, copy_of: CopyOf) -> None:
    folder = copy_of()
    shard(folder, mapping)
    detail = get_refusal(folder)
    assert "model.safetensors.index.json" in detail
    assert "download the checkpoint again" in detail


@pytest.mark.parametrize(
    "file",
    ["../other/model.safetensors", "/tmp/model.safetensors", "x.bin", "..", "a\\b.safetensors"],
)
def test_index_with_invalid_file_name_is_refused(file: str, copy_of: CopyOf) -> None:
    folder = copy_of()
    shard(folder, {"score.weight": file})
    assert "must be the name of a safetensors file in the folder" in get_refusal(folder)


def test_shards_without_an_index_are_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    shard(folder)
    assert open_checkpoint(ModelConfig(str(folder))).family == "qwen3"
    (folder / "model.safetensors.index.json").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in get_refusal(folder)


def test_old_weight_file_next_to_shards_logs_warning(
    copy_of: CopyOf, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of()
    shutil.copy(folder / "model.safetensors", folder / "old")
    shard(folder)
    with caplog.at_level(logging.WARNING):
        open_checkpoint(ModelConfig(str(folder)))
    assert not caplog.records
    (folder / "old").rename(folder / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        open_checkpoint(ModelConfig(str(folder)))
    assert (
        "has model-00001-of-00001.safetensors and model.safetensors; only model.safetensors is read"
        in caplog.text
    )


@pytest.mark.parametrize(("prefix", "advice"), [("_orig_mod.", "`_orig_mod`"), ("module.", "")])
def test_error_names_head_with_prefix(prefix: str, advice: str, copy_of: CopyOf) -> None:
    folder = copy_of()
    edit_weights(folder, lambda w: [w.update({prefix + name: w.pop(name)}) for name in list(w)])
    detail = get_refusal(folder)
    assert f"another name, {prefix}score.weight" in detail
    assert advice in detail


def add_adapter(folder: Path, *names: str) -> None:
    for name in names:
        if name.endswith(".safetensors"):
            save_file({}, folder / name)
        elif name.endswith(".json"):
            adapter_config = {"peft_type": "LORA", "base_model_name_or_path": "Org/Base"}
            (folder / name).write_text(json.dumps(adapter_config))
        else:
            (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    "names",
    [
        ("adapter_config.json", "adapter_model.safetensors"),
        ("adapter_config.json",),
        ("adapter_model.safetensors",),
        ("adapter_model.bin",),
    ],
)
@pytest.mark.parametrize("weights", [True, False])
def test_adapter_next_to_full_weights_is_refused(
    names: tuple[str, ...], weights: bool, copy_of: CopyOf
) -> None:
    folder = copy_of()
    add_adapter(folder, *names)
    detail = get_refusal(folder, weights=weights)
    assert "has full weights and a" in detail
    assert names[0] in detail
    assert "give FOLDER+ADAPTER_FOLDER" in detail


@pytest.mark.parametrize("missing", [("config.json", "model.safetensors"), ("model.safetensors",)])
def test_error_of_adapter_names_base_model(missing: tuple[str, ...], copy_of: CopyOf) -> None:
    folder = copy_of()
    for name in missing:
        (folder / name).unlink()
    add_adapter(folder, "adapter_config.json", "adapter_model.safetensors")
    detail = get_refusal(folder)
    assert f"{folder} is a LORA adapter for 'Org/Base'" in detail
    assert "give BASE+ADAPTER" in detail


def test_sizes_are_compared_before_weights_are_read(
    copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of()
    edit_config(folder, intermediate_size=1 << 20, num_hidden_layers=900, layer_types=None)
    monkeypatch.setattr(
        "transformers.PreTrainedModel.from_pretrained",
        lambda *_, **__: pytest.fail("the weights were read"),
    )
    assert "are missing and would be random" in refusal(folder)
