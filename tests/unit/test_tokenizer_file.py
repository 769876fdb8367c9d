"""A tokenizer.json that would run for ever or fill memory is refused before it is loaded."""

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
    """What loading the encoder of a folder is refused with."""
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
    ("part", "said"),
    [
        (replace(A, "a" * 17), "may write 17 characters for one"),
        (sequence(*[replace(A, "aa")] * 12), "may write 4,096 characters for one"),
        (sequence(sequence(replace({"Regex": "a*"}, "a" * 17))), "may write 17 characters"),
        (replace({"String": ""}, "a" * 16), "may write 17 characters"),
        (replace(A, "b" * 10_000_000), "may write 10,000,000 characters"),
        (sequence(*[{"type": "Prepend", "prepend": "x" * 60}] * 2), "inserts 120"),
        (sequence(*[{"type": "Lowercase"}] * 100), "has 101 steps, and 100 are allowed"),
    ],
)
def test_steps_that_lengthen_a_text_are_refused(
    copy_of: CopyOf, part: dict[str, Any], said: str
) -> None:
    folder = copy_of()
    edit(folder / "tokenizer.json", normalizer=part)
    detail = refusal(folder)
    assert said in detail
    assert str(folder / "tokenizer.json") in detail
    assert "download the checkpoint again" in detail


@pytest.mark.parametrize(
    "part",
    [
        None,
        replace({"String": " "}, "▁"),  # Gemma's
        sequence({"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")),  # Llama-2's
        sequence({"type": "NFC"}, replace({"Regex": " {2,}"}, " ")),
        sequence(replace({"String": "``"}, '"'), {"type": "NFKD"}, {"type": "Lowercase"}),
    ],
)
def test_steps_of_real_tokenizers_are_allowed(tmp_path: Path, part: Any) -> None:
    file = tmp_path / "tokenizer.json"
    edit(file, normalizer=part, post_processor={"type": "TemplateProcessing", "single": []})
    check_tokenizer(file, 9)
    check_tokenizer(tmp_path / "there is none.json", 9)


def test_a_template_of_too_many_tokens_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}] * 100
    edit(folder / "tokenizer.json", post_processor={"type": "TemplateProcessing", "single": single})
    assert "the post_processor of" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" + "1," * 3_000_001 + "1]", "has 3,000,001 elements and 0 objects, and 3,000,000"),
        ('{"a":' * 100_000, "it is nested too deeply"),
        (
            "[" + "{}," * 100_001 + "1]",
            "and 100,001 objects, and 3,000,000 and 100,000 are allowed",
        ),
        (
            json.dumps({"model": {"vocab": dict.fromkeys(map(str, range(99_999)), 1)}}),
            "99,999 tokens",
        ),
        ("[1]", "holds no JSON object"),
        ('{"a":', "cannot be read as JSON"),
    ],
)
def test_what_is_no_tokenizer_is_refused(copy_of: CopyOf, content: str, said: str) -> None:
    folder = copy_of()
    (folder / "tokenizer.json").write_text(content)
    assert said in refusal(folder)


def test_a_tokenizer_that_is_too_large_is_not_read(copy_of: CopyOf) -> None:
    folder = copy_of()
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert f"{MAX_BYTES:,} are allowed for such a file" in refusal(folder)


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
def test_files_outside_are_not_named(copy_of: CopyOf, key: str, value: Any) -> None:
    folder = copy_of()
    edit(folder / "tokenizer_config.json", **{key: value})
    assert f"tokenizer_config.json has {key} = " in refusal(folder)
    edit(folder / "tokenizer_config.json", **{key: [] if isinstance(value, list) else None})
    load_encoder(ModelConfig(str(folder)))


@pytest.mark.parametrize("value", [[1] * 10_001, {str(n): n for n in range(10_001)}])
def test_long_lists_in_the_config_are_refused(copy_of: CopyOf, value: Any) -> None:
    folder = copy_of()
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": value, "factor": 2.0}
    edit(folder / "config.json", rope_parameters=scaling)
    assert "short_factor of" in (detail := refusal(folder))
    assert "has 10,001 entries, and 10,000 are allowed" in detail


def test_a_config_that_is_too_large_is_not_read(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "config.json").write_text('{"a":[' + "[]," * 400_000 + "1]}")
    assert "1,048,576 are allowed for such a file" in refusal(folder)


def test_a_template_that_makes_a_short_conversation_long_is_refused(copy_of: CopyOf) -> None:
    """transformers' eager attention would take gigabytes for it."""
    folder = copy_of()
    file = folder / "chat_template.jinja"
    text = file.read_text() if file.exists() else None
    if text is None:
        text = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    file.write_text("{{ 'a b c d ' * 2000 }}" + text)
    edit(folder / "config.json", max_position_embeddings=16_384)
    with pytest.raises(ModelLoadError, match="tokens of a short built-in conversation, and 4,096"):
        load_model(ModelConfig(str(folder)))
    load_model(ModelConfig(str(folder), self_check=False))


@pytest.mark.parametrize("name", ["added_tokens.json", "special_tokens_map.json"])
def test_too_many_added_tokens_are_refused(copy_of: CopyOf, name: str) -> None:
    folder = copy_of()
    (folder / name).write_text(json.dumps({"a": {f"<{n}>": n for n in range(10_001)}}))
    assert "has 10,001 entries, and 10,000 are allowed" in refusal(folder)
    (folder / name).write_text(json.dumps({f"<{n}>": n for n in range(10_001)}))
    assert "has 10,001 entries, and 10,000 are allowed" in refusal(folder)
