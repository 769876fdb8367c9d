"""Lookup of catalog entries by name. Near matches do not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from rm_core.catalog.entries import find_entry

V2 = "Skywork/Skywork-Reward-V2-"
LLAMA_V01 = "Skywork/Skywork-Reward-Llama-3.1-8B"
GEMMA_V01 = "Skywork/Skywork-Reward-Gemma-2-27B"


def id_of(name: str) -> str | None:
    found = find_entry(name)
    return found.id if found else None


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (V2 + "Qwen3-8B", V2 + "Qwen3-8B"),
        ("skywork/skywork-reward-v2-qwen3-8b", V2 + "Qwen3-8B"),
        ("SKYWORK-reward-v2-qwen3-8b", V2 + "Qwen3-8B"),
        ("Skywork-Reward-Llama-3.1-8B", LLAMA_V01),
        ("Skywork-Reward-Llama-3.1-8B-v0.2", LLAMA_V01 + "-v0.2"),
        ("Skywork-Reward-V2-Llama-3.1-8B-40M", V2 + "Llama-3.1-8B-40M"),
        ("/models/Skywork-Reward-Gemma-2-27B", GEMMA_V01),
        ("/models/skywork-reward-gemma-2-27b-v0.2/", GEMMA_V01 + "-v0.2"),
        ("./Skywork-Reward-V2-Qwen3-4B", V2 + "Qwen3-4B"),
        ("D:\\models\\Skywork-Reward-V2-Qwen3-4B", V2 + "Qwen3-4B"),
        (
            "/cache/hub/models--Skywork--Skywork-Reward-V2-Llama-3.2-1B/snapshots/0123abc",
            V2 + "Llama-3.2-1B",
        ),
        ("/cache/hub/models--Skywork--Skywork-Reward-V2-Llama-3.2-1B", V2 + "Llama-3.2-1B"),
    ],
)
def test_find_entry_accepts_ids_names_and_folders(name: str, found: str):
    assert id_of(name) == found


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "demo",
        "Skywork/Skywork-Reward",
        "Skywork/Skywork-Reward-V2-Qwen3-14B",
        "Skywork-Reward-Llama-3.1-8B-v0.3",
        "Skywork-Reward-V2-Qwen3-8B-GPTQ",
        "my-Skywork-Reward-V2-Qwen3-8B",
        "someone/Skywork-Reward-V2-Qwen3-8B",
        "/models/Skywork-Reward-V2-Qwen3-8B/checkpoint-500",
        "/cache/hub/models--someone--Skywork-Reward-V2-Qwen3-8B/snapshots/0123abc",
        "/cache/hub/models--Skywork--Skywork-Reward-V2-Qwen3-8B-GGUF/snapshots/0123abc",
    ],
)
def test_find_entry_ignores_near_matches(name: str):
    assert find_entry(name) is None


def test_find_entry_accepts_existing_relative_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert find_entry("models/Skywork-Reward-V2-Qwen3-8B") is None
    (tmp_path / "models" / "Skywork-Reward-V2-Qwen3-8B").mkdir(parents=True)
    assert id_of("models/Skywork-Reward-V2-Qwen3-8B") == V2 + "Qwen3-8B"
