"""The web pages: static files and their content security policies.

The files are read once, at startup: serving them needs neither the disk nor a thread, so that
clients that request the largest file in large numbers delay no others.
"""

import hashlib
import mimetypes
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from urllib.parse import urlencode

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from service.api.dependencies import Services, ServicesDep, read_credentials
from service.api.responses import has_etag, json_response
from service.core.errors import Unauthorized

WEB = Path(__file__).parents[1] / "web"
# The pages of users and admins: their shell checks session and role, and no file has user data.
PAGES = {
    "/admin": "admin/overview.html",
    "/admin/log": "admin/log.html",
    "/admin/people": "admin/people.html",
    "/admin/documents": "admin/documents.html",
    "/admin/budgets": "admin/budgets.html",
    "/admin/billing": "admin/billing.html",
    "/admin/audit-log": "admin/audit_log.html",
    "/admin/system": "admin/system.html",
    "/account/log": "admin/log.html",
    "/account/billing": "admin/account_billing.html",
    "/account": "admin/account.html",
}
_RETURN_BYTES_MAX = 2000  # of the address to which the sign-in returns
_SWAGGER = ("swagger-ui.css", "swagger-ui-bundle.js")
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


@dataclass(frozen=True)
class StaticFile:
    """A file that does not change while the service runs."""

    content: bytes
    media_type: str
    etag: str

    def respond(self, request: Request, policy: str | None = None) -> Response:
        """The file, or 304 for a client that has it."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}  # no-cache: use, but revalidate
        if policy is not None:
            headers["Content-Security-Policy"] = policy
        if has_etag(request.headers.get("if-none-match", ""), self.etag):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


@cache
def read_files() -> dict[str, StaticFile]:
    """The files of the pages and of Swagger UI, by their path below `/web/`."""
    files = dict(_read(WEB, (path for path in WEB.rglob("*") if path.is_file())))
    swagger = Path(str(resources.files("fastapi_offline"))) / "static"
    for name, file in _read(swagger, (swagger / name for name in _SWAGGER)):
        files[f"swagger/{name}"] = file
    return files


def _read(folder: Path, paths: Iterable[Path]) -> Iterable[tuple[str, StaticFile]]:
    for path in paths:
        content = path.read_bytes()
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        yield path.relative_to(folder).as_posix(), StaticFile(content, media_type, etag)


def mount_pages(app: FastAPI) -> None:
    """Serve the pages and the files that they load."""
    router = APIRouter(include_in_schema=False)
    files = read_files()

    @router.get("/")
    async def show_index(request: Request, services: ServicesDep) -> Response:
        """The main page, without user data; redirects to sign-in without a credential."""
        if not request.scope["raw_path"].endswith(b"/"):  # a prefix: see `ForwardedHeaders`
            return RedirectResponse(request.scope["path"], 308)
        return await _show_page(request, services, files["index.html"])

    for path, name in PAGES.items():
        _add_page(router, path, files[name])

    @router.get("/signin")
    async def show_sign_in(request: Request) -> Response:
        """The sign-in page, which exchanges a key for a session."""
        return files["signin.html"].respond(request, _POLICY)

    @router.get("/docs")
    async def show_docs(request: Request) -> Response:
        """The API documentation (Swagger UI)."""
        return files["docs.html"].respond(request, _DOCS_POLICY)

    @router.get("/openapi.json")
    async def get_openapi_document(request: Request) -> Response:
        """The OpenAPI document, with the prefix of this request as its server."""
        server = {"url": request.scope["root_path"] or "/"}
        return json_response(app.openapi() | {"servers": [server]})

    @router.api_route("/web/{path:path}", methods=["GET", "HEAD"])
    async def show_file(request: Request, path: str) -> Response:
        """A file that a page loads."""
        file = files.get(path)
        if file is None:
            raise HTTPException(404)
        return file.respond(request)

    app.include_router(router)


def _add_page(router: APIRouter, path: str, file: StaticFile) -> None:
    @router.get(path)
    async def show_page(request: Request, services: ServicesDep) -> Response:
        """A page of `PAGES`."""
        return await _show_page(request, services, file)


async def _show_page(request: Request, services: Services, file: StaticFile) -> Response:
    """The page; without a valid credential a redirect to the sign-in, which returns to the page."""
    try:
        await services.authenticator.authenticate(read_credentials(request))
    except Unauthorized:
        return RedirectResponse(_build_sign_in_url(request), 303)
    return file.respond(request, _POLICY)


def _build_sign_in_url(request: Request) -> str:
    """The sign-in page relative to the requested one: independent of a path prefix."""
    page = request.scope["path"].removeprefix(request.scope["root_path"]).lstrip("/")
    if request.url.query:
        page += f"?{request.url.query}"
    parents = "../" * request.scope["path"].removeprefix(request.scope["root_path"]).count("/", 1)
    if not page or len(page) > _RETURN_BYTES_MAX:
        return f"{parents}signin"
    return f"{parents}signin?{urlencode({'next': page})}"
