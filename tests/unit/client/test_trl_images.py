"""A step of TRL's trainer on a vision dataset, with rewards of the application over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kinds import serving_models
from stub_service import stub_service
from transformers import (
    AutoImageProcessor,
    BatchFeature,
    ProcessorMixin,
    Qwen2_5_VLForConditionalGeneration,
)
from vision import build_vision_model, build_vision_tokenizer

from rm_core import ModelConfig, Reward, RewardScorer
from serve.client import ScoringClient
from serve.client.integrations.trl import TRLReward

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # warnings of TRL and torch about each other
]
trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pillow = pytest.importorskip("PIL.Image")


class ImageTextProcessor(ProcessorMixin):  # type: ignore[misc]
    """Qwen2_5_VLProcessor without its processor of videos, which needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **options: Any) -> None:
        super().__init__(image_processor, tokenizer, **options)

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> BatchFeature:
        texts, data = [text] if isinstance(text, str) else list(text), {}
        if images:
            data = dict(self.image_processor(images=images, return_tensors="pt"))
            sizes = iter((data["image_grid_thw"].prod(-1) // 4).tolist())
            for index, (head, *rest) in enumerate(one.split("<|image_pad|>") for one in texts):
                pads = (f"{'<|image_pad|>' * next(sizes)}{tail}" for tail in rest)
                texts[index] = head + "".join(pads)
        names = ("padding", "padding_side", "return_tensors", "add_special_tokens")
        data |= self.tokenizer(texts, **{n: options[n] for n in names if n in options})
        pad = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        ids = data["input_ids"]
        data["mm_token_type_ids"] = (
            (ids == pad).int()
            if isinstance(ids, torch.Tensor)
            else [[int(token == pad) for token in row] for row in ids]
        )
        return BatchFeature(data)


def build_processor(folder: Path) -> ImageTextProcessor:
    tokenizer = build_vision_tokenizer()
    tokenizer.padding_side = "left"
    images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return ImageTextProcessor(images, tokenizer, chat_template=tokenizer.chat_template)


def test_step_of_grpo_uses_rewards_of_images(tmp_path: Path) -> None:
    reward_model = build_vision_model(tmp_path / "reward")
    policy = build_vision_model(tmp_path / "policy", layout="new", head=None)
    colors = [pillow.new("RGB", (90, 60), color) for color in ("red", "blue")]
    data = datasets.Dataset.from_dict(
        {"prompt": [[{"role": "user", "content": "What color?"}]] * 2, "image": colors}
    )
    calls: list[tuple[Any, Any, list[float]]] = []
    options = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    with (
        serving_models(vl=reward_model) as app,
        stub_service(app) as service,
        ScoringClient(service.url, "vl") as client,
    ):
        function = TRLReward(client)

        def record(prompts: Any, completions: Any, **columns: Any) -> list[float]:
            calls.append((prompts, completions, function(prompts, completions, **columns)))
            return calls[-1][-1]

        trl.GRPOTrainer(
            model=Qwen2_5_VLForConditionalGeneration.from_pretrained(policy),
            reward_funcs=record,
            args=options,
            train_dataset=data,
            processing_class=build_processor(policy),
        ).train()
    ((prompts, completions, rewards),) = calls
    scorer = RewardScorer.load(ModelConfig(str(reward_model), device="cpu"))
    conversations = [p + c for p, c in zip(prompts, completions, strict=True)]
    expected = [r.reward for r in scorer.score(conversations) if isinstance(r, Reward)]
    assert rewards == pytest.approx(expected, abs=1e-4)
    assert len(rewards) == 4
    first, *_, last = conversations
    exchanged = [*last[:1], *first[1:]]
    (other,) = [r.reward for r in scorer.score([exchanged]) if isinstance(r, Reward)]
    assert abs(other - rewards[0]) > 1e-3  # images matter
