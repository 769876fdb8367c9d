"""The playground at `/`. Without a key the guard answers in its place; see `serve.web.page`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from serve.web.page import page_headers, playground

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The page; it asks everything else of the public routes, with the visitor's key."""
    return HTMLResponse(playground(), headers=dict(page_headers()))
