"""Payers: one customer at Stripe for each user who pays."""

from datetime import timedelta

import pytest

from service.core.auth.principals import BOOTSTRAP
from service.core.billing.customers import list_customers
from service.core.billing.payers import (
    KEY_HOURS,
    Payer,
    assign_payer,
    begin_request,
    end_request,
    find_payer,
    find_user,
    replace_key,
)
from service.core.database.engine import Database
from service.core.errors import PayerExists
from tests.billing import HOUR, START

pytestmark = pytest.mark.every_database


async def read_payer(database: Database, user_id: str) -> Payer | None:
    """The row of a user."""
    async with database.read_session() as session:
        return await find_payer(session, user_id)


async def test_requests_share_a_key_until_there_is_a_customer(database: Database) -> None:
    """A request that was interrupted is repeated under its key."""
    first = await begin_request(database, "alice", START)
    assert await begin_request(database, "alice", START + HOUR) == first
    await end_request(database, first, "cus_1")
    payer = await begin_request(database, "alice", START + timedelta(days=9))
    assert (payer.stripe_customer_id, payer.request_key) == ("cus_1", first.request_key)


async def test_a_key_is_replaced_before_stripe_forgets_it(database: Database) -> None:
    """Later, the same key could create a second customer in parallel requests."""
    first = await begin_request(database, "alice", START)
    later = START + timedelta(hours=KEY_HOURS, seconds=1)
    assert (await begin_request(database, "alice", later)).request_key != first.request_key


async def test_the_first_customer_is_stored(database: Database) -> None:
    """A slower request with another customer changes nothing."""
    payer = await begin_request(database, "alice", START)
    await end_request(database, payer, "cus_1")
    await end_request(database, payer, "cus_2")
    stored = await read_payer(database, "alice")
    assert stored
    assert stored.stripe_customer_id == "cus_1"


async def test_only_the_used_key_is_replaced(database: Database) -> None:
    """A failure that arrives late does not replace the key of a newer request."""
    first = await begin_request(database, "alice", START)
    await replace_key(database, first)
    second = await begin_request(database, "alice")
    assert second.request_key != first.request_key
    await replace_key(database, first)
    assert await begin_request(database, "alice") == second


async def test_a_payer_is_not_metered(database: Database) -> None:
    """Paying for top-ups does not bill usage."""
    await end_request(database, await begin_request(database, "alice"), "cus_1")
    async with database.read_session() as session:
        assert await list_customers(session) == []
        assert await find_user(session, "cus_1") == "alice"
        assert await find_user(session, "cus_2") is None


async def test_a_payer_is_assigned_once(database: Database) -> None:
    """A user has one customer and a customer one user; the same again changes nothing."""
    await begin_request(database, "alice", START)
    for _ in range(2):
        await assign_payer(database, BOOTSTRAP, "alice", "cus_1")
    for user_id, customer_id in (("alice", "cus_2"), ("bob", "cus_1")):
        with pytest.raises(PayerExists):
            await assign_payer(database, BOOTSTRAP, user_id, customer_id)
    await assign_payer(database, BOOTSTRAP, "bob", "cus_2")
    stored = await read_payer(database, "bob")
    assert stored
    assert stored.stripe_customer_id == "cus_2"
