"""Conversations in the database: pages, turns, and erasure against records that arrive later."""

import itertools
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from service.core.accounting import conversations
from service.core.accounting.audit import audit_log
from service.core.database.engine import Database
from service.core.pricing import Usage
from service.core.records import Intent, Message, Outcome, Passage, Status, UsageSource
from tests.core.accounting.test_journal import drop_locks, list_files, open_journal, run_recovery
from tests.damage import change_page, find_pages, set_value
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.every_database

PASSAGE = Passage(1, "d", "d.1", "Secret title", "Secret text.", (0, 12))

_milliseconds = itertools.count(1)


def begin(**fields: Any) -> Intent:
    """Build the intent of the first answer of a conversation."""
    intent = build_intent()
    fields = {"id": intent.id, "conversation_id": intent.id, "prompt": "Secret?"} | fields
    return build_intent(at=intent.created_at, **fields)


def continue_(first: Intent, **fields: Any) -> Intent:
    """Build the intent of a later answer: ids order by milliseconds."""
    at = first.created_at + timedelta(milliseconds=next(_milliseconds))
    fields = {"prompt": "Secret follow-up?"} | fields
    return build_intent(at=at, conversation_id=first.id, **fields)


def end(intent: Intent, **fields: Any) -> Outcome:
    """Build the outcome of an answer with texts."""
    return build_outcome(
        intent, **({"response": "Secret.", "sources": [PASSAGE], "nearest": [PASSAGE]} | fields)
    )


async def erase(database: Database, conversation_id: str) -> None:
    """Erase a conversation."""
    async with database.transaction() as session:
        await conversations.erase_rows(session, conversation_id)


async def read_texts(database: Database) -> str:
    """Return everything that the log table has, as text."""
    async with database.read_session() as session:
        rows = await session.execute(sa.text("SELECT * FROM request_logs"))
        return repr(rows.all())


async def test_conversations_are_listed_by_their_first_answer(database: Database) -> None:
    """The last started comes first, with title, number of answers and time of the last one."""
    first, other = sorted((begin(), begin()), key=lambda intent: intent.id)
    other = msgspec.structs.replace(other, prompt="x" * 1000)
    later = continue_(first)
    foreign = begin(user_id="bob")
    await write(database, [end(intent) for intent in (first, other, later, foreign)])

    async with database.read_session() as session:
        page = await conversations.list_conversations(session, user_id="local", limit=1)
        rest = await conversations.list_conversations(
            session, user_id="local", limit=1, cursor=page.next_cursor
        )

    assert [item.id for item in page.items] == [other.id]
    assert len(page.items[0].title) == conversations.TITLE_CHARACTERS_MAX
    assert rest.next_cursor is None
    (item,) = rest.items
    assert (item.id, item.title, item.answers) == (first.id, "Secret?", 2)
    assert (item.created_at, item.updated_at) == (first.created_at, later.created_at)


async def test_turns_are_the_messages_and_answers_in_order(database: Database) -> None:
    """The history of a conversation has the messages that began it; failures are left out."""
    sent = [Message("user", "a"), Message("assistant", "b"), Message("user", "Secret?")]
    first = begin(messages=sent)
    failed, later = continue_(first), continue_(first, prompt="c")
    await write(
        database,
        [
            end(first),
            end(failed, response="", status=Status.TIMEOUT, error_code="provider_timeout"),
            end(later, response="d"),
        ],
    )

    async with database.read_session() as session:
        turns = await conversations.read_turns(session, first.id, 10)
        last = await conversations.read_turns(session, first.id, 1)

    assert turns == [*sent, Message("assistant", "Secret."), *last]
    assert last == [Message("user", "c"), Message("assistant", "d")]


