"""The request log: one row per answer, written once, with its totals in the same transaction.

Lists of rows are read in `log_pages.py`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from service.core.accounting.rollups import (
    ROW_COLUMNS,
    add_rollups,
    add_sums,
)
from service.core.accounting.rows import (
    ANSWER_COLUMNS,
    ERASED_VALUES,
    LoggedAnswer,
    build_attempt_rows,
    build_row,
    get_rank,
    read_answers,
    read_attempts,
    read_outcome,
    require_readable,
)
from service.core.billing.ledger import DEBIT_CAUSE, EntryKind, NewEntry, add_entries
from service.core.billing.postgres_wallets import remove_holds
from service.core.budgets.charges import RowChange, list_budget_charges
from service.core.database.damaged_rows import read_rows
from service.core.database.engine import ReadSession, Session
from service.core.database.tables import api_keys, attempts, quota_totals, request_logs
from service.core.database.upserts import build_insert
from service.core.encoding import utc_now
from service.core.errors import NotFound
from service.core.ports import list_subject_names
from service.core.quota.postgres import Charges, settle_rows
from service.core.quota.windows import DAY, Starts, add_amount, compute_starts
from service.core.records import Attempt, Outcome, compute_row_charge

_REPLACED = [
    *(request_logs.c[name] for name in ("seq", "id", "rank", "held_tokens", "held_nano_usd")),
    *(request_logs.c[name] for name in ("charge_nano_usd", "prepaid")),
    *ROW_COLUMNS,
]
_CHARGES = ("requests", "tokens", "cost_nano_usd")
_AccountedRow = tuple[Mapping[str, Any], Sequence[Attempt]]
"""A row and its attempts, if there is more than one."""


@cache
def _build_upsert(dialect: str) -> sa.Insert:
    insert = build_insert(dialect, request_logs)
    return insert.on_conflict_do_update(
        index_elements=["id"],
        set_={
            column.name: insert.excluded[column.name]
            if column.name not in ERASED_VALUES
            else sa.case(
                (request_logs.c.erased_at.is_(None), insert.excluded[column.name]),
                else_=request_logs.c[column.name],
            )
            for column in request_logs.c
            if column.name not in ("seq", "id", "erased_at")
        },
        where=request_logs.c.rank < insert.excluded.rank,
    )


async def apply_outcomes(session: Session, outcomes: Sequence[Outcome]) -> int:
    """Write the rows and their totals. Returns the number of new rows.

    Idempotent in any order and number: a row is inserted once and replaced only by a record of
    higher rank (`RANKS`); the totals change by the difference in the same transaction. Erasure is
    final: a record changes the numbers of an erased row, but not its texts, and a new row of an
    erased conversation is inserted without texts. Raises `AnswerDamaged` if a row exists that
    cannot be read.
    """
    best: dict[str, Outcome] = {}
    for outcome in outcomes:
        current = best.get(outcome.intent.id)
        if current is None or get_rank(outcome) > get_rank(current):
            best[outcome.intent.id] = outcome
    existing = await session.run_sync(_read_existing, list(best))
    accepted = [
        outcome
        for id_, outcome in best.items()
        if id_ not in existing or existing[id_]["rank"] < get_rank(outcome)
    ]
    charges: Charges = {}
    if accepted:
        erased = await _read_erased(session, accepted)
        rows = [
            build_row(outcome) | erased.get(outcome.intent.conversation_id or "", {})
            for outcome in accepted
        ]
        await session.execute(_build_upsert(session.dialect.name), rows)
        replaced = [existing[row["id"]] for row in rows if row["id"] in existing]
        several = [row["id"] for row in replaced if row["attempts"] > 1]
        replaced_attempts = await session.run_sync(read_attempts, several)
        await _write_attempts(session, accepted, several)
        added: list[_AccountedRow] = [
            (row, outcome.attempt_list or ()) for row, outcome in zip(rows, accepted, strict=True)
        ]
        removed = [(row, replaced_attempts.get(row["id"], ())) for row in replaced]
        await add_rollups(session, added, removed)
        charges = await _add_charges(session, added, removed)
        await _add_debits(session, rows, existing)
    if session.dialect.name == "postgresql":  # last: accounts are locked until the commit
        if prepaid := [outcome.intent.id for outcome in best.values() if _is_prepaid(outcome)]:
            await remove_holds(session, prepaid)
        await settle_rows(session, list(best), charges)
    return sum(outcome.intent.id not in existing for outcome in accepted)


async def _write_attempts(
    session: Session, outcomes: Sequence[Outcome], replaced_ids: list[str]
) -> None:
    """Write the attempts of answers with more than one, in place of those of replaced rows."""
    if replaced_ids:
        await session.execute(sa.delete(attempts).where(attempts.c.answer_id.in_(replaced_ids)))
    if rows := [row for outcome in outcomes for row in build_attempt_rows(outcome)]:
        await session.execute(sa.insert(attempts), rows)


async def _read_erased(session: Session, outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Return the values of erased rows for each conversation of these outcomes that is erased."""
    ids = {
        conversation_id
        for outcome in outcomes
        if (conversation_id := outcome.intent.conversation_id) not in {None, outcome.intent.id}
    }
    if not ids:
        return {}
    query = sa.select(request_logs.c.id, request_logs.c.erased_at).where(
        request_logs.c.id.in_(ids), request_logs.c.erased_at.is_not(None)
    )
    return {
        row.id: ERASED_VALUES | {"erased_at": row.erased_at} for row in await session.execute(query)
    }


