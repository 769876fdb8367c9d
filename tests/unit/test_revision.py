"""The revision of a local folder changes with every file that affects rewards, and only then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import edit_config, edit_weights, set_one
from safetensors.torch import load_file

from rm_core import ModelConfig, open_checkpoint

PathOf = Callable[[str], Path]
CopyOf = Callable[..., Path]


def get_revision(folder: Path) -> str:
    return open_checkpoint(ModelConfig(str(folder))).revision


def test_revision_of_folder_depends_on_content(copy_of: CopyOf, checkpoint_of: PathOf) -> None:
    original = get_revision(checkpoint_of("qwen3"))
    assert original.startswith("local-")
    assert len(original) == len("local-") + 16
    copy = copy_of(folder="copy")
    assert get_revision(copy) == original
    (copy / "README.md").write_text("notes")
    assert get_revision(copy) == original
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert get_revision(copy) != original


def test_revision_changes_with_every_weight(copy_of: CopyOf) -> None:
    folder = copy_of()
    names = list(load_file(folder / "model.safetensors"))
    revisions = {get_revision(folder)}
    for name in names:
        edit_weights(folder, set_one(name, 0.5))
        revisions.add(get_revision(folder))
    assert len(revisions) == len(names) + 1


@pytest.mark.parametrize("change", [{"rms_norm_eps": 1e-5}, {"pad_token_id": 1}])
def test_revision_changes_with_config(change: dict[str, Any], copy_of: CopyOf) -> None:
    folder = copy_of()
    before = get_revision(folder)
    edit_config(folder, **change)
    assert get_revision(folder) != before


def test_revision_changes_with_tokenizer_merges(copy_of: CopyOf) -> None:
    folder = copy_of()
    (folder / "merges.txt").write_text("a b")
    before = get_revision(folder)
    (folder / "merges.txt").write_text("b a")
    assert get_revision(folder) != before
