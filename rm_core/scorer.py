"""`RewardScorer`: conversations in, rewards out.

from rm_core import ModelConfig, RewardScorer

scorer = RewardScorer.load(ModelConfig("demo"))
results = scorer.score([[{"role": "user", "content": "2+2?"},
                         {"role": "assistant", "content": "4"}]])
print(results[0].reward)
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from rm_core.config import BatchConfig, ModelConfig
from rm_core.errors import (
    DeviceFailedError,
    DeviceMemoryError,
    InvalidConversationError,
    NonFiniteRewardError,
    RewardError,
    ScoringError,
)
from rm_core.inputs.base_encoder import Encoder
from rm_core.inputs.encoder import ChatEncoder, find_readout_position
from rm_core.memory import (
    VisionCacheSize,
    build_full_batch,
    choose_budget,
    choose_prefix_cache_size,
    choose_vision_cache_bytes,
    estimate_bytes_per_token,
    estimate_tower_bytes,
    halve,
)
from rm_core.model.decoder import get_head_dim, get_num_key_value_heads
from rm_core.model.device_errors import convert_device_errors
from rm_core.model.forward import ForwardPass, LaunchedBatch, launch_batch
from rm_core.model.loading import LoadedModel, load_model
from rm_core.model.offload import free_unused_memory, offload_weights, restore_weights
from rm_core.model.placement import get_layer_devices
from rm_core.model.vision import MAX_PATCHES
from rm_core.packing import Packing, PrefixTree, Readouts, TokenIds, pack, split_in_half
from rm_core.prefix_cache import PrefixCache
from rm_core.results import NUM_OUTPUTS, Aggregation, list_readouts, merge_results
from rm_core.types import (
    BatchResult,
    Encoded,
    EncodedImage,
    Fingerprint,
    ModelInfo,
    Reward,
    ScoreError,
    Truncation,
)

logger = logging.getLogger(__name__)

# Number of batches on a device at a time: on CUDA the next batch is prepared and launched while the
# device computes. A CPU that prepares does not compute.
_BATCHES_IN_FLIGHT = {"cuda": 2, "cpu": 1}


class _RunningBatch(NamedTuple):
    """A batch that was launched, or failed to."""

    tree: PrefixTree  # the batch
    # The tree of the row that runs: without the tokens that are in the prefix cache.
    row: PrefixTree
    logits: LaunchedBatch | list[float] | None  # result of the forward pass; None if it failed
    failure: ScoreError | None = None  # why it failed


class _ScoredBatch(NamedTuple):
    """Results of a batch: outputs in the order of its readouts, and its tokens."""

    outputs: list[float | ScoreError]
    num_computed_tokens: int
    num_cached_tokens: int


class RewardScorer:
    """A loaded reward model. Not thread-safe: use it from one thread at a time.

    Args:
        loaded_model: result of `rm_core.model.loading.load_model`. `RewardScorer.load` loads a
            model and creates the scorer.
        batching: size of batches.
        forward: runs a batch through the model; tests pass another one.
    """

    def __init__(
        self,
        loaded_model: LoadedModel,
        batching: BatchConfig | None = None,
        forward: ForwardPass = launch_batch,
    ) -> None:
        self._loaded_model = loaded_model
        self._forward = forward
        self._num_outputs = NUM_OUTPUTS[loaded_model.checkpoint.kind.kind]
        batching = batching or BatchConfig()
        model = loaded_model.model
        config, dtype = model.config.get_text_config(), model.dtype
        tower = loaded_model.vision_tower
        reserved = self._estimate_tower_bytes()
        budgets = [
            choose_budget(
                batching.max_batch_tokens,
                config,
                dtype,
                device,
                loaded_model.deterministic,
                reserved if index == 0 else 0,
            )
            for index, device in enumerate(loaded_model.devices)
        ]
        self._batches_in_flight = _BATCHES_IN_FLIGHT[loaded_model.device.type]
        self._budget = min(budgets, key=lambda budget: budget.max_batch_tokens)
        self._vision_cache_size = VisionCacheSize(0, "the model reads only text")
        if tower is not None:
            self._vision_cache_size = choose_vision_cache_bytes(
                batching.vision_cache_bytes,
                model.config,
                dtype,
                loaded_model.device,
                self._max_pixels,
                reserved + self._budget.max_batch_tokens * estimate_bytes_per_token(config, dtype),
            )
            tower.max_cache_bytes = self._vision_cache_size.num_bytes
            reserved += self._vision_cache_size.num_bytes
        self._prefix_cache_size = choose_prefix_cache_size(
            batching.prefix_cache_bytes,
            config,
            dtype,
            loaded_model.devices,
            self._budget.max_batch_tokens,
            reserved,
        )
        self._prefix_cache = self._create_prefix_cache()

    def _create_prefix_cache(self) -> PrefixCache | None:
        if not self._prefix_cache_size.num_tokens:
            return None
        model = self._loaded_model.model
        config = model.config.get_text_config()
        return PrefixCache(
            self._prefix_cache_size.num_tokens,
            get_num_key_value_heads(config),
            get_head_dim(config),
            model.dtype,
            get_layer_devices(model, self._loaded_model.devices),
        )

    def sleep(self) -> None:
        """Free the devices' memory: weights wait in the host's memory, caches are dropped.

        Nothing can be scored until `wake`.
        """
        loaded = self._loaded_model
        self._prefix_cache = None
        if loaded.vision_tower is not None:
            loaded.vision_tower.clear()
        offload_weights(loaded.model, loaded.devices)
        if loaded.device.type == "cuda":
            self._loaded_model = replace(loaded, head=loaded.head.to(torch.device("cpu")))
        free_unused_memory()

    def wake(self) -> None:
        """Undo `sleep`; rewards are the same to the last bit.

        Raises:
            ModelError: the device has too little memory now.
        """
        loaded = self._loaded_model
        try:
            with convert_device_errors():
                restore_weights(loaded.model, loaded.devices)
                head = loaded.head.to(loaded.devices[-1])
                self._loaded_model = replace(loaded, head=head)
                self._prefix_cache = self._create_prefix_cache()
        except torch.OutOfMemoryError as error:
            self.sleep()
            raise DeviceMemoryError(
                "the device has too little free memory for the weights and the prefix cache; free "
                "it, or lower `prefix_cache_bytes`, and wake the model again"
            ) from error

    def take_over(self, other: RewardScorer) -> None:
        """Take the caches of a scorer of the same architecture that will not score again."""
        self._budget = other._budget
        self._prefix_cache_size = other._prefix_cache_size
        self._prefix_cache = other._prefix_cache
        self._clear_prefix_cache()
        self._vision_cache_size = other._vision_cache_size
        if self._loaded_model.vision_tower is not None:
            self._loaded_model.vision_tower.max_cache_bytes = self._vision_cache_size.num_bytes
        if self._prefix_cache is None:  # the other one sleeps
            self._prefix_cache = self._create_prefix_cache()
        else:
            other._prefix_cache = None

    @property
    def _max_pixels(self) -> int:
        """Number of pixels of the largest image; 0 for a model that reads only text."""
        encoder = self._loaded_model.encoder
        if not isinstance(encoder, ChatEncoder) or encoder.image_tokens is None:
            return 0
        return encoder.image_tokens.processor.max_pixels

    def _estimate_tower_bytes(self) -> int:
        model = self._loaded_model.model
        if self._loaded_model.vision_tower is None:
            return 0
        vision = model.config.vision_config
        num_patches = max(MAX_PATCHES, self._max_pixels // vision.patch_size**2)
        return estimate_tower_bytes(vision, model.dtype, num_patches)

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        batching: BatchConfig | None = None,
        forward: ForwardPass = launch_batch,
    ) -> RewardScorer:
        """Load a checkpoint and run the self-check.

        Raises:
            ModelLoadError: the checkpoint cannot be loaded, or would give wrong rewards.
        """
        scorer = cls(load_model(config), batching, forward)
        scorer._compare_with_plain_transformers()
        return scorer

    def _compare_with_plain_transformers(self) -> None:
        check = self._loaded_model.self_check
        if check is None:
            logger.warning("the self-check is disabled: rewards are not compared at load time")
            return
        scored = self.score_ids(check.sequences, images=check.images)
        difference = check.compare(scored.outputs)
        if self._prefix_cache is not None:
            self._prefix_cache.clear()
        logger.info("self-check: largest difference from plain transformers %.2g", difference)

    @property
    def encoder(self) -> Encoder:
        """Encoder that renders and tokenizes conversations for this model."""
        return self._loaded_model.encoder

    @property
    def fingerprint(self) -> Fingerprint:
        """Fingerprint of the rewards of this model."""
        return self._loaded_model.fingerprint

    @property
    def loaded_model(self) -> LoadedModel:
        """The loaded model, for measurements and comparisons."""
        return self._loaded_model

    def describe(self) -> ModelInfo:
        """Return the effective settings, with the reason of each automatic choice."""
        loaded = self._loaded_model
        entry = loaded.checkpoint.entry
        return ModelInfo(
            kind=loaded.checkpoint.kind.kind,
            kind_reason=loaded.checkpoint.kind.reason,
            step_format=loaded.checkpoint.kind.step_format,
            catalogue_id=entry.id if entry else None,
            family=loaded.checkpoint.family,
            **asdict(loaded.fingerprint),
            encoding_sha256=self.encoder.encoding_sha256,
            template_depends_on_date=self.encoder.depends_on_date,
            head=loaded.head.description,
            head_dtype="float32",
            readout_layer=loaded.readout_layer,
            device=", ".join(map(str, loaded.devices)),
            attention_reason=loaded.attention.reason,
            max_length=self.encoder.max_length,
            max_batch_tokens=self._budget.max_batch_tokens,
            max_batch_tokens_reason=self._budget.reason,
            prefix_cache_tokens=self._prefix_cache_size.num_tokens,
            prefix_cache_bytes=self._prefix_cache_size.num_bytes,
            prefix_cache_reason=self._prefix_cache_size.reason,
            vision_cache_bytes=self._vision_cache_size.num_bytes,
            vision_cache_reason=self._vision_cache_size.reason,
            deterministic=loaded.deterministic,
            compiled=loaded.compilation.is_compiled,
            compiled_reason=loaded.compilation.reason,
            self_check=loaded.self_check is not None,
            tokenizer=self.encoder.text_tokenizer.choice.name,
            tokenizer_reason=self.encoder.text_tokenizer.choice.reason,
        )

    def warm_up(self, largest_batch: bool | None = None) -> None:
        """Score a short item, so that the first request does not pay for lazy setup.

        Args:
            largest_batch: whether to verify the batch budget by running a full batch as well. None
                does so on CUDA only. An automatic budget is halved until a full batch fits.

        Raises:
            DeviceMemoryError: a full batch of the requested budget does not fit.
            ModelError: the model cannot score the short item.
        """
        self.probe()
        if largest_batch is None:
            largest_batch = self._loaded_model.device.type == "cuda"
        while largest_batch and not self._fits():
            if not self._budget.is_automatic or self._budget.max_batch_tokens == 1:
                raise DeviceMemoryError(
                    f"a batch of max_batch_tokens = {self._budget.max_batch_tokens} does not fit "
                    "into the device's memory; lower the setting, or leave it unset for an "
                    "automatic budget"
                )
            self._budget = halve(self._budget)
            logger.warning("batch budget: %s", self._budget.reason)

    def probe(self) -> Reward:
        """Score the encoder's probe. A working model always returns the same first output.

        Raises:
            ModelError: the probe cannot be scored.
        """
        encoded = self.encoder.encode(self.encoder.probe)
        output = self.score_ids([encoded.input_ids]).outputs[0]
        if isinstance(output, ScoreError):
            raise ScoringError(f"the warm-up conversation could not be scored: {output.message}")
        return Reward(output, encoded.num_tokens)

    def _fits(self) -> bool:
        """Return whether a full batch fits into the device's memory."""
        tree = build_full_batch(self._budget.max_batch_tokens, self.encoder.max_length)
        try:
            with convert_device_errors():
                _read(self._forward(self._loaded_model, tree, self._row_multiple, None))
        except torch.OutOfMemoryError:
            return False
        return True

    @property
    def _row_multiple(self) -> int:
        """Rows are padded to a multiple of this number of tokens: one shape if batch-invariant."""
        return self._budget.max_batch_tokens if self._loaded_model.deterministic else 1

    def score(
        self,
        conversations: Iterable[object],
        truncation: Truncation = "error",
        aggregation: Aggregation = "last",
    ) -> list[Reward | ScoreError]:
        """Score conversations; result i belongs to conversation i.

        Args:
            conversations: each a list of messages (`role`, `content`) that ends with the
                assistant's, or a mapping of `messages` and `tools` (JSON schemas that the template
                renders). For a step model also `StepItem`s; for a judge, `JudgePair`s.
            truncation: how to treat conversations over the limit; see `ChatEncoder.encode`.
            aggregation: how a step model's rewards of steps become the reward.

        Returns:
            A `Reward` for each conversation, or a `ScoreError` if it cannot be scored.
        """
        encoded = self.encoder.encode_all(conversations, truncation)
        kind = self._loaded_model.checkpoint.kind.kind
        items = [item for item in encoded if isinstance(item, Encoded)]
        scored = self.score_ids(
            [item.input_ids for item in items],
            list_readouts(items, kind),
            [placed.image for item in items for placed in item.images],
        )
        return merge_results(encoded, scored.outputs, kind, aggregation)

    def score_ids(
        self,
        sequences: Sequence[TokenIds],
        readouts: Sequence[Readouts] = (),
        images: Collection[EncodedImage] = (),
    ) -> BatchResult:
        """Score token ids without changing them.

        Args:
            sequences: token ids of each sequence, none empty and none longer than the model's
                positions. A sequence with an id outside the embedding gets a `ScoreError`.
            readouts: see `pack`.
            images: see `pack`.

        Raises:
            DeviceFailedError: the device failed; this process cannot score again.
        """
        # On CUDA, an unknown id triggers an assertion on the device, which ends the process.
        image_ids = {token for image in images for token in image.token_ids[:4]}
        errors = [self._validate_ids(ids, image_ids) for ids in sequences]
        readouts = readouts or [()] * len(sequences)
        valid = [
            (ids, positions)
            for ids, positions, error in zip(sequences, readouts, errors, strict=True)
            if error is None
        ]
        scored = self.score_packing(
            self.pack(
                [ids for ids, _ in valid],
                readouts=[positions for _, positions in valid],
                images=images,
            )
        )
        outputs = iter(scored.outputs)
        num_outputs = self._num_outputs
        return replace(
            scored,
            outputs=tuple(
                error or next(outputs)
                for positions, error in zip(readouts, errors, strict=True)
                for _ in range(num_outputs * (len(positions) or 1))
            ),
        )

    def _validate_ids(self, ids: TokenIds, image_ids: Collection[int]) -> ScoreError | None:
        embedding: Any = self._loaded_model.model.get_input_embeddings()
        num_ids = int(embedding.num_embeddings)
        if min(ids) >= 0 and max(ids) < num_ids:
            return None
        distinct = dict.fromkeys(ids)  # an image has four distinct ids for thousands of tokens
        unknown = next((t for t in distinct if not 0 <= t < num_ids and t not in image_ids), None)
        if unknown is None:
            return None
        return ScoreError.from_exception(
            InvalidConversationError(
                f"token id {unknown} does not exist in this model, whose ids are from 0 to "
                f"{num_ids - 1}; was the conversation tokenized for another model?"
            )
        )

    def pack(
        self,
        sequences: Sequence[TokenIds],
        salts: Sequence[str] = (),
        readouts: Sequence[Readouts] = (),
        images: Iterable[EncodedImage] = (),
    ) -> Packing:
        """Pack sequences up to their last readout into batches.

        The first half of `score_ids`, without the model. May run on another thread.

        Args:
            sequences: see `score_ids`.
            salts: see `rm_core.packing.pack`.
            readouts: indices of the tokens at which each sequence is read; where empty, the last
                token that is not the pad token.
            images: images whose token ids the sequences have.
        """
        pad = self._loaded_model.pad_token_id
        up_to_readout = [
            ids[: (positions[-1] if positions else find_readout_position(ids, pad)) + 1]
            for ids, positions in zip(sequences, readouts or [()] * len(sequences), strict=True)
        ]
        cache = self._prefix_cache  # another thread may drop it
        count_cached = cache.count if cache else lambda *_: 0
        return pack(
            up_to_readout, self._budget.max_batch_tokens, count_cached, salts, readouts, images
        )

    def score_packing(
        self, packing: Packing, on_batch_start: Callable[[int], None] | None = None
    ) -> BatchResult:
        """Run the batches through the model: the second half of `score_ids`.

        Args:
            packing: result of `pack`.
            on_batch_start: called with the number of tokens of each batch before the batch is
                launched; on CUDA, the batch before it may still run. Its exceptions propagate.
        """
        scored: list[_ScoredBatch] = []
        running: deque[_RunningBatch] = deque()
        started = time.perf_counter()
        for tree in packing.batches:
            if on_batch_start is not None:
                on_batch_start(tree.num_tokens)
            running.append(self._launch(tree))
            # A batch that failed is retried with nothing else in the device's memory.
            while len(running) >= self._batches_in_flight or (running and running[-1].failure):
                scored.append(self._finish(running.popleft()))
        scored += [self._finish(batch) for batch in running]
        outputs = [output for batch in scored for output in batch.outputs]
        return BatchResult(
            tuple(packing.restore(outputs)),
            sum(batch.num_computed_tokens for batch in scored),
            time.perf_counter() - started,
            self.fingerprint,
            num_prefix_tokens=sum(batch.num_cached_tokens for batch in scored),
            prefix_cache_bytes=self._prefix_cache.num_bytes if self._prefix_cache else 0,
        )

    def _launch(self, tree: PrefixTree) -> _RunningBatch:
        """Start a batch on the device."""
        try:
            with convert_device_errors():
                return self._launch_row(tree)
        except DeviceFailedError:  # not specific to a conversation: every further batch fails too
            self._clear_prefix_cache()
            raise
        # Any other exception of the forward pass is attributed to a conversation of the batch.
        except Exception as error:
            return _RunningBatch(tree, tree, None, _convert_failure(error, tree))

    def _launch_row(self, tree: PrefixTree) -> _RunningBatch:
        """Start a batch without the tokens that are in the prefix cache, and keep its prompts.

        What the cache keeps is there for every batch that is launched later, since a device works
        in the order of the launches.
        """
        if self._prefix_cache is None:
            logits = self._forward(self._loaded_model, tree, self._row_multiple, None)
            return _RunningBatch(tree, tree, logits)
        num_kept = [self.encoder.count_prompt_tokens(ids) for ids in tree.sequences]
        cached = self._prefix_cache.acquire(tree, num_kept)
        try:
            logits = self._forward(self._loaded_model, cached.tree, self._row_multiple, cached)
        except BaseException:
            self._prefix_cache.release(cached)
            raise
        self._prefix_cache.commit(cached)
        return _RunningBatch(tree, cached.tree, logits)

    def _finish(self, batch: _RunningBatch) -> _ScoredBatch:
        """Wait for a batch and return its outputs. A failed batch is retried in halves."""
        tree, row, logits, failure = batch
        if logits is not None:
            try:
                with convert_device_errors():
                    values = _read(logits)
            except DeviceFailedError:
                self._clear_prefix_cache()
                raise
            except Exception as error:
                # The prompts of this batch, and of those launched since, may be wrong.
                self._clear_prefix_cache()
                failure = _convert_failure(error, tree)
            else:
                return self._build_scored_batch(row, values)
        assert failure is not None
        # Outside the handlers, since their traceback keeps the batch's tensors on the device.
        if len(tree.sequences) == 1:
            num_failures = self._num_outputs * len(tree.read_rows[0])
            return _ScoredBatch([failure] * num_failures, tree.num_tokens, 0)
        left, right = (self._finish(self._launch(half)) for half in split_in_half(tree))
        return _ScoredBatch(
            left.outputs + right.outputs,
            left.num_computed_tokens + right.num_computed_tokens,
            left.num_cached_tokens + right.num_cached_tokens,
        )

    def _build_scored_batch(self, row: PrefixTree, outputs: list[float]) -> _ScoredBatch:
        assert len(outputs) == self._num_outputs * sum(map(len, row.read_rows))
        return _ScoredBatch(
            [output if math.isfinite(output) else _non_finite(output) for output in outputs],
            row.num_tokens,
            row.num_cached_tokens,
        )

    def _clear_prefix_cache(self) -> None:
        if self._prefix_cache is not None:
            self._prefix_cache.clear()


def _read(logits: LaunchedBatch | list[float]) -> list[float]:
    return logits.read() if isinstance(logits, LaunchedBatch) else logits


def _convert_failure(error: Exception, tree: PrefixTree) -> ScoreError:
    logger.exception("a batch of %d conversations failed", len(tree.sequences))
    return ScoreError.from_exception(_scoring_error(error, tree.num_tokens))


def _non_finite(logit: float) -> ScoreError:
    return ScoreError.from_exception(
        NonFiniteRewardError(
            f"the model returned {logit} for this conversation, which is not a valid reward; the "
            "range of the dtype may be too small (setting `dtype`)"
        )
    )


def _scoring_error(error: Exception, num_tokens: int) -> RewardError:
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceMemoryError(
            f"the device ran out of memory for one conversation of {num_tokens} tokens; lower "
            "`max_length`, or use a device with more memory"
        )
    return ScoringError(
        f"the model failed on this conversation of {num_tokens} tokens "
        f"({type(error).__name__}); see the service's log for details"
    )