def _read_existing(connection: sa.Connection, ids: list[str]) -> dict[str, dict[str, Any]]:
    query = sa.select(*_REPLACED).where(request_logs.c.id.in_(ids))
    rows = read_rows(connection, query, request_logs.c.seq, request_logs.c.id)
    return {
        keyed.name: {str(name): value for name, value in require_readable(keyed).items()}
        for keyed in rows
    }


async def _add_charges(
    session: Session, added: Sequence[_AccountedRow], replaced: Sequence[_AccountedRow]
) -> Charges:
    """Add the charges to the quotas of users, lineages of keys and budgets, and return them."""
    lineages = await _read_lineages(session, {row["key_id"] for row, _ in (*added, *replaced)})
    charges: dict[tuple[str, Starts], list[int]] = {}
    changes: list[RowChange] = []
    for sign, rows in ((1, added), (-1, replaced)):
        for row, attempt_list in rows:
            starts = compute_starts(row["created_at"].timestamp())
            changes.append((sign, row, starts, attempt_list))
            amount = (1, *compute_row_charge(row))
            lineage = lineages.get(row["key_id"], row["key_id"])
            for subject in list_subject_names(row["user_id"], lineage):
                charge = charges.setdefault((subject, starts), [0, 0, 0])
                for n, value in enumerate(amount):
                    charge[n] += sign * value
    charges |= await list_budget_charges(session, charges, changes)
    sums: dict[tuple[str, str], list[int]] = {}
    for (subject, starts), charge in charges.items():
        day = datetime.fromtimestamp(starts[DAY], UTC).strftime("%Y-%m-%d")
        add_amount(sums.setdefault((day, subject), [0, 0, 0]), charge)
    await add_sums(session, quota_totals, ("day", "subject"), _CHARGES, sums)
    return charges


def _is_prepaid(outcome: Outcome) -> bool:
    terms = outcome.intent.terms
    return terms is not None and terms.prepaid


async def _add_debits(
    session: Session, rows: Sequence[Mapping[str, Any]], existing: Mapping[str, Mapping[str, Any]]
) -> None:
    """Debit the wallets of prepaid rows: the charge, or the difference to that of the old row."""
    entries = []
    for row in rows:
        if not row["prepaid"]:
            continue
        old = existing.get(row["id"], {})
        debited = (old["charge_nano_usd"] or 0) if old.get("prepaid") else 0
        if (amount := debited - (row["charge_nano_usd"] or 0)) != 0:
            entries.append(
                NewEntry(
                    user_id=row["user_id"],
                    kind=EntryKind.DEBIT,
                    amount_nano_usd=amount,
                    cause=f"{DEBIT_CAUSE}{row['id']}:{row['rank']}",
                )
            )
    if entries:
        await add_entries(session, entries, utc_now())


async def _read_lineages(session: Session, key_ids: set[str | None]) -> dict[str, str]:
    """The lineages of keys that were rotated; a key without is its own lineage."""
    if key_ids == {None}:
        return {}
    query = sa.select(api_keys.c.id, api_keys.c.lineage).where(api_keys.c.id.in_(key_ids - {None}))
    return {row.id: row.lineage for row in await session.execute(query)}


async def read_row(session: ReadSession, answer_id: str, *, user_id: str | None) -> LoggedAnswer:
    """Read one row. Raises `NotFound`, also for other users' rows; None: any user's."""
    query = sa.select(*ANSWER_COLUMNS).where(request_logs.c.id == answer_id)
    for item in await read_answers(session, query, user_id=None):
        if user_id in {None, item.user_id}:
            return item
    raise NotFound("no answer has this id")


async def find_by_key(session: ReadSession, user_id: str, idempotency_key: str) -> Outcome | None:
    """Return the outcome of the request with this key from its row; None without a row.

    Raises `AnswerDamaged`.
    """
    columns = request_logs.c
    return await read_outcome(
        session, columns.user_id == user_id, columns.idempotency_key == idempotency_key
    )


async def find_outcome(session: ReadSession, answer_id: str) -> Outcome | None:
    """Return the outcome of an answer of any user from its row; None without a row.

    Raises `AnswerDamaged`.
    """
    return await read_outcome(session, request_logs.c.id == answer_id)
