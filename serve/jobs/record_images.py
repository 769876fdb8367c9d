"""Images of a record: those in content parts, and those in a separate column.

Paths are read, but no image is decoded. `serve.jobs.record_reader` first loads the parts of each
value, then puts the images of the column into their places in each conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_core import InvalidConversationError, InvalidImageError
from rm_core.inputs.conversations import Messages, get_text
from rm_core.text import describe_type, format_keys
from serve.client.image_places import (
    MARKER,
    SOURCE_KEYS,
    fill_places,
    has_images,
    is_image,
    is_place,
)
from serve.jobs.columns import IMAGE_COLUMNS
from serve.jobs.inputs.image_files import ImageFiles, is_encoded_image

# A place until `fill`: what `rm_core` takes for an image, and no image.
_PLACE: Mapping[str, Any] = {"type": "image", "image": b""}


class RecordImages:
    """Reads the images of one record.

    Args:
        record: columns of the record that may be read.
        files: files that the record may name; None for a model that reads only text.

    Attributes:
        num_bytes: size of the files that were read.

    Raises:
        InvalidImageError: the record has two columns of images, or an image cannot be read.
    """

    def __init__(self, record: Mapping[str, Any], files: ImageFiles | None) -> None:
        self.num_bytes = 0
        self._files = files
        self._read_files: dict[str, bytes] = {}
        self._images: list[Any] = []
        names = [name for name in IMAGE_COLUMNS if name in record] if files else []
        if len(names) > 1:
            raise InvalidImageError(
                f"the record has {format_keys(names)}, which is ambiguous; ignore one of them "
                "with --ignore-column"
            )
        for name in names:
            value = record[name]
            images = value if isinstance(value, list | tuple) else [value]
            self._images = [self._load(image, f"image of `{name}`") for image in images]

    def load(self, messages: Any) -> Any:
        """Return unvalidated messages with the sources of their images loaded, or places.

        Values of another shape are returned unchanged.

        Raises:
            InvalidImageError: an image cannot be read.
            InvalidConversationError: there is an image, and the model reads only text.
        """
        if not isinstance(messages, list):
            return messages
        return [
            {**message, "content": [self._load_part(part) for part in content]}
            if isinstance(message, Mapping)
            and isinstance(content := message.get("content"), list | tuple)
            and any(map(is_image, content))
            else message
            for message in messages
        ]

    def fill(self, conversation: Messages) -> Messages:
        """Return a conversation with the images of the column in the places of its prompt.

        Raises:
            InvalidConversationError: the numbers of places and images differ, or the answer has a
                place.
        """
        *prompt, answer = conversation
        if not isinstance(answer["content"], str) and any(map(is_place, answer["content"])):
            raise InvalidConversationError(
                "the answer has a place for an image; give images in the prompt"
            )
        try:
            return [*fill_places(prompt, self._images), answer]
        except InvalidConversationError as error:
            if not self._images:
                raise
            raise InvalidConversationError(
                f"{error.detail} (--ignore-column ignores the column)"
            ) from error

    def misses_images(self, prompt: Messages) -> bool:
        """Return whether a prompt has the text `<image>`, and neither it nor the row an image."""
        has_mark = any(MARKER in get_text(message["content"]) for message in prompt)
        return has_mark and self._files is not None and not has_images(prompt)

    def _load_part(self, part: Any) -> Any:
        if not is_image(part):
            return part
        if self._files is None:
            raise InvalidConversationError(
                "a message has an image, and this model reads only text; remove the image, or use "
                "a vision-language reward model"
            )
        source = next((part[key] for key in SOURCE_KEYS if part.get(key) is not None), None)
        if source in (None, b"") or (isinstance(source, Mapping) and not any(source.values())):
            return _PLACE
        return {"type": "image", "image": self._load(source, "image")}

    def _load(self, source: Any, name: str) -> bytes | str:
        """Return the bytes of an image's file, or a data URI or base64 as it is."""
        if isinstance(source, Mapping):  # of the feature `Image` of datasets, and of OpenAI
            if isinstance(path := source.get("path"), str) and source.get("bytes") is None:
                return self._read(path)
            source = source.get("url") if source.get("bytes") is None else source["bytes"]
        if isinstance(source, str):
            return source if is_encoded_image(source) else self._read(source)
        if isinstance(source, bytes) and source:
            return source
        raise InvalidImageError(
            f"an {name} is {describe_type(source) if source != b'' else 'empty'}; give a path, a "
            "data URI, base64, or an object with `bytes` or `path`"
        )

    def _read(self, path: str) -> bytes:
        assert self._files
        if path not in self._read_files:
            self._read_files[path] = self._files.read(path)
            self.num_bytes += len(self._read_files[path])
        return self._read_files[path]
