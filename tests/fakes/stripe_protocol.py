"""What the parts of the Stripe fake share: responses, faults, signatures."""

import hashlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SECRET = "whsec_kotae"

Response = tuple[int, Mapping[str, str], Any]
"""Status, headers, and JSON body, or a string: HTML."""


@dataclass(frozen=True)
class Reply:
    """What a request gets instead of the usual response.

    `status` 0: the connection is closed. `processed`: the request is processed nevertheless.
    """

    status: int = 0
    processed: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


LOST = Reply(0, processed=True)  # the response is lost
CUT = Reply(0)
ERROR = Reply(500)
ERROR_AFTERWARDS = Reply(500, processed=True)
BUSY = Reply(429, headers={"retry-after": "7"})


def describe_error(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"type": kind, "message": message}}


def sign(payload: bytes, secret: str = SECRET, at: float | None = None) -> str:
    """The header `Stripe-Signature` of a body, as documented."""
    timestamp = int(time.time() if at is None else at)
    signed = f"{timestamp}.".encode() + payload
    return f"t={timestamp},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"
