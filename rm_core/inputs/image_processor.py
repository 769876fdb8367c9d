"""Decode and resize images as Qwen2-VL, Qwen2.5-VL and Qwen3-VL do, whose processor is one class.

Pixels stay uint8 here; `rm_core.model.vision` normalizes them.
"""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rm_core.errors import ConversationTooLongError, InvalidImageError, ModelLoadError
from rm_core.inputs.images import ImageLimits, ImageSource, open_image, require_pillow, to_rgb
from rm_core.strict_json import describe_error, parse_strict
from rm_core.text import quote
from rm_core.types import EncodedImage

if TYPE_CHECKING:
    from PIL.Image import Image

_CLASSES = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")
_MAX_ASPECT_RATIO = 200
# What transformers takes for keys that the file lacks.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MIN_PIXELS = 56 * 56
_MAX_PIXELS = 28 * 28 * 1280
_BICUBIC = 3
_IMAGE_TOKEN_ID = 151655
# A conversation with so many images is decoded once for all its answers, whatever their size.
_CACHED_IMAGES = 4
_MIN_CACHE_BYTES = 64 * 2**20


class ImageProcessor:
    """Decodes and resizes images as a checkpoint asks.

    Is safe to call from several threads. Keeps recent images, so that one that is sent with
    several answers is decoded once.

    Args:
        min_pixels: smallest size of a resized image; None: as the checkpoint says.
        max_pixels: largest size of a resized image; None: as the checkpoint says.
        cache_bytes: size of the pixels that are kept; None: those of four images of the largest
            size, and at least 64 MiB.

    Attributes:
        image_mean: of each channel, subtracted after the pixels are multiplied by
            `rescale_factor`.
        image_std: of each channel, by which the result is divided.
        description: text of everything that decides an image's pixels and their normalization.

    Raises:
        ModelLoadError: Pillow is not installed, or the checkpoint's image processor is missing or
            is not one that this class reproduces.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        limits: ImageLimits,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        require_pillow()
        self.limits = limits
        config = _ConfigReader(Path(path))
        self.patch_size = config.read_size("patch_size", 14)
        self.merge_size = config.read_size("merge_size", 2)
        self.temporal_patch_size = config.read_size("temporal_patch_size", 2)
        self.min_pixels, self.max_pixels = config.read_pixels(min_pixels, max_pixels)
        self.image_mean, self.image_std = config.read_normalization()
        self.rescale_factor = config.read_rescale_factor()
        self.placeholder_id = config.placeholder_id
        self._resample = config.read_resample()
        self.description = json.dumps(
            {
                "patch_size": self.patch_size,
                "merge_size": self.merge_size,
                "temporal_patch_size": self.temporal_patch_size,
                "min_pixels": self.min_pixels,
                "max_pixels": self.max_pixels,
                "image_mean": self.image_mean,
                "image_std": self.image_std,
                "rescale_factor": self.rescale_factor,
                "resample": self._resample,
            }
        )
        largest = _CACHED_IMAGES * 3 * self.max_pixels
        self._cache = _ImageCache(
            max(_MIN_CACHE_BYTES, largest) if cache_bytes is None else cache_bytes
        )
        self._recent: deque[tuple[ImageSource, bytes | None]] = deque(maxlen=_CACHED_IMAGES)

    def process(
        self, source: ImageSource, where: str, *, max_tokens: int | None = None
    ) -> EncodedImage:
        """Decode and resize an image, if it has at most `max_tokens`; see `decode_image`."""
        key = self._find_key(source)
        image = self._cache.get(key)
        if image is None:
            opened = open_image(source, self.limits, where)
            width, height = opened.size
            self._check_tokens(self.count_tokens(width, height, where), where, max_tokens)
            rgb = to_rgb(opened, where)
            if key is None:
                key = sha256(f"pixels {rgb.size}".encode() + rgb.tobytes()).digest()
                image = self._cache.get(key)
            image = image or self._encode(rgb, where)
            self._cache.put(key, image)
        self._check_tokens(image.num_tokens, where, max_tokens)
        return image

    def _find_key(self, source: ImageSource) -> bytes | None:
        """Return `_hash_source`, which the answers of a request need once for their prompt."""
        for recent, key in tuple(self._recent):
            if recent is source:
                return key
        key = _hash_source(source)
        self._recent.append((source, key))
        return key

    def count_tokens(self, width: int, height: int, where: str = "the image") -> int:
        """Return the number of tokens of an image of `width` x `height` pixels."""
        new_height, new_width = self._fit(height, width, where)
        return (new_height * new_width) // (self.patch_size * self.merge_size) ** 2

    def _check_tokens(self, num_tokens: int, where: str, max_tokens: int | None) -> None:
        if max_tokens is not None and num_tokens > max_tokens:
            raise ConversationTooLongError(
                f"{where} has {num_tokens:,} tokens, and {max_tokens:,} are left of the "
                "conversation's limit; send fewer or smaller images, or lower `max_pixels`"
            )

    def _encode(self, image: Image, where: str) -> EncodedImage:
        height, width = self._fit(image.height, image.width, where)
        pixels = image.resize((width, height), self._resample).tobytes()
        header = f"{self.description} {height} x {width} ".encode()
        return EncodedImage(
            pixels=pixels,
            height=height,
            width=width,
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            temporal_patch_size=self.temporal_patch_size,
            digest=sha256(header + pixels).digest(),
            placeholder_id=self.placeholder_id,
        )

    def _fit(self, height: int, width: int, where: str) -> tuple[int, int]:
        """Return the size after resizing, as `smart_resize` of transformers computes it."""
        if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
            raise InvalidImageError(
                f"{where} is {width} x {height} pixels; one side may be at most "
                f"{_MAX_ASPECT_RATIO} times the other: cut it"
            )
        factor = self.patch_size * self.merge_size
        rows, columns = round(height / factor), round(width / factor)
        num_pixels = rows * factor * columns * factor
        if num_pixels > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows = max(1, math.floor(height / shrink / factor))
            columns = max(1, math.floor(width / shrink / factor))
        elif num_pixels < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows = math.ceil(height * grow / factor)
            columns = math.ceil(width * grow / factor)
        return rows * factor, columns * factor


class _ImageCache:
    """The most recently used images, bounded by the size of their pixels."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._images: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes | None) -> EncodedImage | None:
        with self._lock:
            if key is None or key not in self._images:
                return None
            self._images.move_to_end(key)
            return self._images[key]

    def put(self, key: bytes, image: EncodedImage) -> None:
        with self._lock:
            if key in self._images or image.num_bytes > self._max_bytes:
                return
            self._images[key] = image
            self._num_bytes += image.num_bytes
            while self._num_bytes > self._max_bytes:
                _, oldest = self._images.popitem(last=False)
                self._num_bytes -= oldest.num_bytes


