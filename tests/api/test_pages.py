"""The pages: what they load, and where they redirect without a credential."""

import re
from contextlib import aclosing
from urllib.parse import urljoin

import pytest

from service.api.pages import PAGES
from tests.access import client, make_key
from tests.api.test_sessions import signed_in
from tests.conftest import Serve, Service


async def test_docs_page_loads_nothing_from_elsewhere(service: Service) -> None:
    """Swagger UI is served by the service."""
    page = (await service.client.get("/docs")).text
    links = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert "//" not in "".join(links)
    for link in links:
        assert (await service.client.get(link)).status_code == 200
    assert (await service.client.get("/openapi.json")).json()["info"]["title"] == "Kotae"


async def test_page_redirects_to_the_sign_in_page(serve: Serve) -> None:
    """Without a credential the page redirects to `/signin`, which loads nothing from elsewhere."""
    service = await serve(auth="keys")
    async with (
        aclosing(await signed_in(service, await make_key(service, "alice"))) as browser,
        client(service) as stranger,
    ):
        away = await stranger.get("/")
        assert (away.status_code, away.headers["location"]) == (303, "signin")
        page = await stranger.get("/signin")
        assert (await browser.get("/")).status_code == page.status_code == 200
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "http" not in page.text.replace("http-equiv", "")
        assert (await stranger.get("/web/signin.js")).status_code == 200
        assert "Basic" not in (await stranger.get("/ai/logs")).headers["www-authenticate"]


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/account", "signin?next=account"),
        ("/admin", "signin?next=admin"),
        ("/admin/system?a=b&c=%2F", "../signin?next=admin%2Fsystem%3Fa%3Db%26c%3D%252F"),
        (f"/admin?{'x' * 2000}", "signin"),
    ],
)
async def test_pages_redirect_to_a_sign_in_that_returns(
    serve: Serve, path: str, location: str
) -> None:
    """The redirect is relative and names the page with its query, up to a bounded length."""
    service = await serve(auth="keys")
    async with client(service) as stranger:
        away = await stranger.get(path)

    assert (away.status_code, away.headers["location"]) == (303, location)


@pytest.mark.parametrize("path", list(PAGES))
async def test_pages_load_only_existing_files(service: Service, path: str) -> None:
    """What a page loads is relative and exists, and its policy permits no inline code."""
    page = await service.client.get(path)
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)

    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert not [link for link in links if link.startswith(("/", "http"))]
    for link in links:
        assert (await service.client.get(urljoin(path, link))).status_code == 200


async def test_browsers_revalidate_static_files(service: Service) -> None:
    """A static file has an ETag; a client that has the file gets 304 without content."""
    whole = await service.client.get("/web/app.js")
    again = await service.client.get(
        "/web/app.js", headers={"If-None-Match": whole.headers["etag"]}
    )
    head = await service.client.head("/web/app.js")

    assert whole.headers["content-type"] == "text/javascript; charset=utf-8"
    assert whole.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


@pytest.mark.parametrize(
    "path", ["/web/", "/web/none.js", "/web/%2e%2e/main.py", "/web//etc/passwd", "/web/swagger"]
)
async def test_only_files_of_the_pages_are_served(service: Service, path: str) -> None:
    """Paths outside the folder of the pages and folders are 404."""
    assert (await service.client.get(path)).status_code == 404
