"""A model in this process: one thread tokenizes and packs while another has the device.

The model is loaded when the first conversations come. How many tokens a batch may have is chosen
then, by the memory that is free, and kept with the job: with other batches a reward may differ in
its last bits from what an undisturbed run gives.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any

from rm_core import (
    BatchConfig,
    ChatEncoder,
    DeviceMemoryError,
    Encoded,
    ModelConfig,
    NotReadyError,
    Packing,
    RewardScorer,
    ScoreError,
    Truncation,
    load_encoder,
    merge_results,
    open_checkpoint,
)
from rm_core.inputs.conversations import ChatJson
from rm_core.model.placement import resolve_devices, resolve_dtype
from serve.jobs.atomic_io import compute_file_sha256, write_atomically
from serve.jobs.executors.base import ScoreBatchResult, ScoringModel

logger = logging.getLogger(__name__)

# One with the device, one ready for it, one being tokenized.
_CAPACITY = 3
Encodings = list[Encoded | ScoreError]


class LocalExecutor:
    """Scores in this process.

    Args:
        config: which model.
        budget_file: where the most tokens of a batch are kept for the job's next start; None to
            keep nothing.
    """

    drain_timeout_s: float | None = None

    def __init__(self, config: ModelConfig, budget_file: Path | None = None) -> None:
        self._config = config
        self._budget_file = budget_file
        # One thread each: neither a tokenizer nor a model is used by two at a time.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._closing = Event()
        self._scorer: RewardScorer | None = None

    def resolve_identity(self) -> dict[str, Any]:
        """See `resolve_local_identity`."""
        return resolve_local_identity(self._config)

    @property
    def capacity(self) -> int:
        """Enough that the device never waits for the tokenizer."""
        return _CAPACITY

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """The model once it is loaded."""
        if self._scorer is None and not fetch:
            return None
        scorer = self._loaded()
        name = self._config.catalog_name or self._config.name
        return ScoringModel(name, scorer.fingerprint, scorer.encoder.max_length)

    def submit(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """Begin to score; the future can be cancelled until the device has the conversations."""
        future: Future[ScoreBatchResult] = Future()
        self._tokenizing.submit(
            _passing_on, future, self._prepare, future, conversations, truncation
        )
        return future

    def count_tokens(
        self, conversations: Sequence[ChatJson], truncation: Truncation
    ) -> list[int | ScoreError]:
        """Tokens of each conversation, by the tokenizer alone."""
        encoded = self._encoder.encode_all(conversations, truncation)
        return [e if isinstance(e, ScoreError) else e.num_tokens for e in encoded]

    def close(self) -> None:
        """Let go of the threads; no other batch is begun."""
        self._closing.set()
        self._tokenizing.shutdown(cancel_futures=True)
        self._device.shutdown(cancel_futures=True)

    @cached_property
    def _encoder(self) -> ChatEncoder:
        return load_encoder(self._config)

    def _prepare(
        self,
        future: Future[ScoreBatchResult],
        conversations: Sequence[ChatJson],
        truncation: Truncation,
    ) -> None:
        if future.cancelled():
            return
        scorer = self._loaded()
        encoded = scorer.encoder.encode_all(conversations, truncation)
        packing = scorer.pack([e.input_ids for e in encoded if isinstance(e, Encoded)])
        self._device.submit(_passing_on, future, self._score, future, encoded, packing)

    def _score(
        self, future: Future[ScoreBatchResult], encoded: Encodings, packing: Packing
    ) -> None:
        assert self._scorer
        if not future.set_running_or_notify_cancel():
            return
        batch = self._scorer.score_packing(packing, self._begin)
        future.set_result(
            ScoreBatchResult(merge_results(encoded, batch), batch.num_computed_tokens)
        )

    def _begin(self, _num_tokens: int) -> None:
        # Before each batch: a job that ends need not wait for all.
        if self._closing.is_set():
            raise NotReadyError("the job ends; what was not scored is scored at its next start")

    def _loaded(self) -> RewardScorer:
        if self._scorer is None:
            kept = self._kept_budget()
            scorer = RewardScorer.load(self._config, BatchConfig(kept))
            try:
                scorer.warm_up()
            except DeviceMemoryError:
                if kept is None:
                    raise
                logger.warning(
                    "the batches of %d tokens that this job began with no longer fit into the "
                    "device's memory: with smaller ones, rewards may differ in their last bits",
                    kept,
                )
                scorer = RewardScorer(scorer.loaded_model)
                scorer.warm_up()
            self._keep_budget(int(scorer.describe()["max_batch_tokens"]))
            self._scorer = scorer
            gc.freeze()  # the model stays: the collector need not go through it
        return self._scorer

    def _kept_budget(self) -> int | None:
        if self._budget_file:
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                return int(json.loads(self._budget_file.read_bytes())["max_batch_tokens"])
        return None

    def _keep_budget(self, max_batch_tokens: int) -> None:
        if self._budget_file and self._kept_budget() != max_batch_tokens:
            plain = json.dumps({"max_batch_tokens": max_batch_tokens})
            write_atomically(self._budget_file, plain.encode())


def resolve_local_identity(config: ModelConfig) -> dict[str, Any]:
    """What decides the rewards of a model on the devices of this machine; reads no weights.

    Raises:
        ModelLoadError: there is no such model, or no such device.
    """
    checkpoint = open_checkpoint(config)
    device = resolve_devices(config.device, config.num_devices)[0]
    dtype = resolve_dtype(config.dtype, device, checkpoint.family)
    template = config.chat_template
    dated = config.template_date and (
        {"template_date": config.template_date} if checkpoint.may_ask_for_date(template) else {}
    )
    return {
        "revision": checkpoint.revision,
        "chat_template": template and compute_file_sha256(Path(template).expanduser()),
        "max_length": config.max_length or checkpoint.max_length,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "attention": config.attention,
        "quantization": config.quantization,
        "deterministic": config.deterministic,
        **(dated or {}),
    }


def _passing_on(
    future: Future[ScoreBatchResult], work: Callable[..., None], *arguments: Any
) -> None:
    """Do a part of a future's work; an error is the future's."""
    try:
        work(*arguments)
    # Whatever it is, whoever waits for the future must hear of it.
    except BaseException as error:
        if not future.cancelled():
            future.set_exception(error)
