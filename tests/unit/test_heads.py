"""Every layout of heads gives what plain transformers' decoder and the head's arithmetic give."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import build_decoder, edit_config, edit_weights, refusal
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import linear, log_softmax, logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rm_core import ModelConfig, RewardScorer, load_encoder, open_checkpoint
from rm_core.heads import JudgeHead, LinearHead, MlpHead
from rm_core.model.loading import load_model
from serve.cli.main import main

Tensors = Mapping[str, torch.Tensor]
Function = Callable[[torch.Tensor, Tensors], torch.Tensor]


def random_head(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name.replace("__", "."): torch.randn(*shape, generator=generator)
        for name, shape in shapes.items()
    }


MLP = {
    "score__0__weight": (48, 64), "score__0__bias": (48,),
    "score__2__weight": (1, 48), "score__2__bias": (1,),
}  # fmt: skip
V_HEAD = {"v_head__summary__weight": (1, 64), "v_head__summary__bias": (1,)}


def apply_mlp(hidden: torch.Tensor, head: Tensors) -> torch.Tensor:
    inner = linear(hidden, head["score.0.weight"], head["score.0.bias"]).relu()
    return linear(inner, head["score.2.weight"], head["score.2.bias"])


def apply_v_head(hidden: torch.Tensor, head: Tensors) -> torch.Tensor:
    return linear(hidden, head["v_head.summary.weight"], head["v_head.summary.bias"])


def apply_labels(hidden: torch.Tensor, head: Tensors) -> torch.Tensor:
    return linear(hidden, head["score.weight"])


# Architecture, shapes of the head, settings, and what transformers' hidden state becomes.
LAYOUTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], Function]] = {
    "value head": ("Qwen2ForCausalLM", V_HEAD, {}, apply_v_head),
    "value head of a step model": ("Qwen2ForPrmModel", V_HEAD, {}, apply_v_head),
    "value head without bias": (
        "Qwen2ForCausalLM",
        {"v_head__weight": (1, 64)},
        {},
        lambda hidden, head: linear(hidden, head["v_head.weight"]),
    ),
    "two layers": ("Qwen2ForRewardModel", MLP, {}, apply_mlp),
    "two layers of INF-ORM": ("INFORMForSequenceClassification", MLP, {}, apply_mlp),
    "two layers, two labels": (
        "Qwen2ForProcessRewardModel",
        {**MLP, "score__2__weight": (2, 48), "score__2__bias": (2,)},
        {},
        # The sigmoid of the difference is the softmax's second probability.
        lambda hidden, head: (
            log_softmax(apply_mlp(hidden, head).double(), -1)
            @ torch.tensor([[-1.0], [1.0]]).double()
        ),
    ),
    "one of several labels": (
        "Qwen2ForSequenceClassification",
        {"score__weight": (3, 64)},
        {"label": 2},
        lambda hidden, head: apply_labels(hidden, head)[:, 2:],
    ),
    "weighted labels": (
        "Qwen2ForSequenceClassification",
        {"score__weight": (3, 64)},
        {"label_weights": (0.5, 0.0, -2.0)},
        lambda hidden, head: apply_labels(hidden, head) @ torch.tensor([[0.5], [0.0], [-2.0]]),
    ),
    "labels with a bias": (
        "Qwen2ForTokenClassification",
        {"score__weight": (2, 64), "score__bias": (2,)},
        {"step_format": "skywork"},
        lambda hidden, head: (
            linear(hidden, head["score.weight"], head["score.bias"]) @ torch.tensor([[-1.0], [1.0]])
        ),
    ),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    """A causal language model, into whose copies the tests write heads."""
    folder = tmp_path_factory.mktemp("decoder")
    model = build_decoder(folder, "qwen2", AutoModelForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token = "<|im_start|>"  # for the step format of Skywork
    tokenizer.add_tokens(["<extra_0>"], special_tokens=True)  # for that of Qwen
    tokenizer.save_pretrained(folder)
    return folder, model


def copy_with_head(
    source: Path, folder: Path, architecture: str, head: Tensors, **entries: Any
) -> Path:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    edit_config(folder, architectures=[architecture], id2label=None, label2id=None, **entries)
    edit_weights(folder, lambda weights: weights.update(head))
    return folder


# Token ids, some with shared beginnings.
SEQUENCES = [(*range(20, 40 + 7 * n), *range(30 - n, 40)) for n in range(10)]


@torch.inference_mode()
def last_hidden(model: PreTrainedModel) -> torch.Tensor:
    """Hidden states of plain transformers at the last token of each sequence."""
    states = [model.base_model(torch.tensor([ids])).last_hidden_state for ids in SEQUENCES]
    return torch.stack([state[0, -1] for state in states])


def outputs(scorer: RewardScorer) -> list[float]:
    values = scorer.score_ids(SEQUENCES).outputs
    assert all(isinstance(value, float) for value in values), values
    return [value for value in values if isinstance(value, float)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_outputs_of_layout_equal_its_arithmetic(
    layout: str, decoder: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    source, model = decoder
    architecture, shapes, settings, function = LAYOUTS[layout]
    head = random_head(**shapes)
    copy_with_head(source, tmp_path, architecture, head)
    scorer = RewardScorer.load(ModelConfig(str(tmp_path), device="cpu", **settings))
    expected = function(last_hidden(model), head)[:, 0].tolist()
    assert outputs(scorer) == pytest.approx(expected, abs=1e-4, rel=1e-5)
    assert max(expected) - min(expected) > 0.5
    described = scorer.describe()
    assert described.head.startswith(next(iter(head)).rpartition(".")[0].removesuffix(".0"))


@pytest.mark.parametrize("name", ["v_head.summary.", "summary."])
def test_value_head_in_a_file_of_its_own(
    name: str, decoder: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    source, model = decoder
    head = random_head(**V_HEAD)
    copy_with_head(source, tmp_path, "Qwen2ForCausalLM", {})
    before = open_checkpoint(ModelConfig(str(tmp_path)), weights=False).revision
    renamed = {key.replace("v_head.summary.", name): value for key, value in head.items()}
    save_file(renamed, tmp_path / "value_head.safetensors")
    scorer = RewardScorer.load(ModelConfig(str(tmp_path), device="cpu"))
    expected = apply_v_head(last_hidden(model), head)[:, 0].tolist()
    assert outputs(scorer) == pytest.approx(expected, abs=1e-4, rel=1e-5)
    assert scorer.fingerprint.revision != before


@pytest.mark.parametrize("files", ["one file", "index", "neither"])
def test_plain_language_model_is_not_rendered_as_a_classifier(
    files: str, decoder: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    """The command `render` loads the encoder alone, and needs no weights."""
    folder = copy_with_head(decoder[0], tmp_path, "Qwen2ForCausalLM", {})
    conversation = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    (folder / "in.jsonl").write_text(json.dumps({"messages": conversation}))
    weights = folder / "model.safetensors"
    if files == "index":
        names = dict.fromkeys(safe_open(weights, framework="pt").keys(), "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    if files != "one file":
        weights.unlink()
    arguments = ["render", "--model", str(folder), str(folder / "in.jsonl")]
    done = CliRunner().invoke(main, arguments)
    if files == "neither":
        assert done.exit_code == 0, done.output
        return
    assert done.exit_code == 1
    assert "the reward head is missing" in done.output
    assert "give the setting `kind`" in done.output
    load_encoder(ModelConfig(str(folder), kind="step", step_format="skywork"))
    load_encoder(ModelConfig(str(folder), lm_head_tokens=(5,)))
    if files == "one file":
        save_file(random_head(**V_HEAD), folder / "value_head.safetensors")
        assert CliRunner().invoke(main, arguments).exit_code == 0
        (folder / "value_head.safetensors").unlink()
        edit_weights(folder, lambda stored: stored.update(random_head(**V_HEAD)))
        assert CliRunner().invoke(main, arguments).exit_code == 0


def test_value_head_keeps_its_dtype_and_score_gets_that_of_the_decoder(
    decoder: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    source, _ = decoder
    value_head = random_head(**V_HEAD)
    folder = copy_with_head(source, tmp_path / "v", "Qwen2ForCausalLM", value_head)
    head = load_model(ModelConfig(str(folder), device="cpu", dtype="bfloat16")).head
    assert isinstance(head, LinearHead)
    assert torch.equal(head.row, value_head["v_head.summary.weight"])
    score = random_head(score__weight=(1, 64))
    folder = copy_with_head(source, tmp_path / "s", "Qwen2ForSequenceClassification", score)
    head = load_model(ModelConfig(str(folder), device="cpu", dtype="bfloat16")).head
    assert isinstance(head, LinearHead)
    assert torch.equal(head.row, score["score.weight"].bfloat16().float())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tokens", [(7,), (40, 7)])
def test_rewards_from_rows_of_lm_head_equal_logits(
    tokens: tuple[int, ...], tied: bool, tmp_path: Path
) -> None:
    model = build_decoder(tmp_path, "qwen2", AutoModelForCausalLM, tie_word_embeddings=tied)
    scorer = RewardScorer.load(ModelConfig(str(tmp_path), device="cpu", lm_head_tokens=tokens))
    with torch.inference_mode():
        logits = model.lm_head(last_hidden(model))[:, list(tokens)]
    expected = logits[:, 0] - (logits[:, 1] if len(tokens) == 2 else 0)
    assert outputs(scorer) == pytest.approx(expected.tolist(), abs=1e-4, rel=1e-5)
    assert f"lm_head_tokens={tokens}" in scorer.fingerprint.revision


def test_capped_logits_are_capped(tmp_path: Path) -> None:
    model = build_decoder(
        tmp_path, "gemma2", AutoModelForCausalLM, final_logit_softcapping=3.0, sliding_window=32
    )
    scorer = RewardScorer.load(ModelConfig(str(tmp_path), device="cpu", lm_head_tokens=(40, 7)))
    with torch.inference_mode():
        logits = torch.stack([model(torch.tensor([ids])).logits[0, -1] for ids in SEQUENCES])
    assert float(logits.abs().max()) < 3
    expected = (logits[:, 40] - logits[:, 7]).tolist()
    assert outputs(scorer) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_judge_outputs_equal_full_logits_of_plain_transformers(tied: bool, tmp_path: Path) -> None:
    model = build_decoder(tmp_path, "llama", AutoModelForCausalLM, tie_word_embeddings=tied)
    loaded = load_model(ModelConfig(str(tmp_path), device="cpu", kind="judge"))
    assert isinstance(loaded.head, JudgeHead)
    words = "lm_head, log-odds of 'A' against 'B' after '[[' (rows "
    assert loaded.head.description.startswith(words)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    first, second = (tokenizer.convert_tokens_to_ids(label) for label in "AB")
    assert loaded.head.labels == (first, second)
    ids = torch.tensor([[*range(20, 60), *tokenizer("[[").input_ids]])
    with torch.inference_mode():
        hidden = model.base_model(ids).last_hidden_state[0]
        logits = model(ids).logits[0]
    probabilities = log_softmax(logits.double(), dim=-1)
    mass = torch.logaddexp(probabilities[:, first], probabilities[:, second])
    log_odds, log_mass = loaded.head.apply(hidden).T
    torch.testing.assert_close(log_odds, logits[:, first] - logits[:, second])
    torch.testing.assert_close(log_mass, mass.float(), atol=1e-4, rtol=1e-5)
    # P(A) = sigmoid(log-odds) * mass
    first_alone = logsigmoid(log_odds) + log_mass
    torch.testing.assert_close(first_alone, probabilities[:, first].float(), atol=1e-4, rtol=1e-5)


def test_sign_head_of_step_model_reads_plus_and_minus(tmp_path: Path) -> None:
    model = build_decoder(tmp_path, "mistral", AutoModelForCausalLM)
    config = ModelConfig(str(tmp_path), device="cpu", step_format="rlhflow")
    scorer = RewardScorer.load(config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    plus, minus = (tokenizer.convert_tokens_to_ids(sign) for sign in "+-")
    with torch.inference_mode():
        logits = model.lm_head(last_hidden(model))
    expected = (logits[:, plus] - logits[:, minus]).tolist()
    assert outputs(scorer) == pytest.approx(expected, abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("kind", ["mlp", "judge"])
def test_outputs_do_not_depend_on_other_rows(kind: str) -> None:
    """To the last bit, as those of a row (tests/unit/test_head.py)."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, row = (
        torch.randn(*shape, generator=generator) for shape in ((70, 96), (9_000, 96), (1, 96))
    )
    last = LinearHead(row, None)
    inner = weight[:96]
    head: Any = MlpHead(inner, row[0], last)
    if kind == "judge":
        head = JudgeHead(last, weight.bfloat16(), None, None, (5, 8_500))
    values = head.apply(hidden)
    order = torch.randperm(70, generator=generator)
    assert torch.equal(head.apply(hidden[order]), values[order])
    for count in (1, 2, 33):
        assert torch.equal(head.apply(hidden[-count:]), values[-count:])
    assert head.apply(hidden[:0]).shape == (0, head.num_outputs)


