"""A forward pass that a test replaces while the scorer is in use."""

from __future__ import annotations

from rm_core.model.forward import ForwardPass, LaunchedBatch, forward_batch
from rm_core.model.loading import LoadedModel
from rm_core.packing import PrefixTree
from rm_core.prefix_cache import CachedBatch


class ForwardStub:
    """The real forward pass, until a test sets another one.

    Attributes:
        run: the forward pass that runs.
    """

    def __init__(self, run: ForwardPass = forward_batch) -> None:
        self.run = run

    def __call__(
        self,
        loaded_model: LoadedModel,
        tree: PrefixTree,
        row_multiple: int = 1,
        cached: CachedBatch | None = None,
    ) -> LaunchedBatch | list[float]:
        return self.run(loaded_model, tree, row_multiple, cached)
