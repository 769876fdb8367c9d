"""Puts images into token ids: each placeholder of the chat template becomes the image's ids.

A chat template writes one placeholder for an image, and the model reads a token for each square of
patches. Their ids are derived from the pixels (`EncodedImage.token_ids`), so that equal token ids
mean equal images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rm_core.errors import ConversationTooLongError, InvalidConversationError, TemplateError
from rm_core.inputs.conversations import Chat, get_images, get_text, map_images
from rm_core.inputs.image_processor import ImageProcessor
from rm_core.types import PlacedImage


@dataclass(frozen=True, slots=True)
class ImageMarkers:
    """Tokens of the vocabulary that mean images and videos."""

    placeholder: str  # text of the token that the template writes for an image
    placeholder_id: int  # its id
    start_id: int | None  # id of the token before an image; None for none
    texts: tuple[str, ...]  # texts of all of these tokens, which no message may contain


class ImageTokens:
    """Images of the conversations of one checkpoint."""

    def __init__(self, processor: ImageProcessor, markers: ImageMarkers, max_images: int) -> None:
        self.processor = processor
        self.max_images = max_images
        self._markers = markers

    def read(self, chat: Chat, limit: int | None) -> Chat:
        """Return the conversation with an `EncodedImage` in place of each source.

        `limit` is the maximum number of tokens of all images, checked before an image is decoded.
        """
        for index, message in enumerate(chat.messages):
            self._refuse_markers(get_text(message["content"]), index)
        images = get_images(chat.messages)
        if not images:
            return chat
        if len(images) > self.max_images:
            raise InvalidConversationError(
                f"the conversation has {len(images)} images and the limit is {self.max_images}; "
                "remove some, or raise the setting `max_images`"
            )
        encoded = []
        for source, where in images:
            encoded.append(self.processor.process(source, where, max_tokens=limit))
            if limit is not None:
                limit -= encoded[-1].num_tokens
        read = iter(encoded)
        return replace(
            chat, messages=map_images(chat.messages, lambda part: {**part, "image": next(read)})
        )

    def hide(self, chat: Chat) -> Chat:
        """Return the conversation as chat templates get it: parts of type `image` alone."""
        if not get_images(chat.messages):
            return chat
        return replace(chat, messages=map_images(chat.messages, lambda part: {"type": "image"}))

    def count_hidden(self, chat: Chat) -> int:
        """Count the tokens of the images that a placeholder does not show."""
        return sum(image.num_tokens - 1 for image, _ in get_images(chat.messages))

    def expand(self, input_ids: Sequence[int], chat: Chat) -> tuple[list[int], list[PlacedImage]]:
        """Replace every placeholder by the ids of its image; return ids, and the images among them.

        `chat` is the conversation after `read`. If the ids end early, later images are missing.
        """
        images = [image for image, _ in get_images(chat.messages)]
        placeholder = self._markers.placeholder_id
        expanded: list[int] = []
        placed: list[PlacedImage] = []
        for token in input_ids:
            if token != placeholder:
                expanded.append(token)
            elif len(placed) < len(images):
                placed.append(PlacedImage(len(expanded), images[len(placed)]))
                expanded += placed[-1].image.token_ids
            else:
                raise TemplateError(
                    f"the chat template wrote more than {len(images)} placeholders of images for "
                    f"{len(images)} images; is one in a key other than `content`? Otherwise give "
                    "another template with --chat-template (setting `chat_template`)"
                )
        return expanded, placed

    def check_all_placed(self, placed: Sequence[PlacedImage], chat: Chat) -> None:
        """Refuse a template that does not write one placeholder for each image."""
        number = len(get_images(chat.messages))
        if len(placed) < number:
            raise TemplateError(
                f"the chat template wrote {len(placed)} placeholders of images for {number} "
                "images, such as an image in a turn of a role that cannot have one; move the image "
                "to a message of the user"
            )

    def find_cut(self, input_ids: Sequence[int], placed: Sequence[PlacedImage], limit: int) -> int:
        """Return where to cut a conversation to at most `limit` tokens without cutting an image."""
        for image in placed:
            if image.start <= limit < image.stop:
                has_marker = image.start and input_ids[image.start - 1] == self._markers.start_id
                limit = image.start - bool(has_marker)
        if limit:
            return limit
        raise ConversationTooLongError(
            f"the conversation begins with an image of {placed[0].image.num_tokens} tokens, which "
            "exceeds the limit and is never cut; send a smaller image"
        )

    def collapse(self, input_ids: Sequence[int], placed: Sequence[PlacedImage]) -> list[int]:
        """Return the ids with one placeholder for each image."""
        collapsed: list[int] = []
        start = 0
        for image in placed:
            collapsed += [*input_ids[start : image.start], self._markers.placeholder_id]
            start = image.stop
        return [*collapsed, *input_ids[start:]]

    def refuse_in_prerendered(self, text: str | None, input_ids: Sequence[int]) -> None:
        """Refuse a rendered conversation with images, whose pixels cannot be given."""
        if text is not None:
            self._refuse_markers(text, None)
        elif self._markers.placeholder_id in input_ids:
            raise InvalidConversationError(
                f"the token ids have {self._markers.placeholder}, the place of an image; send "
                "conversations with images as messages"
            )

    def _refuse_markers(self, text: str, index: int | None) -> None:
        found = next((marker for marker in self._markers.texts if marker in text), None)
        if found is not None:
            where = "the text" if index is None else f"message {index}"
            raise InvalidConversationError(
                f"{where} contains {found}, which this model reads as a part of an image or a "
                "video; remove it, and send images as content parts of messages"
            )
