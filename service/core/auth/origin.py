"""Whether a request may have come from a page of another site. Pure.

`open` mode is for one machine: everyone who reaches it is the admin `local`, so what has to be kept out is the web
itself, which reaches loopback through the user's own browser: a rebound DNS name shows in `Host`, a foreign page in
`Origin` and `Sec-Fetch-Site`. With keys the `Host` is the operator's business, foreign pages stay out all the same.
"""

import re
from urllib.parse import urlsplit

from service.core.errors import ForeignHost, ForeignOrigin
from service.core.settings import Settings, is_loopback

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


def check_origin(
    settings: Settings, *, host: str, origin: str | None, fetch_site: str | None, page: bool
) -> None:
    """Refuse what came from elsewhere. Raises `ForeignHost` or `ForeignOrigin`.

    `page`: the request opens one of our pages, which a link on another site may do.
    """
    name = _host_name(host)
    if settings.auth == "open" and not is_loopback(name) and name not in settings.allowed_hosts:
        raise ForeignHost("this service answers to loopback names and to KOTAE_ALLOWED_HOSTS only")
    if not name:
        raise ForeignHost("the Host header is not a name or an address with a port")
    if (
        origin is not None
        and origin not in settings.allowed_origins
        and urlsplit(origin).netloc.lower() != host.lower()
    ):
        raise ForeignOrigin(
            "a page of another origin sent this request; KOTAE_ALLOWED_ORIGINS would allow it"
        )
    if fetch_site in {"cross-site", "same-site"} and origin is None and not page:
        raise ForeignOrigin("a page of another site sent this request")


def check_csrf(*, method: str, origin: str | None, fetch_site: str | None, accept: str) -> None:
    """Refuse what another site may have had a browser send with our cookie. Raises `ForeignOrigin`.

    `check_source` has looked at what the request says of its origin. Every browser says it with what changes something,
    and most say it always; where one says nothing, a navigation is refused, because a link is all that is left to others.
    A page of an allowed origin brings a credential of its own.
    """
    if fetch_site in {"cross-site", "same-site"}:
        raise ForeignOrigin("a session is for our own pages: other pages bring a key or a ticket")
    if not origin and not fetch_site and (method not in {"GET", "HEAD"} or "text/html" in accept):
        raise ForeignOrigin(
            "a session is for our own pages: the request does not say that it comes from one"
        )


def _host_name(host: str) -> str:
    """The name in a `Host` header; empty, and so refused, for anything but a bare name or address with a port."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""
