"""Issues receipts and keeps them: see `receipts`.

A receipt is signed when it is first asked for, never while its answer is running, in one
transaction with its place in the chain of the user. Transactions exclude each other, also those of
other replicas, so numbers and links are unique. Asking again returns the same receipt as long as
the account of the answer is the same.
"""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import sqlalchemy as sa

from service.core.accounting.log import read_row
from service.core.accounting.receipts import (
    NONCE_BYTES,
    Account,
    Receipt,
    ReceiptClaims,
    ReceiptInvalid,
    ReceiptPage,
    build_account,
    decode_base64,
    encode_base64,
    hash_receipt,
    hash_texts,
)
from service.core.database.engine import Database, ReadSession, Session
from service.core.database.tables import receipt_keys, receipts, request_logs
from service.core.database.upserts import insert_into
from service.core.encoding import convert_row, create_id, utc_now
from service.core.errors import AnswerDamaged, KotaeError
from service.core.lazy import LazyModule
from service.core.records import Answer, DamagedAnswer

if TYPE_CHECKING:
    from service.core.accounting import receipt_keys as signatures
else:
    signatures = LazyModule("service.core.accounting.receipt_keys")

PAGE_MAX = 200


class ReceiptLog:
    """Issues receipts, signed by the key of a data directory."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._database, self._directory = database, directory
        self._key: signatures.SigningKey | None = None

    async def issue(self, answer_id: str, *, user_id: str | None) -> Receipt:
        """Return the receipt of an answer, signed now if there is none of its present account.

        `user_id`: whose answers may be read; None: any user's. Raises `NotFound`, `AnswerDamaged`,
        `DatabaseUnavailable`, and `KotaeError` if the key cannot be read or created.
        """
        async with self._database.read_session() as session:
            answer, account = await _read_account(session, answer_id, user_id)
            latest = await _read_latest(session, answer_id)
        if latest and _read_claims(latest).answer == account:
            return latest
        key = await self._load_key()
        async with self._database.transaction() as session:
            answer, account = await _read_account(session, answer_id, user_id)
            latest = await _read_latest(session, answer_id)
            if latest and _read_claims(latest).answer == account:  # another request was faster
                return latest
            return await _add_receipt(session, key, answer, account, latest)

    async def list_receipts(self, user_id: str, *, limit: int, after: int = 0) -> ReceiptPage:
        """Return the receipts of a user after a number, in their order.

        Raises `DatabaseUnavailable`.
        """
        query = (
            sa.select(receipts)
            .where(receipts.c.user_id == user_id, receipts.c.number > after)
            .order_by(receipts.c.number)
            .limit(limit + 1)
        )
        async with self._database.read_session() as session:
            rows = (await session.execute(query)).mappings().all()
        items = [_convert(row) for row in rows[:limit]]
        return ReceiptPage(items, items[-1].number if len(rows) > limit else None)

    async def list_public_keys(self) -> list[dict[str, Any]]:
        """Return the public keys of all receipts, as JWKs. Raises `DatabaseUnavailable`."""
        query = sa.select(receipt_keys.c.public).order_by(receipt_keys.c.created_at)
        async with self._database.read_session() as session:
            return list((await session.execute(query)).scalars())

    async def _load_key(self) -> "signatures.SigningKey":
        if self._key is None:
            try:
                self._key = await anyio.to_thread.run_sync(_load_key, self._directory)
            except (OSError, ReceiptInvalid) as error:
                raise KotaeError(f"the key of receipts cannot be used: {error}") from error
        return self._key


def _load_key(directory: Path) -> "signatures.SigningKey":
    """In a thread: importing the module and creating a key take tens of milliseconds."""
    return signatures.load_signing_key(directory)


async def erase_nonces(session: Session, *where: sa.ColumnElement[bool]) -> None:
    """Erase what proves the texts of answers. `where`: conditions of `receipts`."""
    erasure = sa.update(receipts).where(receipts.c.nonce.is_not(None), *where)
    await session.execute(erasure.values(nonce=None))


async def _add_receipt(
    session: Session,
    key: "signatures.SigningKey",
    answer: Answer,
    account: Account,
    superseded: Receipt | None,
) -> Receipt:
    """Sign and store the next receipt of a user's chain."""
    last = await _read_last(session, answer.user_id)
    now = utc_now()
    nonce = None if answer.erased_at else secrets.token_bytes(NONCE_BYTES)
    claims = ReceiptClaims(
        jti=create_id(now),
        iat=int(now.timestamp()),
        sub=answer.user_id,
        number=last.number + 1 if last else 1,
        previous=hash_receipt(last.receipt) if last else None,
        supersedes=superseded.id if superseded else None,
        answer=account,
        texts=hash_texts(str(answer.prompt), str(answer.response), nonce) if nonce else None,
    )
    receipt = Receipt(
        id=claims.jti,
        answer_id=answer.id,
        user_id=claims.sub,
        number=claims.number,
        created_at=now,
        receipt=key.sign(claims),
        nonce=encode_base64(nonce) if nonce else None,
    )
    published = insert_into(session, receipt_keys).on_conflict_do_nothing()
    await session.execute(published.values(id=key.id, public=key.public, created_at=now))
    await session.execute(sa.insert(receipts).values(**msgspec.structs.asdict(receipt)))
    return receipt


async def _read_account(
    session: ReadSession, answer_id: str, user_id: str | None
) -> tuple[Answer, Account]:
    answer = await read_row(session, answer_id, user_id=user_id)
    if isinstance(answer, DamagedAnswer):
        raise AnswerDamaged("the log row of this answer is damaged")
    query = sa.select(request_logs.c.price).where(request_logs.c.id == answer_id)
    return answer, build_account(answer, (await session.execute(query)).scalar())


async def _read_latest(session: ReadSession, answer_id: str) -> Receipt | None:
    """The last receipt of an answer."""
    return await _read_highest(session, receipts.c.answer_id == answer_id)


async def _read_last(session: ReadSession, user_id: str) -> Receipt | None:
    """The last receipt of a user."""
    return await _read_highest(session, receipts.c.user_id == user_id)


async def _read_highest(session: ReadSession, where: sa.ColumnElement[bool]) -> Receipt | None:
    query = sa.select(receipts).where(where).order_by(receipts.c.number.desc()).limit(1)
    row = (await session.execute(query)).mappings().first()
    return None if row is None else _convert(row)


def _read_claims(receipt: Receipt) -> ReceiptClaims:
    """The claims of a stored receipt; the service trusts its database."""
    payload = receipt.receipt.split(".")[1]
    return msgspec.json.decode(decode_base64(payload), type=ReceiptClaims)


def _convert(row: sa.RowMapping) -> Receipt:
    return convert_row(row, Receipt)
