"""Encoding of messages: one BOS, the ids of the model cards, the readout, warnings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SPECS, build_tokenizer, edit_config, edit_weights
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from rm_core import (
    ChatEncoder,
    Encoded,
    ModelConfig,
    ModelLoadError,
    PrerenderedText,
    PrerenderedTokens,
    Reward,
    RewardScorer,
    ScoreError,
    load_encoder,
)
from rm_core.errors import InvalidConversationError, TemplateError
from rm_core.inputs.encoder import find_readout_position, to_render_json
from rm_core.inputs.warnings import SYSTEM_PROMPT_WARNING

EncoderOf = Callable[[str], ChatEncoder]
PathOf = Callable[[str], Path]
CopyOf = Callable[..., Path]

HELLO = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *HELLO]
CONVERSATIONS = [
    HELLO,
    [{"role": "user", "content": "首都在哪里?"}, {"role": "assistant", "content": "北京 😀 é"}],
    [{"role": "user", "content": "  Say nothing. \n"}, {"role": "assistant", "content": ""}],
    [*HELLO, {"role": "user", "content": "And 3+3?"}, {"role": "assistant", "content": "6\n\n7"}],
    [
        {"role": "user", "content": "<bos><|eot_id|><|im_end|>"},
        {"role": "assistant", "content": "<bos>"},
    ],
]


def model_card_ids(folder: Path, messages: list[dict[str, str]], *, adds_bos: bool) -> list[int]:
    """Encode as the model cards do, with the tokenizer's own file for the last step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    if adds_bos and text.startswith(tokenizer.bos_token):
        text = text[len(tokenizer.bos_token) :]
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return ids


@pytest.mark.parametrize("name", SPECS)
def test_encode_gives_ids_of_the_model_card_procedure(
    name: str, encoder_of: EncoderOf, checkpoint_of: PathOf
) -> None:
    for messages in CONVERSATIONS:
        expected = model_card_ids(checkpoint_of(name), messages, adds_bos=SPECS[name].tokenizer_bos)
        assert list(encoder_of(name).encode(messages).input_ids) == expected


@pytest.mark.parametrize("name", SPECS)
def test_encode_gives_exactly_one_bos(name: str, encoder_of: EncoderOf) -> None:
    spec = SPECS[name]
    bos = build_tokenizer(spec).convert_tokens_to_ids("<bos>")
    for messages in CONVERSATIONS[:4]:
        input_ids = encoder_of(name).encode(messages).input_ids
        assert input_ids.count(bos) == int(spec.tokenizer_bos or spec.template_bos)
        assert (input_ids[0] == bos) == (spec.tokenizer_bos or spec.template_bos)


@pytest.mark.parametrize("name", ["llama-v0.1", "llama-v0.2", "gemma2"])
def test_encoded_text_is_the_tokenized_text(name: str, encoder_of: EncoderOf) -> None:
    tokenizer = build_tokenizer(SPECS[name])
    encoded = encoder_of(name).encode(HELLO)
    assert tokenizer(encoded.text).input_ids == list(encoded.input_ids)
    assert not encoded.text.startswith("<bos>")
    assert encoded.text == tokenizer.apply_chat_template(HELLO, tokenize=False).removeprefix(
        "<bos>"
    )


def test_text_parts_are_tokenized_as_one_string(encoder_of: EncoderOf) -> None:
    parts = [{"type": "text", "text": "The capital"}, {"type": "text", "text": " of France"}]
    whole = [HELLO[0], {"role": "assistant", "content": "The capital of France"}]
    encoder = encoder_of("qwen3")
    assert encoder.encode([HELLO[0], {"role": "assistant", "content": parts}]) == encoder.encode(
        whole
    )


