"""On CUDA: rewards of conversations with images compared with plain transformers, one at a time.

The tests need neither Pillow nor torchvision: images are made as `EncodedImage`, and the self-check
at load, which decodes files, is left out. Tolerances are those of `test_gpu_parity.py`. With the
variable GPU_TESTS_ON_CPU, the tests run on the CPU with the backends that it has.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.parity import compute_allowed_error
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLModel
from vision import TEXT, build_vision_model

from rm_core import BatchConfig, ModelConfig, Reward, RewardScorer
from rm_core.attention.select import is_flash_attn_4_installed, is_flash_attn_installed
from rm_core.inputs import image_processor
from rm_core.inputs.encoder import ChatEncoder
from rm_core.memory import estimate_tower_bytes
from rm_core.model.placement import is_new_gpu
from rm_core.model.vision import VisionTower, build_patches
from rm_core.types import Encoded, EncodedImage

DRY = bool(os.environ.get("GPU_TESTS_ON_CPU"))
DEVICE = "cpu" if DRY else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not DRY and not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HAS_FLASH_4 = (
    torch.cuda.is_available() and is_flash_attn_4_installed() and is_new_gpu(torch.device("cuda"))
)
FLASH_4 = pytest.mark.skipif(not HAS_FLASH_4, reason="flash-attn-4 is not installed")
FLASH = pytest.mark.skipif(not is_flash_attn_installed(), reason="flash-attn is not installed")
ON_CUDA = pytest.mark.skipif(DRY, reason="needs a CUDA device")
FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
HALF_PRECISION = [
    "auto",
    "eager",
    pytest.param("flex", marks=ON_CUDA),
    pytest.param("varlen", marks=ON_CUDA),
    pytest.param("flash_attention_2", marks=FLASH),
    pytest.param("flash_attention_4", marks=FLASH_4),
]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Messages = list[dict[str, Any]]
PathOf = Callable[[str], Path]


def make_image(
    rows: int, columns: int, seed: int, placeholder_id: int = 0, patch_size: int = 14
) -> EncodedImage:
    """Return an image of `rows` x `columns` tokens with a pattern that depends on the seed."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2 * patch_size * rows, 2 * patch_size * columns, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    data = pixels.numpy().tobytes()
    digest = hashlib.sha256(f"{shape}".encode() + data).digest()
    return EncodedImage(data, shape[0], shape[1], patch_size, 2, 2, digest, placeholder_id)


SIZES = {b"wide": (2, 5), b"high": (4, 2), b"large": (6, 6), b"other": (2, 5)}


