"""Executor on a Ray cluster: the scorers of the service, and its scheduler in this process.

The scheduler (`serve.scheduler.dispatcher`) forms batches, isolates conversations that crash
replicas, and sends the batches of lost or stuck replicas again; Ray Serve replaces those. Batches
depend on the moment, so rewards differ in their last bits from run to run, unless the model is
`deterministic`.

The job does not use Ray Data. Measured on Ray 2.60, one exception aborts the whole job, resuming
from its checkpoint hung or failed an assertion, 10,000 rows took 7 s against 0.19 s in plain
Python, and it does not find the conversation that crashes a worker.

Every node needs the same version of this package, with torch and transformers (which is why the
package is not sent along), and the checkpoint under the same name: a hub id, or a folder that all
nodes see. Replicas on other nodes are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import secrets
import signal
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

from rm_core import (
    NUM_OUTPUTS,
    Encoded,
    Encoder,
    ModelConfig,
    ModelInfo,
    ModelLoadError,
    ScoreError,
    Truncation,
    list_readouts,
    load_encoder,
    merge_results,
    open_checkpoint,
)
from serve.deployments.cluster import connect
from serve.errors import ReplicaBusyError, ReplicaLostError
from serve.jobs.executors.base import (
    Executor,
    ScoreBatchResult,
    ScoringModel,
    collect_reward_settings,
)
from serve.jobs.executors.local import Encodings, resolve_local_identity
from serve.jobs.inputs.items import ScoringInput
from serve.scheduler.dispatcher import Dispatcher
from serve.worker.backends import RayBackend

if TYPE_CHECKING:  # the import starts Ray's machinery, which reads variables that `connect` sets
    from serve.jobs.executors.ray_application import JobScorerReplica, ResourceRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

# While a replica scores the rest of one call, another call is in its queue.
_CALLS_PER_REPLICA = 2
_POLL_S = 1.0
_WARN_AFTER_S = 60.0


class RayExecutor(Executor):
    """Scores on a Ray cluster; connects and deploys on first use.

    Args:
        model: configuration of the model that every replica loads.
        address: address of the cluster; see `serve.deployments.cluster.connect`.
        num_replicas: exact number of replicas to request; None for as many as fit.
        replica_class: class of the replicas; `JobScorerReplica` if None.
    """

    def __init__(
        self,
        model: ModelConfig,
        address: str,
        num_replicas: int | None = None,
        replica_class: type[JobScorerReplica] | None = None,
    ) -> None:
        super().__init__()
        self._model, self._address, self._num_replicas = model, address, num_replicas
        self._replica_class = replica_class
        self._name = f"skyreward-job-{secrets.token_hex(6)}"
        # The tokenizer is not used by two threads at a time.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._connection: Future[ResourceRequest] | None = None
        self._has_joined = self._has_application = False
        self._deployment: asyncio.Task[Dispatcher] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._backend: RayBackend | None = None
        self._scoring_model: ScoringModel | None = None
        self._owner: Any = None  # keeps the actor alive that the application belongs to

    def resolve_identity(self) -> dict[str, Any]:
        """See `Executor`; connects to the cluster, because its GPUs decide the dtype."""
        if self._address == "local":
            return resolve_local_identity(self._model)
        # This machine may not have a GPU; the rest of the identity is the same for both devices.
        identity = resolve_local_identity(replace(self._model, device="cpu", num_devices=1))
        if self._connect().result().kind == "GPU":
            dtype = "bfloat16" if self._model.dtype == "auto" else self._model.dtype
            identity |= {"device": "cuda", "dtype": dtype}
        return identity

    def get_scoring_model(self, *, fetch: bool = False) -> ScoringModel | None:
        """See `Executor`."""
        if self._scoring_model is None and fetch:
            self._connect()
            self._run(self._get_dispatcher()).result()
        return self._scoring_model

    @property
    def capacity(self) -> int:
        """See `Executor`."""
        return _CALLS_PER_REPLICA * max(1, self._backend.num_replicas if self._backend else 0)

    def submit(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> Future[ScoreBatchResult]:
        """See `Executor`; the future can be cancelled until a replica is up."""
        self._connect()
        return super().submit(conversations, truncation)

    def count_tokens(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> list[int | ScoreError]:
        """See `Executor`."""
        encoded = self._tokenizing.submit(self._encode, conversations, truncation).result()
        return [item.num_tokens if isinstance(item, Encoded) else item for item in encoded]

    async def _prepare(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> tuple[Dispatcher, Encodings]:
        dispatcher = await self._get_dispatcher()
        loop = asyncio.get_running_loop()
        encode = partial(self._encode, conversations, truncation)
        return dispatcher, await loop.run_in_executor(self._tokenizing, encode)

    async def _score(self, prepared: tuple[Dispatcher, Encodings]) -> ScoreBatchResult:
        dispatcher, encoded = prepared
        items = [item for item in encoded if isinstance(item, Encoded)]
        kind = self._encoder.kind
        with dispatcher.open_flow("job", priority=0) as flow:
            outputs = await self._until_failure(
                dispatcher.compute_outputs(
                    flow,
                    [item.input_ids for item in items],
                    list_readouts(items, kind),
                    {i.input_ids: tuple(p.image for p in i.images) for i in items if i.images},
                )
            )
        return ScoreBatchResult(merge_results(encoded, outputs, kind), flow.num_computed_tokens)

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self._model)

    def _encode(
        self, conversations: Sequence[ScoringInput], truncation: Truncation
    ) -> list[Encoded | ScoreError]:
        return self._encoder.encode_all(conversations, truncation)

    def _connect(self) -> Future[ResourceRequest]:
        """Connect to the cluster at the first call; return what each replica needs, or the error.

        Called on the thread of the job, and blocks it.
        """
        if self._connection is None:
            self._connection = self._run(self._connect_here())
            self._connection.exception()
            if threading.current_thread() is threading.main_thread():
                # Ray now handles SIGTERM: it would abort this process 3 s later.
                signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        return self._connection

    async def _connect_here(self) -> ResourceRequest:
        self._has_joined = connect(self._address)
        from serve.jobs.executors.ray_application import choose_resource_request, list_nodes

        return choose_resource_request(self._model, self._num_replicas, list_nodes())

    async def _get_dispatcher(self) -> Dispatcher:
        if self._deployment is None:
            self._deployment = asyncio.create_task(self._deploy())
        return await asyncio.shield(self._deployment)

    async def _deploy(self) -> Dispatcher:
        """Deploy the application and wait until a replica is up.

        Raises:
            ModelLoadError: the cluster does not exist, or no replica can load the model.
        """
        assert self._connection
        request = self._connection.result()
        from serve.jobs.executors.ray_application import JobScorerReplica, deploy

        self._has_application = True
        handle, self._owner = deploy(
            self._name,
            self._model,
            request,
            self._num_replicas,
            {
                "revision": open_checkpoint(self._model, weights=False).identity,
                "encoding_sha256": self._encoder.encoding_sha256,
            },
            self._replica_class or JobScorerReplica,
        )
        alias = self._model.catalog_name or self._model.name
        self._backend = backend = RayBackend(alias, handle)
        self._watching = asyncio.create_task(self._watch(backend, request))
        info = await self._until_failure(_describe(backend))
        dispatcher = Dispatcher(
            alias, backend, count_prompt_tokens=self._encoder.count_prompt_tokens
        )
        dispatcher.max_batch_tokens = info.max_batch_tokens
        dispatcher.num_outputs = NUM_OUTPUTS[info.kind]
        dispatcher.prompts.max_tokens = info.prefix_cache_tokens
        self._scoring_model = ScoringModel(
            alias,
            info.fingerprint,
            self._encoder.max_length,
            info.kind,
            info.step_format,
            collect_reward_settings(info.as_dict()),
        )
        return dispatcher

    async def _watch(self, backend: RayBackend, request: ResourceRequest) -> None:
        """Keep the number of replicas up to date; raise if no replica can load the model."""
        from serve.launch.ray import find_deploy_failure

        idle_since = time.monotonic()
        while True:
            if reason := await asyncio.to_thread(find_deploy_failure, self._name):
                raise ModelLoadError(f"no replica of the job can score: {reason}")
            await backend.refresh()
            if backend.num_replicas:
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > _WARN_AFTER_S:
                idle_since = time.monotonic()
                logger.warning("no replica is up yet; each replica needs %s", request)
            await asyncio.sleep(_POLL_S)

    async def _until_failure(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine, unless `_watch` fails first."""
        assert self._watching
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._watching}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await self._watching
            return await task
        finally:
            task.cancel()

    async def _disconnect(self) -> None:
        self._tokenizing.shutdown(cancel_futures=True)
        tasks = [task for task in (self._deployment, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()
        # Ray prints each call that Serve's controller no longer answers.
        with contextlib.redirect_stdout(io.StringIO()):
            # A private cluster ends with everything on it.
            if self._has_application and not (self._has_joined and self._address == "local"):
                from serve.jobs.executors.ray_application import remove_application

                with contextlib.suppress(Exception):  # the cluster may be gone
                    remove_application(self._name)
            if self._has_joined:
                import ray

                ray.shutdown()


async def _describe(backend: RayBackend) -> ModelInfo:
    while True:
        try:
            return await backend.describe()
        except (ReplicaBusyError, ReplicaLostError):
            await asyncio.sleep(_POLL_S)