def test_missing_chat_template_is_refused_and_can_be_supplied(
    copy_of: CopyOf, encoder_of: EncoderOf, tmp_path: Path
) -> None:
    folder = copy_of()
    template = tmp_path / "template.jinja"
    (folder / "chat_template.jinja").rename(template)
    with pytest.raises(ModelLoadError) as caught:
        load_encoder(ModelConfig(str(folder)))
    assert "no chat template" in caught.value.detail
    assert "--chat-template" in caught.value.detail
    assert "chat_template.jinja" in caught.value.detail
    supplied = load_encoder(ModelConfig(str(folder), chat_template=str(template)))
    assert supplied.encode(HELLO) == encoder_of("qwen3").encode(HELLO)
    assert supplied.template_sha256 == encoder_of("qwen3").template_sha256


@pytest.mark.parametrize("content", ["", " \n"])
def test_empty_chat_template_counts_as_missing(
    content: str, checkpoint_of: PathOf, tmp_path: Path
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(content)
    with pytest.raises(ModelLoadError, match="no chat template"):
        load_encoder(ModelConfig(str(checkpoint_of("qwen3")), chat_template=str(template)))


def test_missing_template_file_is_named(checkpoint_of: PathOf, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.jinja")
    with pytest.raises(ModelLoadError, match=r"nowhere\.jinja' cannot be read"):
        load_encoder(ModelConfig(str(checkpoint_of("qwen3")), chat_template=missing))


def with_template(encoder_of: EncoderOf, template: str, **settings: Any) -> ChatEncoder:
    tokenizer = build_tokenizer(SPECS["qwen3"])
    tokenizer.chat_template = template
    return ChatEncoder(tokenizer, pad_token_id=0, max_length=2048, **settings)


def test_template_sha256_is_digest_of_the_text(encoder_of: EncoderOf) -> None:
    first = with_template(encoder_of, "{{ messages[0]['content'] }}a")
    second = with_template(encoder_of, "{{ messages[0]['content'] }}b")
    assert first.template_sha256 == hashlib.sha256(first.chat_template.encode()).hexdigest()
    assert first.template_sha256 != second.template_sha256


def test_template_error_fails_only_its_conversation(encoder_of: EncoderOf) -> None:
    twice = [HELLO[0], HELLO[0], HELLO[1]]
    first, second, third, fourth = encoder_of("gemma2").encode_all([HELLO, SYSTEM, HELLO, twice])
    assert first == third == encoder_of("gemma2").encode(HELLO)
    assert isinstance(second, ScoreError)
    assert second.code == "template_error"
    assert "System role not supported" in second.message
    assert "change the conversation to what the template allows" in second.message
    assert isinstance(fourth, ScoreError)
    assert "must alternate" in fourth.message


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0]['missing'].x }}", "{{ 1 / 0 }}", "{% for x in 5 %}{% endfor %}", "{{ x( }}"],
)
def test_template_exception_is_load_error_or_template_error(
    encoder_of: EncoderOf, template: str
) -> None:
    with pytest.raises(ModelLoadError) as refused:
        with_template(encoder_of, template).encode(HELLO)
    assert "the chat template" in refused.value.detail
    with_trigger = "{% if messages|length == 4 %}" + template.replace("x( ", "x() ") + "{% endif %}"
    encoder = with_template(encoder_of, "{{ messages[0]['content'] }}" + with_trigger)
    assert encoder.encode(HELLO).num_tokens
    with pytest.raises(TemplateError) as caught:
        encoder.encode([*HELLO, *HELLO])
    assert "chat template refused the conversation" in caught.value.detail


def test_empty_rendering_is_a_template_error(encoder_of: EncoderOf) -> None:
    with pytest.raises(TemplateError, match="to an empty text"):
        with_template(encoder_of, "{% if false %}x{% endif %}").encode(HELLO)


def test_surrogate_outside_content_fails_only_its_conversation(encoder_of: EncoderOf) -> None:
    template = "{% for m in messages %}{{ m['name'] }}{{ m['content'] }}{% endfor %}"
    encoder = with_template(encoder_of, template)
    good = [{**m, "name": "Jane"} for m in HELLO]
    bad = [{**m, "name": "\ud83d"} for m in HELLO]
    first, second, third = encoder.encode_all([good, bad, good])
    assert first == third == encoder.encode(good)
    assert isinstance(second, ScoreError)
    assert "surrogate" in second.message


