"""Host, Origin and Sec-Fetch-Site: DNS rebinding and cross-site requests are refused."""

import pytest

from service.core.auth.origin import check_csrf, check_origin
from service.core.errors import ForeignHost, ForeignOrigin
from service.core.settings import Settings

HOSTS = [
    "evil.test",
    "evil.test:8000",
    "127.0.0.1.evil.test",
    "127.0.0.1@evil.test",
    "x/?",
    "x#",
    "localhost/x",
    "",
    "[::1].evil.test",
    "0x7f.1",
]


@pytest.mark.parametrize("host", HOSTS)
def test_foreign_host_is_refused(host: str) -> None:
    """In open mode only loopback names are served, however the header is spelled."""
    with pytest.raises(ForeignHost):
        check_origin(Settings(), host=host, origin=None, fetch_site=None, public=False)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "127.1.2.3"]
)
def test_loopback_host_is_served(host: str) -> None:
    """Every loopback name is served."""
    check_origin(Settings(), host=host, origin=None, fetch_site=None, public=False)


@pytest.mark.parametrize(
    ("origin", "fetch_site"),
    [
        ("http://evil.test", None),
        ("null", "cross-site"),
        (None, "cross-site"),
        (None, "same-site"),
        ("http://localhost:3000", "same-site"),
        ("https://x@localhost:8000", None),
        ("http://evil.test", "none"),
        ("null", "same-origin"),
    ],
)
def test_page_of_another_origin_is_refused(origin: str | None, fetch_site: str | None) -> None:
    """A page of another origin cannot use the service through the user's browser."""
    with pytest.raises(ForeignOrigin):
        check_origin(
            Settings(), host="localhost:8000", origin=origin, fetch_site=fetch_site, public=False
        )


def test_own_pages_allowed_origins_and_links_are_served() -> None:
    """Our own page, a page of an allowed origin, and a link to our page are served."""
    settings = Settings(allowed_origins=["https://app.example"])
    check_origin(
        settings,
        host="localhost:8000",
        origin="http://localhost:8000",
        fetch_site="same-origin",
        public=False,
    )
    check_origin(
        settings,
        host="localhost:8000",
        origin="https://app.example",
        fetch_site="cross-site",
        public=False,
    )
    check_origin(settings, host="localhost:8000", origin=None, fetch_site="cross-site", public=True)


def test_own_page_behind_a_proxy_that_changes_host_is_served() -> None:
    """Browsers alone set `Sec-Fetch-Site`, so it identifies our page where `Host` does not."""
    check_origin(
        Settings(),
        host="127.0.0.1:8000",
        origin="http://localhost:8080",
        fetch_site="same-origin",
        public=False,
    )


def test_rebound_name_is_refused_in_open_mode() -> None:
    """A page of a rebound name is of the same origin, but its host is foreign, also for pages."""
    for public in (False, True):
        with pytest.raises(ForeignHost):
            check_origin(
                Settings(),
                host="evil.test:8000",
                origin="http://evil.test:8000",
                fetch_site="same-origin",
                public=public,
            )


@pytest.mark.parametrize("origin", ["http://evil.test", "null"])
def test_pages_and_static_files_are_served_to_every_origin(origin: str) -> None:
    """They contain no data of users; scripts of type module are requested with an origin."""
    check_origin(
        Settings(), host="localhost:8000", origin=origin, fetch_site="cross-site", public=True
    )


@pytest.mark.parametrize(
    ("method", "fetch_site", "origin"),
    [("DELETE", None, None), ("PUT", "", None), ("PATCH", None, "")],
)
def test_change_by_cookie_requires_an_origin(
    method: str, fetch_site: str | None, origin: str | None
) -> None:
    """A change by cookie without an origin header is refused: every browser sends one."""
    with pytest.raises(ForeignOrigin):
        check_csrf(method=method, origin=origin, fetch_site=fetch_site, accept="*/*")
