"""Customers: connections of users to customers at Stripe."""

from datetime import timedelta

import pytest

from service.core.audit_log import AuditFilter, list_entries
from service.core.auth.principals import BOOTSTRAP
from service.core.billing import customers
from service.core.billing.customers import (
    Customer,
    connect_customer,
    disconnect_customer,
    find_first_start,
    list_connections,
    list_customers,
    read_customer,
)
from service.core.database.engine import Database
from service.core.errors import CustomersFull, NotFound
from tests.billing import HOUR, START, connect

pytestmark = pytest.mark.every_database


async def read_all(database: Database) -> list[Customer]:
    """The connections in force."""
    async with database.read_session() as session:
        return await list_customers(session)


async def test_a_user_is_connected_and_disconnected(database: Database) -> None:
    """A connection is in force from its beginning to its end."""
    customer = await connect(database)
    assert await read_all(database) == [customer]
    async with database.read_session() as session:
        assert await read_customer(session, "local") == customer
        assert await find_first_start(session) == START
    ended = await disconnect_customer(database, BOOTSTRAP, "local", at=START + HOUR)
    assert ended.ended_at == START + HOUR
    assert await read_all(database) == []
    with pytest.raises(NotFound):
        await disconnect_customer(database, BOOTSTRAP, "local")
    async with database.read_session() as session:
        with pytest.raises(NotFound):
            await read_customer(session, "local")


async def test_connecting_again_changes_nothing(database: Database) -> None:
    """The same customer keeps the connection and its beginning."""
    customer = await connect(database)
    assert await connect(database, at=START + HOUR) == customer


async def test_another_customer_is_another_connection(database: Database) -> None:
    """The previous connection ends where the next one begins, and has another id."""
    first = await connect(database)
    at = START + HOUR
    second = await connect_customer(database, BOOTSTRAP, "local", "cus_other", at=at)
    async with database.read_session() as session:
        listed = await list_connections(session, START, START + 2 * HOUR)
    assert {customer.id: customer.ended_at for customer in listed} == {
        first.id: at,
        second.id: None,
    }


async def test_connections_of_an_interval(database: Database) -> None:
    """Connections that ended before it or begin after it are not listed."""
    await connect(database)
    await disconnect_customer(database, BOOTSTRAP, "local", at=START + HOUR)
    for since, count in ((START - HOUR, 0), (START, 1), (START + HOUR, 0)):
        async with database.read_session() as session:
            assert len(await list_connections(session, since, since + HOUR)) == count


async def test_the_number_of_customers_is_limited(database: Database) -> None:
    """Beyond the limit a further user is refused; a connected one can change its customer."""
    await connect(database)
    with pytest.raises(CustomersFull):
        await connect_customer(database, BOOTSTRAP, "b", "cus_b", customers_max=1)
    await connect_customer(database, BOOTSTRAP, "local", "cus_b", customers_max=1)
    assert customers.CUSTOMERS_MAX == 10_000


async def test_changes_are_in_the_audit_log(database: Database) -> None:
    """Who connected and disconnected whom is recorded, with the previous customer."""
    await connect(database)
    at = START + timedelta(hours=1)
    await connect_customer(database, BOOTSTRAP, "local", "cus_other", at=at)
    await disconnect_customer(database, BOOTSTRAP, "local")
    async with database.read_session() as session:
        page = await list_entries(session, AuditFilter(), limit=10)
    assert {(entry.action, entry.target_id) for entry in page.items} == {
        ("customer.connected", "cus_local"),
        ("customer.connected", "cus_other"),
        ("customer.disconnected", "cus_other"),
    }
    assert {entry.detail.get("previous") for entry in page.items} == {None, "cus_local"}
    assert {entry.user_id for entry in page.items} == {"local"}
