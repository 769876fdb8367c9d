"""Executor with a model in this process: one thread tokenizes and packs, another runs the device.

The model is loaded for the first conversations. The token budget is then derived from free memory
and kept with the job: with other batches, a reward may differ in its last bits from the reward of
an uninterrupted run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from typing import Any

from rm_core import (
    BatchConfig,
    DeviceMemoryError,
    Encoded,
    Encoder,
    ModelConfig,
    NotReadyError,
    Packing,
    RewardScorer,
    ScoreError,
    Truncation,
    list_readouts,
    load_encoder,
    merge_results,
    open_checkpoint,
)
from rm_core.model.placement import resolve_devices, resolve_dtype
from serve.jobs.executors.base import (
    Executor,
    ScoreBatchResult,
    ScoringModel,
    collect_reward_settings,
)
from serve.jobs.inputs.items import ScoringInput
from serve.jobs.storage import LocalFile

logger = logging.getLogger(__name__)

# One call on the device, one ready for the device, one being tokenized.
_CAPACITY = 3
_IMAGE_SETTINGS = ("min_pixels", "max_pixels", "max_image_bytes", "max_image_pixels", "max_images")
Encodings = list[Encoded | ScoreError]


class LocalExecutor(Executor):
    """Scores in this process.

    Args:
        config: configuration of the model.
        max_batch_tokens: token budget of an earlier run of the job; None to derive it.
    """

    def __init__(self, config: ModelConfig, max_batch_tokens: int | None = None) -> None:
        super().__init__()
        self._turn = asyncio.Lock()  # where a call waits for the device, it can be cancelled
        self._config = config
        self._max_batch_tokens = max_batch_tokens
        # One thread each: tokenizer and model are not used by two threads at a time.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._closing = Event()
        self._scorer: RewardScorer | None = None

    def resolve_identity(self) -> dict[str, Any]:
        """See `resolve_local_identity`."""
        return resolve_local_identity(self._config)

    @property
    def capacity(self) -> int:
        """Number of calls that keeps the device busy while the next call is tokenized."""
        return _CAPACITY

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """Return the model if it is loaded or `fetch` is set."""
        if self._scorer is None and not fetch:
            return None
        scorer = self._load()
        name = self._config.catalog_name or self._config.name
        info = scorer.describe()
        return ScoringModel(
            name,
            info.fingerprint,
            info.max_length,
            info.kind,
            info.step_format,
            collect_reward_settings(info.as_dict()),
        )

    def count_tokens(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> list[int | ScoreError]:
        """Return the number of tokens of each conversation; loads only the tokenizer."""
        encoded = self._encoder.encode_all(conversations, truncation)
        return [e if isinstance(e, ScoreError) else e.num_tokens for e in encoded]

    def close(self) -> None:
        """Stop the threads; no further batch starts."""
        self._closing.set()
        super().close()

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self._config)

    async def _prepare(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> tuple[Encodings, Packing]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenizing, self._pack, conversations, truncation)

    async def _score(self, prepared: tuple[Encodings, Packing]) -> ScoreBatchResult:
        assert self._scorer
        encoded, packing = prepared
        score = partial(self._scorer.score_packing, packing, self._begin)
        batch = await asyncio.get_running_loop().run_in_executor(self._device, score)
        return ScoreBatchResult(
            merge_results(encoded, batch.outputs, self._scorer.encoder.kind),
            batch.num_computed_tokens,
            max_batch_tokens=self._max_batch_tokens,
        )

    async def _disconnect(self) -> None:
        self._tokenizing.shutdown(cancel_futures=True)
        self._device.shutdown(cancel_futures=True)

    def _pack(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> tuple[Encodings, Packing]:
        scorer = self._load()
        encoded = scorer.encoder.encode_all(conversations, truncation)
        items = [item for item in encoded if isinstance(item, Encoded)]
        readouts = list_readouts(items, scorer.encoder.kind)
        images = [placed.image for item in items for placed in item.images]
        ids = [item.input_ids for item in items]
        return encoded, scorer.pack(ids, readouts=readouts, images=images)

    def _begin(self, _num_tokens: int) -> None:
        # Called before each batch, so that a stopping job does not wait for all batches.
        if self._closing.is_set():
            raise NotReadyError("the job is stopping; run the same command again to score the rest")

    def _load(self) -> RewardScorer:
        if self._scorer is None:
            kept_budget = self._max_batch_tokens
            # What is cached depends on where a job was stopped. Where rewards depend on that in
            # their last bits, the output of a resumed job would be another one.
            cache_bytes = None if self._config.deterministic else 0
            batching = BatchConfig(kept_budget, cache_bytes, cache_bytes)
            scorer = RewardScorer.load(self._config, batching)
            if scorer.loaded_model.batch_invariant:
                cache_bytes = None
                batching = BatchConfig(kept_budget)
                scorer = RewardScorer(scorer.loaded_model, batching)
            try:
                scorer.warm_up()
            except DeviceMemoryError:
                if kept_budget is None:
                    raise
                logger.warning(
                    "batches of %d tokens, which this job used before, no longer fit into the "
                    "device's memory: with smaller batches, rewards may differ in their last bits",
                    kept_budget,
                )
                batching = BatchConfig(None, cache_bytes, cache_bytes)
                scorer = RewardScorer(scorer.loaded_model, batching)
                scorer.warm_up()
            self._max_batch_tokens = scorer.describe().max_batch_tokens
            self._scorer = scorer
            gc.freeze()  # the model is never collected, so keep the collector from walking it
        return self._scorer


def resolve_local_identity(config: ModelConfig) -> dict[str, Any]:
    """Return what decides the rewards of a model on this machine, without reading weights.

    Raises:
        ModelLoadError: the model or the device does not exist.
    """
    checkpoint = open_checkpoint(config)
    device = resolve_devices(config.device, config.num_devices)[0]
    dtype = resolve_dtype(config.dtype, device, checkpoint.family)
    template = config.chat_template
    identity = {
        "revision": checkpoint.identity,
        "chat_template": template and _hash_file(template),
        "max_length": config.max_length or checkpoint.max_length,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "attention": config.attention,
        "quantization": config.quantization,
        "deterministic": config.deterministic,
    }
    if config.template_date and checkpoint.may_ask_for_date(template):
        identity["template_date"] = config.template_date
    if checkpoint.vision is not None:
        identity |= {name: getattr(config, name) for name in _IMAGE_SETTINGS}
    if checkpoint.kind.kind != "classifier":
        judge_template = config.judge_template
        identity |= {
            "kind": checkpoint.kind.kind,
            "step_format": checkpoint.kind.step_format,
            "judge_template": judge_template and _hash_file(judge_template),
        }
    return identity


def _hash_file(path: str) -> str:
    return LocalFile(Path(path).expanduser()).compute_sha256()