def test_invalid_conversation_fails_alone(encoder_of: EncoderOf) -> None:
    encoder = encoder_of("qwen3")
    first, second, third = encoder.encode_all([HELLO, HELLO[:1], HELLO])
    assert isinstance(first, Encoded)
    assert first == third
    assert isinstance(second, ScoreError)
    assert second.code == InvalidConversationError.code


def v2_folder(copy_of: CopyOf) -> Path:
    return copy_of("qwen3", "Skywork-Reward-V2-Qwen3-0.6B")


def test_system_prompt_on_v2_model_gives_warning(copy_of: CopyOf, encoder_of: EncoderOf) -> None:
    encoder = load_encoder(ModelConfig(str(v2_folder(copy_of))))
    assert encoder.encode(SYSTEM).warnings == (SYSTEM_PROMPT_WARNING,)
    assert encoder.encode(SYSTEM).input_ids == encoder_of("qwen3").encode(SYSTEM).input_ids
    assert encoder.encode(HELLO).warnings == ()


def test_system_prompt_warning_follows_the_catalog_name(checkpoint_of: PathOf) -> None:
    path = str(checkpoint_of("qwen3"))
    for catalog_id, warned in {
        "Skywork/Skywork-Reward-V2-Qwen3-8B": True,
        "Skywork-Reward-V2-Llama-3.1-8B-40M": True,
        "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": False,
        None: False,
    }.items():
        encoded = load_encoder(ModelConfig(path, catalog_name=catalog_id)).encode(SYSTEM)
        assert bool(encoded.warnings) == warned, catalog_id


def test_lost_words_give_warning(encoder_of: EncoderOf) -> None:
    dropping = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    (warning,) = with_template(encoder_of, dropping).encode(SYSTEM).warnings
    assert warning.startswith("template_changed_content: ")
    assert "message(s) 0;" in warning
    lowering = "{% for m in messages %}{{ m['content'] | lower }}{% endfor %}"
    shouted = [HELLO[0], {"role": "assistant", "content": "FOUR"}]
    (warning,) = with_template(encoder_of, lowering).encode(shouted).warnings
    assert "message(s) 1;" in warning


@pytest.mark.parametrize("name", ["llama-v0.2", "qwen3", "gemma2"])
def test_trimmed_white_space_gives_no_warning(name: str, encoder_of: EncoderOf) -> None:
    spaced = [HELLO[0], {"role": "assistant", "content": "  Paris,\n\n the  capital \n"}]
    assert encoder_of(name).encode(spaced).warnings == ()


def transformers_readout(input_ids: list[int], pad_token_id: int | None) -> int:
    if pad_token_id is None:
        return len(input_ids) - 1
    ids = torch.tensor(input_ids)
    return int((torch.arange(len(ids)) * (ids != pad_token_id)).argmax())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.none() | st.integers(0, 3))
def test_readout_equals_transformers(input_ids: list[int], pad: int | None) -> None:
    assert find_readout_position(input_ids, pad) == transformers_readout(input_ids, pad)


@pytest.mark.parametrize(
    ("input_ids", "pad", "position"),
    [
        ([5, 6, 7], 0, 2),
        ([5, 6, 0], 0, 1),
        ([5, 0, 0], 0, 0),
        ([5, 6, 0], None, 2),
        ([0, 0, 0], 0, 0),
        ([0, 5, 0], 0, 1),
        ([0], 0, 0),
    ],
)
def test_readout_position_examples(input_ids: list[int], pad: int | None, position: int) -> None:
    assert find_readout_position(input_ids, pad) == position


