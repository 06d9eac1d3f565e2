"""What receipts say: accounts, commitments to texts, and chains."""

import hashlib
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.accounting.receipts import (
    ReceiptClaims,
    build_account,
    check_chain,
    decode_base64,
    encode_base64,
    hash_receipt,
    hash_texts,
    list_gaps,
)
from service.core.records import create_answer_object
from tests.records import build_outcome


def build_claims(number: int, previous: str | None, user_id: str = "ann") -> ReceiptClaims:
    """ReceiptClaims of a receipt with this place in a chain."""
    account = build_account(create_answer_object(build_outcome()), "p")
    return ReceiptClaims(
        jti=f"r{number}",
        iat=0,
        sub=user_id,
        number=number,
        previous=previous,
        supersedes=None,
        answer=account,
        texts=None,
    )


def build_chain(length: int, user_id: str = "ann") -> list[tuple[str, ReceiptClaims]]:
    """A chain of unsigned receipts."""
    chain: list[tuple[str, ReceiptClaims]] = []
    for number in range(1, length + 1):
        previous = hash_receipt(chain[-1][0]) if chain else None
        claims = build_claims(number, previous, user_id)
        chain.append((msgspec.json.encode(claims).decode(), claims))
    return chain


def test_account_has_the_numbers_of_the_row() -> None:
    """Names and values are those of the log row, and the price."""
    answer = create_answer_object(build_outcome())
    account = msgspec.to_builtins(build_account(answer, "5 USD per million"))
    row = msgspec.to_builtins(answer)

    assert account.pop("price") == "5 USD per million"
    assert account == {name: row[name] for name in account}
    assert account["estimated_cost"] == "0.0000015"
    assert "prompt" not in account


def test_commitment_can_be_computed_by_others() -> None:
    """It is the SHA-256 of the nonce and the compact JSON array of the texts."""
    texts = json.dumps(["答え?", 'a "quote"'], ensure_ascii=False, separators=(",", ":"))
    expected = hashlib.sha256(b"n" * 16 + texts.encode()).digest()

    assert decode_base64(hash_texts("答え?", 'a "quote"', b"n" * 16)) == expected


@given(st.binary(max_size=40))
def test_base64_of_any_content(content: bytes) -> None:
    """Decoding inverts encoding; there is no padding."""
    assert "=" not in encode_base64(content)
    assert decode_base64(encode_base64(content)) == content


def test_chains_of_several_users_are_separate() -> None:
    """Receipts may be listed in any order, and parts of a chain are valid."""
    receipts = [*build_chain(4), *build_chain(2, "bob")]

    assert check_chain(receipts[::-1]) == []
    assert check_chain(receipts[2:4]) == []
    assert check_chain([*receipts, *receipts]) == []


def test_changed_receipts_break_the_chain() -> None:
    """A receipt that was replaced, and one that claims to be the first, are named."""
    chain = build_chain(3)
    other = build_claims(2, chain[1][1].previous)
    replaced = (msgspec.json.encode(other).decode() + " ", other)

    assert check_chain([chain[0], replaced, chain[2]]) == [
        "receipt 3 of ann does not continue the one before"
    ]
    assert check_chain([chain[1], replaced]) == ["ann has two receipts with the number 2"]
    assert check_chain([("x", build_claims(1, "0" * 64))]) == [
        "receipt 1 of ann does not continue the one before"
    ]


@pytest.mark.parametrize(
    ("numbers", "gaps"),
    [([], []), ([1, 2, 2], []), ([3], [(1, 2)]), ([6, 2, 1], [(3, 5)]), ([2, 4], [(1, 1), (3, 3)])],
)
def test_gaps(numbers: list[int], gaps: list[tuple[int, int]]) -> None:
    """The numbers that are absent below the highest one."""
    assert list_gaps(numbers) == gaps
