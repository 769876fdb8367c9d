"""Code that imports `serve.clients` keeps working, with a DeprecationWarning."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

CODE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from serve.clients import {name}
    import serve.clients.{module} as old
import serve.client.{new} as new
assert old is new, (old, new)
assert [w.category for w in caught if "serve.client" in str(w.message)] == [DeprecationWarning]
"""


@pytest.mark.parametrize(
    ("module", "new"),
    [
        ("trl", "integrations.trl"),
        ("verl", "integrations.verl"),
        ("openrlhf", "integrations.openrlhf"),
        ("slime", "integrations.slime"),
        ("ms_swift", "integrations.ms_swift"),
        ("rewards", "integrations.base"),
    ],
)
def test_serve_clients_names_the_same_modules(module: str, new: str) -> None:
    code = CODE.format(name="ScoringClient", module=module, new=new)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
