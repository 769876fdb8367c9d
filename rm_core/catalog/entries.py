"""The catalog: facts about each checkpoint and their status, read from `seeds/catalog`.

Every item that could be wrong is a `Fact`: a value, its status, and the key of its source in
`load_sources()`. The module only reads JSON, never a checkpoint. Start at `load_catalog` and
`find_entry`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from rm_core.config import Kind, StepFormat
from rm_core.strict_dataclass import read_dataclass, read_with_sources

T = TypeVar("T")

Status: TypeAlias = Literal["confirmed", "third_party", "inferred", "unconfirmed"]
"""Confirmed by the authors, by a third party, inferred from other facts, or not confirmed."""

Series: TypeAlias = Literal["v0.1", "v0.2", "v2", "o1-open-prm", "critic", "vl"]
Family: TypeAlias = Literal["llama", "gemma2", "qwen3", "qwen2", "qwen2_5_vl"]
HeadKind: TypeAlias = Literal["score", "value_head", "lm_head"]
"""The score row of a classifier, `v_head` with a bias, or rows of the language-model head."""
BenchmarkName: TypeAlias = Literal[
    "rewardbench",
    "rewardbench2",
    "ppe-preference",
    "ppe-correctness",
    "rmb",
    "rm-bench",
    "judgebench",
    "average-of-seven",  # unweighted mean of the seven benchmarks above, as in the V2 table
    "processbench",
    "prmbench",
    "best-of-8",
    "best-of-64",
    "vl-rewardbench",
    "rewardmath",
    "plan-rewardbench",
    "m-rewardbench",
]
_FULL_SCALE = {"percent": 100.0, "fraction": 1.0}
_CACHE_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """One fact with its source."""

    value: T | None  # None if and only if `status` is `unconfirmed`; lists are tuples
    status: Status  # how the value is confirmed
    source: str  # key in `load_sources()`; for an unconfirmed value, where it could be found
    note: str = ""  # a reason or a limitation; may be empty

    def __post_init__(self) -> None:
        if (self.value is None) != (self.status == "unconfirmed"):
            raise ValueError(f"a value must be null if and only if it is unconfirmed: {self}")


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """One benchmark result from a published table, in the unit of that table."""

    benchmark: BenchmarkName
    metric: str
    value: float
    unit: Literal["percent", "fraction"]
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.value <= _FULL_SCALE[self.unit]:
            raise ValueError(f"{self.value} is not a {self.unit}")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of the decoder, and parameters of the vision tower (None for a model of text)."""

    hidden_size: Fact[int]
    num_layers: Fact[int]
    num_heads: Fact[int]
    num_kv_heads: Fact[int]
    head_dim: Fact[int]
    intermediate_size: Fact[int]
    vocab_size: Fact[int]
    vision_parameters: Fact[int] | None = None


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """Behavior of the checkpoint's chat template."""

    renders_bos: Fact[bool]  # whether the rendered text itself begins with the BOS token
    # Whether the authors allow system prompts or advise against them.
    system_prompt: Fact[Literal["allowed", "advised_against"]]
    # Text at the end of every rendered chat. The reward is read at its last token.
    last_text: Fact[str]
    notes: tuple[Fact[str], ...]  # further traits, one sentence each
    # Whether the template renders a header with dates; None for a family without such a header.
    dated_header: Fact[bool] | None = None


