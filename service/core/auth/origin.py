"""Host and origin checks against DNS rebinding and cross-site requests. Pure.

In `open` mode every caller is the admin `local`, so requests that reach loopback through the
user's own browser must be refused: a rebound DNS name shows in `Host`, a foreign page in `Origin`
and `Sec-Fetch-Site`. With keys, `Host` is the operator's business; foreign pages are still
refused.

Behind a reverse proxy that changes `Host`, the `Origin` of our own pages differs from it. There,
`Sec-Fetch-Site: same-origin` identifies them: scripts cannot set it, and browsers send it only to
https and loopback URLs, so never to a rebound name (docs/decisions/0032).
"""

import re
from urllib.parse import urlsplit

from service.core.errors import ForeignHost, ForeignOrigin
from service.core.settings import Settings, is_loopback

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")


def check_origin(
    settings: Settings, *, host: str, origin: str | None, fetch_site: str | None, public: bool
) -> None:
    """Refuse foreign hosts and pages. Raises `ForeignHost` or `ForeignOrigin`.

    `public`: the request reads a page or static file, which contain no data of users. Other sites
    may link to them.
    """
    name = _parse_host_name(host)
    if settings.auth == "open" and not is_loopback(name) and name not in settings.allowed_hosts:
        raise ForeignHost("only loopback names and KOTAE_ALLOWED_HOSTS are served")
    if not name:
        raise ForeignHost("the Host header is not a name or address with an optional port")
    if public:
        return
    if (
        origin is not None
        and origin not in settings.allowed_origins
        and urlsplit(origin).netloc.lower() != host.lower()
        and (fetch_site != "same-origin" or origin == "null")
    ):
        raise ForeignOrigin(
            "the request comes from a page of another origin, or a reverse proxy has changed the "
            "Host header: see KOTAE_ALLOWED_ORIGINS and docs/how-to/use-a-reverse-proxy.md"
        )
    if fetch_site in {"cross-site", "same-site"} and origin is None:
        raise ForeignOrigin("the request comes from a page of another site")


def check_csrf(*, method: str, origin: str | None, fetch_site: str | None, accept: str) -> None:
    """Refuse requests that another site may have sent with our cookie. Raises `ForeignOrigin`.

    `check_origin` has compared `Origin` with the host. Browsers send one of these headers with
    every request that changes something, most with every request; without them a navigation is
    refused, because following a link is the remaining way for other sites. Pages of allowed
    origins use their own credential.
    """
    if fetch_site in {"cross-site", "same-site"}:
        raise ForeignOrigin("sessions are for the service's own pages: use a key or a ticket")
    if not origin and not fetch_site and (method not in {"GET", "HEAD"} or "text/html" in accept):
        raise ForeignOrigin("sessions are for the service's own pages: the request has no Origin")


def _parse_host_name(host: str) -> str:
    """The name in a `Host` header; empty unless it is a name or address with optional port."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower() if match else ""
