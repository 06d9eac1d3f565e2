"""Usage of customers by hour."""

from datetime import timedelta

import pytest

from service.core.auth.principals import BOOTSTRAP
from service.core.billing.customers import connect_customer, list_connections
from service.core.billing.usage import (
    CUSTOMER_HOURS_MAX,
    HourUsage,
    find_hour,
    list_parts,
    read_usage,
)
from service.core.database.engine import Database
from tests.billing import HOUR, START, connect, use

pytestmark = pytest.mark.every_database
MINUTE = timedelta(minutes=1)


async def read(database: Database, hours: int = 4) -> dict[tuple[str, int], HourUsage]:
    """The usage by customer and number of the hour since the start."""
    until = START + hours * HOUR
    async with database.read_session() as session:
        customers = await list_connections(session, START, until)
        names = {customer.id: customer.stripe_customer_id for customer in customers}
        usage = await read_usage(session, customers, START, until)
    return {(names[key], (hour - START) // HOUR): value for (key, hour), value in usage.items()}


async def test_usage_is_summed_by_customer_and_hour(database: Database) -> None:
    """Each hour has the known costs of its rows, and the number of others."""
    for user_id in "ab":
        await connect(database, user_id)
    for at, nano_usd, user_id in (
        (START, 1, "a"),
        (START + 59 * MINUTE, 2, "a"),
        (START + 60 * MINUTE, 4, "a"),
        (START + 61 * MINUTE, 8, "b"),
        (START + 62 * MINUTE, None, "b"),
        (START, 16, "another"),
    ):
        await use(database, nano_usd, at, user_id)
    assert await read(database) == {
        ("cus_a", 0): HourUsage(3, 0),
        ("cus_a", 1): HourUsage(4, 0),
        ("cus_b", 1): HourUsage(8, 1),
    }


async def test_an_hour_of_two_customers_is_divided(database: Database) -> None:
    """Usage before a change counts for the earlier customer, later usage for the next one."""
    await connect(database)
    at = START + 90 * MINUTE
    await connect_customer(database, BOOTSTRAP, "local", "cus_next", at=at)
    await use(database, 1, START + 89 * MINUTE)
    await use(database, 2, at)
    await use(database, 4, at + HOUR)
    assert await read(database) == {
        ("cus_local", 1): HourUsage(1, 0),
        ("cus_next", 1): HourUsage(2, 0),
        ("cus_next", 2): HourUsage(4, 0),
    }


def test_hours_begin_at_the_full_hour() -> None:
    """The hour of a time is in UTC."""
    assert find_hour(START + 59 * MINUTE + timedelta(microseconds=1)) == START


@pytest.mark.parametrize("customers", [0, 1, 7, 10 * CUSTOMER_HOURS_MAX])
def test_parts_cover_an_interval(customers: int) -> None:
    """Parts are adjacent, of whole hours, and small enough for all customers."""
    until = START + 5000 * HOUR
    parts = list(list_parts(START, until, customers))
    assert [start for start, _ in parts] == [START, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == until
    lengths = [(end - start) // HOUR for start, end in parts]
    assert all(n == 1 or n * customers <= CUSTOMER_HOURS_MAX for n in lengths)
