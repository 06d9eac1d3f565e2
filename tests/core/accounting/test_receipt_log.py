"""Receipts in the database: their chain, superseding receipts, and erasure."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from service.core.accounting import conversations
from service.core.accounting.receipt_keys import verify_receipt
from service.core.accounting.receipt_log import ReceiptLog
from service.core.accounting.receipts import (
    Receipt,
    ReceiptClaims,
    check_chain,
    decode_base64,
    hash_texts,
)
from service.core.accounting.retention import erase_texts_before
from service.core.database.engine import Database
from service.core.encoding import utc_now
from service.core.errors import KotaeError, NotFound
from service.core.pricing import Usage
from service.core.records import Outcome, UsageSource
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database


async def open_log(database: Database, folder: Path, *outcomes: Outcome) -> ReceiptLog:
    """A log of receipts, and rows of these outcomes."""
    await write(database, outcomes)
    return ReceiptLog(database, folder)


async def verify(log: ReceiptLog, *receipts: Receipt) -> list[ReceiptClaims]:
    """Verify receipts as somebody with the published keys does."""
    keys = {key["kid"]: key for key in await log.list_public_keys()}
    claims = [verify_receipt(receipt.receipt, keys) for receipt in receipts]
    signed = [receipt.receipt for receipt in receipts]
    assert check_chain(zip(signed, claims, strict=True)) == []
    return claims


async def test_receipt_is_issued_once(database: Database, tmp_path: Path) -> None:
    """It is the same for every request, in parallel and after a restart."""
    outcome = build_outcome()
    log = await open_log(database, tmp_path, outcome)
    id_ = outcome.intent.id

    receipts = await asyncio.gather(*(log.issue(id_, user_id="local") for _ in range(8)))
    assert {receipt.receipt for receipt in receipts} == {receipts[0].receipt}
    assert await ReceiptLog(database, tmp_path).issue(id_, user_id=None) == receipts[0]
    (claims,) = await verify(log, receipts[0])
    assert (claims.sub, claims.number, claims.previous) == ("local", 1, None)
    assert claims.answer.estimated_cost == "0.0000015"


async def test_receipts_of_a_user_form_a_chain(database: Database, tmp_path: Path) -> None:
    """Parallel requests for answers of two users, at two replicas with their own keys."""
    outcomes = [build_outcome(build_intent(user_id="ab"[n % 2])) for n in range(12)]
    log = await open_log(database, tmp_path, *outcomes)
    folder = tmp_path / "other"
    folder.mkdir()
    logs = [log, ReceiptLog(database, folder)]
    tasks = [logs[n // 2 % 2].issue(o.intent.id, user_id=None) for n, o in enumerate(outcomes)]
    await asyncio.gather(*tasks)

    for user_id in "ab":
        page = await log.list_receipts(user_id, limit=4)
        rest = await log.list_receipts(user_id, limit=4, after=page.next_cursor or 0)
        items = [*page.items, *rest.items]
        assert [claims.number for claims in await verify(log, *items)] == [1, 2, 3, 4, 5, 6]
        assert rest.next_cursor is None
    assert len(await log.list_public_keys()) == 2


async def test_late_usage_supersedes(database: Database, tmp_path: Path) -> None:
    """The earlier receipt stays in the chain; the new one names it."""
    outcome = build_outcome(usage_source=UsageSource.UNKNOWN, usage=None, cost_nano_usd=None)
    log = await open_log(database, tmp_path, outcome)
    first = await log.issue(outcome.intent.id, user_id=None)
    late = build_outcome(outcome.intent, usage=Usage(prompt_tokens=7, completion_tokens=1))
    await write(database, [late])
    second = await log.issue(outcome.intent.id, user_id=None)

    before, after = await verify(log, first, second)
    assert (before.answer.usage_source, before.answer.estimated_cost) == ("unknown", None)
    assert (after.answer.prompt_tokens, after.supersedes) == (7, first.id)


async def test_nonce_proves_the_texts(database: Database, tmp_path: Path) -> None:
    """The texts and the nonce give the signed hash; without the nonce it reveals nothing."""
    outcome = build_outcome()
    log = await open_log(database, tmp_path, outcome)
    receipt = await log.issue(outcome.intent.id, user_id=None)

    (claims,) = await verify(log, receipt)
    assert receipt.nonce
    nonce = decode_base64(receipt.nonce)
    assert claims.texts == hash_texts("Why?", "Because.", nonce)
    assert receipt.nonce not in receipt.receipt


@pytest.mark.parametrize("way", ["conversation", "retention", "user"])
async def test_erasure_includes_the_nonce(database: Database, tmp_path: Path, way: str) -> None:
    """The receipt stays valid; what proves the texts is gone, of these answers only."""
    intent = build_intent(at=utc_now() - timedelta(days=9))
    erased = build_outcome(build_intent(id=intent.id, conversation_id=intent.id))
    kept = build_outcome(build_intent(user_id="bob"))
    log = await open_log(database, tmp_path, erased, kept)
    receipts = [await log.issue(o.intent.id, user_id=None) for o in (erased, kept)]
    if way == "conversation":
        async with database.transaction() as session:
            await conversations.erase_rows(session, intent.id)
    else:
        moment = utc_now() - timedelta(days=1) if way == "retention" else utc_now()
        await erase_texts_before(database, moment, "", user_id="local" if way == "user" else None)

    again = [await log.issue(o.intent.id, user_id=None) for o in (erased, kept)]
    assert [receipt.nonce for receipt in again] == [None, receipts[1].nonce]
    assert [receipt.receipt for receipt in again] == [receipt.receipt for receipt in receipts]


async def test_erased_answers_have_receipts_without_texts(
    database: Database, tmp_path: Path
) -> None:
    """A receipt that is issued after the erasure commits to nothing."""
    outcome = build_outcome(build_intent(stored=False))
    log = await open_log(database, tmp_path, outcome)
    receipt = await log.issue(outcome.intent.id, user_id=None)

    (claims,) = await verify(log, receipt)
    assert (receipt.nonce, claims.texts) == (None, None)


async def test_receipts_of_others_are_not_found(database: Database, tmp_path: Path) -> None:
    """Nothing is signed for a user who may not read the row."""
    outcome = build_outcome()
    log = await open_log(database, tmp_path, outcome)

    for answer_id, user_id in ((outcome.intent.id, "bob"), ("unknown", None)):
        with pytest.raises(NotFound):
            await log.issue(answer_id, user_id=user_id)
    assert (await log.list_receipts("local", limit=9)).items == []


async def test_unwritable_directory_is_an_error(database: Database, tmp_path: Path) -> None:
    """Without a key nothing is stored."""
    outcome = build_outcome()
    log = await open_log(database, tmp_path / "absent", outcome)

    with pytest.raises(KotaeError, match="key of receipts"):
        await log.issue(outcome.intent.id, user_id=None)
    assert (await log.list_receipts("local", limit=9)).items == []
