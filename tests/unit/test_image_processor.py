"""The image processor and its patches, against transformers' own."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BENCHMARK_DATA
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from rm_core.errors import ConversationTooLongError, InvalidImageError, ModelLoadError
from rm_core.inputs import image_processor
from rm_core.inputs.image_processor import ImageProcessor
from rm_core.inputs.images import ImageLimits
from rm_core.model.vision import build_patches
from rm_core.types import EncodedImage

LIMITS = ImageLimits()
PHOTOS = BENCHMARK_DATA / "images"
CONFIG = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
# Other values of every key, in the layout of transformers 5, and the defaults.
QWEN3 = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 4096, "longest_edge": 60000},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.25, 0.5],
    "rescale_factor": 1 / 256,
    "resample": 2,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-VL": CONFIG,
    "Qwen3-VL": QWEN3,
    "size with old names": CONFIG | {"size": {"min_pixels": 1, "max_pixels": 2}},
    "nulls": {"size": None, "min_pixels": None, "max_pixels": None, "image_processor_type": None},
    "no keys": {"image_processor_type": "Qwen2VLImageProcessor"},
    "no normalization": CONFIG | {"do_normalize": False},
    "no rescaling": CONFIG | {"do_rescale": False},
}


def write(folder: Path, config: object, name: str = "preprocessor_config.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(config))
    return folder


def load(folder: Path, config: object = CONFIG, **options: Any) -> ImageProcessor:
    return ImageProcessor(write(folder, config), **{"limits": LIMITS} | options)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    size = (width, height)
    num_bytes = width * height * len(Image.new(mode, (1, 1)).tobytes())
    return Image.frombytes(mode, size, random.Random(seed).randbytes(num_bytes))


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def patches_of(processor: ImageProcessor, image: EncodedImage) -> torch.Tensor:
    return build_patches(
        image,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        rescale_factor=processor.rescale_factor,
    )


def assert_equal(processor: ImageProcessor, reference: Any, image: Image.Image) -> None:
    encoded = processor.process(image, "image")
    expected = reference(images=[image], return_tensors="pt")
    assert [list(encoded.grid)] == expected["image_grid_thw"].tolist()
    assert encoded.num_tokens == encoded.grid[1] * encoded.grid[2] // processor.merge_size**2
    assert encoded.num_tokens == processor.count_tokens(*image.size)
    patches = patches_of(processor, encoded)
    assert patches.dtype == torch.float32
    # Without rescaling values reach 950, where float32 has steps of 6e-5.
    scale = 255 if processor.rescale_factor == 1 else 1
    torch.testing.assert_close(patches, expected["pixel_values"].float(), rtol=0, atol=1e-6 * scale)


@pytest.fixture(scope="module", params=CONFIGS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ImageProcessor, Any]:
    folder = tmp_path_factory.mktemp("processor") / "checkpoint"
    processor = load(folder, CONFIGS[request.param])
    write(folder, {"model_type": "qwen2_5_vl"}, "config.json")
    return processor, AutoImageProcessor.from_pretrained(folder, backend="pil")


@pytest.mark.parametrize("name", ["1.jpg", "2.jpg", "3.jpg"])
def test_photos_equal_transformers(both: tuple[ImageProcessor, Any], name: str) -> None:
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is missing")
    assert_equal(*both, Image.open(PHOTOS / name))


@given(
    st.integers(1, 260),
    st.integers(1, 260),
    st.sampled_from(["RGB", "L", "RGBA", "LA", "P", "CMYK", "1"]),
    st.integers(0, 9),
)
@example(1, 200, "RGB", 0)
@example(200, 1, "RGB", 0)
@example(14, 42, "RGB", 0)
@example(70, 98, "RGB", 0)
@example(600, 1500, "RGB", 0)
def test_images_of_any_size_equal_transformers(
    both: tuple[ImageProcessor, Any], width: int, height: int, mode: str, seed: int
) -> None:
    assume(max(width, height) <= 200 * min(width, height))
    source = "RGB" if mode in ("P", "1", "CMYK") else mode
    assert_equal(*both, noise(width, height, source, seed).convert(mode))


def test_settings_override_the_pixels_of_the_checkpoint(tmp_path: Path) -> None:
    image = noise(300, 200)
    for low, high in ((None, 10_000), (100_000, None), (784, 784), (1, 2)):
        processor = load(tmp_path, min_pixels=low, max_pixels=high)
        options = {"min_pixels": low, "max_pixels": high}
        given = {name: value for name, value in options.items() if value is not None}
        assert_equal(
            processor, AutoImageProcessor.from_pretrained(tmp_path, backend="pil", **given), image
        )
        assert load(tmp_path).description != processor.description


def test_the_nested_config_is_preferred(tmp_path: Path) -> None:
    write(tmp_path, {"image_processor": QWEN3}, "processor_config.json")
    processor = load(tmp_path)
    reference = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert processor.patch_size == reference.patch_size == 16
    write(tmp_path, {"processor_class": "Qwen2_5_VLProcessor"}, "processor_config.json")
    assert load(tmp_path).patch_size == 14


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "one of Qwen2VLImageProcessor, "),
        ({"do_resize": False}, "`do_resize` of"),
        ({"do_resize": None}, "`do_resize` of"),
        ({"patch_size": 0}, "a whole number above 0"),
        ({"patch_size": True}, "a whole number above 0"),
        ({"merge_size": "2"}, "a whole number above 0"),
        ({"temporal_patch_size": 2.0}, "a whole number above 0"),
        ({"size": 224}, "an object with `shortest_edge` and `longest_edge`"),
        ({"size": {"shortest_edge": 5}, "max_pixels": None}, "`longest_edge`, a number of pixels"),
        ({"min_pixels": -1}, "`shortest_edge`, a number of pixels, or `min_pixels`"),
        ({"min_pixels": 20_000_000}, "`min_pixels` is 20000000 and `max_pixels` is 12845056"),
        ({"image_mean": 0.5}, "three numbers"),
        ({"image_std": [0.5, 0.5]}, "three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "three numbers other than 0"),
        ({"rescale_factor": "1/255"}, "a number"),
        ({"rescale_factor": None}, "a number"),
        ({"do_rescale": 1}, "true or false"),
        ({"resample": 6}, "a number of PIL's filters"),
        ({"resample": "bicubic"}, "a number of PIL's filters"),
    ],
)
def test_unusual_values_are_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path, CONFIG | change)
    assert part in caught.value.detail
    assert "preprocessor_config.json" in caught.value.detail


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "does not hold a JSON object"),
        ("{", "cannot be read as JSON"),
        ('{"rescale_factor": NaN}', "cannot be read as JSON"),
        ('{"image_processor": 3}', "`image_processor` of"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "processor_config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=reason):
        ImageProcessor(tmp_path, limits=LIMITS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"preprocessor_config\.json is missing"):
        ImageProcessor(tmp_path, limits=LIMITS)


def test_the_placeholder_is_that_of_the_config(tmp_path: Path) -> None:
    assert load(tmp_path).process(noise(9, 9), "image").placeholder_id == 151655
    write(tmp_path, {"image_token_id": 77}, "config.json")
    assert load(tmp_path).process(noise(9, 9), "image").placeholder_id == 77


def test_long_images_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = load(tmp_path)
    processor.process(encode(noise(200, 1)), "image")
    monkeypatch.setattr(image_processor, "to_rgb", None)
    for size in ((201, 1), (1, 201)):
        with pytest.raises(InvalidImageError, match="may be at most 200 times the other"):
            processor.process(encode(noise(*size)), "image")


def test_tokens_are_limited_before_pixels_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = load(tmp_path)
    data = encode(noise(280, 560))
    monkeypatch.setattr(image_processor, "to_rgb", None)
    with pytest.raises(ConversationTooLongError) as caught:
        processor.process(data, "image 1", max_tokens=199)
    assert caught.value.detail.startswith("image 1 has 200 tokens, and 199 are left")
    monkeypatch.undo()
    assert processor.process(data, "image 1", max_tokens=200).num_tokens == 200
    with pytest.raises(ConversationTooLongError):  # from the cache
        processor.process(data, "image 1", max_tokens=199)


def test_errors_begin_with_the_name_of_the_image(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match=r"^image 3 is not an image"):
        load(tmp_path).process(b"cat", "image 3")


def test_equal_pixels_have_equal_ids_however_they_come(tmp_path: Path) -> None:
    processor = load(tmp_path)
    image = noise(100, 60)
    data = encode(image)
    text = base64.b64encode(data).decode()
    sources = (image, image.copy(), data, text, f"data:image/png;base64,{text}")
    results = [processor.process(source, "image") for source in sources]
    assert len(set(results)) == len({result.token_ids for result in results}) == 1
    assert load(tmp_path / "again").process(image, "image") == results[0]


def test_other_pixels_grids_and_preprocessing_have_other_ids(tmp_path: Path) -> None:
    white = Image.new("RGB", (56, 112), "white")
    changed = white.copy()
    changed.putpixel((30, 30), (255, 255, 254))
    images = [
        load(tmp_path).process(white, "image"),
        load(tmp_path).process(changed, "image"),
        load(tmp_path).process(white.transpose(Image.Transpose.ROTATE_90), "image"),
        load(tmp_path, CONFIG | {"image_std": [0.5, 0.5, 0.5]}).process(white, "image"),
    ]
    assert {image.num_tokens for image in images} == {8}
    ids = [token for image in images for token in set(image.token_ids)]
    assert len(ids) == len(set(ids)) == 16


def test_token_ids_are_chunks_of_the_digest() -> None:
    digest = bytes(range(24)) + b"\xff" * 8
    image = EncodedImage(bytes(84 * 84 * 3), 84, 84, 14, 2, 2, digest, 151655)
    assert (image.grid, image.num_tokens, image.num_bytes) == ((1, 6, 6), 9, 21168)
    chunks = [int.from_bytes(digest[start : start + 8], "big") // 4 for start in (0, 8, 16, 24)]
    assert image.token_ids == tuple(-1 - chunks[index % 4] for index in range(9))
    assert min(image.token_ids) == -(2**62)
    assert max(image.token_ids) < 0
    assert pickle.loads(pickle.dumps(image)) == image
    assert "pixels" not in repr(image)


def test_an_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = load(tmp_path)
    data = encode(noise(60, 60))
    first = processor.process(data, "image")
    monkeypatch.setattr(image_processor, "open_image", None)
    assert all(processor.process(data, "image") is first for _ in range(16))


def test_the_cache_is_bounded_in_bytes_and_drops_the_oldest(tmp_path: Path) -> None:
    num_bytes = 56 * 56 * 3
    processor = load(tmp_path, cache_bytes=2 * num_bytes)
    sources = [encode(noise(56, 56, seed=seed)) for seed in range(3)]
    first, second = (processor.process(source, "image") for source in sources[:2])
    assert processor.process(sources[0], "image") is first
    processor.process(sources[2], "image")
    assert processor.process(sources[0], "image") is first
    assert processor.process(sources[1], "image") is not second
    large = encode(noise(224, 224))
    kept = processor.process(sources[1], "image")
    assert processor.process(large, "image") is not processor.process(large, "image")
    assert processor.process(sources[1], "image") is kept


def test_no_source_passes_for_another_kind_of_source(tmp_path: Path) -> None:
    processor = load(tmp_path)
    data = encode(noise(60, 60))
    text = base64.b64encode(data).decode()
    processor.process(text, "image")
    with pytest.raises(InvalidImageError):
        processor.process(text.encode(), "image")
