"""The page ``/docs``: Swagger UI over the OpenAPI document, with its files served from here."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import Final

from fastapi import APIRouter, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse

from penstock.contracts.errors import RejectedError

DOCUMENTATION: Final = "/docs"
_SCRIPT: Final = "swagger-ui-bundle.js"
_STYLE: Final = "swagger-ui.css"
_ICON: Final = "favicon.png"
_FILES: Final = (_SCRIPT, _STYLE, _ICON)

documentation: Final = APIRouter(prefix=DOCUMENTATION, include_in_schema=False)


@documentation.get("")
async def page() -> Response:
    """Return the page; it needs no network but this gateway."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Penstock",
        swagger_js_url=f"{DOCUMENTATION}/{_SCRIPT}",
        swagger_css_url=f"{DOCUMENTATION}/{_STYLE}",
        swagger_favicon_url=f"{DOCUMENTATION}/{_ICON}",
    )


@documentation.get("/{name}")
async def file(name: str) -> Response:
    """Return a file of Swagger UI."""
    if name not in _FILES:
        raise RejectedError("not_found", f"the documentation has no file {name[:64]}")
    with as_file(files("fastapi_offline") / "static" / name) as path:
        return FileResponse(path)