@pytest.mark.sqlite
async def test_queries_of_conversations_use_their_indexes(database: Database) -> None:
    """Neither a page nor a thread scans the log."""
    async with database.read_session() as session:
        plans = [
            (await session.execute(sa.text(f"EXPLAIN QUERY PLAN {query}"))).all()
            for query in (
                (
                    "SELECT id FROM request_logs WHERE user_id = 'a' AND conversation_id = id"
                    " AND erased_at IS NULL ORDER BY id DESC LIMIT 5"
                ),
                (
                    "SELECT id FROM request_logs WHERE (id = 'c' AND conversation_id = 'c')"
                    " OR (conversation_id = 'c' AND conversation_id != id) ORDER BY id LIMIT 5"
                ),
            )
        ]

    assert "ix_request_logs_user_id_conversations" in str(plans[0])
    assert "ix_request_logs_conversation_id_id" in str(plans[1])
    assert "SCAN request_logs'" not in str(plans)


async def test_erasure_removes_all_texts_and_keeps_the_account(
    database: Database, tmp_path: Path
) -> None:
    """No text of any row is left; numbers, totals and other conversations do not change."""
    first, kept = begin(idempotency_key="k", body_hash="0" * 64), begin(prompt="Kept?")
    later = continue_(first, messages=[Message("user", "Secret")], searched_for="Secret?")
    await write(database, [end(first), end(later), build_outcome(kept)])

    await erase(database, first.id)
    await erase(database, first.id)

    texts = await read_texts(database)
    assert "Secret" not in texts
    assert "0" * 64 not in texts
    assert "Kept?" in texts
    async with database.read_session() as session:
        state = await conversations.read_state(session, first.id)
        page = await conversations.list_conversations(session, user_id="local", limit=10)
        (answer, follow_up), _ = await conversations.read_thread(session, first.id, limit=10)
    assert state is not None
    assert state.erased_at
    assert [item.id for item in page.items] == [kept.id]
    assert (answer.total_tokens, answer.estimated_cost, answer.sources) == (15, "0.0000015", [])
    assert answer.erased_at == follow_up.erased_at == state.erased_at
    assert (await audit_log(database, tmp_path)).agrees


@pytest.mark.parametrize("which", ["first", "later"])
async def test_a_late_record_updates_numbers_but_never_texts(
    database: Database, tmp_path: Path, which: str
) -> None:
    """A record with a higher rank replaces the usage of an erased row, not its texts."""
    first = begin()
    intent = first if which == "first" else continue_(first)
    unknown: dict[str, Any] = {"usage_source": UsageSource.UNKNOWN, "status": Status.INTERRUPTED}
    unknown |= {"usage": None, "cost_nano_usd": None}
    await write(database, [end(first, **unknown), end(intent, **unknown)])
    await erase(database, first.id)

    usage = Usage(prompt_tokens=70, completion_tokens=7)
    await write(database, [end(intent, usage=usage)])

    assert "Secret" not in await read_texts(database)
    async with database.read_session() as session:
        answers, _ = await conversations.read_thread(session, first.id, limit=10)
    (answer,) = (answer for answer in answers if answer.id == intent.id)
    assert (answer.total_tokens, answer.usage_source) == (77, "provider")
    assert answer.erased_at
    assert (await audit_log(database, tmp_path)).agrees


async def test_a_new_row_of_an_erased_conversation_has_no_texts(
    database: Database, tmp_path: Path
) -> None:
    """An answer whose record arrives after the erasure is erased as well; its numbers count."""
    first = begin()
    await write(database, [end(first)])
    await erase(database, first.id)
    later = continue_(first, idempotency_key="k", body_hash="0" * 64)

    await write(database, [end(later)])

    texts = await read_texts(database)
    assert "Secret" not in texts
    assert "0" * 64 not in texts
    async with database.read_session() as session:
        (_, answer), _ = await conversations.read_thread(session, first.id, limit=10)
    assert answer.id == later.id
    assert (answer.total_tokens, bool(answer.erased_at)) == (15, True)
    assert (await audit_log(database, tmp_path)).agrees


