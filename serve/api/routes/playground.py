"""The playground at `/`. Without a key, `serve.api.middleware.stack` answers with a login page."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from serve.api.playground.page import build_page_headers, build_playground_page

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """Return the page; its scripts call the public routes with the visitor's API key."""
    return HTMLResponse(build_playground_page(), headers=dict(build_page_headers()))
