"""Parsing and hashing of credentials. Pure.

An API key is `kt_` followed by 256 random bits in base64url; a session is `ks_` followed by the
same. Only their SHA-256 is stored: for random secrets of this length a slow hash would add nothing
but latency. The verification cache uses the full hash, never part of a credential.

A credential has one spelling: base64 that decodes to the same bytes but is written differently is
refused, so that lists of revoked or logged credentials cannot be evaded. Only the white space that
HTTP puts around the value of a header is removed.
"""

import base64
import binascii
import hashlib
import re
import secrets
from collections.abc import Sequence

import msgspec

from service.core.errors import Unauthorized

CREDENTIAL_CHARACTERS_MAX = 8192  # a JWT with many claims; keys have 46
PREFIX_CHARACTERS = 10
# 43 characters of base64url for 32 bytes: the last two bits of the last character are zero.
_RANDOM = re.compile(r"k[ts]_[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")
_HTTP_SPACE = " \t"  # `str.strip` removes others, too
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """The values of the `Authorization` and `X-API-Key` headers, and the session cookie."""

    authorization: Sequence[str] = ()
    api_key: Sequence[str] = ()
    session: str | None = None


def generate_key() -> str:
    """Create an API key."""
    return "kt_" + secrets.token_urlsafe(32)


def generate_session() -> str:
    """Create the cookie value of a session."""
    return "ks_" + secrets.token_urlsafe(32)


def is_key(credential: str) -> bool:
    """Whether this has the format of an API key."""
    return credential.startswith("kt_") and _RANDOM.fullmatch(credential) is not None


def is_session(credential: str) -> bool:
    """Whether this has the format of a session cookie."""
    return credential.startswith("ks_") and _RANDOM.fullmatch(credential) is not None


def hash_credential(credential: str) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()


def get_key_prefix(key: str) -> str:
    """The part of a key that may be displayed."""
    return key[:PREFIX_CHARACTERS]


def parse_header_credential(credentials: Credentials) -> str | None:
    """The credential in the headers; None without such a header. Raises `Unauthorized`.

    Two different credentials are refused: some proxy or program on the way may use the other one.
    """
    values = {_parse_authorization(value) for value in credentials.authorization} | {
        value.strip(_HTTP_SPACE) for value in credentials.api_key
    }
    if not values:
        return None
    if len(values) > 1:
        raise Unauthorized("the request contains two different credentials")
    (credential,) = values
    if not credential or len(credential) > CREDENTIAL_CHARACTERS_MAX:
        raise Unauthorized(
            "send an API key as bearer token, in X-API-Key, or as the password of HTTP Basic"
        )
    return credential


def _parse_authorization(header: str) -> str:
    scheme, _, parameter = header.strip(_HTTP_SPACE).partition(" ")
    if scheme.lower() == "bearer":
        return parameter.lstrip(" ")  # RFC 6750: one or more spaces
    if scheme.lower() == "basic" and len(parameter) <= CREDENTIAL_CHARACTERS_MAX:
        try:
            decoded = base64.b64decode(parameter, validate=True)
            if base64.b64encode(decoded).decode() == parameter:
                return decoded.decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return ""


def is_canonical_base64url(text: str) -> bool:
    """Whether this is base64url without padding, foreign characters or ignored bits (RFC 7515)."""
    if not _BASE64URL.fullmatch(text):
        return False
    try:
        decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return False
    return base64.urlsafe_b64encode(decoded).decode().rstrip("=") == text
