"""BASE+ADAPTER gives the rewards of the model that peft merges itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import build_decoder, edit_weights, refusal
from click.testing import CliRunner
from peft import LoraConfig, PeftModel, get_peft_model
from reference import CONVERSATIONS
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rm_core import ModelConfig, ModelLoadError, Reward, RewardScorer, open_checkpoint
from rm_core.model.checkpoint import split_name
from serve.cli.main import main
from serve.config.model_settings import ModelSettings
from serve.worker.backends import pin_revision

# Of peft with this release of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def train(model: Any, folder: Path, **options: Any) -> Any:
    """Write an adapter with random weights, and return the merged model of peft."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=16, **options)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=1.0 if "score" in name else 0.2)
    adapted.save_pretrained(folder)
    return adapted


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    build_decoder(folder, "qwen2", AutoModelForCausalLM)
    return folder


@pytest.fixture(scope="module")
def classifier_adapter(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as trl's reward trainer writes it: layers, and a head trained from scratch."""
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForSequenceClassification.from_pretrained(language_model, num_labels=1)
    train(model, folder, task_type="SEQ_CLS", target_modules=["q_proj", "v_proj", "down_proj"])
    return folder


def load(name: str, **settings: Any) -> RewardScorer:
    return RewardScorer.load(ModelConfig(name, device="cpu", **settings))


def rewards(scorer: RewardScorer) -> list[float]:
    results = scorer.score(CONVERSATIONS)
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


def compute(model: Any, scorer: RewardScorer, read: Callable[[Any], Any]) -> list[float]:
    with torch.inference_mode():
        return [
            float(read(model(torch.tensor([scorer.encoder.encode(m).input_ids]))))
            for m in CONVERSATIONS
        ]


def test_rewards_equal_merged_model_of_peft(language_model: Path, classifier_adapter: Path) -> None:
    scorer = load(f"{language_model}+{classifier_adapter}")
    model = AutoModelForSequenceClassification.from_pretrained(language_model, num_labels=1)
    merged = PeftModel.from_pretrained(model, classifier_adapter).merge_and_unload().eval()
    expected = compute(merged, scorer, lambda out: out.logits[0, 0])
    assert rewards(scorer) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 1
    config = ModelConfig(str(language_model), lm_head_tokens=(5,))
    base = open_checkpoint(config, weights=False).revision
    revision = scorer.fingerprint.revision
    assert revision.startswith(f"{base}+local-")
    assert len(revision) == 2 * len(base) + 1


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}], ids=str)
def test_variants_of_lora_equal_merged_model_of_peft(
    options: dict[str, Any], language_model: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(language_model)
    adapted = train(model, tmp_path, task_type="CAUSAL_LM", target_modules="all-linear", **options)
    scorer = load(f"{language_model}+{tmp_path}", lm_head_tokens=(40, 7))
    merged = adapted.merge_and_unload().eval()
    expected = compute(merged, scorer, lambda out: out.logits[0, -1, 40] - out.logits[0, -1, 7])
    assert rewards(scorer) == pytest.approx(expected, abs=1e-4)


def test_value_head_next_to_the_adapter_is_the_head(language_model: Path, tmp_path: Path) -> None:
    """As LLaMA-Factory writes them."""
    model = AutoModelForCausalLM.from_pretrained(language_model)
    adapted = train(model, tmp_path, task_type="CAUSAL_LM", target_modules=["o_proj"])
    head = {"v_head.summary.weight": torch.randn(1, 64), "v_head.summary.bias": torch.randn(1)}
    save_file(head, tmp_path / "value_head.safetensors")
    scorer = load(f"{language_model}+{tmp_path}")
    merged = adapted.merge_and_unload().eval()
    expected = compute(
        merged.base_model,
        scorer,
        lambda out: (
            out.last_hidden_state[0, -1] @ head["v_head.summary.weight"][0]
            + head["v_head.summary.bias"][0]
        ),
    )
    assert rewards(scorer) == pytest.approx(expected, abs=1e-4)


def test_adapter_of_another_model_is_refused(classifier_adapter: Path, tmp_path: Path) -> None:
    build_decoder(tmp_path, "qwen2", hidden_size=32, num_hidden_layers=2)
    edit_weights(tmp_path, lambda weights: weights.pop("score.weight"))
    detail = refusal(f"{tmp_path}+{classifier_adapter}")
    assert "have a different shape than in the config: score.weight" in detail
    build_decoder(tmp_path, "qwen2", num_hidden_layers=2)
    edit_weights(tmp_path, lambda weights: weights.pop("score.weight"))
    detail = refusal(f"{tmp_path}+{classifier_adapter}")
    assert "does not fit the base model" in detail
    assert "layers.2." in detail


def test_adapter_of_other_shapes_is_refused_with_the_tensor(
    classifier_adapter: Path, tmp_path: Path
) -> None:
    build_decoder(tmp_path, "qwen2", AutoModelForCausalLM, intermediate_size=96)
    detail = refusal(f"{tmp_path}+{classifier_adapter}")
    assert "cannot be merged: RuntimeError" in detail
    assert "size mismatch for base_model.model.model.layers.0.mlp.down_proj" in detail
    assert "is it an adapter of" in detail


@pytest.mark.parametrize(
    ("trained_on", "warns"),
    [
        ("/mnt/weights/other-base", True),
        ("Org/other-base", True),
        ("/root/hub/models--Org--other-base/snapshots/0a1b", True),
        ("Org/{name}", False),
        ("/mnt/weights/{name}/", False),
        ("/root/hub/models--Org--{name}/snapshots/0a1b", False),
        (None, False),
    ],
)
def test_adapter_of_another_base_is_reported(
    trained_on: str | None,
    warns: bool,
    language_model: Path,
    classifier_adapter: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = trained_on and trained_on.format(name=language_model.name.upper())
    adapter = edited(classifier_adapter, tmp_path / "adapter", base_model_name_or_path=text)
    open_checkpoint(ModelConfig(f"{language_model}+{adapter}"))
    words = f"was trained on {text!r}, and is merged into {language_model}"
    assert (words in caplog.text) == warns
    assert ("was trained on" in caplog.text) == warns


def test_reversed_order_is_reported(language_model: Path, classifier_adapter: Path) -> None:
    detail = refusal(f"{classifier_adapter}+{language_model}")
    assert "is reversed" in detail
    assert detail.endswith(f"give {language_model}+{classifier_adapter}")
    assert f"give demo+{classifier_adapter}" in refusal(f"{classifier_adapter}+demo")
    detail = refusal(f"{classifier_adapter}+{classifier_adapter}")
    assert "not a full reward model; give BASE+ADAPTER" in detail
    detail = refusal(f"{language_model}+{language_model}")
    assert "has no adapter_config.json, so it is not an adapter" in detail


def test_conversion_of_an_adapter_is_refused(classifier_adapter: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(classifier_adapter), "-o", str(tmp_path / "new"), "--allow-bin"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert f"{classifier_adapter} is a LORA adapter" in result.output
    assert list(tmp_path.iterdir()) == []


def test_pickle_of_an_adapter_needs_permission(
    language_model: Path, classifier_adapter: Path, tmp_path: Path
) -> None:
    adapter = edited(classifier_adapter, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    detail = refusal(f"{language_model}+{adapter}")
    assert detail.endswith("read only if the setting `allow_bin` is on (--allow-bin)")


def edited(source: Path, folder: Path, **entries: object) -> Path:
    shutil.copytree(source, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return folder


def test_adapter_that_cannot_be_merged_is_refused(
    language_model: Path, classifier_adapter: Path, tmp_path: Path
) -> None:
    other = edited(classifier_adapter, tmp_path / "other", peft_type="IA3")
    assert "of type 'IA3'; only LORA" in refusal(f"{language_model}+{other}")
    embedding = edited(classifier_adapter, tmp_path / "embedding")
    file = embedding / "adapter_model.safetensors"
    weights = load_file(file)
    name = "base_model.model.model.embed_tokens.weight"
    save_file(weights | {name: torch.zeros(8, 64)}, file)
    assert "changes model.embed_tokens.weight" in refusal(f"{language_model}+{embedding}")
    headless = edited(classifier_adapter, tmp_path / "headless")
    file = headless / "adapter_model.safetensors"
    save_file({n: t for n, t in weights.items() if "score" not in n}, file)
    assert "the reward head is missing" in refusal(f"{language_model}+{headless}")
    file.unlink()
    assert "has no adapter_model.safetensors" in refusal(f"{language_model}+{headless}")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "(([a-z_.0-9])+)+!$"},
        {"target_modules": "a.*.*.*.*.*x"},
        {"exclude_modules": "(a|a)*$"},
        {"rank_pattern": {"(.*a){9}": 8}},
        {"alpha_pattern": {"(([a-z])+)+!": 8}},
    ],
)
def test_pattern_that_may_match_forever_is_refused(
    options: dict[str, Any], language_model: Path, classifier_adapter: Path, tmp_path: Path
) -> None:
    folder = edited(classifier_adapter, tmp_path / "adapter", **options)
    with pytest.raises(ModelLoadError, match="list the names of the modules instead"):
        open_checkpoint(ModelConfig(f"{language_model}+{folder}"))


def test_other_chat_template_of_the_adapter_is_reported(
    language_model: Path,
    classifier_adapter: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    adapter = edited(classifier_adapter, tmp_path / "adapter")
    config = ModelConfig(f"{language_model}+{adapter}")
    shutil.copy(language_model / "chat_template.jinja", adapter)
    open_checkpoint(config)
    assert "chat template" not in caplog.text
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    open_checkpoint(config)
    assert "has another chat template than the base model" in caplog.text


def test_adapter_without_peft_is_refused(
    language_model: Path, classifier_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModelLoadError, match=r"pip install 'skyreward\[lora\]'"):
        open_checkpoint(ModelConfig(f"{language_model}+{classifier_adapter}"))


def test_name_with_adapter_is_split(tmp_path: Path) -> None:
    assert split_name("Org/Base+Org/Adapter@main") == ("Org/Base", "Org/Adapter@main")
    assert split_name("Org/Base") == ("Org/Base", None)
    folder = tmp_path / "a+b"
    folder.mkdir()
    assert split_name(str(folder)) == (str(folder), None)
    for name in ("a+", "+a", "a+b+c"):
        with pytest.raises(ModelLoadError, match=r"give BASE\+ADAPTER"):
            split_name(name)


def test_settings_of_a_model_with_adapter(
    language_model: Path, classifier_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelSettings.model_validate(f"mine={language_model}+{classifier_adapter}")
    assert settings.alias == "mine"
    assert settings.name == f"{language_model}+{classifier_adapter}"
    assert pin_revision(settings) == settings
    settings = ModelSettings.model_validate("Org/Base@v1+Org/Adapter@v2")
    assert (settings.name, settings.revision) == ("Org/Base+Org/Adapter@v2", "v1")
    monkeypatch.chdir(language_model.parent)
    settings = ModelSettings.model_validate(f"{language_model.name}+{classifier_adapter.name}")
    assert settings.name == f"{language_model}+{classifier_adapter}"
    assert settings.alias == f"{language_model.name}+{classifier_adapter.name}"
