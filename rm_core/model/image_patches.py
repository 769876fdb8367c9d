"""Normalized patches of images, the input of the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rm_core.device_copy import copy_to_device
from rm_core.types import EncodedImage


def build_patches(
    image: EncodedImage,
    *,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    rescale_factor: float,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Return an image's patches in the order of transformers' `Qwen2VLImageProcessor`.

    The patches of a token follow each other; tokens go from left to right, then down. They are
    float32 [num_patches, 3 * temporal_patch_size * patch_size * patch_size], computed on the
    device, which gets the pixels: an eighth of their bytes. The numbers are those of the processor.
    """
    device = torch.device(device)
    # A copy, since a tensor over `bytes` could write to them.
    pixels = copy_to_device(torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8), device)
    patch, merge, frames = image.patch_size, image.merge_size, image.temporal_patch_size
    _, rows, columns = image.grid
    mean, std = (copy_to_device(torch.tensor(v), device) for v in (image_mean, image_std))
    values = (pixels.view(image.height, image.width, 3) * rescale_factor - mean) / std
    # -> token row, token column, row and column in the token, channel, row and column in the patch
    patches = values.view(rows // merge, merge, patch, columns // merge, merge, patch, 3).permute(
        0, 3, 1, 4, 6, 2, 5
    )
    repeated = patches.unsqueeze(5).expand(*patches.shape[:5], frames, patch, patch)
    return repeated.reshape(rows * columns, 3 * frames * patch * patch)
