"""Images in encoded conversations: placeholders, limits, truncation, refusals."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SPECS, build_checkpoint
from vision import build_vision_model

from rm_core import ModelConfig, load_encoder
from rm_core.errors import ConversationTooLongError, InvalidConversationError, ModelLoadError
from rm_core.inputs.encoder import ChatEncoder, to_render_json
from rm_core.inputs.sample_image import write_png
from rm_core.types import Encoded, PrerenderedText, PrerenderedTokens, Truncation

IMAGE = {"type": "image", "image": write_png(112, 56)}  # 4 x 2 tokens
OTHER = {"type": "image", "image": write_png(56, 56)}
QUESTION = {"type": "text", "text": "What is it?"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_vision_model(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> ChatEncoder:
    loaded = load_encoder(ModelConfig(str(folder)))
    assert isinstance(loaded, ChatEncoder)
    return loaded


def ask(answer: str, *parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": answer}]


def encode(
    encoder: ChatEncoder,
    messages: list[dict[str, Any]],
    truncation: Truncation = "error",
    limit: int | None = None,
) -> Encoded:
    return encoder.encode(messages, truncation, limit)


def test_render_shows_where_images_are(encoder: ChatEncoder) -> None:
    encoded = encode(encoder, ask("A cat.", IMAGE, QUESTION, OTHER))
    rendered = to_render_json(encoded)
    first, second = rendered["images"]
    assert (first["num_tokens"], first["width"], first["height"]) == (8, 112, 56)
    assert (second["num_tokens"], second["width"], second["height"]) == (4, 56, 56)
    placeholder = encoder.find_token("<|image_pad|>")
    ids = rendered["input_ids"]
    for shown in (first, second):
        start, stop = shown["position"], shown["position"] + shown["num_tokens"]
        assert ids[start:stop] == [placeholder] * shown["num_tokens"]
        assert ids[start - 1] == encoder.find_token("<|vision_start|>")
        assert ids[stop] == encoder.find_token("<|vision_end|>")
    assert rendered["num_tokens"] == len(ids) == encoded.num_tokens
    assert ids.count(placeholder) == 12
    assert rendered["text"].count("<|image_pad|>") == 2
    assert min(ids) >= 0


def test_offsets_of_an_image_are_those_of_its_placeholder(encoder: ChatEncoder) -> None:
    encoded = encode(encoder, ask("A cat.", QUESTION, IMAGE))
    offsets = encoder.compute_offsets(encoded)
    assert offsets is not None
    assert len(offsets) == encoded.num_tokens
    (placed,) = encoded.images
    (range_,) = set(offsets[placed.start : placed.stop])
    assert encoded.text[slice(*range_)] == "<|image_pad|>"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": {"bytes": IMAGE["image"], "path": "a.png"}},
        {"type": "image", "image": base64.b64encode(IMAGE["image"]).decode()},  # type: ignore[arg-type]
        {"type": "image_url", "image_url": {"url": "DATA"}},
        {"type": "image_url", "image_url": "DATA"},
        {"type": "input_image", "image_url": "DATA"},
    ],
)
def test_every_form_of_an_image_has_the_same_tokens(
    part: dict[str, Any], encoder: ChatEncoder
) -> None:
    uri = "data:image/png;base64," + base64.b64encode(IMAGE["image"]).decode()  # type: ignore[arg-type]
    if "image_url" in part:
        url = {"url": uri} if isinstance(part["image_url"], dict) else uri
        part = {**part, "image_url": url}
    assert encode(encoder, ask("A.", part)) == encode(encoder, ask("A.", IMAGE))


def test_parts_of_text_are_joined_between_images(encoder: ChatEncoder) -> None:
    parts = [{"type": "text", "text": "What "}, "is it?"]
    assert encode(encoder, ask("A.", IMAGE, *parts)) == encode(encoder, ask("A.", IMAGE, QUESTION))


def test_error_counts_the_tokens_of_images(encoder: ChatEncoder) -> None:
    messages = ask("A.", IMAGE, QUESTION)
    number = encode(encoder, messages).num_tokens
    assert encode(encoder, messages, limit=number).num_tokens == number
    with pytest.raises(ConversationTooLongError, match=f"has {number} tokens"):
        encode(encoder, messages, limit=number - 1)


def test_image_over_the_limit_is_refused(encoder: ChatEncoder) -> None:
    large = {"type": "image", "image": write_png(400, 400)}
    with pytest.raises(ConversationTooLongError):
        encode(encoder, ask("A.", large), limit=30)


def test_right_truncation_never_cuts_an_image(encoder: ChatEncoder) -> None:
    messages = ask("A cat, no doubt.", QUESTION, IMAGE, QUESTION, OTHER)
    whole = encode(encoder, messages)
    for limit in range(1, whole.num_tokens):
        cut = encode(encoder, messages, "right", limit)
        assert cut.truncated
        assert cut.num_tokens <= limit
        assert cut.input_ids == whole.input_ids[: cut.num_tokens]
        assert all(placed.stop <= cut.num_tokens for placed in cut.images)
        assert sum(token < 0 for token in cut.input_ids) == sum(
            placed.image.num_tokens for placed in cut.images
        )
        assert cut.vocabulary_ids[-1] != encoder.find_token("<|vision_start|>")
        assert cut.text.count("<|image_pad|>") == len(cut.images)


def test_left_truncation_drops_whole_turns_with_their_images(encoder: ChatEncoder) -> None:
    system = {"role": "system", "content": "Be brief."}
    turns = [
        *ask("One.", IMAGE, QUESTION),
        *ask("Two.", {"type": "text", "text": "words " * 20}),
        *ask("Three.", OTHER, QUESTION),
    ]
    messages = [system, *turns]
    whole = encode(encoder, messages)
    last_turn = encode(encoder, [system, turns[-1]]).num_tokens
    with pytest.raises(ConversationTooLongError, match="never cuts the last turn"):
        encode(encoder, messages, "left", 5)
    seen = set()
    for limit in range(last_turn, whole.num_tokens):
        cut = encode(encoder, messages, "left", limit)
        assert cut.num_tokens <= limit
        assert cut.text.count("<|vision_start|>") == len(cut.images)
        assert sum(token < 0 for token in cut.input_ids) == sum(
            placed.image.num_tokens for placed in cut.images
        )
        if len(cut.images) == 1:  # its question is gone as well
            assert cut.text.count("What is it?") == 1
        seen.add(len(cut.images))
    assert seen == {0, 1}


@pytest.mark.parametrize("marker", ["<|image_pad|>", "<|video_pad|>"])
@pytest.mark.parametrize("with_image", [True, False])
def test_markers_of_images_in_texts_are_refused(
    marker: str, with_image: bool, encoder: ChatEncoder
) -> None:
    words = {"type": "text", "text": f"Look: {marker}"}
    with pytest.raises(InvalidConversationError, match="message 0 contains"):
        encode(encoder, ask("A.", *([IMAGE] if with_image else []), words))
    with pytest.raises(InvalidConversationError, match="message 1 contains"):
        encode(encoder, ask(f"A {marker}", *([IMAGE] if with_image else []), QUESTION))


def test_rendered_conversations_cannot_have_images(encoder: ChatEncoder) -> None:
    encoded = encode(encoder, ask("A.", IMAGE))
    with pytest.raises(InvalidConversationError, match="send images as content parts"):
        encoder.encode(PrerenderedText(encoded.text))
    with pytest.raises(InvalidConversationError, match="as messages"):
        encoder.encode(PrerenderedTokens(tuple(encoded.vocabulary_ids)))
    with pytest.raises(InvalidConversationError, match="token id"):
        encoder.encode(PrerenderedTokens(encoded.input_ids))


def test_number_of_images_is_limited(folder: Path, encoder: ChatEncoder) -> None:
    strict = load_encoder(ModelConfig(str(folder), max_images=2))
    assert len(strict.encode(ask("A.", IMAGE, OTHER)).images) == 2
    with pytest.raises(InvalidConversationError, match="has 3 images and the limit is 2"):
        strict.encode(ask("A.", IMAGE, OTHER, IMAGE))
    assert len(encode(encoder, ask("A.", IMAGE, OTHER, IMAGE)).images) == 3


def test_errors_name_the_part(encoder: ChatEncoder) -> None:
    bad = {"type": "image", "image": "AAAA"}
    with pytest.raises(InvalidConversationError, match="part 1 of message 0"):
        encode(encoder, ask("A.", QUESTION, bad))


def test_bad_image_spoils_no_other_conversation(encoder: ChatEncoder) -> None:
    bad = {"type": "image", "image": b"not an image"}
    first, second, third = encoder.encode_all([ask("A.", IMAGE), ask("A.", bad), ask("B.", IMAGE)])
    assert isinstance(first, Encoded)
    assert not isinstance(second, Encoded)
    assert second.code == "invalid_image"
    assert isinstance(third, Encoded)


def test_template_that_drops_images_is_refused(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "no_images.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.content is string %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    config = ModelConfig(str(folder), chat_template=str(template))
    with pytest.raises(InvalidConversationError, match="0 placeholders of images for 1"):
        load_encoder(config).encode(ask("A.", IMAGE))


def test_text_models_refuse_images(tmp_path: Path) -> None:
    encoder = load_encoder(ModelConfig(str(build_checkpoint(tmp_path, SPECS["qwen3"]))))
    with pytest.raises(InvalidConversationError, match="part 0 of message 0 is an image"):
        encoder.encode(ask("A.", IMAGE))


@pytest.mark.parametrize(
    "change",
    [{"min_pixels": 0}, {"max_pixels": -1}, {"max_images": -1}, {"max_image_bytes": 0}],
)
def test_limits_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ModelLoadError, match=next(iter(change))):
        ModelConfig("demo", **change)


def test_min_pixels_above_max_pixels_is_refused() -> None:
    config = ModelConfig("demo", min_pixels=3_136)
    with pytest.raises(ModelLoadError, match="lower the first or raise the second"):
        replace(config, max_pixels=784)
