"""What is known of each checkpoint, and how surely: a typed reading of `seeds/catalog`.

Every doubtful item is a `Fact`: a value, how far it is confirmed, and the key of its source in
`load_sources()`. The module reads JSON and nothing else; it never looks at a checkpoint.
Start at `load_catalog` and `find_entry`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args

from rm_core.strict_dataclass import read_dataclass, read_with_sources

T = TypeVar("T")

Status: TypeAlias = Literal["confirmed", "third_party", "inferred", "unconfirmed"]
"""By the authors themselves, by somebody else, by reasoning from other facts, or not at all."""

Series: TypeAlias = Literal["v0.1", "v0.2", "v2"]
Family: TypeAlias = Literal["llama", "gemma2", "qwen3"]
BenchmarkName: TypeAlias = Literal[
    "rewardbench",
    "rewardbench2",
    "ppe-preference",
    "ppe-correctness",
    "rmb",
    "rm-bench",
    "judgebench",
    "average-of-seven",  # the plain mean of the seven above, as the V2 table prints it
    "processbench",
    "vl-rewardbench",
]
_FULL_SCALE = {"percent": 100.0, "fraction": 1.0}
_CACHE_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class Fact(Generic[T]):
    """One item of knowledge.

    Attributes:
        value: None exactly when `status` is `unconfirmed`; lists are tuples.
        status: how sure it is.
        source: key into `load_sources()`; of an open value, where the answer would be.
        note: a reason or a limit; may be empty.
    """

    value: T | None
    status: Status
    source: str
    note: str = ""

    def __post_init__(self) -> None:
        if (self.value is None) != (self.status == "unconfirmed"):
            raise ValueError(f"a value is null when it is unconfirmed, and only then: {self}")


@dataclass(frozen=True, slots=True)
class PublishedResult:
    """One figure from a table, in the unit in which it was printed there."""

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
    """The sizes of the decoder."""

    hidden_size: Fact[int]
    num_layers: Fact[int]
    num_heads: Fact[int]
    num_kv_heads: Fact[int]
    head_dim: Fact[int]
    intermediate_size: Fact[int]
    vocab_size: Fact[int]


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What the checkpoint's chat template does.

    Attributes:
        renders_bos: whether the rendered text itself begins with the BOS token.
        system_prompt: `allowed` or `advised_against`.
        last_text: what ends every rendered chat; the score is read at its last token.
        notes: further traits, one sentence each.
        dated_header: whether a header with dates is rendered; None where the family has none.
    """

    renders_bos: Fact[bool]
    system_prompt: Fact[Literal["allowed", "advised_against"]]
    last_text: Fact[str]
    notes: tuple[Fact[str], ...]
    dated_header: Fact[bool] | None = None


@dataclass(frozen=True, slots=True)
class AttentionAdvice:
    """Which attention implementations are advised, and which are refused and why.

    `softcap` (a cap on attention scores) and `sliding_window` (tokens) are None for an
    architecture without them.
    """

    recommended: Fact[tuple[str, ...]]
    refused: Mapping[str, Fact[str]]
    softcap: Fact[float] | None = None
    sliding_window: Fact[int] | None = None


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One sequence classifier; `parameters` are billions, lengths are tokens."""

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
    template: TemplateTraits
    attention: AttentionAdvice
    licence: Fact[str]
    published: tuple[PublishedResult, ...]
    known_issues: tuple[Fact[str], ...]

    @property
    def name(self) -> str:
        """The id without its owner."""
        return self.id.rpartition("/")[2]

    @property
    def recommended_max_length(self) -> int | None:
        """The length it was trained at if known, else all its positions if known."""
        return self.trained_length.value or self.max_position_embeddings.value

    @property
    def system_prompt_advised_against(self) -> bool:
        """Whether the authors ask for conversations without a system message."""
        return self.template.system_prompt.value == "advised_against"


@dataclass(frozen=True, slots=True)
class UnservedModel:
    """A relative of the classifiers that this service does not load: what it is, and why not."""

    id: str
    kind: Literal["process_reward", "critic", "vision_language"]
    what: str
    reason: str
    architecture: Fact[str]
    base_model: Fact[str]
    max_position_embeddings: Fact[int]
    licence: Fact[str]
    published: tuple[PublishedResult, ...]
    notes: tuple[Fact[str], ...]


def seeds_dir() -> Path:
    """The folder `seeds`: beside this package in a checkout and in an installation alike."""
    return Path(__file__).resolve().parents[2] / "seeds"


@functools.cache
def load_sources() -> Mapping[str, str]:
    """The citation behind every source key."""
    sources: Mapping[str, str] = read_dataclass(
        Mapping[str, str], load_json("catalog/sources.json"), "sources.json"
    )
    return sources


@functools.cache
def load_catalog() -> tuple[CatalogEntry, ...]:
    """Every checkpoint that can be served, by series, then size, then id."""
    names = {path.name for path in (seeds_dir() / "catalog").glob("*.json")}
    names -= {"sources.json", "not_served.json"}
    entries = [
        read_with_sources(CatalogEntry, load_json(f"catalog/{name}"), load_sources(), name)
        for name in sorted(names)
    ]
    order = get_args(Series)
    entries.sort(key=lambda e: (order.index(e.series), e.parameters.value or 0.0, e.id))
    return tuple(entries)


@functools.cache
def load_not_served() -> tuple[UnservedModel, ...]:
    """The process reward models, the critics and the vision-language model, in file order."""
    raw = load_json("catalog/not_served.json")["not_served"]
    return tuple(read_with_sources(UnservedModel, row, load_sources(), row["id"]) for row in raw)


def load_json(name: str) -> Any:
    """The content of a file under `seeds_dir()`."""
    return json.loads((seeds_dir() / name).read_text(encoding="utf-8"))


def find_entry(name: str) -> CatalogEntry | None:
    """The entry that a hub id, a bare model name or a local folder names; never a near match.

    A folder counts by its last component, or by a component of the form
    `models--Skywork--NAME` above it (the hub's cache). An id with another owner is another
    model, unless such a folder exists.
    """
    ids = {entry.id.casefold(): entry for entry in load_catalog()}
    names = {entry.name.casefold(): entry for entry in load_catalog()}
    wanted = name.strip().replace("\\", "/").casefold()
    if wanted in ids:
        return ids[wanted]
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", wanted) and not Path(name).is_dir():
        return None  # somebody else's model, whatever it is called
    parts = [part for part in wanted.split("/") if part]
    if parts and parts[-1] in names:
        return names[parts[-1]]
    for part in reversed(parts):
        if part.startswith(_CACHE_PREFIX):
            return ids.get(part.removeprefix(_CACHE_PREFIX).replace("--", "/", 1))
    return None