class _ConfigReader:
    """Reads the image processor's config as transformers 5 does, with its defaults.

    Every method raises `ModelLoadError` for values that this project does not reproduce.
    """

    def __init__(self, folder: Path) -> None:
        # transformers also prefers the nested config.
        self._file = folder / "processor_config.json"
        config = _read_object(self._file).get("image_processor")
        if config is None:
            self._file = folder / "preprocessor_config.json"
            if not self._file.is_file():
                raise ModelLoadError(
                    f"{self._file} is missing; a vision-language model needs it to resize images: "
                    "copy it from the base model"
                )
            config = _read_object(self._file)
        if not isinstance(config, dict):
            raise ModelLoadError(f"`image_processor` of {self._file} is not an object")
        self._config = config
        if config.get("image_processor_type") not in (None, *_CLASSES):
            self._refuse("image_processor_type", f"one of {', '.join(_CLASSES)}")
        if config.get("do_resize", True) is not True:
            self._refuse("do_resize", "true")
        self.placeholder_id: int = _read_object(folder / "config.json").get(
            "image_token_id", _IMAGE_TOKEN_ID
        )

    def read_size(self, key: str, default: int) -> int:
        value = self._config.get(key, default)
        if type(value) is not int or value < 1:
            self._refuse(key, "a whole number above 0")
        return value

    def read_pixels(self, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
        """Return the bounds of a resized image. Arguments override the file."""
        size = self._config.get("size")
        if size is None:
            size = {"shortest_edge": _MIN_PIXELS, "longest_edge": _MAX_PIXELS}
        if not isinstance(size, dict):
            self._refuse("size", "an object with `shortest_edge` and `longest_edge`")
        bounds = []
        for key, name, given in (
            ("min_pixels", "shortest_edge", min_pixels),
            ("max_pixels", "longest_edge", max_pixels),
        ):
            value = self._config.get(key) if given is None else given
            if value is None:
                value = size.get(name)
            if type(value) is not int or value < 1:
                self._refuse("size", f"an object with `{name}`, a number of pixels, or `{key}`")
            bounds.append(value)
        low, high = bounds
        if low > high:
            raise ModelLoadError(
                f"`min_pixels` is {low} and `max_pixels` is {high} (of the settings, else of "
                f"{self._file}); an image cannot have both: raise `max_pixels`"
            )
        return low, high

    def read_normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel."""
        if not self._read_flag("do_normalize"):
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        mean = self._read_channels("image_mean", _CLIP_MEAN)
        std = self._read_channels("image_std", _CLIP_STD)
        if 0 in std:
            self._refuse("image_std", "three numbers other than 0")
        return mean, std

    def read_rescale_factor(self) -> float:
        if not self._read_flag("do_rescale"):
            return 1.0
        factor = self._config.get("rescale_factor", 1 / 255)
        if not _is_number(factor):
            self._refuse("rescale_factor", "a number")
        return float(factor)

    def read_resample(self) -> int:
        """Return the number of PIL's resampling filter."""
        resample = self._config.get("resample", _BICUBIC)
        if type(resample) is not int or not 0 <= resample <= 5:
            self._refuse("resample", "a number of PIL's filters, 0 to 5")
        return resample

    def _read_flag(self, key: str) -> bool:
        value = self._config.get(key, True)
        if type(value) is not bool:
            self._refuse(key, "true or false")
        return value

    def _read_channels(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        values = self._config.get(key, default)
        if not isinstance(values, list | tuple) or list(map(_is_number, values)) != [True] * 3:
            self._refuse(key, "three numbers")
        return tuple(map(float, values))

    def _refuse(self, key: str, allowed: str) -> NoReturn:
        raise ModelLoadError(
            f"`{key}` of {self._file} is {quote(self._config.get(key))}; images of this model can "
            f"only be processed if it is {allowed}"
        )


def _read_object(file: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file; an empty one if the file is missing."""
    try:
        value = parse_strict(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, OSError) else describe_error(error)
        raise ModelLoadError(f"{file} cannot be read as JSON: {reason}") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file} does not hold a JSON object")
    return value


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _hash_source(source: ImageSource) -> bytes | None:
    """Return a key of an encoded image; None for a PIL image, whose pixels are the key."""
    if isinstance(source, str):
        return sha256(b"text " + source.encode(errors="surrogatepass")).digest()
    return sha256(b"bytes " + source).digest() if isinstance(source, bytes) else None
