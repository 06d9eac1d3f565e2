"""The pages: plain files, and what a browser may do with them."""

from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from service.api.dependencies import ServicesDep, read_credentials
from service.core.errors import Unauthorized

WEB = Path(__file__).parents[1] / "web"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Swagger UI writes styles into its elements and draws its icons from data: URLs.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/")
async def show_index(request: Request, services: ServicesDep) -> Response:
    """Ask and stream; who is not known signs in first. The page itself holds nothing that is anybody's."""
    try:
        await services.authenticator.authenticate(read_credentials(request))
    except Unauthorized:
        return RedirectResponse("signin", 303)
    return FileResponse(WEB / "index.html", headers={"Content-Security-Policy": _POLICY})


@router.get("/signin")
async def show_sign_in() -> FileResponse:
    """Exchange a key for a session, and end one."""
    return FileResponse(WEB / "signin.html", headers={"Content-Security-Policy": _POLICY})


@router.get("/docs")
async def show_docs() -> FileResponse:
    """The routes, to read and to try."""
    return FileResponse(WEB / "docs.html", headers={"Content-Security-Policy": _DOCS_POLICY})


def mount_pages(app: FastAPI) -> None:
    """Serve the files that the pages load, ours and those of Swagger UI, all from here."""
    app.include_router(router)
    app.mount("/web/swagger", StaticFiles(packages=[("fastapi_offline", "static")]))
    app.mount("/web", StaticFiles(directory=WEB))
