"""Receipts: the signed account of one answer, and what a receipt says.

The receipts of a user are numbered and form a chain: each one contains the SHA-256 of the one
before, so that none can be removed or inserted later. A receipt contains the account, not the
texts; those are committed to by a hash with a random nonce. The nonce is erased with the texts:
without it the hash reveals nothing, even to somebody who can guess the texts. If usage arrives
late, the next receipt of the answer supersedes the earlier one.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from service.core.encoding import to_json
from service.core.records import Answer

NONCE_BYTES = 16


class ReceiptInvalid(ValueError):
    """A receipt, or a key of receipts, is not what it should be."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The account of an answer, with the names of the log row. `price`: per million tokens.

    `charge`: what the customer pays, if anything.
    """

    id: str
    created_at: datetime
    endpoint: str
    model: str
    provider: str | None
    provider_model: str | None
    status: str
    attempts: int
    usage_source: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    estimated_cost: str | None
    price: str | None
    response_time_ms: int
    first_token_ms: int | None
    charge: str | msgspec.UnsetType = msgspec.UNSET


class ReceiptClaims(msgspec.Struct, frozen=True, kw_only=True):
    """The signed content of a receipt.

    `jti`: its id. `iat`: when it was signed, in seconds since 1970. `sub`: the user. `number`: 1,
    2, … of the user. `previous`: the hexadecimal SHA-256 of the user's previous receipt, as it was
    issued; None for the first. `supersedes`: the id of the earlier receipt of the same answer.
    `texts`: see `hash_texts`; None if the texts were erased before.
    """

    jti: str
    iat: int
    sub: str
    number: int
    previous: str | None
    supersedes: str | None
    answer: Account
    texts: str | None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A receipt as issued. `receipt`: a compact JWS of its claims.

    `nonce`: proves the texts, see `hash_texts`; null once they are erased.
    """

    id: str
    answer_id: str
    user_id: str
    number: int
    created_at: datetime
    receipt: str
    nonce: str | None


class ReceiptPage(msgspec.Struct, frozen=True):
    """Receipts of a user, oldest first. `next_cursor` is null on the last page."""

    items: list[Receipt]
    next_cursor: int | None


def build_account(answer: Answer, price: str | None) -> Account:
    """The account of an answer from its log row. `price`: as stored in the row."""
    names = Account.__struct_fields__
    return Account(
        **{name: getattr(answer, name) for name in names if name != "price"}, price=price
    )


def hash_texts(prompt: str, response: str, nonce: bytes) -> str:
    """Return the commitment to the texts of an answer, base64url.

    It is the SHA-256 of the nonce, followed by the JSON array of prompt and response.
    """
    return encode_base64(hashlib.sha256(nonce + to_json([prompt, response])).digest())


def hash_receipt(receipt: str) -> str:
    """Return the hexadecimal SHA-256 of a signed receipt, which the next one contains."""
    return hashlib.sha256(receipt.encode()).hexdigest()


def encode_base64(content: bytes) -> str:
    """Encode as base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode_base64(text: str) -> bytes:
    """Decode base64url without padding. Raises `ValueError`."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def check_chain(receipts: Iterable[tuple[str, ReceiptClaims]]) -> list[str]:
    """Return what contradicts that these signed receipts are from unbroken chains.

    Where the receipt before is absent, nothing is known about the link to it.
    """
    chains: dict[tuple[str, int], tuple[str, ReceiptClaims]] = {}
    problems = []
    for receipt, claims in receipts:
        other, _ = chains.setdefault((claims.sub, claims.number), (receipt, claims))
        if other != receipt:
            problems.append(f"{claims.sub} has two receipts with the number {claims.number}")
    for (user_id, number), (_, claims) in sorted(chains.items()):
        before = chains.get((user_id, number - 1))
        expected = hash_receipt(before[0]) if before else None
        if (before or number == 1) and claims.previous != expected:
            problems.append(f"receipt {number} of {user_id} does not continue the one before")
    return problems


def list_gaps(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and the last number of each gap between these numbers, and before them."""
    gaps, expected = [], 1
    for number in sorted(set(numbers)):
        if number > expected:
            gaps.append((expected, number - 1))
        expected = number + 1
    return gaps