# Architecture, shapes of the head, settings, and words of the refusal.
REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "value head missing": (
        "Qwen2ForPrmModel", {}, {}, ("has no v_head.summary.weight", "would give random rewards"),
    ),
    "two layers where a value head belongs": (
        "Qwen2ForPrmModel", MLP, {}, ("no v_head.summary.weight", "but score.2.weight"),
    ),
    "value head where two layers belong": (
        "Qwen2ForRewardModel", V_HEAD, {}, ("no score.2.weight", "but v_head.summary.weight"),
    ),
    "two heads": (
        "Qwen2ForCausalLM",
        {**V_HEAD, "score__weight": (1, 64)},
        {},
        ("several heads, score.weight and v_head.summary.weight",),
    ),
    "two heads, one of them known": (
        "Qwen2ForPrmModel",
        {**V_HEAD, "score__weight": (1, 64)},
        {},
        ("do not belong to any module of the model: score.weight",),
    ),
    "base model": (
        "Qwen2ForCausalLM", {}, {}, ("reward head is missing", "`kind`", "`lm_head_tokens`"),
    ),
    "classifier as a judge": (
        "Qwen2ForSequenceClassification",
        {"score__weight": (1, 64)},
        {"kind": "judge"},
        ("has the reward head score.weight", "but the setting `kind` (judge) reads the language"),
    ),
    "value head with a step format of signs": (
        "Qwen2ForPrmModel",
        V_HEAD,
        {"step_format": "rlhflow"},
        ("the reward head v_head.summary.weight", "the setting `step_format` (rlhflow)"),
    ),
    "classifier with tokens of the language model": (
        "Qwen2ForSequenceClassification",
        {"score__weight": (1, 64)},
        {"lm_head_tokens": (7,)},
        ("the reward head score.weight", "but the setting `lm_head_tokens` reads"),
    ),
    "signs with a step format of heads": (
        "Qwen2ForCausalLM",
        {},
        {"kind": "step", "step_format": "skywork"},
        ("reward head is missing", "`step_format` (skywork)", "math-shepherd or rlhflow"),
    ),
    "step model as a classifier": (
        "Qwen2ForProcessRewardModel",
        {**MLP, "score__2__weight": (2, 48), "score__2__bias": (2,)},
        {"kind": "classifier"},
        ("score.2.weight of", "the setting `kind` (`step`) if it is a process reward model"),
    ),
    "labels without a choice": (
        "Qwen2ForSequenceClassification",
        {"score__weight": (3, 64)},
        {},
        ("score.weight of", "has shape [3, 64]", "setting `label`", "`label_weights`"),
    ),
    "label that does not exist": (
        "Qwen2ForSequenceClassification",
        {"score__weight": (3, 64)},
        {"label": 3},
        ("label is 3", "has 3 labels"),
    ),
    "weights of too few labels": (
        "Qwen2ForSequenceClassification",
        {"score__weight": (3, 64)},
        {"label_weights": (1.0, 2.0)},
        ("label_weights has 2 numbers", "3 labels"),
    ),
    "first layer missing": (
        "Qwen2ForRewardModel", {"score__2__weight": (1, 48)}, {}, ("without score.0.weight",),
    ),
    "first layer of another size": (
        "Qwen2ForRewardModel",
        {**MLP, "score__0__weight": (48, 32)},
        {},
        ("score.0.weight [48, 32] instead of [48, 64]",),
    ),
    "bias of another size": (
        "Qwen2ForCausalLM",
        {**V_HEAD, "v_head__summary__bias": (2,)},
        {},
        ("v_head.summary.bias [2] instead of [1]",),
    ),
    "token beyond the vocabulary": (
        "Qwen2ForCausalLM", {}, {"lm_head_tokens": (10_000,)}, ("token 10000", "rows"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_checkpoint_without_the_expected_head_is_refused(
    case: str, decoder: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    source, _ = decoder
    architecture, shapes, settings, words = REFUSED[case]
    copy_with_head(source, tmp_path, architecture, random_head(**shapes))
    detail = refusal(tmp_path, **settings)
    assert all(word in detail for word in words), detail


def test_lm_head_that_is_missing_or_scaled_is_refused(
    decoder: tuple[Path, PreTrainedModel], tmp_path: Path
) -> None:
    source, _ = decoder
    copy_with_head(source, tmp_path, "Qwen2ForCausalLM", {})
    edit_weights(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    assert "has no lm_head.weight" in refusal(tmp_path, kind="judge")
    edit_config(tmp_path, logit_scale=0.0625)
    assert "has logit_scale, which scales the logits" in refusal(tmp_path, kind="judge")


def test_non_finite_head_is_refused(decoder: tuple[Path, PreTrainedModel], tmp_path: Path) -> None:
    source, _ = decoder
    head = random_head(**V_HEAD)
    head["v_head.summary.bias"].fill_(float("nan"))
    copy_with_head(source, tmp_path, "Qwen2ForPrmModel", head)
    assert "v_head.summary.bias of" in refusal(tmp_path)
