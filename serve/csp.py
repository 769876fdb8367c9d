"""Content-Security-Policy of pages: which scripts and styles a browser runs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping


def hash_inline_source(text: str) -> str:
    """Return the source expression of an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def format_csp(allowed: Mapping[str, str]) -> str:
    """Return the header value of a policy that allows nothing else."""
    nothing = ("default-src", "base-uri", "form-action", "frame-ancestors")
    policy = {**dict.fromkeys(nothing, "'none'"), **allowed}
    return "; ".join(f"{name} {value}" for name, value in policy.items())
