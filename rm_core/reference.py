"""References for `rm_core.verification`: deliberately naive, one item at a time.

transformers runs its own forward pass with eager attention, on all tokens of one item, and the head
is an ordinary product of matrices.
"""

from __future__ import annotations

import contextlib
import datetime
import io
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from rm_core.inputs.conversations import Messages, get_images
from rm_core.inputs.encoder import ChatEncoder
from rm_core.inputs.step_items import StepItem
from rm_core.model.precision import use_ieee_products
from rm_core.model.weights import read_weights
from rm_core.packing import TokenIds
from rm_core.scorer import RewardScorer
from rm_core.types import Encoded


class Reference(Protocol):
    """Computes what a scorer should compute."""

    def compute_outputs(self, item: Any, encoded: Encoded) -> list[float]:
        """Return the first output at each readout of an item.

        Args:
            item: what is scored.
            encoded: what the scorer's encoder made of it; not used where the model's authors show
                how to tokenize it.
        """
        ...


def build_reference(scorer: RewardScorer, dtype: torch.dtype) -> Reference:
    """Load a checkpoint again, on the scorer's device, and on the CPU where it does not fit."""
    checkpoint = scorer.loaded_model.checkpoint
    assert checkpoint.head is not None
    assert checkpoint.files is not None
    is_plain = checkpoint.head.name == "score" and checkpoint.head.factors == (1.0,)
    is_simple = checkpoint.adapter is None and not checkpoint.files.is_pickle
    architecture = str((checkpoint.config.get("architectures") or [""])[0])
    if is_plain and is_simple and architecture.endswith("ForSequenceClassification"):
        return PlainClassifier(scorer, dtype)
    return PlainDecoder(scorer, dtype)


class PlainClassifier:
    """transformers' own sequence classifier, tokenized as in the model cards."""

    def __init__(self, scorer: RewardScorer, dtype: torch.dtype) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        loaded = scorer.loaded_model
        path = loaded.checkpoint.path
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self._tokenizer.chat_template = scorer.encoder.chat_template
        self._date = scorer.encoder.template_date
        self._model: Any = AutoModelForSequenceClassification.from_pretrained(
            path,
            dtype=dtype,
            num_labels=1,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
        ).eval()
        self._device = _move(self._model, loaded.device)

    @use_ieee_products()
    @torch.inference_mode()
    def compute_outputs(self, item: Messages, encoded: Encoded | None = None) -> list[float]:
        """See `Reference`."""
        bos = self._tokenizer.bos_token
        with _freeze_clock(self._tokenizer.chat_template, self._date):
            text = self._tokenizer.apply_chat_template(item, tokenize=False)
        assert isinstance(text, str)
        adds_bos = bos is not None and self._tokenizer("").input_ids[:1] == [
            self._tokenizer.bos_token_id
        ]
        if adds_bos:
            text = text if text.startswith(bos) else bos + text
        # As in `apply_chat_template(tokenize=True)`: no tokens that the text does not contain.
        inputs = self._tokenizer(text, return_tensors="pt", add_special_tokens=False)
        input_ids = inputs["input_ids"].to(self._device)
        return [float(self._model(input_ids=input_ids).logits[0, 0])]