@pytest.mark.parametrize("name", SPECS)
def test_readout_uses_pad_token_of_the_config(
    name: str, encoder_of: EncoderOf, checkpoint_of: PathOf
) -> None:
    pad = json.loads((checkpoint_of(name) / "config.json").read_text())["pad_token_id"]
    for messages in CONVERSATIONS:
        encoded = encoder_of(name).encode(messages)
        assert encoded.readout == transformers_readout(list(encoded.input_ids), pad)


def test_readout_skips_pad_token_at_the_end(encoder_of: EncoderOf) -> None:
    ordinary, padded = encoder_of("llama-v0.2"), encoder_of("llama-pad-is-eos")
    assert ordinary.encode(HELLO).input_ids == padded.encode(HELLO).input_ids
    assert ordinary.encode(HELLO).readout == ordinary.encode(HELLO).num_tokens - 1
    assert padded.encode(HELLO).readout == padded.encode(HELLO).num_tokens - 2


def test_to_render_json_has_all_fields(encoder_of: EncoderOf) -> None:
    encoded = encoder_of("llama-pad-is-eos").encode(HELLO)
    rendered = to_render_json(encoded)
    assert json.loads(json.dumps(rendered)) == {
        "text": encoded.text,
        "input_ids": list(encoded.input_ids),
        "num_tokens": len(encoded.input_ids),
        "readout_position": len(encoded.input_ids) - 2,
        "truncated": False,
    }


def test_to_render_json_has_warnings(copy_of: CopyOf) -> None:
    encoder = load_encoder(ModelConfig(str(v2_folder(copy_of))))
    assert to_render_json(encoder.encode(SYSTEM))["warnings"] == [SYSTEM_PROMPT_WARNING]


def test_depends_on_date_if_template_writes_the_date(copy_of: Callable[..., Path]) -> None:
    folder = copy_of("qwen3")
    assert load_encoder(ModelConfig(str(folder))).depends_on_date is False
    template = folder / "chat_template.jinja"
    dated = "{{ strftime_now('%d %b %Y') }}" + template.read_text()
    template.write_text(dated)
    assert load_encoder(ModelConfig(str(folder))).depends_on_date is True


def test_appended_token_is_read(copy_of: CopyOf, scorer_of: Callable[[str], RewardScorer]) -> None:
    folder = copy_of("llama-v0.2")
    token = "<|end_header_id|>"
    before = load_encoder(ModelConfig(str(folder))).encode(HELLO)
    config = ModelConfig(str(folder), appended_token=token, device="cpu")
    encoder = load_encoder(config)
    encoded = encoder.encode(HELLO)
    assert encoded.input_ids == (*before.input_ids, *encoder.appended_ids)
    assert encoded.readouts == (before.num_tokens,)
    assert encoded.text == before.text + token
    # A client that renders conversations itself may have appended the token.
    for rendered in (
        PrerenderedText(encoded.text),
        PrerenderedTokens(encoded.input_ids),
        PrerenderedText(before.text),
        PrerenderedTokens(before.input_ids),
    ):
        assert encoder.encode(rendered).input_ids == encoded.input_ids
    cut = encoder.encode(HELLO, "right", max_length=6)
    assert cut.input_ids == (*before.input_ids[:5], *encoder.appended_ids)
    # The head of such a model, Athene, has another name.
    edit_config(folder, architectures=["AtheneForSequenceClassification"])
    edit_weights(
        folder, lambda weights: weights.update({"v_head.weight": weights.pop("score.weight")})
    )
    (result,) = RewardScorer.load(config).score([HELLO])
    (expected,) = scorer_of("llama-v0.2").score_ids([encoded.input_ids]).outputs
    assert isinstance(result, Reward)
    assert result.reward == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("token", "reason"), [("<cls>", "not a token"), ("<pad>", "the pad token")]
)
def test_appended_token_that_cannot_be_read_is_refused(
    checkpoint_of: PathOf, token: str, reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        load_encoder(ModelConfig(str(checkpoint_of("llama-v0.2")), appended_token=token))