async def test_recovery_after_an_erasure_restores_no_texts(
    database: Database, tmp_path: Path
) -> None:
    """Texts in the journal of a process that died after the erasure do not return."""
    journal = open_journal(tmp_path)
    first = begin()
    later, unfinished = continue_(first), continue_(first)
    journal.append_intent(first)
    journal.append_outcome(end(first))
    await write(database, [end(first, usage_source=UsageSource.ESTIMATED)])
    await erase(database, first.id)
    for intent in (later, unfinished):
        journal.append_intent(intent)
    journal.append_outcome(end(later))
    assert any(b"Secret" in file.read_bytes() for file in list_files(tmp_path))
    drop_locks(journal)  # the process died before it could remove its segments

    recovery = await run_recovery(database, tmp_path)

    assert recovery.statistics().rows == 2
    assert list_files(tmp_path) == []
    assert "Secret" not in await read_texts(database)
    async with database.read_session() as session:
        answers, _ = await conversations.read_thread(session, first.id, limit=10)
    assert {answer.id: answer.usage_source for answer in answers} == {
        first.id: "provider",
        later.id: "provider",
        unfinished.id: "unknown",
    }
    assert all(answer.erased_at for answer in answers)


def break_chain(file: Path, _answer_id: str) -> None:
    """End the pages that a long prompt continues on after the first ones."""
    page = find_pages(file, LONG[:500].encode())[3]
    change_page(file, page, lambda data: data.__setitem__(slice(0, 4), bytes(4)))


def make_undecodable(file: Path, answer_id: str) -> None:
    """Store bytes as a prompt that are not UTF-8."""
    set_value(file, answer_id, "prompt = CAST(x'ff' AS TEXT)")


def change_type(file: Path, answer_id: str) -> None:
    """Store a text as time, and a number as response."""
    set_value(file, answer_id, "created_at = 'x', response = x'00ff'")


LONG = "0123456789abcdef" * 2000


@pytest.mark.sqlite
@pytest.mark.parametrize("damage", [break_chain, make_undecodable, change_type])
async def test_a_damaged_row_hides_no_other_conversation(
    database: Database, tmp_path: Path, damage: Callable[[Path, str], None]
) -> None:
    """Lists have all conversations but erased ones, the damaged one without its title."""
    first = sorted((begin() for _ in range(5)), key=lambda intent: intent.id)
    first[2] = msgspec.structs.replace(first[2], prompt=LONG)
    await write(database, [end(intent) for intent in first])
    await erase(database, first[0].id)
    shutil.copy(await checkpoint(database), tmp_path / "copy.db")
    damage(tmp_path / "copy.db", first[2].id)
    damaged = Database(f"sqlite+aiosqlite:///{tmp_path / 'copy.db'}")
    async with damaged.read_session() as session:
        page = await conversations.list_conversations(session, user_id="local", limit=3)
        rest = await conversations.list_conversations(
            session, user_id="local", limit=3, cursor=page.next_cursor
        )
    await damaged.close()

    titles = {item.id: item.title for item in [*page.items, *rest.items]}
    assert [*titles] == [intent.id for intent in first[:0:-1]]
    assert titles[first[2].id] == "\ufffd"
    assert damaged.damage


@pytest.mark.sqlite
@pytest.mark.parametrize("damage", [break_chain, make_undecodable, change_type])
async def test_a_conversation_continues_after_a_damaged_answer(
    database: Database, tmp_path: Path, damage: Callable[[Path, str], None]
) -> None:
    """The history of the next question has the other answers."""
    first = begin()
    second, third = continue_(first, prompt=LONG), continue_(first, prompt="Third?")
    await write(database, [end(intent) for intent in (first, second, third)])
    shutil.copy(await checkpoint(database), tmp_path / "copy.db")
    damage(tmp_path / "copy.db", second.id)
    damaged = Database(f"sqlite+aiosqlite:///{tmp_path / 'copy.db'}")
    async with damaged.read_session() as session:
        turns = await conversations.read_turns(session, first.id, limit=10)
        items, _ = await conversations.read_thread(session, first.id, limit=10)
    await damaged.close()

    assert [turn.content for turn in turns if turn.role == "user"] == ["Secret?", "Third?"]
    assert [item.id for item in items] == [first.id, second.id, third.id]
    assert damaged.damage


async def checkpoint(database: Database) -> Path:
    """Move the WAL into the file, which is returned."""
    assert database.file
    await database.close()
    find_pages(database.file, b"-")
    return database.file
