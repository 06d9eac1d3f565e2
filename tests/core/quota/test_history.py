"""Usage before the start of the process."""

from datetime import UTC, datetime, timedelta

from service.core.accounting import log as request_log
from service.core.database.engine import Database
from service.core.pricing import Usage
from service.core.quota.history import rebuild_usage
from service.core.records import Status, UsageSource
from tests.core.quota.test_local import Clock, create_quota, user
from tests.records import build_intent, build_outcome

NOON = datetime(2027, 3, 31, 12, 0, 5, tzinfo=UTC).timestamp()


async def test_earlier_usage_is_counted_once(database: Database) -> None:
    """Usage of this month, day and minute is loaded, and the process's own rows only once."""
    clock = Clock()
    now = datetime.fromtimestamp(NOON, UTC)
    moments = [
        now - timedelta(days=40),
        now - timedelta(days=3),
        now - timedelta(hours=2),
        now - timedelta(seconds=2),
        now,
    ]
    for n, moment in enumerate(moments):
        rows = [
            build_outcome(
                build_intent(at=moment, user_id="alice", key_id="k"),
                usage=Usage(prompt_tokens=10**n, completion_tokens=0),
            )
        ]
        async with database.transaction() as session:
            await request_log.apply_outcomes(session, rows)
            await request_log.apply_outcomes(session, rows)
    unknown = build_outcome(
        build_intent(at=moments[2], user_id="alice", held_tokens=500_000),
        usage=None,
        usage_source=UsageSource.UNKNOWN,
        status=Status.TIMEOUT,
    )
    async with database.transaction() as session:
        await request_log.apply_outcomes(session, [unknown])
    book = create_quota(clock, loaded=False)
    await book.hold("own", user(), tokens=10**4, nano_usd=0)
    book.settle("own", tokens=10**4, nano_usd=1500)
    async with database.read_session() as session:
        await rebuild_usage(session, book, now)

    usage = book.get_usage("user:alice")
    assert usage["tokens_per_month"] == (510 + 11_000 + 500_000 - 400, 0)
    assert usage["tokens_per_day"] == (11_100 + 500_000, 0)
    assert usage["tokens_per_minute"] == (11_000, 0)
    assert usage["requests_per_minute"] == (2, 0)
    assert book.get_usage("key:k")["tokens_per_month"] == (1110, 0)