@dataclass(frozen=True, slots=True)
class AttentionAdvice:
    """Recommended attention backends, and the reason for each refused backend.

    `softcap` (a cap on attention scores) and `sliding_window` (in tokens) are None for an
    architecture without them.
    """

    recommended: Fact[tuple[str, ...]]
    refused: Mapping[str, Fact[str]]
    softcap: Fact[float] | None = None
    sliding_window: Fact[int] | None = None


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One checkpoint. `parameters` is in billions, lengths are in tokens."""

    id: str
    series: Series
    family: Family
    architecture: Fact[str]
    base_model: Fact[str]
    parameters: Fact[float]
    geometry: Geometry
    max_position_embeddings: Fact[int]
    trained_length: Fact[int]
    pad_token_id: Fact[int]
    bos_token_id: Fact[int]
    eos_token_ids: Fact[tuple[int, ...]]
    tied_embeddings: Fact[bool]
    num_labels: Fact[int]
    dtype: Fact[str]
    # Behavior of the chat template; None for a step model, which has none.
    template: TemplateTraits | None
    attention: AttentionAdvice
    licence: Fact[str]
    published: tuple[PublishedResult, ...]
    known_issues: tuple[Fact[str], ...]
    kind: Kind = "classifier"  # what the checkpoint is served as
    # How a step model divides a solution into steps; None for other kinds.
    step_format: StepFormat | None = None
    head: Fact[HeadKind] | None = None  # head that is read; None for the score row of a classifier
    # Whether the weights are published as pickle files only; None for safetensors.
    weights_in_bin: Fact[bool] | None = None

    def __post_init__(self) -> None:
        if (self.step_format is None) == (self.kind == "step"):
            raise ValueError(f"a step model, and no other kind, has a step_format: {self.id}")

    @property
    def name(self) -> str:
        """Id without the owner."""
        return self.id.rpartition("/")[2]

    @property
    def recommended_max_length(self) -> int | None:
        """Trained length in tokens if known, else the number of positions if known."""
        return self.trained_length.value or self.max_position_embeddings.value

    @property
    def system_prompt_advised_against(self) -> bool:
        """Whether the authors advise against system messages."""
        return bool(self.template and self.template.system_prompt.value == "advised_against")


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """A model of others, whose results a published table of the catalog compares with."""

    id: str  # name of the model in that table, or its id on the hub
    published: tuple[PublishedResult, ...]  # results in that table


def seeds_dir() -> Path:
    """Return the folder `seeds`, which is next to `rm_core` in a checkout and when installed."""
    return Path(__file__).resolve().parents[2] / "seeds"


@functools.cache
def load_sources() -> Mapping[str, str]:
    """Return the citation for every source key."""
    sources: Mapping[str, str] = read_dataclass(
        Mapping[str, str], load_json("catalog/sources.json"), "sources.json"
    )
    return sources


@functools.cache
def load_catalog() -> tuple[CatalogEntry, ...]:
    """Return every checkpoint that can be served, ordered by series, then size, then id."""
    names = {path.name for path in (seeds_dir() / "catalog").glob("*.json")}
    names -= {"sources.json", "compared.json"}
    entries = [
        read_with_sources(CatalogEntry, load_json(f"catalog/{name}"), load_sources(), name)
        for name in sorted(names)
    ]
    series = get_args(Series)
    entries.sort(key=lambda e: (series.index(e.series), e.parameters.value or 0.0, e.id))
    return tuple(entries)


@functools.cache
def load_compared() -> tuple[ComparedModel, ...]:
    """Return the models of others with published results, in file order."""
    raw = load_json("catalog/compared.json")["compared"]
    return tuple(read_with_sources(ComparedModel, row, load_sources(), row["id"]) for row in raw)


def load_json(name: str) -> Any:
    """Return the content of a JSON file in `seeds_dir()`."""
    return json.loads((seeds_dir() / name).read_text(encoding="utf-8"))


def find_entry(name: str) -> CatalogEntry | None:
    """Find the entry for a hub id, a bare model name or a local folder. Near matches do not count.

    A folder is identified by its last component, or by a parent of the form `models--Skywork--NAME`
    (the hub's cache). An id with another owner is a different model, unless it is the path of a
    local folder.
    """
    entries_by_id = {entry.id.casefold(): entry for entry in load_catalog()}
    entries_by_name = {entry.name.casefold(): entry for entry in load_catalog()}
    path = name.strip().replace("\\", "/").casefold()
    if path in entries_by_id:
        return entries_by_id[path]
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", path) and not Path(name).is_dir():
        return None  # a model of another owner
    components = [component for component in path.split("/") if component]
    if components and components[-1] in entries_by_name:
        return entries_by_name[components[-1]]
    for component in reversed(components):
        if component.startswith(_CACHE_PREFIX):
            model_id = component.removeprefix(_CACHE_PREFIX).replace("--", "/", 1)
            return entries_by_id.get(model_id)
    return None
