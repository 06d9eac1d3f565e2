"""Who is asking, and whether a request may have come from a page of another site. Pure decisions; no store yet.

`open` mode is for one machine: everyone who reaches it is the admin `local`, so what has to be kept out is the web
itself, which reaches loopback through the user's own browser: a rebound DNS name shows in `Host`, a foreign page in
`Origin` and `Sec-Fetch-Site`. With a secret the `Host` is the operator's business, foreign pages stay out all the same.
"""

import base64
import binascii
import hmac
import re
from urllib.parse import urlsplit

import msgspec

from service.core.errors import ForeignHost, ForeignOrigin, Unauthorized
from service.core.settings import Settings, is_loopback


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking. `on_behalf`: whether a `user_id` in a body is believed."""

    user_id: str
    admin: bool
    on_behalf: bool

    @property
    def sees(self) -> str | None:
        """Whose documents and logs are this principal's to see; None is everyone's."""
        return None if self.admin else self.user_id


_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")

LOCAL = Principal(user_id="local", admin=True, on_behalf=True)
ADMIN = Principal(user_id="admin", admin=True, on_behalf=True)


def authenticate(settings: Settings, authorization: str | None) -> Principal:
    """The principal of an `Authorization` header. Raises `Unauthorized`."""
    if settings.auth == "open":
        return LOCAL
    expected = settings.secret.get_secret_value() if settings.secret else ""
    given = _credential(authorization or "")
    if not expected or not hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode()):
        raise Unauthorized("send KOTAE_SECRET as a bearer token, or as the password of HTTP Basic")
    return ADMIN


def _credential(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return ""


def check_source(settings: Settings, *, host: str, origin: str | None, fetch_site: str | None, page: bool) -> None:
    """Refuse what came from elsewhere. Raises `ForeignHost` or `ForeignOrigin`.

    `page`: the request opens one of our pages, which a link on another site may do.
    """
    name = _host_name(host)
    if settings.auth == "open" and not is_loopback(name) and name not in settings.allowed_hosts:
        raise ForeignHost("this service answers to loopback names and to KOTAE_ALLOWED_HOSTS only")
    if origin is not None and origin not in settings.allowed_origins and urlsplit(origin).netloc.lower() != host.lower():
        raise ForeignOrigin("a page of another origin sent this request; KOTAE_ALLOWED_ORIGINS would allow it")
    if fetch_site in {"cross-site", "same-site"} and origin is None and not page:
        raise ForeignOrigin("a page of another site sent this request")


def _host_name(host: str) -> str:
    """The name in a `Host` header; empty, and so refused, for anything but a bare name or address with a port."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]).lower() if found else ""
