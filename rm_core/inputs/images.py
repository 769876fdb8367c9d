"""Decode images that callers send: encoded bytes, base64, data URIs, PIL images.

No file and no address is opened. All limits are checked before pixels are decoded. Pillow is
imported on first use: models of text run without it.
"""

from __future__ import annotations

import binascii
import functools
import io
import re
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from rm_core.errors import InvalidImageError, ModelLoadError
from rm_core.text import describe_type, shorten, summarize_error

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "str | bytes | Image"
"""A data URI or base64, an encoded file, or a PIL image."""

# No other parser of Pillow gets the bytes of a caller.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_SUPPORTED = "PNG, JPEG, WebP, GIF and BMP are supported"
_DATA_URI = re.compile(r"\s*data:([^,]{0,256}),", re.IGNORECASE)
_SCHEME = re.compile(r"\s*([a-z][a-z0-9+.-]{0,30}):", re.IGNORECASE)
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/]")
# Each scan of a progressive JPEG is a pass over all of its pixels, and may have no more than a few
# bytes. Encoders write about ten.
_MAX_SCANS = 100
_START_OF_SCAN = b"\xff\xda"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits of one image, checked before it is decoded."""

    max_image_bytes: int = 10 * 2**20  # size of the encoded file
    max_image_pixels: int = 4096 * 4096  # width times height, before the image is resized


@functools.cache
def require_pillow() -> None:
    """Import Pillow, or raise `ModelLoadError`, and ignore its warnings."""
    try:
        import PIL.Image
        import PIL.ImageOps
        import PIL.WebPImagePlugin  # noqa: F401 - else Pillow imports all its plugins at a WebP
    except ImportError as error:
        raise ModelLoadError(
            "a vision-language model needs Pillow to decode images: "
            f"pip install 'skyreward[vision]' ({summarize_error(error)})"
        ) from None
    # They quote damaged metadata of a caller's image, and Python keeps each text that it shows.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode_image(source: ImageSource, limits: ImageLimits, where: str) -> Image:
    """Decode an image to RGB, upright by its EXIF orientation, on white where it is transparent.

    Args:
        source: a data URI or base64 (standard or URL-safe alphabet, with or without padding and
            line breaks), an encoded file, or a PIL image.
        limits: limits of the image.
        where: name of the image; error messages begin with it.

    Raises:
        InvalidImageError: the source is not one still image of a supported format, or exceeds a
            limit.
    """
    return to_rgb(open_image(source, limits, where), where)


def open_image(source: ImageSource, limits: ImageLimits, where: str) -> Image:
    """Read the header of an image and check the limits. Pixels are decoded by `to_rgb`."""
    from PIL import Image, UnidentifiedImageError

    require_pillow()
    if isinstance(source, Image.Image):
        return _check_header(source, limits, where)
    if not isinstance(source, str | bytes):
        raise InvalidImageError(
            f"{where} is {describe_type(source)}; send a data URI, base64, the bytes of a "
            "file or a PIL image"
        )
    data = (
        source
        if isinstance(source, bytes)
        else decode_base64(source, limits.max_image_bytes, where)
    )
    if not data:
        raise InvalidImageError(f"{where} is empty; send an encoded image. {_SUPPORTED}")
    _check_num_bytes(len(data), limits.max_image_bytes, where)
    if data[:64].lstrip().startswith(b"<") and b"<svg" in data[:4096]:
        raise _svg_error(where)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidImageError(
            f"{where} is not an image of a known format; {_SUPPORTED}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        # Pillow has a limit too, which it checks first.
        raise InvalidImageError(
            f"{where} has too many pixels; at most {limits.max_image_pixels:,} are allowed: "
            "resize it"
        ) from None
    except Exception as error:
        raise _damaged_error(where, error) from None
    image = _check_header(image, limits, where)
    if image.format in ("JPEG", "MPO") and data.count(_START_OF_SCAN) > _MAX_SCANS:
        raise InvalidImageError(
            f"{where} is a JPEG of more than {_MAX_SCANS} scans; encode it again"
        )
    return image


def to_rgb(image: Image, where: str) -> Image:
    """Decode the pixels of an opened image, see `decode_image`."""
    from PIL import Image, ImageOps

    if image.mode in ("I", "F"):
        raise InvalidImageError(
            f"{where} has numbers without a fixed range as colours (PIL's mode {image.mode}); "
            'convert it to "RGB"'
        )
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            # Pillow's `convert` would turn every value above 255 to white.
            image = image.point(lambda value: value * (1 / 256)).convert("L")
            image.info.pop("transparency", None)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGB", image.size, "white")
            white.paste(image, mask=image.getchannel("A"))
            return white
        return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged_error(where, error) from None


def _check_header(image: Image, limits: ImageLimits, where: str) -> Image:
    width, height = image.size
    if not width or not height:
        raise InvalidImageError(f"{where} is {width} x {height} pixels: it has no pixels")
    if width * height > limits.max_image_pixels:
        raise InvalidImageError(
            f"{where} is {width} x {height} pixels; at most {limits.max_image_pixels:,} pixels are "
            "allowed: resize it"
        )
    try:
        # An MPO is a JPEG with previews or depth maps after the photo, which is its first frame.
        is_animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception as error:
        raise _damaged_error(where, error) from None
    if is_animated:
        raise InvalidImageError(f"{where} is animated; send one frame as a still image")
    return image


def decode_base64(text: str, max_bytes: int, where: str) -> bytes:
    """Return the file in a data URI or base64, see `decode_image`."""
    if header := _DATA_URI.match(text):
        media_type, *parameters = header[1].lower().split(";")
        if media_type.strip() == "image/svg+xml":
            raise _svg_error(where)
        if "base64" not in (parameter.strip() for parameter in parameters):
            raise InvalidImageError(
                f"{where} is a data URI without base64; write `data:image/png;base64,` and the "
                "file as base64"
            )
        text = text[header.end() :]
    elif scheme := _SCHEME.match(text):
        kind = "a data URI without a comma" if scheme[1].lower() == "data" else "an address"
        raise InvalidImageError(
            f"{where} is {kind} (`{scheme[1]}:`); addresses are never opened: send the image "
            "itself, as `data:image/png;base64,...` or base64"
        )
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    _check_num_bytes(len(text) * 3 // 4, max_bytes, where)
    if unknown := _NOT_BASE64.search(text):
        raise InvalidImageError(
            f"{where} is neither a data URI nor base64, which has no {unknown[0]!r} (character "
            f"{unknown.start()}); paths and addresses are never opened: send the image itself"
        )
    if len(text) % 4 == 1:
        raise InvalidImageError(f"{where} is base64 that is cut off; send the whole text")
    return binascii.a2b_base64(text + "=" * (-len(text) % 4))


def _check_num_bytes(num_bytes: int, max_bytes: int, where: str) -> None:
    if not num_bytes:
        raise InvalidImageError(f"{where} is empty; send an encoded image. {_SUPPORTED}")
    if num_bytes > max_bytes:
        raise InvalidImageError(
            f"{where} has {num_bytes:,} bytes; at most {max_bytes:,} are allowed: resize it, or "
            "compress it more"
        )


def _svg_error(where: str) -> InvalidImageError:
    return InvalidImageError(f"{where} is an SVG, a drawing without pixels; {_SUPPORTED}")


def _damaged_error(where: str, error: Exception) -> InvalidImageError:
    return InvalidImageError(
        f"{where} cannot be decoded ({shorten(summarize_error(error), 120)}); the file is damaged "
        "or cut off: encode it again"
    )
