"""Vision-language reward models: both layouts, the head in a file of its own, and damaged files."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import vision
from checkpoints import Weights, edit_config, edit_weights, refusal, set_one
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from rm_core import ModelConfig, ModelLoadError, RewardScorer, load_encoder, open_checkpoint
from rm_core.heads import LinearHead
from rm_core.model.decoder import get_decoder, get_decoder_layers, get_vision_tower
from rm_core.model.loading import load_model
from rm_core.model.placement import move_to_devices
from rm_core.model.prepacked_linear import PrepackedLinear
from rm_core.model.vision_config import VisionConfig

BuildOf = Callable[[str, str], Path]
CONVERSATIONS: list[Any] = [
    [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": answer},
    ]
    for answer in ("Paris, a city on the Seine.", "I do not know.", "12 apples, and 4 for Mark!")
]
CONVERSATIONS.append(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Jane has 12 apples. How many?"}]},
        {"role": "assistant", "content": "12."},
    ]
)
LAYOUTS = [
    ("qwen2_5_vl", "old"),
    ("qwen2_5_vl", "new"),
    ("qwen2_vl", "old"),
    ("qwen2_vl", "new"),
    ("qwen3_vl", "old"),
    ("qwen3_vl", "new"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuildOf:
    """Folder of a model by family and layout. Tests must not change it."""
    root = tmp_path_factory.mktemp("vision")
    return functools.cache(
        lambda family, layout: vision.build_vision_model(root / family / layout, family, layout)
    )


@pytest.fixture
def folder(built: BuildOf, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(built("qwen2_5_vl", "old"), tmp_path / "model"))


def load(folder: Path, **settings: Any) -> RewardScorer:
    return RewardScorer.load(ModelConfig(str(folder), device="cpu", **settings))


def rewards(scorer: RewardScorer) -> list[float]:
    return [result.reward for result in scorer.score(CONVERSATIONS)]  # type: ignore[union-attr]


@torch.inference_mode()
def compute_plain_rewards(folder: Path, kind: Any = AutoModelForImageTextToText) -> list[float]:
    """Plain transformers with its language-model head, one conversation at a time."""
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    head = vision.make_value_head()
    results = []
    for messages in CONVERSATIONS:
        ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        hidden = model(ids["input_ids"], output_hidden_states=True).hidden_states[-1][0, -1]
        value = hidden @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]
        results.append(float(value))
    return results


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_rewards_of_text_equal_plain_transformers(family: str, layout: str, built: BuildOf) -> None:
    ours = rewards(load(built(family, layout)))
    expected = compute_plain_rewards(built(family, layout))
    assert ours == pytest.approx(expected, abs=1e-4, rel=0)
    assert max(expected) - min(expected) > 1


@pytest.mark.parametrize("head", ["beside, no prefix", "inside"])
def test_head_elsewhere_gives_equal_rewards(head: str, built: BuildOf, tmp_path: Path) -> None:
    other = vision.build_vision_model(tmp_path, layout="new", head=head)
    assert rewards(load(other)) == rewards(load(built("qwen2_5_vl", "new")))


@pytest.mark.parametrize("head", ["beside", "beside, no prefix"])
def test_exported_text_model(head: str, tmp_path: Path) -> None:
    vision.build_exported_text_model(tmp_path, head)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = vision.TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    scorer = load(tmp_path)
    expected = compute_plain_rewards(tmp_path, AutoModelForCausalLM)
    assert rewards(scorer) == pytest.approx(expected, abs=1e-4, rel=0)
    assert max(expected) - min(expected) > 1
    assert scorer.loaded_model.checkpoint.vision is None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("family", "layout"), [("qwen2_5_vl", "old"), ("qwen2_5_vl", "new"), ("qwen3_vl", "old")]
)
def test_adapter_with_its_head_equals_merged_model(
    family: str, layout: str, tmp_path: Path
) -> None:
    """As LLaMA-Factory writes them; layers of the tower are merged too."""
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    vision.build_vision_model(base, family, layout, head=None)
    model = AutoModelForImageTextToText.from_pretrained(base)
    config = LoraConfig(r=4, target_modules=["q_proj", "qkv"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(adapter)
    vision.write_value_head(adapter, "beside")
    scorer = load(Path(f"{base}+{adapter}"), deterministic=True)
    shutil.copytree(base, merged)
    weights = adapted.merge_and_unload().state_dict()
    weights = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    assert rewards(scorer) == pytest.approx(compute_plain_rewards(merged), abs=1e-4)
    tower = get_vision_tower(scorer.loaded_model.model)
    assert tower is not None
    assert torch.allclose(
        tower.state_dict()["blocks.0.attn.qkv.weight"],
        weights["model.visual.blocks.0.attn.qkv.weight"],
    )


@pytest.mark.parametrize("quantization", ["int8", "int8-weights"])
def test_quantization_leaves_the_tower_as_it_is(quantization: Any, folder: Path) -> None:
    model = load_model(ModelConfig(str(folder), device="cpu", quantization=quantization)).model
    tower = get_vision_tower(model)
    assert tower is not None
    assert {type(parameter) for parameter in tower.parameters()} == {torch.nn.Parameter}
    weight: Any = get_decoder_layers(model)[0].get_submodule("mlp.up_proj").weight
    assert type(weight.data) is not torch.Tensor


@pytest.mark.parametrize("files", ["one file", "shards", "pickle"])
@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_weights_are_those_of_the_files(
    family: str, layout: str, files: str, built: BuildOf, tmp_path: Path
) -> None:
    source = built(family, layout)
    stored = {
        name.removeprefix("model.visual.").removeprefix("visual.")
        if "visual." in name
        else name.removeprefix("model.").removeprefix("language_model."): tensor
        for name, tensor in load_file(source / "model.safetensors").items()
    }
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    if files == "shards":
        (folder / "model.safetensors").unlink()
        vision.build_vision_model(folder, family, layout, num_shards=3)
    elif files == "pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    model = load_model(
        # With this setting the linear layers are torch's own, not prepacked.
        ModelConfig(str(folder), device="cpu", allow_bin=True, deterministic=True)
    ).model
    tower, decoder = get_vision_tower(model), get_decoder(model)
    assert tower is not None
    decoder.layers[-1] = decoder.layers[-1].layer
    loaded = {**tower.state_dict(), **decoder.state_dict()}
    assert set(loaded) == set(stored) - {"lm_head.weight"}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in loaded.items())


def test_tower_has_dtype_of_decoder_and_keeps_sdpa_and_head_is_as_stored(folder: Path) -> None:
    head = vision.make_value_head()
    for dtype in ("bfloat16", "float32"):
        loaded = load_model(ModelConfig(str(folder), device="cpu", dtype=dtype))
        tower: Any = get_vision_tower(loaded.model)
        assert {str(p.dtype) for p in tower.parameters()} == {f"torch.{dtype}"}
        assert tower.blocks[0].attn.config._attn_implementation == "sdpa"
        assert get_decoder(loaded.model).config._attn_implementation == "skyreward_packed"
        assert isinstance(loaded.head, LinearHead)
        assert torch.equal(loaded.head.row, head["v_head.summary.weight"])
        assert loaded.head.bias is not None
        assert torch.equal(loaded.head.bias, head["v_head.summary.bias"])
    assert not any(isinstance(module, PrepackedLinear) for module in tower.modules())
    layers = get_decoder_layers(loaded.model).modules()
    assert any(isinstance(module, PrepackedLinear) for module in layers)


def test_tower_is_on_the_first_device(folder: Path) -> None:
    model = load_model(ModelConfig(str(folder), device="cpu", deterministic=True)).model
    move_to_devices(model, (torch.device("cpu"), torch.device("meta")))
    tower = get_vision_tower(model)
    assert tower is not None
    assert {p.device.type for p in tower.parameters()} == {"cpu"}
    decoder = get_decoder(model)
    assert decoder.embed_tokens.weight.device.type == "cpu"
    assert decoder.norm.weight.device.type == "meta"


@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_vision_config(family: str, layout: str, built: BuildOf) -> None:
    checkpoint = open_checkpoint(ModelConfig(str(built(family, layout))), weights=False)
    tokenizer = vision.build_vision_tokenizer()
    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    image, video, start, end = (tokenizer.get_vocab()[name] for name in names)
    assert checkpoint.vision == VisionConfig(
        image, video, start, end, vision.PATCH_SIZES[family], 2, 2
    )
    assert (checkpoint.family, checkpoint.max_positions) == (family, 2048)
    assert checkpoint.num_embeddings == len(tokenizer) + 8
    assert open_checkpoint(ModelConfig("demo"), weights=False).vision is None


def test_missing_head_is_refused(folder: Path) -> None:
    (folder / "value_head.safetensors").unlink()
    message = "A plain vision-language model has no such head; LLaMA-Factory writes"
    assert message in refusal(folder)
    with pytest.raises(ModelLoadError, match=message):
        load_encoder(ModelConfig(str(folder)))


def test_two_heads_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update(vision.make_value_head()))
    assert "the intended head is ambiguous; remove one of the two" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"v_head.summary.weight": torch.ones(1, 63)}, "[1, 63] instead of [1, 64]"),
        ({"v_head.summary.weight": torch.full((1, 64), torch.nan)}, "contains NaN or infinity"),
        ({"v_head.summary.weight": torch.ones(2, 64)}, "a reward model has [1, hidden_size]"),
        ({"v_head.summary.bias": torch.ones(2)}, "[2] instead of [1]"),
    ],
)
def test_damaged_head_is_refused(changes: Weights, reason: str, folder: Path) -> None:
    save_file({**vision.make_value_head(), **changes}, folder / "value_head.safetensors")
    assert reason in refusal(folder)


def test_truncated_head_is_refused(folder: Path) -> None:
    file = folder / "value_head.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    assert "the file is truncated or modified" in refusal(folder)


def test_revision_changes_with_the_head(folder: Path) -> None:
    def get_revision() -> str:
        return open_checkpoint(ModelConfig(str(folder)), weights=False).revision

    revisions = {get_revision()}
    head = vision.make_value_head()
    for name in list(head):
        head[name].view(-1)[-1] += 1
        save_file(head, folder / "value_head.safetensors")
        revisions.add(get_revision())
    (folder / "value_head.safetensors").unlink()
    for _ in range(2):
        head["v_head.summary.bias"] += 1
        torch.save(head, folder / "value_head.bin")
        revisions.add(get_revision())
    assert len(revisions) == 5


def test_head_in_pickle_file_needs_allow_bin(folder: Path) -> None:
    (folder / "value_head.safetensors").unlink()
    torch.save(vision.make_value_head(""), folder / "value_head.bin")
    assert "has its head in value_head.bin, a pickle file" in refusal(folder)
    head = load_model(ModelConfig(str(folder), device="cpu", allow_bin=True)).head
    assert isinstance(head, LinearHead)
    assert torch.equal(head.row, vision.make_value_head()["v_head.summary.weight"])


@pytest.mark.parametrize("part", ["visual.blocks.2.attn.qkv.weight", "layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_missing_misshapen_and_infinite_tensors_are_refused(
    family: str, layout: str, part: str, built: BuildOf, tmp_path: Path
) -> None:
    source = built(family, layout)
    (name,) = (n for n in load_file(source / "model.safetensors") if n.endswith(part))

    def refusal_after(edit: Callable[[Weights], object]) -> str:
        folder = Path(shutil.copytree(source, tmp_path, dirs_exist_ok=True))
        edit_weights(folder, edit)
        return refusal(folder)

    def check(detail: str, reason: str) -> None:
        assert reason in detail
        assert part in detail

    check(refusal_after(lambda weights: weights.pop(name)), "are missing and would be random")
    check(
        refusal_after(lambda weights: weights.update({name: weights[name][:, 1:].contiguous()})),
        "have a different shape than in the config",
    )
    check(refusal_after(set_one(name, torch.inf)), "contains NaN or infinity")


def test_missing_shard_is_refused(tmp_path: Path) -> None:
    vision.build_vision_model(tmp_path, num_shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    assert "a shard is missing" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("layout", "changes", "reason"),
    [
        ("old", {"vision_config": None}, "has no vision_config object"),
        ("new", {"vision_config": []}, "has no vision_config object"),
        ("old", {"image_token_id": 100_000}, "it must be the id of a token, below the"),
        ("new", {"video_token_id": "497"}, "it must be the id of a token, below the"),
        ("old", {"video_token_id": 5}, "video_token_id is 5, but in the tokenizer"),
        ("old", {"vision_start_token_id": 496}, "gives one id to several tokens"),
        ("old", {"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 4]}}, "whose sum is 8"),
        ("old", {"rope_scaling": {"type": "mrope", "mrope_section": [8]}}, "whose sum is 8"),
        ("old", {"rope_scaling": {"type": "mrope"}}, "[16, 24, 24]"),
        (
            "old",
            {"hidden_size": 128, "num_attention_heads": 8},
            "but the text decoder has hidden_size 128",
        ),
        ("old", {"max_position_embeddings": None}, "no integer max_position_embeddings"),
        ("new", {"text_config": [1]}, "text_config of"),
        ("new", {"text_config": None}, "no integer max_position_embeddings"),
        ("old", {"model_type": "qwen2_vl"}, "the architecture Qwen2_5_VLForConditionalGeneration"),
        ("old", {"attn_implementation": "eager"}, "selects how transformers computes"),
    ],
)
def test_damaged_config_is_refused(
    layout: str, changes: dict[str, Any], reason: str, built: BuildOf, tmp_path: Path
) -> None:
    shutil.copytree(built("qwen2_5_vl", layout), tmp_path, dirs_exist_ok=True)
    edit_config(tmp_path, **changes)
    assert reason in refusal(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("depth", 0, "it must be an integer from 1"),
        ("patch_size", "14", "it must be an integer from 1"),
        ("patch_size", 16, "but the vision tower of config.json has 16"),
        ("spatial_merge_size", 3, "merge_size of"),
        ("temporal_patch_size", 1, "temporal_patch_size of"),
        ("num_heads", 3, "the width must be a multiple of 4 x num_heads"),
        ("window_size", 14, "a window has at least one token"),
        ("out_hidden_size", 32, "the two must be equal"),
        ("depth", 5, "config.json and the weights do not match"),
        ("depth", 3, "do not belong to any module of the model: visual.blocks.3.attn"),
        ("_attn_implementation", "eager", "selects how transformers computes"),
    ],
)
def test_damaged_vision_config_is_refused(
    key: str, value: object, reason: str, folder: Path
) -> None:
    sizes = json.loads((folder / "config.json").read_text())["vision_config"]
    edit_config(folder, vision_config={**sizes, key: value})
    assert reason in refusal(folder)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("text_config", {"head_dim": 64}, "whose sum is 32, half the size of an attention head"),
        ("text_config", {"rope_scaling": None}, "[24, 20, 20]"),
        (
            "text_config",
            {"rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
            "take every third of 16 frequencies, which do not suffice",
        ),
        ("text_config", {"num_hidden_layers": 2}, "fewer than the text decoder's 2 layers"),
        ("vision_config", {"deepstack_visual_indexes": [0, 4]}, "integers from 0 to 3, layers of"),
        ("vision_config", {"deepstack_visual_indexes": [2, 0]}, "must have increasing integers"),
        ("vision_config", {"deepstack_visual_indexes": None}, "must have increasing integers"),
        (
            "vision_config",
            {"deepstack_visual_indexes": [0]},
            "do not belong to any module of the model: visual.deepstack_merger_list.1",
        ),
        ("vision_config", {"num_position_embeddings": 49}, "pos_embed.weight"),
        ("vision_config", {"out_hidden_size": 32}, "the two must be equal"),
        ("vision_config", {"patch_size": 14}, "but the vision tower of config.json has 14"),
    ],
)
def test_damaged_config_of_qwen3_vl_is_refused(
    part: str, changes: dict[str, Any], reason: str, built: BuildOf, tmp_path: Path
) -> None:
    shutil.copytree(built("qwen3_vl", "old"), tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "config.json").read_text())[part]
    edit_config(tmp_path, **{part: {**content, **changes}})
    assert reason in refusal(tmp_path)


def test_keys_of_nested_text_config_are_checked(built: BuildOf, tmp_path: Path) -> None:
    shutil.copytree(built("qwen2_5_vl", "new"), tmp_path, dirs_exist_ok=True)
    text_config = json.loads((tmp_path / "config.json").read_text())["text_config"]
    edit_config(tmp_path, text_config={**text_config, "num_attention_heads": 3})
    assert "not a multiple of num_key_value_heads" in refusal(tmp_path)
    edit_config(tmp_path, text_config={**text_config, "num_hidden_layers": 4, "layer_types": None})
    assert "config.json and the weights do not match" in refusal(tmp_path)


def test_image_processor_config(folder: Path) -> None:
    """transformers prefers processor_config.json where that has an image processor."""
    file = folder / "preprocessor_config.json"
    old = json.loads(file.read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": old}))
    file.write_text(json.dumps({**old, "patch_size": 16}))
    load_encoder(ModelConfig(str(folder)))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "X"}))
    assert "patch_size of" in refusal(folder)
    file.unlink()
    assert "has no preprocessor_config.json" in refusal(folder)


def test_tokenizer_without_image_tokens_is_refused(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|image_pad|>", "<|other|>"))
    assert "<|image_pad|> is missing; images would be read as other tokens" in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
        {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]},
        {"model_type": "qwen3_vl_moe", "architectures": ["Qwen3VLMoeForConditionalGeneration"]},
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vision_config": {}},
        {"model_type": "internvl_chat", "architectures": ["InternVLChatModel"]},
    ],
)
def test_other_vision_language_models_are_refused(changes: dict[str, Any], folder: Path) -> None:
    edit_config(folder, **changes)
    detail = refusal(folder, kind="classifier")
    assert "supported: Qwen2VLForConditionalGeneration, Qwen2_5_VLForCondition" in detail


@pytest.mark.parametrize("settings", [{"kind": "judge"}, {"step_format": "skywork"}])
def test_other_kinds_are_refused(settings: dict[str, Any], folder: Path) -> None:
    assert "is served as a classifier with a value head" in refusal(folder, **settings)
