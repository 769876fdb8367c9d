"""Only BOS is added to the rendered text, and no token has an id beyond the embedding."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_config, refusal
from reference import Reference, talk

from rm_core import (
    ModelConfig,
    ModelLoadError,
    PrerenderedText,
    PrerenderedTokens,
    Reward,
    RewardScorer,
    ScoreError,
)
from rm_core.reference import PlainClassifier

CopyOf = Callable[..., Path]
CONVERSATIONS = [talk("2+2?", "4"), talk("What is the capital of France?", "Paris. " * 8)]
BOS, EOT, PAD = "<bos>", "<|eot_id|>", "<pad>"


def processor(before: list[str], after: list[str], ids: dict[str, int]) -> dict[str, Any]:
    """Return a TemplateProcessing of tokenizer.json."""

    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*map(special, before), text, *map(special, after)]
    used = dict.fromkeys([*before, *after])
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in used},
    }


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PROCESSORS: dict[str, tuple[list[str], list[str], str]] = {
    "BOS $A": ([BOS], [], ""),
    "BOS $A EOS": ([BOS], [EOT], EOT),
    "$A EOS": ([], [EOT], EOT),
    "BOS $A SEP": ([BOS], [PAD], PAD),
    "CLS $A SEP": ([PAD], [EOT], f"{PAD} {EOT}"),
    "BOS BOS $A": ([BOS, BOS], [], BOS),
}


@pytest.mark.parametrize("writes_bos", [True, False])
@pytest.mark.parametrize("in_sequence", [True, False])
@pytest.mark.parametrize(("before", "after", "omitted"), PROCESSORS.values(), ids=PROCESSORS.keys())
def test_input_ids_are_tokens_of_the_template_and_bos(
    before: list[str],
    after: list[str],
    omitted: str,
    in_sequence: bool,
    writes_bos: bool,
    copy_of: CopyOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = copy_of("llama-v0.2" if writes_bos else "llama-v0.1")
    content = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    template = processor(before, after, ids)
    sequence = {"type": "Sequence", "processors": [BYTES, template]}
    content["post_processor"] = sequence if in_sequence else template
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu"))
    assert " ".join(scorer.encoder.omitted_tokens) == omitted
    assert (f"would add {omitted} to every text" in caplog.text) == bool(omitted)
    reference = Reference(folder)
    plain = PlainClassifier(scorer, scorer.loaded_model.model.dtype)
    for conversation, result in zip(CONVERSATIONS, scorer.score(CONVERSATIONS), strict=True):
        rendered = reference.tokenizer.apply_chat_template(conversation, return_dict=True)
        expected = rendered["input_ids"]
        if before[:1] == [BOS] and not writes_bos:
            expected = [ids[BOS], *expected]
        encoded = scorer.encoder.encode(conversation)
        assert list(encoded.input_ids) == expected
        reference.input_ids = lambda _, ids=expected: ids  # type: ignore[method-assign]
        assert isinstance(result, Reward)
        assert result.reward == pytest.approx(reference.reward(conversation), abs=1e-4)
        assert plain.compute_outputs(conversation) == pytest.approx([result.reward], abs=1e-4)
        prerendered = [PrerenderedText(encoded.text), PrerenderedText(encoded.text, close=True)]
        for other in [*prerendered, PrerenderedTokens(tuple(expected))]:
            assert scorer.encoder.encode(other).input_ids == encoded.input_ids
        offsets = scorer.encoder.compute_offsets(encoded)
        assert offsets is not None
        assert len(offsets) == len(expected)
        covered = "".join(encoded.text[a:b] for a, b in offsets)
        # The offsets of a ByteLevel post-processor omit the spaces before words.
        assert covered.replace(" ", "") == encoded.text.replace(" ", "")


def add_token(folder: Path, token: str = "[PAD]") -> int:
    """Add a token to tokenizer.json, with the first id for which the embedding has no row."""
    content = json.loads((folder / "tokenizer.json").read_text())
    new = json.loads((folder / "config.json").read_text())["vocab_size"]
    added = content["added_tokens"][0] | {"id": new, "content": token}
    content["added_tokens"].append(added)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return int(new)


@pytest.mark.parametrize("family", ["llama-v0.2", "qwen3", "gemma2"])
def test_tokenizer_with_an_id_beyond_the_embedding_is_refused(family: str, copy_of: CopyOf) -> None:
    folder = copy_of(family)
    new = add_token(folder)
    detail = refusal(folder)
    assert f"has the id {new} ('[PAD]'), but the embedding has {new} rows" in detail
    assert f"for ids 0 to {new - 1}" in detail
    assert "resize_token_embeddings" in detail


def test_pad_token_beyond_the_embedding_is_refused(copy_of: CopyOf) -> None:
    folder = copy_of()
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(content | {"pad_token": "[NEW]"}))
    assert "('[NEW]'), but the embedding has" in refusal(folder)


def test_score_ids_gives_errors_for_ids_beyond_the_embedding(
    scorer_of: Callable[..., RewardScorer],
) -> None:
    scorer = scorer_of("qwen3")
    rows = scorer.loaded_model.model.get_input_embeddings().num_embeddings  # type: ignore[union-attr]
    good = (20, 21, 22)
    results = scorer.score_ids([good, (20, rows), (-1, 20), (rows - 1,), (10**12, 5), good]).outputs
    alone = scorer.score_ids([good, (rows - 1,)]).outputs
    for index in (1, 2, 4):
        error = results[index]
        assert isinstance(error, ScoreError)
        assert error.code == "invalid_conversation"
        assert f"from 0 to {rows - 1}" in error.message
    assert results[0] == results[5] == pytest.approx(alone[0], abs=1e-4)
    assert results[3] == pytest.approx(alone[1], abs=1e-4)


def test_unknown_ids_of_clients_are_refused_with_the_range(copy_of: CopyOf) -> None:
    scorer = RewardScorer.load(ModelConfig(str(copy_of()), device="cpu"))
    rows = scorer.loaded_model.model.get_input_embeddings().num_embeddings  # type: ignore[union-attr]
    wrong, right = scorer.score([PrerenderedTokens((20, rows)), PrerenderedTokens((20, rows - 1))])
    assert isinstance(wrong, ScoreError)
    assert wrong.code == "invalid_conversation"
    assert f"from 0 to {rows - 1}" in wrong.message
    assert isinstance(right, Reward)


@pytest.mark.parametrize(
    "name", ["GemmaTokenizer", "LlamaTokenizer", "Qwen2Tokenizer", "BertTokenizer"]
)
def test_foreign_tokenizer_class_scores_correctly_or_is_refused(name: str, copy_of: CopyOf) -> None:
    folder = copy_of("llama-v0.2")
    content = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(content | {"tokenizer_class": name}))
    scorer: RewardScorer | None = None
    # Any other exception fails the test.
    with contextlib.suppress(ModelLoadError):
        scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu"))
    if scorer is None:
        return
    reference = Reference(folder)
    for conversation, result in zip(CONVERSATIONS, scorer.score(CONVERSATIONS), strict=True):
        assert isinstance(result, Reward)
        assert result.reward == pytest.approx(reference.reward(conversation), abs=1e-4)


def test_tokenizer_panic_is_an_error_of_the_conversation(copy_of: CopyOf) -> None:
    folder = copy_of()
    content = json.loads((folder / "tokenizer.json").read_text())
    regex = {
        "type": "Split",
        "pattern": {"Regex": "(a+)+$"},
        "behavior": "Isolated",
        "invert": False,
    }
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "processors": [],
        "pretokenizers": [regex, BYTES],
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    template = "{{ 'a' * 40 }}!{% for m in messages %}{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    edit_config(folder, pad_token_id=None)
    scorer = RewardScorer.load(ModelConfig(str(folder), device="cpu"))
    (result,) = scorer.score([CONVERSATIONS[0]])
    assert isinstance(result, ScoreError)
    assert "tokenizer" in result.message
