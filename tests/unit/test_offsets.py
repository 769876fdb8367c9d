"""Offsets of tokens in the scored text, for every tokenizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checkpoints import SPECS
from fakes import FakeBackend, conversation, serving

from rm_core import ChatEncoder

EncoderOf = Callable[[str], ChatEncoder]

EMOJI = [
    {"role": "user", "content": "  Say it with an emoji: é 😀 首都 \n"},
    {"role": "assistant", "content": "👩‍👩‍👧 — fine.\n\n7"},
]


@pytest.mark.parametrize("name", SPECS)
def test_offsets_are_ordered_and_cover_the_text(name: str, encoder_of: EncoderOf) -> None:
    encoder = encoder_of(name)
    encoded = encoder.encode(EMOJI)
    offsets = encoder.compute_offsets(encoded)
    assert offsets is not None
    assert len(offsets) == encoded.num_tokens
    ranges = [(start, end) for start, end in offsets if end > start]
    assert [start for start, _ in ranges] == sorted(start for start, _ in ranges)
    covered = {position for start, end in ranges for position in range(start, end)}
    missed = [
        encoded.text[position] for position in range(len(encoded.text)) if position not in covered
    ]
    assert "".join(missed).strip() == ""  # white space may belong to no token
    start, end = offsets[encoded.readout]
    assert 0 <= start < end <= len(encoded.text)
    if SPECS[name].tokenizer_bos:  # BOS is not in the text
        assert offsets[0] == (0, 0)


def test_truncated_text_with_other_tokens_has_no_offsets(encoder_of: EncoderOf) -> None:
    encoder = encoder_of("qwen3")
    whole = encoder.encode(EMOJI)
    has_offsets = []
    for length in range(2, whole.num_tokens):
        encoder.max_length, before = length, encoder.max_length
        try:
            cut = encoder.encode(EMOJI, "right")
        finally:
            encoder.max_length = before
        offsets = encoder.compute_offsets(cut)
        has_offsets.append(offsets is not None)
        if offsets is not None:
            assert len(offsets) == cut.num_tokens == length
            assert offsets[-1][1] <= len(cut.text)
    assert True in has_offsets
    assert False in has_offsets  # cut in the middle of a character


def test_render_returns_offsets_on_request() -> None:
    with serving(FakeBackend()) as client:
        body = {"conversations": [conversation("4"), "nonsense"]}
        plain, _ = client.post("/v1/render", json=body).json()["results"]
        assert "offsets" not in plain
        answer = client.post("/v1/render", json={**body, "offsets": True})
        shown, wrong = answer.json()["results"]
        assert shown.pop("offsets") == [
            list(pair) for pair in offsets_of(client, shown["text"], shown["num_tokens"])
        ]
        assert shown == plain
        assert set(wrong) == {"index", "error"}


def offsets_of(client: object, text: str, number: int) -> list[tuple[int, int]]:
    encoder = client.app.state.service.models["demo"].encoder  # type: ignore[attr-defined]
    encoded = encoder.encode(conversation("4"))
    assert (encoded.text, encoded.num_tokens) == (text, number)
    return list(encoder.compute_offsets(encoded))
