"""A wrong value in config.json, tokenizer or header is refused, or the rewards stay correct."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_config, refusal
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Reference, talk

from rm_core import ModelConfig, ModelLoadError, Reward, RewardScorer, ScoreError, load_encoder
from serve.cli.main import main

PathOf = Callable[[str], Path]
CopyOf = Callable[..., Path]
CONVERSATIONS = [talk("2+2?", "4"), talk("What is the capital of France?", "Paris. " * 8)]

ENGINE_KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "attention": ({"_attn_implementation": "org/kernel"}, "_attn_implementation = 'org/kernel'"),
    "attention, public": ({"attn_implementation": "sdpa"}, "attn_implementation = 'sdpa'"),
    "attention, internal": (
        {"_attn_implementation_internal": "x"},
        "_attn_implementation_internal",
    ),
    "attention, automatic": (
        {"_attn_implementation_autoset": "org/kernel"},
        "_attn_implementation_autoset",
    ),
    "attention, nested": ({"text_config": {"_attn_implementation": "x"}}, "_attn_implementation"),
    "attention, in a list": ({"parts": [{"attn_implementation": "x"}]}, "attn_implementation"),
    "experts": ({"experts_implementation": "x"}, "experts_implementation = 'x'"),
    "experts, private": ({"_experts_implementation": "x"}, "_experts_implementation"),
    "kernels": ({"use_kernels": True}, "use_kernels = True"),
    "weights elsewhere": ({"transformers_weights": "../x.safetensors"}, "transformers_weights"),
    "quantization": ({"quantization_config": {"quant_method": "fp8"}}, "has a quantization_config"),
    "empty quantization": ({"quantization_config": {}}, "has a quantization_config"),
    "compression": ({"compression_config": {"x": 1}}, "has a compression_config"),
    "not causal": ({"is_causal": False}, "has is_causal = false"),
    "not causal, a number": ({"is_causal": 0}, "has is_causal = 0"),
    "not causal, text": ({"is_causal": ""}, 'has is_causal = ""'),
    "causal in words": ({"is_causal": "false"}, 'has is_causal = "false"'),
    "bidirectional": ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    "chunks": ({"attention_chunk_size": 8}, "attention_chunk_size = 8"),
}


@pytest.mark.parametrize("family", ["llama-v0.2", "qwen3", "gemma2"])
@pytest.mark.parametrize(("changes", "problem"), ENGINE_KEYS.values(), ids=ENGINE_KEYS.keys())
def test_key_that_changes_the_computation_is_refused(
    changes: dict[str, Any], problem: str, family: str, copy_of: CopyOf
) -> None:
    folder = copy_of(family)
    edit_config(folder, **changes)
    detail = refusal(folder)
    assert f"{folder / 'config.json'} has" in detail
    assert problem in detail


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "positions of zero": ({"max_position_embeddings": 0}, "max_position_embeddings"),
    "negative positions": ({"max_position_embeddings": -1}, "an integer from 1 to"),
    "positions that are true": ({"max_position_embeddings": True}, "no integer"),
    "a fraction of a position": ({"max_position_embeddings": 2048.0}, "no integer"),
    "too many positions": ({"max_position_embeddings": 10**15}, "1,000,000,000,000,000"),
    "far too many positions": ({"max_position_embeddings": 10**400}, "is too large"),
    "architectures that are text": ({"architectures": "Qwen3ForSequenceClassification"}, "a list"),
    "architectures of lists": ({"architectures": [["x"]]}, "a list of strings"),
    "architectures that are an object": ({"architectures": {"a": 1}}, "a list of strings"),
    "another model_type": ({"model_type": "mistral"}, "model_type of"),
    "no model_type": ({"model_type": None}, "model_type of"),
    "labels that are a list": ({"id2label": ["a"]}, "an object, or null"),
    "labels that are a number": ({"id2label": 5}, "an object, or null"),
    "padding that is text": ({"pad_token_id": "0"}, "pad_token_id of"),
    "padding that is a fraction": ({"pad_token_id": 1.0}, "pad_token_id of"),
    "padding that is a list": ({"pad_token_id": [1]}, "pad_token_id of"),
    "padding beyond the embedding": ({"pad_token_id": 10**6}, "the embedding has"),
    "a dtype by choice": ({"torch_dtype": "auto"}, "torch_dtype of"),
    "a dtype of numbers": ({"dtype": 16}, "dtype of"),
    "layers of the wrong number": ({"layer_types": ["full_attention"]}, "has 1 entries"),
    "unknown layers": ({"layer_types": ["chunked_attention"] * 4}, "'chunked_attention'"),
    "too many layers": ({"num_hidden_layers": 10**7, "layer_types": None}, "from 1 to 1,000"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "is not a multiple of"),
    "no heads": ({"num_attention_heads": 0}, "from 1 to"),
    "hidden size of text": ({"hidden_size": "64"}, "hidden_size of"),
    "a negative window": ({"sliding_window": -1}, "sliding_window of"),
    "scaling that is a list": ({"rope_scaling": [1]}, "must be an object"),
    "scaling of text": ({"rope_parameters": "yarn"}, "must be an object"),
    "unknown scaling": ({"rope_scaling": {"type": "magic"}}, "rope_type 'magic'; supported"),
    "a factor of text": ({"rope_scaling": {"type": "linear", "factor": "4"}}, "number above 0"),
    "a factor of zero": ({"rope_scaling": {"type": "linear", "factor": 0}}, "number above 0"),
    "a huge factor": ({"rope_scaling": {"type": "linear", "factor": 10**7}}, "correct the factor"),
    "a vocabulary of text": ({"vocab_size": "600"}, "vocab_size of"),
    "another vocabulary": ({"vocab_size": 700}, "do not match"),
}


@pytest.mark.parametrize(("changes", "problem"), WRONG.values(), ids=WRONG.keys())
def test_wrong_value_is_refused_and_named(
    changes: dict[str, Any], problem: str, copy_of: CopyOf
) -> None:
    folder = copy_of()
    edit_config(folder, **changes)
    detail = refusal(folder)
    assert problem in detail
    assert "the tokenizer of" not in detail
    assert str(folder) in detail


def test_hidden_size_not_divisible_by_heads_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of("llama-v0.2")
    edit_config(folder, num_attention_heads=3, num_key_value_heads=3)
    problem = "hidden_size 64, which is not a multiple of num_attention_heads 3"
    assert problem in refusal(folder)


@pytest.mark.parametrize("pad", [None, -1])
def test_pad_token_id_null_and_minus_one_load(pad: int | None, copy_of: CopyOf) -> None:
    folder = copy_of("llama-v0.2")
    edit_config(folder, pad_token_id=pad)
    assert_right_or_refused(folder)
    assert load_encoder(ModelConfig(str(folder))).encode(CONVERSATIONS[0]).num_tokens


@pytest.mark.parametrize("family", ["llama-v0.2", "qwen3", "gemma2"])
@pytest.mark.parametrize("value", [True, False])
def test_autoset_key_of_transformers_4_is_ignored(
    value: bool, family: str, copy_of: CopyOf
) -> None:
    folder = copy_of(family)
    edit_config(folder, _attn_implementation_autoset=value)
    assert_right_or_refused(folder, must_load=True)


def test_is_causal_null_is_refused(copy_of: CopyOf) -> None:
    """transformers treats null as a mask that is not causal, unlike a missing key."""
    folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"is_causal": None}))
    assert "has is_causal = null" in refusal(folder, self_check=False)
    edit_config(folder, is_causal=True)
    assert_right_or_refused(folder, must_load=True)


def test_null_values_mean_defaults(copy_of: CopyOf) -> None:
    folder = copy_of()
    config = json.loads((folder / "config.json").read_text())
    null = dict.fromkeys(("quantization_config", "rope_scaling", "_attn_implementation"))
    (folder / "config.json").write_text(json.dumps(config | null))
    assert_right_or_refused(folder, must_load=True)


def assert_right_or_refused(folder: Path, *, must_load: bool = False) -> None:
    """Check that a checkpoint is refused or gives the rewards of plain transformers."""
    scorer: RewardScorer | None = None
    # Any other exception fails the test.
    with contextlib.nullcontext() if must_load else contextlib.suppress(ModelLoadError):
        scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu"))
    if scorer is None:
        return
    results = scorer.score(CONVERSATIONS)
    if all(isinstance(result, ScoreError) for result in results):
        return
    reference = Reference(folder)
    if not reference.tokenizer.bos_token:  # then transformers adds no special token
        reference.input_ids = lambda messages: (  # type: ignore[method-assign]
            reference.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
        )
    for conversation, result in zip(CONVERSATIONS, results, strict=True):
        assert isinstance(result, Reward)
        assert result.reward == pytest.approx(reference.reward(conversation), abs=1e-4)


VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2, 3, 1e9, 1.5, -0.5, 10**9, 10**30, "", "x", "auto", "1"]
    ),
    st.sampled_from([[], [1], ["x"], {}, {"a": 1}, [["x"]], [None], {"rope_type": "yarn"}]),
)
NUM_EXAMPLES = settings().max_examples // 5  # each loads a checkpoint
MORE_KEYS = (
    "rope_scaling", "rope_theta", "partial_rotary_factor", "sliding_window", "layer_types",
    "use_sliding_window", "torch_dtype", "num_labels", "id2label", "text_config", "attribute_map",
    "per_layer_config", "original_max_position_embeddings", "problem_type", "is_decoder",
    "_rope_type_labels", "fusion_config", "use_cache", "tokenizer_class", "pruned_heads",
    "chunk_size_feed_forward", "output_hidden_states", "return_dict", "output_attentions",
    "cache_implementation",
)  # fmt: skip
# Tokens that are not declared as BOS are checked in `test_special_tokens`.
EXCLUDED_KEYS = ("bos_token",)


@pytest.mark.parametrize("family", ["llama-v0.2", "qwen3", "gemma2"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@settings(max_examples=NUM_EXAMPLES)
@given(data=st.data())
def test_any_change_is_refused_or_right(
    family: str,
    name: str,
    data: st.DataObject,
    checkpoint_of: PathOf,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "checkpoint"
    shutil.copytree(checkpoint_of(family), folder)
    content = json.loads((folder / name).read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        within = content
        keys = [*content, *(MORE_KEYS if name == "config.json" else ())]
        key = data.draw(st.sampled_from([key for key in keys if key not in EXCLUDED_KEYS]))
        while isinstance(within.get(key), dict) and within[key] and data.draw(st.booleans()):
            within = within[key]
            key = data.draw(st.sampled_from(sorted(within)))
        if key in within and data.draw(st.booleans()):
            del within[key]
        else:
            within[key] = data.draw(VALUES)
    (folder / name).write_text(json.dumps(content))
    assert_right_or_refused(folder)
    shutil.rmtree(folder)


@settings(max_examples=2 * NUM_EXAMPLES)
@given(data=st.data())
def test_any_change_of_a_weight_header_is_refused_or_right(
    data: st.DataObject, checkpoint_of: PathOf, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("changed") / "checkpoint"
    shutil.copytree(checkpoint_of("qwen3"), folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    tensor = header[data.draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))]
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    tensor[key] = data.draw(VALUES | st.sampled_from(["F16", "I32", [64, 64], [0, 4], [4096]]))
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
    assert_right_or_refused(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "--model", "FOLDER"],
        ["plan", "--model", "FOLDER"],
        ["render", "--model", "FOLDER", "-"],
        ["score", "INPUT", "-o", "OUT.jsonl", "--model", "FOLDER"],
        ["serve", "--local", "--model", "FOLDER"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("content", ["{", '{"architectures": 5}', "[" * 100_000])
def test_commands_print_the_refusal_and_no_traceback(
    command: list[str], content: str, copy_of: CopyOf, tmp_path: Path
) -> None:
    folder = copy_of()
    (folder / "config.json").write_text(content)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": CONVERSATIONS[0]}) + "\n")
    paths = {
        "FOLDER": str(folder), "INPUT": str(tmp_path / "rows.jsonl"),
        "OUT.jsonl": str(tmp_path / "out.jsonl"),
    }  # fmt: skip
    result = CliRunner().invoke(main, [paths.get(word, word) for word in command], input="{}\n")
    assert result.exit_code == 1
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert str(folder / "config.json") in result.output
    assert "Traceback" not in result.output
