"""The catalog against facts copied by hand, and its reader against broken files."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from rm_core.catalog import entries, golden
from rm_core.catalog.entries import (
    CatalogEntry,
    Fact,
    find_entry,
    load_catalog,
    load_compared,
)
from rm_core.strict_dataclass import read_dataclass, read_with_sources

V2 = "Skywork/Skywork-Reward-V2-"
LLAMA_V01 = "Skywork/Skywork-Reward-Llama-3.1-8B"
GEMMA_V01 = "Skywork/Skywork-Reward-Gemma-2-27B"
PRM = "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-"
CRITIC = "Skywork/Skywork-Critic-Llama-3.1-"
VL = "Skywork/Skywork-VL-Reward-7B"
IDS = [
    LLAMA_V01,
    GEMMA_V01,
    LLAMA_V01 + "-v0.2",
    GEMMA_V01 + "-v0.2",
    V2 + "Qwen3-0.6B",
    V2 + "Llama-3.2-1B",
    V2 + "Qwen3-1.7B",
    V2 + "Llama-3.2-3B",
    V2 + "Qwen3-4B",
    V2 + "Llama-3.1-8B",
    V2 + "Llama-3.1-8B-40M",
    V2 + "Qwen3-8B",
    PRM + "1.5B",
    PRM + "7B",
    CRITIC + "8B",
    CRITIC + "70B",
    VL,
]
CLASSIFIERS = IDS[:12]


def entry(name: str) -> CatalogEntry:
    found = find_entry(name)
    assert found is not None
    return found


def facts_in(record: Any) -> list[Fact[Any]]:
    if isinstance(record, Fact):
        return [record]
    if dataclasses.is_dataclass(record):
        record = [getattr(record, field.name) for field in dataclasses.fields(record)]
    if isinstance(record, dict):
        record = list(record.values())
    if isinstance(record, list | tuple):
        return [fact for item in record for fact in facts_in(item)]
    return []


def test_catalog_is_ordered_by_series_then_size():
    assert [e.id for e in load_catalog()] == IDS


def test_files_are_named_after_their_entries():
    folder = entries.seeds_dir() / "catalog"
    names = {path.stem for path in folder.glob("*.json")} - {"sources", "compared"}
    assert names == {e.name.lower() for e in load_catalog()}


def test_every_source_is_cited():
    sources = entries.load_sources()
    used = set()
    for record in load_catalog():
        keys = {f.source for f in facts_in(record)} | {p.source for p in record.published}
        assert keys <= sources.keys()
        assert len(keys) >= 3
        used |= keys
    used |= {p.source for record in load_compared() for p in record.published}
    used |= {score.source for e in load_catalog() for score in golden.get_golden_rewards(e).scores}
    assert used == set(sources), "a citation that nothing uses"


@pytest.mark.parametrize("name", IDS)
def test_fact_is_unconfirmed_if_and_only_if_it_has_no_value(name: str):
    facts = facts_in(entry(name))
    assert len(facts) > 25
    for fact in facts:
        assert (fact.status == "unconfirmed") == (fact.value is None)


def test_unpublished_facts_are_unconfirmed():
    for e in load_catalog():
        if e.series == "v2":
            assert e.pad_token_id.status == "unconfirmed"
            assert e.trained_length == Fact(16384, "confirmed", "reward-v2-readme")
        else:
            assert e.trained_length.status == "unconfirmed"
            assert e.template is None or e.template.system_prompt.status == "unconfirmed"
        if e.family == "llama":
            assert e.template is not None
            assert e.template.dated_header is not None
            assert e.template.dated_header.status == "unconfirmed"
        else:
            assert e.template is None or e.template.dated_header is None
    assert entry(LLAMA_V01).pad_token_id.status == "confirmed"
    assert entry(LLAMA_V01 + "-v0.2").pad_token_id.status == "inferred"


@pytest.mark.parametrize(
    ("name", "pad", "bos", "eos", "vocab"),
    [
        (LLAMA_V01, 128256, 128000, (128001, 128008, 128009), 128257),
        (LLAMA_V01 + "-v0.2", 128004, 128000, (128001, 128008, 128009), 128256),
        (GEMMA_V01, 0, 2, (1,), 256000),
        (GEMMA_V01 + "-v0.2", 0, 2, (1,), 256000),
        (V2 + "Qwen3-8B", None, 151643, (151645,), 151936),
        (V2 + "Llama-3.2-3B", None, 128000, (128001, 128008, 128009), 128256),
        (PRM + "1.5B", 151643, 151644, (151645,), 151936),
        (PRM + "7B", 151643, 151644, (151645,), 152064),
        (CRITIC + "70B", None, 128000, (128001, 128008, 128009), 128256),
        (VL, None, 151643, (151645,), 152064),
    ],
)
def test_special_token_ids(name: str, pad: int | None, bos: int, eos: tuple[int, ...], vocab: int):
    e = entry(name)
    assert (e.pad_token_id.value, e.bos_token_id.value) == (pad, bos)
    assert (e.eos_token_ids.value, e.geometry.vocab_size.value) == (eos, vocab)
    assert e.num_labels.value == 1
    assert e.dtype.value == "bfloat16"


@pytest.mark.parametrize(
    ("name", "hidden", "layers", "heads", "kv_heads", "billions"),
    [
        (LLAMA_V01, 4096, 32, 32, 8, 7.51),
        (GEMMA_V01, 4608, 46, 32, 16, 27.2),
        (V2 + "Qwen3-0.6B", 1024, 28, 16, 8, 0.596),
        (V2 + "Qwen3-1.7B", 2048, 28, 16, 8, 1.72),
        (V2 + "Qwen3-4B", 2560, 36, 32, 8, 4.02),
        (V2 + "Qwen3-8B", 4096, 36, 32, 8, 7.57),
        (V2 + "Llama-3.2-1B", 2048, 16, 32, 8, 1.24),
        (V2 + "Llama-3.2-3B", 3072, 28, 24, 8, 3.21),
        (V2 + "Llama-3.1-8B-40M", 4096, 32, 32, 8, 7.50),
        (PRM + "1.5B", 1536, 28, 12, 2, 3.09 / 2),
        (PRM + "7B", 3584, 28, 28, 4, 15.2 / 2 - 152064 * 3584 / 1e9),
        (CRITIC + "8B", 4096, 32, 32, 8, 7.50),
        (CRITIC + "70B", 8192, 80, 64, 8, 70.55 - 128256 * 8192 / 1e9),
        (VL, 3584, 28, 28, 4, 15.2 / 2 - 152064 * 3584 / 1e9 + 0.677),
    ],
)
def test_geometry(name: str, hidden: int, layers: int, heads: int, kv_heads: int, billions: float):
    e, g = entry(name), entry(name).geometry
    sizes = [g.hidden_size, g.num_layers, g.num_heads, g.num_kv_heads]
    assert [size.value for size in sizes] == [hidden, layers, heads, kv_heads]
    assert e.parameters.value == pytest.approx(billions, rel=0.005)


def test_parameters_of_v01_match_the_published_shards():
    """4.98 + 5.00 + 4.92 + 0.117 GB at two bytes per parameter."""
    assert entry(LLAMA_V01).parameters.value == pytest.approx(15.017 / 2, abs=0.01)


def test_recommended_lengths_and_advice_on_system_prompts():
    lengths = {e.id: e.recommended_max_length for e in load_catalog()}
    v1_lengths = [lengths.pop(name) for name in IDS[:4]]
    assert v1_lengths == [131072, 8192, 131072, 8192]
    assert [lengths.pop(name) for name in IDS[12:]] == [4096, 4096, 131072, 131072, 128000]
    assert set(lengths.values()) == {16384}
    advised = [e.id for e in load_catalog() if e.system_prompt_advised_against]
    assert advised == IDS[4:12]
    assert [entry(V2 + n).max_position_embeddings.value for n in ("Qwen3-4B", "Llama-3.2-1B")] == [
        40960,
        131072,
    ]


def test_recommended_max_length_is_none_if_unknown():
    e = entry(GEMMA_V01)
    unknown: Fact[int] = Fact(None, "unconfirmed", "checkpoint-files")
    assert dataclasses.replace(e, max_position_embeddings=unknown).recommended_max_length is None


def test_template_traits():
    templates = {e.id: e.template for e in load_catalog() if e.template}
    assert [name for name in IDS if name not in templates] == [PRM + "1.5B", PRM + "7B"]
    assert [templates[name].renders_bos.value for name in IDS[:2]] == [False] * 2
    assert [templates[name].renders_bos.value for name in IDS[2:4]] == [True] * 2
    endings = {entry(name).family: templates[name].last_text.value for name in CLASSIFIERS}
    assert endings == {
        "llama": "<|eot_id|>",
        "gemma2": "<end_of_turn>\n",
        "qwen3": "<|im_end|>\n",
    }


def test_only_gemma_refuses_sdpa():
    for e in load_catalog():
        gemma = e.family == "gemma2"
        assert list(e.attention.refused) == (["sdpa"] if gemma else [])
        assert (e.attention.softcap is not None) == gemma
        recommended = e.attention.recommended.value
        assert recommended is None if e.id not in CLASSIFIERS else "flash" in recommended[0]
    attention = entry(GEMMA_V01).attention
    assert attention.recommended.value == ("flash_attention_2", "eager")
    assert attention.softcap == Fact(50.0, "confirmed", "gemma-v01-config")
    assert attention.sliding_window == Fact(4096, "confirmed", "gemma-v01-config")


def test_licences_of_entries():
    licences = {e.id: e.licence.value for e in load_catalog()}
    assert {licences[name] for name in [*IDS[:4], *IDS[12:16]]} == {"Skywork Community License"}
    assert licences[VL] == "MIT"
    assert licences[V2 + "Qwen3-4B"] == "Apache-2.0"
    assert licences[V2 + "Llama-3.2-1B"] == "Llama 3.2 Community License"
    assert licences[V2 + "Llama-3.1-8B-40M"] == "Llama 3.1 Community License"


def test_kinds_of_entries():
    kinds = {e.id: (e.kind, e.step_format) for e in load_catalog()}
    assert {kinds.pop(name) for name in [*CLASSIFIERS, VL]} == {("classifier", None)}
    assert list(kinds.values()) == [("step", "skywork")] * 2 + [("judge", None)] * 2
    for name in kinds:
        e = entry(name)
        assert e.head is not None
        assert e.weights_in_bin is not None
        assert e.weights_in_bin.value is True
        assert e.weights_in_bin.status == "confirmed"
        assert e.head.value == {"step": "value_head", "judge": "lm_head"}[e.kind]
    for name in CLASSIFIERS:
        assert (entry(name).head, entry(name).weights_in_bin) == (None, None)
    head = entry(VL).head
    assert head is not None
    assert (head.value, head.status) == ("value_head", "inferred")
    assert entry(VL).weights_in_bin is None


BROKEN = {
    "unknown key": (["colour"], "red", "colour"),
    "unknown key below": (["geometry", "depth"], 3, "depth"),
    "unknown key of a fact": (["dtype", "sauce"], "x", "sauce"),
    "bad status": (["dtype", "status"], "certain", "certain"),
    "bad series": (["series"], "v3", "v3"),
    "unknown source": (["dtype", "source"], "hearsay", "hearsay"),
    "unknown source of a result": (["published", 0, "source"], "hearsay", "hearsay"),
    "text for a number": (["pad_token_id", "value"], "0", "pad_token_id.value"),
    "truth for a number": (["num_labels", "value"], True, "num_labels.value"),
    "number for a text": (["licence", "value"], 3, "licence.value"),
    "value that is unconfirmed": (["dtype", "status"], "unconfirmed", "null"),
    "null that is confirmed": (["dtype", "value"], None, "null"),
    "result off the scale": (["published", 0, "value"], 938.0, "percent"),
    "unknown benchmark": (["published", 0, "benchmark"], "glue", "glue"),
    "object for a list": (["known_issues"], {}, "a list"),
    "unknown kind": (["kind"], "critic", "critic"),
    "step model without format": (["kind"], "step", "step_format"),
    "format of a classifier": (["step_format"], "skywork", "step_format"),
}


@pytest.mark.parametrize(("path", "value", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_entry_is_refused(path: list[Any], value: Any, message: str):
    raw = copy.deepcopy(entries.load_json("catalog/skywork-reward-gemma-2-27b.json"))
    read_with_sources(CatalogEntry, raw, entries.load_sources(), "gemma.json")
    node = raw
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(ValueError, match=message) as caught:
        read_with_sources(CatalogEntry, raw, entries.load_sources(), "gemma.json")
    assert str(caught.value).startswith("gemma.json")


@pytest.mark.parametrize("key", ["licence", "published", "id", "template"])
def test_missing_key_is_refused(key: str):
    raw = copy.deepcopy(entries.load_json("catalog/skywork-reward-gemma-2-27b.json"))
    del raw[key]
    with pytest.raises(ValueError, match=f"'{key}'.*missing"):
        read_dataclass(CatalogEntry, raw, "gemma.json")
