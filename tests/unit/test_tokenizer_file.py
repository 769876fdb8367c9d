"""A tokenizer.json that would run without limit or fill memory is refused before it is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rm_core import ModelConfig, ModelLoadError, load_encoder
from rm_core.model.loading import load_model
from rm_core.model.tokenizer_file import MAX_BYTES, check_tokenizer

CopyOf = Callable[..., Path]


def refusal(folder: Path) -> str:
    """Load the encoder of a folder that must be refused, and return the reason."""
    with pytest.raises(ModelLoadError) as caught:
        load_encoder(ModelConfig(str(folder)))
    return caught.value.detail


def edit(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


A = {"String": "a"}


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (replace(A, "a" * 17), "may replace one character by 17 characters"),
        (sequence(*[replace(A, "aa")] * 12), "may replace one character by 4,096 characters"),
        (sequence(sequence(replace({"Regex": "a*"}, "a" * 17))), "character by 17 characters"),
        (replace({"String": ""}, "a" * 16), "may replace one character by 17 characters"),
        (replace(A, "b" * 10_000_000), "may replace one character by 10,000,000 characters"),
        (sequence(*[{"type": "Prepend", "prepend": "x" * 60}] * 2), "inserts 120"),
        (sequence(*[{"type": "Lowercase"}] * 100), "has 101 steps, and at most 100 are allowed"),
    ],
)
def test_steps_that_lengthen_a_text_are_refused(
    copy_of: CopyOf, step: dict[str, Any], message: str
) -> None:
    folder = copy_of()
    edit(folder / "tokenizer.json", normalizer=step)
    detail = refusal(folder)
    assert message in detail
    assert str(folder / "tokenizer.json") in detail
    assert "download the checkpoint again" in detail


@pytest.mark.parametrize(
    "step",
    [
        None,
        replace({"String": " "}, "▁"),  # Gemma's
        sequence({"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")),  # Llama-2's
        sequence({"type": "NFC"}, replace({"Regex": " {2,}"}, " ")),
        sequence(replace({"String": "``"}, '"'), {"type": "NFKD"}, {"type": "Lowercase"}),
    ],
)
def test_steps_of_real_tokenizers_are_allowed(tmp_path: Path, step: Any) -> None:
    file = tmp_path / "tokenizer.json"
    edit(file, normalizer=step, post_processor={"type": "TemplateProcessing", "single": []})
    check_tokenizer(file, 9)
    check_tokenizer(tmp_path / "there is none.json", 9)


def test_post_processor_with_too_many_tokens_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}] * 100
    edit(folder / "tokenizer.json", post_processor={"type": "TemplateProcessing", "single": single})
    assert "the post_processor of" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" + "1," * 3_000_001 + "1]", "3,000,001 elements and 0 objects, and at most 3,000,000"),
        ('{"a":' * 100_000, "it is nested too deeply"),
        (
            "[" + "{}," * 100_001 + "1]",
            "and 100,001 objects, and at most 3,000,000 and 100,000 are allowed",
        ),
        (
            json.dumps({"model": {"vocab": dict.fromkeys(map(str, range(99_999)), 1)}}),
            "99,999 tokens",
        ),
        ("[1]", "is not a JSON object"),
        ('{"a":', "cannot be read as JSON"),
    ],
)
def test_invalid_tokenizer_file_is_refused(copy_of: CopyOf, content: str, message: str) -> None:
    folder = copy_of()
    (folder / "tokenizer.json").write_text(content)
    assert message in refusal(folder)


def test_too_large_tokenizer_is_not_read(copy_of: CopyOf) -> None:
    folder = copy_of()
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert f"at most {MAX_BYTES:,} are allowed" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer_file", "/etc/passwd"),
        ("vocab_file", "/dev/zero"),
        ("merges_file", "../merges.txt"),
        ("fast_tokenizer_files", ["../tokenizer.4.0.json"]),
        ("tokenizer_object", {"a": 1}),
        ("gguf_file", "x.gguf"),
        ("init_inputs", ["/etc/passwd"]),
    ],
)
def test_keys_that_read_other_files_are_refused(copy_of: CopyOf, key: str, value: Any) -> None:
    folder = copy_of()
    edit(folder / "tokenizer_config.json", **{key: value})
    assert f"tokenizer_config.json has {key} = " in refusal(folder)
    edit(folder / "tokenizer_config.json", **{key: [] if isinstance(value, list) else None})
    load_encoder(ModelConfig(str(folder)))


@pytest.mark.parametrize("value", [[1] * 10_001, {str(n): n for n in range(10_001)}])
def test_long_lists_in_config_are_refused(copy_of: CopyOf, value: Any) -> None:
    folder = copy_of()
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": value, "factor": 2.0}
    edit(folder / "config.json", rope_parameters=scaling)
    assert "short_factor of" in (detail := refusal(folder))
    assert "has 10,001 entries, and at most 10,000 are allowed" in detail


def test_too_large_config_is_not_read(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "config.json").write_text('{"a":[' + "[]," * 400_000 + "1]}")
    assert "at most 1,048,576 are allowed" in refusal(folder)


def test_template_with_too_many_tokens_is_refused(copy_of: CopyOf) -> None:
    """Otherwise transformers' eager attention would need gigabytes."""
    folder = copy_of()
    file = folder / "chat_template.jinja"
    text = file.read_text() if file.exists() else None
    if text is None:
        text = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    file.write_text("{{ 'a b c d ' * 2000 }}" + text)
    edit(folder / "config.json", max_position_embeddings=16_384)
    with pytest.raises(ModelLoadError, match="tokens, and at most 4,096 are allowed"):
        load_model(ModelConfig(str(folder)))
    load_model(ModelConfig(str(folder), self_check=False))


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json"])
def test_too_many_added_tokens_are_refused(copy_of: CopyOf, name: str) -> None:
    folder = copy_of()
    (folder / name).write_text(json.dumps({"a": {f"<{n}>": n for n in range(10_001)}}))
    assert "has 10,001 entries, and at most 10,000 are allowed" in refusal(folder)
    (folder / name).write_text(json.dumps({f"<{n}>": n for n in range(10_001)}))
    assert "has 10,001 entries, and at most 10,000 are allowed" in refusal(folder)