class PlainDecoder:
    """transformers' own decoder, with the tensors of any head."""

    def __init__(self, scorer: RewardScorer, dtype: torch.dtype) -> None:
        loaded = scorer.loaded_model
        checkpoint = loaded.checkpoint
        self._encoder = scorer.encoder
        self._checkpoint = checkpoint
        self._model: Any = read_weights(checkpoint, dtype).eval()
        self._device = _move(self._model, loaded.device)
        assert checkpoint.head is not None
        assert checkpoint.files is not None
        tensors = checkpoint.files.read_tensors(checkpoint.head.tensors)
        if checkpoint.adapter is not None:
            trained = checkpoint.adapter.read_head()
            tensors |= {n: trained[n] for n in checkpoint.head.tensors if n in trained}
        self._tensors = {n: t.to(self._device, torch.float32) for n, t in tensors.items()}

    @use_ieee_products()
    @torch.inference_mode()
    def compute_outputs(self, item: Any, encoded: Encoded) -> list[float]:
        """See `Reference`."""
        ids, readouts = encoded.input_ids, encoded.readouts
        if self._checkpoint.kind.step_format == "skywork" and isinstance(item, StepItem):
            ids, readouts = self._tokenize_as_skywork(item)
        inputs = {"input_ids": torch.tensor([ids], device=self._device)}
        if encoded.images:
            inputs = self._read_images(item, encoded)
        hidden = self._model(**inputs).last_hidden_state[0, list(readouts)].float()
        return [float(output) for output in self._apply_head(hidden)]

    def _read_images(self, messages: Messages, encoded: Encoded) -> dict[str, torch.Tensor]:
        """Return the model's inputs, with the images of transformers' own processor."""
        from PIL import Image
        from transformers import AutoImageProcessor

        assert isinstance(self._encoder, ChatEncoder)
        assert self._encoder.image_tokens is not None
        ours = self._encoder.image_tokens.processor
        processor = AutoImageProcessor.from_pretrained(
            self._checkpoint.path,
            backend="pil",
            size={"shortest_edge": ours.min_pixels, "longest_edge": ours.max_pixels},
        )
        images = [Image.open(io.BytesIO(source)) for source, _ in get_images(messages)]
        inputs: dict[str, torch.Tensor] = dict(processor(images=images, return_tensors="pt"))
        ids = torch.tensor([encoded.vocabulary_ids])
        inputs |= {
            "input_ids": ids,
            # Without these, transformers computes positions of one row, without a warning.
            "mm_token_type_ids": (ids == encoded.images[0].image.placeholder_id).int(),
        }
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def _tokenize_as_skywork(self, item: StepItem) -> tuple[TokenIds, tuple[int, ...]]:
        """Tokenize as the inference code of Skywork-o1-Open-PRM does, with its own tokenizer."""
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(self._checkpoint.path)
        assert isinstance(item.prompt, str)
        assert item.response is not None
        ids: list[int] = tokenizer.encode(f"{tokenizer.bos_token}{item.prompt}\n")
        marker = tokenizer.encode("\n")[-1]
        readouts = []
        for line in item.response.split("\n"):
            ids += tokenizer.encode(line) if line else []
            readouts.append(len(ids))
            ids.append(marker)
        return tuple(ids), tuple(readouts)

    def _apply_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `[num_readouts, hidden_size]` to `[num_readouts]`."""
        layout = self._checkpoint.head
        assert layout is not None
        tensors = self._tensors
        if layout.name == "lm_head":
            config = self._model.config.get_text_config()
            weight = tensors.get("lm_head.weight", self._model.get_input_embeddings().weight)
            logits = torch.nn.functional.linear(hidden, weight.float(), tensors.get("lm_head.bias"))
            if softcap := getattr(config, "final_logit_softcapping", None):
                logits = softcap * torch.tanh(logits / softcap)
            first, *second = layout.tokens or self._encoder.label_ids
            return logits[:, first] - logits[:, second[0]] if second else logits[:, first]
        if layout.name == "score MLP":
            inner = torch.nn.functional.linear(
                hidden, tensors["score.0.weight"], tensors.get("score.0.bias")
            )
            hidden = inner.relu()
        name = layout.tensors[0]
        bias = tensors.get(name.removesuffix("weight") + "bias")
        labels = torch.nn.functional.linear(hidden, tensors[name], bias)
        return labels @ torch.tensor(layout.factors, device=labels.device)


def _move(model: Any, device: torch.device) -> torch.device:
    """Move a model to a device, or to the CPU if it does not fit; return where it is."""
    try:
        model.to(device)
    except torch.OutOfMemoryError:  # float32 takes twice the memory; the CPU is slow but works
        device = torch.device("cpu")
        model.to(device)
    return device


@contextlib.contextmanager
def _freeze_clock(template: str, date: str | None) -> Iterator[None]:
    """Set the clock of transformers' own compiled template to midnight of `date`, if given.

    transformers converts functions among the template's variables to text, so the clock can only be
    replaced in the globals of the template's environment.
    """
    if date is None:
        yield
        return
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template_globals = _compile_jinja_template(template).environment.globals
    clock = template_globals["strftime_now"]
    template_globals["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
    try:
        yield
    finally:
        template_globals["strftime_now"] = clock
