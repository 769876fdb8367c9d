"""Images that rows name by paths: read from the folder of the input, and from nowhere else."""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from pathlib import Path

from rm_core import InvalidImageError
from rm_core.text import quote
from serve.client.images import find_media_type
from serve.jobs.atomic_io import read_regular_file
from serve.jobs.inputs.folders import find_roots

_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=_\s-]")
_HEAD_CHARACTERS = 64
_HINT = 'give a file in {} or below, by its path from there, or "data:image/png;base64,..."'


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Files of images that the rows of one file may name.

    Attributes:
        input_file: path of the rows' file; None for rows that are not in a file on this machine.
        max_bytes: maximum size of an image's file.
    """

    input_file: Path | None
    max_bytes: int

    def read(self, path: str) -> bytes:
        """Return the content of a file, by its path from the folder of the rows' file.

        Raises:
            InvalidImageError: the file is not in that folder, is missing or too large, or is not a
                regular file.
        """
        if "://" in path:
            raise InvalidImageError(
                f"the image {quote(path)} is at an address, and no address is fetched; give a path "
                "below the folder of the input, or the image itself"
            )
        if self.input_file is None:
            raise InvalidImageError(
                f"the image {quote(path)} is a path, and the rows are not in a file on this "
                "machine, whose folder is the only one that is read; copy the input and its images "
                "to a disk, or give images themselves"
            )
        folder = self.input_file.parent
        try:
            # Not `Path.resolve`, which raises at a loop of links.
            target = Path(os.path.realpath(folder / path))
            is_inside = any(target.is_relative_to(root) for root in find_roots(folder))
            image = read_regular_file(target, self.max_bytes) if is_inside else b""
            reason = "is empty" if is_inside else "is outside of the folder of the input"
        except (OSError, ValueError) as error:
            image = b""
            reason = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        if not image:
            raise InvalidImageError(f"the image {quote(path)} {reason}; {_HINT.format(folder)}")
        return image


def is_encoded_image(text: str) -> bool:
    """Return whether a text is an image itself, as a data URI or base64, and not a path."""
    if text[:5].lower() == "data:":
        return True
    head = "".join(text[:_HEAD_CHARACTERS].split())
    head = head[: len(head) // 4 * 4].replace("-", "+").replace("_", "/")
    try:
        is_image = find_media_type(base64.b64decode(head)) is not None
    except (binascii.Error, ValueError):
        return False
    return is_image and _NOT_BASE64.search(text) is None
