"""Content-Security-Policy of pages: which scripts and styles a browser runs."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping


def hash_inline_source(text: str) -> str:
    """Return the source expression of an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def format_csp(policy: Mapping[str, str]) -> str:
    """Format a policy as a header value."""
    return "; ".join(f"{name} {value}" for name, value in policy.items())