def image(source: bytes) -> dict[str, Any]:
    return {"type": "image", "image": source}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def ask(answer: str, *parts: dict[str, Any]) -> Messages:
    return [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": answer}]


GROUP = [ask(f"Answer {i}: " + "word " * i, image(b"large"), text("Rate it.")) for i in range(8)]
CONVERSATIONS = [
    ask("4", text("2+2?")),
    ask("A cat.", image(b"wide"), text("What is it?")),
    ask("A dog.", image(b"wide"), text("What is it?")),
    ask("A cat.", image(b"other"), text("What is it?")),
    ask("Three.", image(b"wide"), text("How many"), image(b"high"), text(" are "), image(b"large")),
    ask("Both.", image(b"high"), image(b"high"), text("Which differs?")),
    [*ask("A cat.", text("Before "), image(b"large")), *ask("Fine.", image(b"wide"))],
    *GROUP,
]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> PathOf:
    root = tmp_path_factory.mktemp("gpu")
    return functools.cache(lambda family: build_vision_model(root / family, family))


def load(folder: Path, attention: Any = "auto", batch: int = 16_384, **settings: Any) -> Any:
    """Load a scorer whose encoder takes the images of `SIZES` by their names."""
    batching = {
        name: settings.pop(name)
        for name in ("prefix_cache_bytes", "vision_cache_bytes")
        if name in settings
    }
    config = ModelConfig(
        str(folder), device=DEVICE, attention=attention, self_check=False, **settings
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_processor, "require_pillow", lambda: None)
        scorer = RewardScorer.load(config, BatchConfig(batch, **batching))
    processor: Any = get_image_tokens(scorer).processor
    images = {
        source: make_image(*size, seed, processor.placeholder_id, processor.patch_size)
        for seed, (source, size) in enumerate(SIZES.items())
    }
    processor.process = lambda source, *_, **__: images[source]
    return scorer


def get_image_tokens(scorer: RewardScorer) -> Any:
    assert isinstance(scorer.encoder, ChatEncoder)
    assert scorer.encoder.image_tokens is not None
    return scorer.encoder.image_tokens


def rewards(scorer: RewardScorer, conversations: list[Messages]) -> list[float]:
    results = scorer.score(conversations)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


def alone(scorer: RewardScorer) -> list[float]:
    return [rewards(scorer, [messages])[0] for messages in CONVERSATIONS]


@functools.cache
def references(folder: Path, dtype: torch.dtype, device: str = DEVICE) -> list[float]:
    """Return the rewards of transformers' own model, one conversation at a time, eager."""
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation={"": "eager", "text_config": "eager", "vision_config": "sdpa"},
    )
    model = loaded.to(device).eval().model
    tensors = load_file(folder / "value_head.safetensors")
    weight, bias = tensors["v_head.summary.weight"][0], tensors["v_head.summary.bias"]
    scorer = load(folder, "eager", dtype="float32")
    encoder, processor = scorer.encoder, get_image_tokens(scorer).processor
    normalization: Any = {
        "image_mean": processor.image_mean,
        "image_std": processor.image_std,
        "rescale_factor": 1 / 255,
    }
    computed = []
    for messages in CONVERSATIONS:
        encoded = encoder.encode(messages)
        ids = torch.tensor([encoded.vocabulary_ids], device=device)
        images = [placed.image for placed in encoded.images]
        inputs: dict[str, Any] = {"input_ids": ids}
        if images:
            patches = [build_patches(image, **normalization) for image in images]
            is_image = torch.tensor([encoded.input_ids], device=device) < 0
            inputs |= {
                "pixel_values": torch.cat(patches).to(device),
                "image_grid_thw": torch.tensor([i.grid for i in images], device=device),
                "mm_token_type_ids": is_image.int(),
            }
        model.rope_deltas = None  # of the conversation before
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state[0, -1].float().cpu()
        computed.append(float(hidden @ weight + bias[0]))
    return computed


def mean_difference(left: list[float], right: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(left, right, strict=True)) / len(left)


def get_allowed_error(folder: Path) -> float:
    """Return the allowed mean difference of bfloat16 from float32."""
    exact = references(folder, torch.float32, "cpu")
    return compute_allowed_error(mean_difference(references(folder, torch.bfloat16), exact), exact)


@pytest.mark.parametrize("attention", ["auto", "eager", pytest.param("flex", marks=ON_CUDA)])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_rewards_equal_reference(family: str, attention: str, folder_of: PathOf) -> None:
    expected = pytest.approx(references(folder_of(family), torch.float32), abs=1e-3, rel=0)
    scorer = load(folder_of(family), attention, dtype="float32")
    ours = rewards(scorer, CONVERSATIONS)
    assert ours == expected
    assert alone(scorer) == expected
    assert max(ours) - min(ours) > 1


@pytest.mark.parametrize("attention", HALF_PRECISION)
@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_kernels_are_as_exact_as_eager(
    family: str, attention: str, folder_of: PathOf
) -> None:
    scorer = load(folder_of(family), attention, dtype="bfloat16")
    exact = references(folder_of(family), torch.float32, "cpu")
    for ours in (rewards(scorer, CONVERSATIONS), alone(scorer)):
        assert mean_difference(ours, exact) <= get_allowed_error(folder_of(family))


@pytest.mark.parametrize("attention", ["auto", "eager"])
def test_deterministic_mode_is_bit_for_bit(attention: str, folder_of: PathOf) -> None:
    scorer = load(
        folder_of("qwen2_5_vl"), attention, batch=512, dtype="bfloat16", deterministic=True
    )
    together = rewards(scorer, CONVERSATIONS)
    assert rewards(scorer, CONVERSATIONS[::-1])[::-1] == together
    assert alone(scorer) == together
    exact = references(folder_of("qwen2_5_vl"), torch.float32, "cpu")
    assert mean_difference(together, exact) <= get_allowed_error(folder_of("qwen2_5_vl"))


