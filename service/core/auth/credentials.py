"""Credentials as they arrive and as they are kept. Pure.

An API key is `kt_` and 256 random bits in base64url; a session is `ks_` and as many. Kept is their SHA-256 alone: for a
random secret of that length a slow hash would add nothing but time to every request. The full hash is also what
verification is cached by, never a part of the credential.
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
_RANDOM = re.compile(r"k[ts]_[A-Za-z0-9_-]{43}")


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a request carries: the values of its `Authorization` and `X-API-Key` headers, and its session cookie."""

    authorization: Sequence[str] = ()
    api_key: Sequence[str] = ()
    session: str | None = None


def generate_key() -> str:
    """A new API key."""
    return "kt_" + secrets.token_urlsafe(32)


def generate_session() -> str:
    """The value of a new session's cookie."""
    return "ks_" + secrets.token_urlsafe(32)


def is_key(credential: str) -> bool:
    """Whether this has the form of an API key."""
    return credential.startswith("kt_") and _RANDOM.fullmatch(credential) is not None


def is_session(credential: str) -> bool:
    """Whether this has the form of a session."""
    return credential.startswith("ks_") and _RANDOM.fullmatch(credential) is not None


def hash_credential(credential: str) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()


def key_prefix(key: str) -> str:
    """What of a key may be shown."""
    return key[:PREFIX_CHARACTERS]


def parse_explicit(given: Credentials) -> str | None:
    """The credential of the headers; None if there is no such header. Raises `Unauthorized`.

    Whichever header it comes in, the decision is the same; two that differ are refused, because some proxy or program
    on the way believes another one than we do.
    """
    found = {_of_authorization(value) for value in given.authorization} | {
        value.strip() for value in given.api_key
    }
    if not found:
        return None
    if len(found) > 1:
        raise Unauthorized("the request carries two different credentials")
    (credential,) = found
    if not credential or len(credential) > CREDENTIAL_CHARACTERS_MAX:
        raise Unauthorized(
            "send an API key as bearer token, in X-API-Key, or as the password of HTTP Basic"
        )
    return credential


def _of_authorization(header: str) -> str:
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic" and len(value) <= CREDENTIAL_CHARACTERS_MAX:
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return ""
    return ""
