"""The web pages: static files and their content security policies."""

from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from service.api.dependencies import ServicesDep, read_credentials
from service.api.responses import json_response
from service.core.errors import Unauthorized

WEB = Path(__file__).parents[1] / "web"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI sets inline styles and uses icons from data: URLs.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show_index(request: Request, services: ServicesDep) -> Response:
    """The main page, without user data; redirects to the sign-in page without a credential."""
    if not request.scope["raw_path"].endswith(b"/"):  # a prefix: see `ForwardedHeaders`
        return RedirectResponse(request.scope["path"], 308)
    try:
        await services.authenticator.authenticate(read_credentials(request))
    except Unauthorized:
        return RedirectResponse("signin", 303)
    return FileResponse(WEB / "index.html", headers={"Content-Security-Policy": _POLICY})


@router.get("/signin")
async def show_sign_in() -> FileResponse:
    """The sign-in page, which exchanges a key for a session."""
    return FileResponse(WEB / "signin.html", headers={"Content-Security-Policy": _POLICY})


@router.get("/docs")
async def show_docs() -> FileResponse:
    """The API documentation (Swagger UI)."""
    return FileResponse(WEB / "docs.html", headers={"Content-Security-Policy": _DOCS_POLICY})


@router.get("/openapi.json")
async def get_openapi_document(request: Request) -> Response:
    """The OpenAPI document, with the prefix of this request as its server."""
    server = {"url": request.scope["root_path"] or "/"}
    return json_response(request.app.openapi() | {"servers": [server]})


def mount_pages(app: FastAPI) -> None:
    """Serve the files that the pages load: ours and those of Swagger UI."""
    app.include_router(router)
    app.mount("/web/swagger", StaticFiles(packages=[("fastapi_offline", "static")]))
    app.mount("/web", StaticFiles(directory=WEB))