@pytest.mark.parametrize("prefix_cache_bytes", [0, 1 << 24])
@pytest.mark.parametrize("vision_cache_bytes", [0, 1 << 24])
def test_caches_change_no_reward(
    prefix_cache_bytes: int, vision_cache_bytes: int, folder_of: PathOf
) -> None:
    scorer = load(
        folder_of("qwen2_5_vl"),
        dtype="float32",
        prefix_cache_bytes=prefix_cache_bytes,
        vision_cache_bytes=vision_cache_bytes,
    )
    expected = references(folder_of("qwen2_5_vl"), torch.float32)
    for _ in range(2):
        assert rewards(scorer, CONVERSATIONS) == pytest.approx(expected, abs=1e-3, rel=0)
    num_encoded = scorer.loaded_model.vision_tower.num_encoded
    assert num_encoded == len(SIZES) or not vision_cache_bytes


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_layers_read_images(folder_of: PathOf) -> None:
    scorer = load(folder_of("qwen2_5_vl"), dtype="bfloat16", compile=True)
    exact = references(folder_of("qwen2_5_vl"), torch.float32, "cpu")
    for ours in (rewards(scorer, CONVERSATIONS), alone(scorer)):
        assert mean_difference(ours, exact) <= get_allowed_error(folder_of("qwen2_5_vl"))


def test_patches_have_the_bits_of_the_cpu() -> None:
    options: Any = {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255}
    drawn = make_image(6, 4, 0)
    on_device = build_patches(drawn, **options, device=DEVICE)
    assert on_device.device.type == DEVICE
    assert torch.equal(on_device.cpu(), build_patches(drawn, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_with_images_do_not_wait_for_the_device(family: str, folder_of: PathOf) -> None:
    """torch raises an error where a tensor is read back, or copied from unpinned memory."""
    scorer = load(folder_of(family), dtype="bfloat16", vision_cache_bytes=1 << 24)
    encoded = scorer.encoder.encode(CONVERSATIONS[4])
    assert isinstance(encoded, Encoded)
    images = [placed.image for placed in encoded.images]
    (tree,) = scorer.pack([encoded.input_ids], images=images).batches
    tower = scorer.loaded_model.vision_tower
    input_ids = torch.zeros(1, tree.num_tokens, dtype=torch.long, device=DEVICE)
    with torch.inference_mode():
        tower.build_inputs(tree, input_ids)  # lazy setup may wait
        tower.clear()
        if not DRY:
            torch.cuda.set_sync_debug_mode("error")
        try:
            embeddings = tower.build_inputs(tree, input_ids)["inputs_embeds"]
        finally:
            if not DRY:
                torch.cuda.set_sync_debug_mode("default")
    assert tower.num_encoded == 6
    assert embeddings.isfinite().all()


@ON_CUDA
@pytest.mark.parametrize("shape", [(36, 36), (100, 150)])
def test_tower_of_true_size_stays_within_its_estimate(shape: tuple[int, int]) -> None:
    """The tower of Skywork-VL-Reward-7B with random weights, on 1 and 12 megapixels."""
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": 512, "hidden_size": 3584, "num_hidden_layers": 1},
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": 3584,
            "num_heads": 16,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    )
    config._attn_implementation = "sdpa"
    with torch.device(DEVICE):
        model: Any = Qwen2_5_VLModel(config)
    model.to(torch.bfloat16).eval()
    options: Any = {"image_mean": MEAN, "image_std": STD, "rescale_factor": 1 / 255}
    build = functools.partial(build_patches, **options, device=DEVICE)
    tower = VisionTower(model, torch.device(DEVICE), build)
    drawn = make_image(*shape, 0)
    with torch.inference_mode():
        tower.encode([make_image(4, 4, 1)])
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        tower.encode([drawn])
        peak = torch.cuda.max_memory_allocated() - before
    estimate = estimate_tower_bytes(config.vision_config, torch.bfloat16, 4 * drawn.num_tokens)
    assert estimate / 4 <= peak <= estimate


def test_group_computes_its_image_once(folder_of: PathOf) -> None:
    """Of a group of 8, the tower and the decoder compute the image once, together or one by one."""
    scorer = load(folder_of("qwen2_5_vl"), vision_cache_bytes=1 << 24)
    encoded = [scorer.encoder.encode(messages) for messages in GROUP]
    images = [placed.image for item in encoded for placed in item.images]
    packing = scorer.pack([item.input_ids for item in encoded], images=images)
    answers = sum(item.num_tokens for item in encoded)
    assert packing.num_tokens < answers - 7 * images[0].num_tokens
    rewards(scorer, GROUP)
    for messages in GROUP:
        rewards(scorer, [messages])
    assert scorer.loaded_model.vision_tower.num_encoded == 1
