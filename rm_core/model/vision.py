"""Puts images into a packed row: their features in place of embeddings, and their positions.

transformers' vision tower turns the patches of an image into one feature for each of its tokens;
that of Qwen3-VL also returns features of its earlier layers, which the first layers of the decoder
add to the hidden states of the image's tokens (DeepStack, arXiv 2406.04334).
The tower runs once for an image, however many sequences of a batch have it, and features are kept
between batches. The positions of Qwen's vision-language models have three rows (M-RoPE): a token of
text has the same number in all of them, a token of an image has its place in time, height and
width. Facts: section 3 of the paper on Qwen2-VL (arXiv 2409.12191) and transformers'
`get_rope_index`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rm_core.device_copy import copy_to_device
from rm_core.packing import PrefixTree, TokenIds
from rm_core.types import Encoded, EncodedImage, PlacedImage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_PATCHES = 16_384
"""Patches that go through the tower at a time, so that its memory is bounded; a larger image goes
alone."""


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


def find_images(
    sequence: TokenIds, images: Mapping[int, EncodedImage], start: int = 0
) -> Iterator[PlacedImage]:
    """Yield the images of a sequence in order; the last one may be cut off by its end.

    Args:
        sequence: token ids.
        images: images by `EncodedImage.key`.
        start: index from which on to look, not within an image.

    Raises:
        KeyError: a negative id does not begin an image.
    """
    while start < len(sequence):
        start = next((i for i in range(start, len(sequence)) if sequence[i] < 0), len(sequence))
        if start < len(sequence):
            yield PlacedImage(start, images[sequence[start]])
            start += images[sequence[start]].num_tokens


def build_mrope_positions(
    sequence: TokenIds, images: Mapping[int, EncodedImage], start: int = 0
) -> torch.Tensor:
    """Return int64 `[3, num_tokens]`, positions of the tokens from `start` on in time and space."""
    rows: list[torch.Tensor] = []
    position = index = 0

    def add_text(stop: int) -> None:
        nonlocal position, index
        if stop > start:
            first = position + max(0, start - index)
            rows.append(torch.arange(first, position + stop - index).expand(3, -1))
        position, index = position + stop - index, stop

    for placed in find_images(sequence, images):
        add_text(placed.start)
        _, height, width = placed.image.grid
        height, width = height // placed.image.merge_size, width // placed.image.merge_size
        if placed.stop > start:
            in_image = torch.stack(
                [
                    torch.zeros(height * width, dtype=torch.long),
                    torch.arange(height).repeat_interleave(width),
                    torch.arange(width).repeat(height),
                ]
            )
            rows.append(position + in_image[:, max(0, start - index) : len(sequence) - index])
        position, index = position + max(height, width), min(placed.stop, len(sequence))
    add_text(len(sequence))
    return torch.cat(rows, dim=1)


def build_row_positions(tree: PrefixTree, num_padding_tokens: int = 0) -> torch.Tensor:
    """Return int64 `[3, 1, num_tokens]`, `build_mrope_positions` of the tokens of a row."""
    runs = []
    for segment in tree.row_segments:
        stop = segment.depth + len(segment.token_ids)
        path = tree.sequences[segment.sequence][:stop]
        if min(path) < 0:
            runs.append(build_mrope_positions(path, tree.images, segment.depth))
        else:
            runs.append(torch.arange(segment.depth, stop).expand(3, -1))
    padding = torch.zeros(3, num_padding_tokens, dtype=torch.long)
    return torch.cat([*runs, padding], dim=1).unsqueeze(1)


class VisionTower:
    """The vision tower of a model on its device, and a cache of what it computed.

    Args:
        build_patches: returns the normalized patches of an image on the device, float32
            `[num_patches, patch_values]`.
        is_alone: whether each image goes through the tower alone, so that its features do not
            depend on others to the last bit.

    Attributes:
        max_cache_bytes: maximum memory of the features that are kept; 0 until a size is chosen.
        num_encoded: number of images that went through the tower.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        device: torch.device,
        build_patches: Callable[[EncodedImage], torch.Tensor],
        *,
        is_alone: bool = False,
    ) -> None:
        self.max_cache_bytes = 0
        self.num_encoded = 0
        self._model: Any = model
        self._device = device
        self._build_patches = build_patches
        self._max_patches = 1 if is_alone else MAX_PATCHES
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()  # oldest use first
        self._num_bytes = 0

    @property
    def num_cache_bytes(self) -> int:
        """Memory of the features that are kept, in bytes."""
        return self._num_bytes

    def clear(self) -> None:
        """Forget all features, for example because the weights have changed."""
        self._features.clear()
        self._num_bytes = 0

    def build_inputs(self, tree: PrefixTree, input_ids: torch.Tensor) -> dict[str, Any]:
        """Return the decoder's inputs for a row, with features for the tokens of images.

        Args:
            tree: the batch.
            input_ids: int64 `[1, num_tokens]` on the device of the embedding; negative for images.

        Returns:
            `inputs_embeds` `[1, num_tokens, hidden_size]`. For Qwen3-VL and a row with images also
            `visual_pos_masks`, bool `[1, num_tokens]`, and `deepstack_visual_embeds`, for each of
            the first layers `[num_image_tokens, hidden_size]`, in the order of the row.
        """
        embeddings: torch.Tensor = self._model.get_input_embeddings()(input_ids.clamp(min=0))
        inputs: dict[str, Any] = {"inputs_embeds": embeddings}
        pieces = list(_find_pieces(tree))
        if not pieces:
            return inputs
        features = self._get_features({image.digest: image for image, *_ in pieces})
        further = []
        for image, offset, start, stop in pieces:
            values = features[image.digest][:, offset : offset + stop - start]
            embeddings[0, start:stop] = values[0].to(embeddings.device, embeddings.dtype)
            further.append(values[1:])
        if len(further[0]):
            inputs["visual_pos_masks"] = input_ids < 0
            inputs["deepstack_visual_embeds"] = torch.cat(further, dim=1).unbind()
        return inputs

    def build_plain_inputs(self, encoded: Encoded) -> dict[str, torch.Tensor]:
        """Return transformers' own inputs for the images of one conversation."""
        ids = torch.tensor([encoded.input_ids], device=self._device)
        images = [placed.image for placed in encoded.images]
        return {
            "pixel_values": self.build_pixel_values(images),
            "image_grid_thw": torch.tensor([i.grid for i in images], device=self._device),
            # Without these, transformers computes positions of one row, without a warning.
            "mm_token_type_ids": (ids < 0).int(),
        }

    def _get_features(self, images: Mapping[bytes, EncodedImage]) -> dict[bytes, torch.Tensor]:
        """Return the features of each image by its digest, as `encode` does."""
        features: dict[bytes, torch.Tensor] = {}
        missing = []
        for digest, image in images.items():
            if digest in self._features:
                features[digest] = self._features[digest]
                self._features.move_to_end(digest)
            else:
                missing.append(image)
        for group in _group(missing, self._max_patches):
            for image, values in zip(group, self.encode(group), strict=True):
                features[image.digest] = values
                self._keep(image.digest, values)
        return features

    def encode(self, images: Sequence[EncodedImage]) -> Sequence[torch.Tensor]:
        """Run the tower.

        Returns:
            For each image `[1 + num_deepstack_layers, num_tokens, hidden_size]`.
        """
        grid = torch.tensor([image.grid for image in images])
        output = self._model.get_image_features(
            self.build_pixel_values(images), grid, **self._build_indices(grid)
        )
        self.num_encoded += len(images)
        layers = [output.pooler_output, *getattr(output, "deepstack_features", [])]
        # transformers splits them by image; releases such as 5.17 split only the first.
        layers = [f if isinstance(f, torch.Tensor) else torch.cat(f) for f in layers]
        stacked: Sequence[torch.Tensor] = torch.stack(layers).split(
            [image.num_tokens for image in images], dim=1
        )
        return stacked

    def _build_indices(self, grid: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the tower derives from the grid, so that it never waits for the device.

        On a device, the tower would read the lengths of windows back in each of its layers. The
        boundaries of images and windows therefore stay on the CPU, as the grid does.
        """
        from transformers import vision_utils

        vision = self._model.config.vision_config
        merge_size = vision.spatial_merge_size
        indices = {"position_ids": vision_utils.get_vision_position_ids(grid, merge_size)}
        boundaries = {}
        if hasattr(vision, "window_size"):  # Qwen2.5-VL
            indices["window_index"], boundaries["cu_window_seqlens"] = (
                vision_utils.get_vision_window_index(
                    grid, merge_size, vision.window_size, vision.patch_size
                )
            )
        if hasattr(vision, "num_position_embeddings"):  # Qwen3-VL
            indices["interp_indices"], indices["interp_weights"] = (
                vision_utils.get_vision_interpolation_indices_and_weights(
                    grid,
                    int(vision.num_position_embeddings**0.5),
                    align_corners=True,
                    spatial_merge_size=merge_size,
                )
            )
        return {n: copy_to_device(t, self._device) for n, t in indices.items()} | boundaries

    def build_pixel_values(self, images: Sequence[EncodedImage]) -> torch.Tensor:
        """Return float32 `[num_patches, patch_values]` on the device."""
        return torch.cat([self._build_patches(image) for image in images])

    def _keep(self, digest: bytes, features: torch.Tensor) -> None:
        num_bytes = features.numel() * features.element_size()
        if num_bytes > self.max_cache_bytes:
            return
        # Not a view, which would keep the features of all images of its group.
        self._features[digest] = features.clone()
        self._num_bytes += num_bytes
        while self._num_bytes > self.max_cache_bytes:
            _, oldest = self._features.popitem(last=False)
            self._num_bytes -= oldest.numel() * oldest.element_size()


def _find_pieces(tree: PrefixTree) -> Iterator[tuple[EncodedImage, int, int, int]]:
    """Yield the images in a row: the image, its first token there, and start and stop in the row.

    An image is in the row without its first tokens if these are in the prefix cache.
    """
    for segment in tree.row_segments:
        if min(segment.token_ids) >= 0:
            continue
        row_start = segment.start - tree.num_cached_tokens
        stop = segment.depth + len(segment.token_ids)
        for placed in find_images(tree.sequences[segment.sequence][:stop], tree.images):
            first, last = max(placed.start, segment.depth), min(placed.stop, stop)
            if first < last:
                shift = row_start - segment.depth
                yield placed.image, first - placed.start, first + shift, last + shift


def _group(images: Sequence[EncodedImage], max_patches: int) -> Iterator[list[EncodedImage]]:
    """Yield groups of images of at most `max_patches` patches together, or of one image."""
    group: list[EncodedImage] = []
    num_patches = 0
    for image in images:
        _, height, width = image.grid
        if group and num_patches + height * width > max_patches:
            yield group
            group, num_patches = [], 0
        group.append(image)
        num_patches += height * width
    if group:
        yield group
