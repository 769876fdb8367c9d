"""The pages: the playground at `/`, and FastAPI's pages for the OpenAPI document.

Machines with GPUs often cannot reach other hosts: all scripts are served by this service, and the
content security policy of the pages allows only these.
"""

from __future__ import annotations

import re

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse

from serve.api.playground.page import build_page_headers, build_playground_page
from serve.csp import format_csp, hash_inline_source

router = APIRouter()

_STATIC = "/static-offline-docs"  # path of the scripts in FastAPIOffline
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def playground() -> HTMLResponse:
    """Return the playground; its scripts call the public routes with the visitor's API key.

    Without a key, `serve.api.middleware.access` answers with a login page.
    """
    return HTMLResponse(build_playground_page(), headers=dict(build_page_headers()))


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Return the Swagger UI page."""
    root = request.scope.get("root_path", "")
    page = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - Swagger UI",
        swagger_js_url=f"{root}{_STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{root}{_STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{root}{_STATIC}/favicon.png",
    )
    return _add_csp(page)


@router.get("/redoc", include_in_schema=False)
async def redoc(request: Request) -> HTMLResponse:
    """Return the ReDoc page."""
    root = request.scope.get("root_path", "")
    page = get_redoc_html(
        openapi_url=f"{root}/openapi.json",
        title=f"{request.app.title} - ReDoc",
        redoc_js_url=f"{root}{_STATIC}/redoc.standalone.js",
        redoc_favicon_url=f"{root}{_STATIC}/favicon.png",
        with_google_fonts=False,
    )
    return _add_csp(page)


def _add_csp(page: HTMLResponse) -> HTMLResponse:
    inline_scripts = _INLINE_SCRIPT.findall(bytes(page.body).decode())
    policy = {
        "script-src": " ".join(["'self'", *map(hash_inline_source, inline_scripts)]),
        "style-src": "'self' 'unsafe-inline'",  # the scripts of both pages set styles
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "worker-src": "blob:",  # ReDoc's search
    }
    page.headers["Content-Security-Policy"] = format_csp(policy)
    return page
