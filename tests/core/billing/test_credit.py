"""Quotas with credit: both are held, or neither is."""

import asyncio
from decimal import Decimal

import pytest

from service.core.billing.credit import CreditQuota
from service.core.billing.wallets import LocalWallets
from service.core.database.engine import Database
from service.core.errors import DatabaseUnavailable, OutOfCredit, UnpricedModel
from service.core.ports import QuotaLimits, QuotaSubject
from service.core.pricing import ChargeTerms
from service.core.quota.local import LocalQuota
from tests.wallets import add_funds

TERMS = ChargeTerms(prepaid=True, markup=Decimal(1))
ALICE = [QuotaSubject.for_user("alice", QuotaLimits(concurrent=2), TERMS)]


class CreditFixture:
    """A quota with wallets in memory."""

    def __init__(self, database: Database) -> None:
        self.recovered = asyncio.Event()
        self.recovered.set()
        self.quota = LocalQuota(60)
        self.quota.load(self.quota.get_load_starts(), ({}, {}, {}))
        self.wallets = LocalWallets(database, self._wait, wait_seconds=0.01)
        self.credit = CreditQuota(self.quota, self.wallets)

    async def _wait(self) -> None:
        await self.recovered.wait()

    async def hold(self, name: str, charge: int | None) -> None:
        """Hold for a prepaid user."""
        await self.credit.hold(name, ALICE, tokens=1, nano_usd=1, charge_nano_usd=charge)

    async def read_held(self) -> tuple[int, int]:
        """The holds of the quota and those of the wallet."""
        held = self.quota.get_usage("user:alice")["concurrent"][1]
        return held, (await self.wallets.read_funds("alice")).held


@pytest.fixture
def fixture(database: Database) -> CreditFixture:
    """Quota and wallets."""
    return CreditFixture(database)


async def test_both_are_held_and_released(fixture: CreditFixture, database: Database) -> None:
    """A hold is of the quota and of the wallet until it is released."""
    await add_funds(database, 10)
    await fixture.hold("a", 4)
    await fixture.credit.grow("a", tokens=2, nano_usd=2, charge_nano_usd=7)
    assert await fixture.read_held() == (1, 7)
    assert await fixture.credit.read_available("alice") == 3
    fixture.credit.release("a")
    assert await fixture.read_held() == (0, 0)


@pytest.mark.parametrize(("charge", "error"), [(5, OutOfCredit), (None, UnpricedModel)])
async def test_a_refusal_of_the_wallet_releases_the_quota(
    fixture: CreditFixture, charge: int | None, error: type[Exception]
) -> None:
    """Without funds, or without a price, nothing is held."""
    with pytest.raises(error):
        await fixture.hold("a", charge)
    assert await fixture.read_held() == (0, 0)


async def test_holds_end_with_their_rows(fixture: CreditFixture, database: Database) -> None:
    """Credit is held until the row is committed; the quota is settled before."""
    await add_funds(database, 10)
    await fixture.hold("a", 4)
    fixture.quota.settle("a", tokens=1, nano_usd=1)
    assert await fixture.read_held() == (0, 4)
    fixture.credit.remove_written(["a", "b"])
    assert await fixture.read_held() == (0, 0)


async def test_others_hold_no_credit(fixture: CreditFixture) -> None:
    """Users without terms, or with a markup only, hold nothing of a wallet."""
    for name, terms in (("a", None), ("b", ChargeTerms(markup=Decimal(2)))):
        subjects = [QuotaSubject.for_user("alice", QuotaLimits(concurrent=2), terms)]
        await fixture.credit.hold(name, subjects, tokens=1, nano_usd=1, charge_nano_usd=9)
    assert await fixture.read_held() == (2, 0)


async def test_earlier_rows_are_written_first(fixture: CreditFixture, database: Database) -> None:
    """Until the rows of earlier processes are debited, credit cannot be held."""
    await add_funds(database, 10)
    fixture.recovered.clear()
    with pytest.raises(DatabaseUnavailable):
        await fixture.hold("a", 4)
    fixture.recovered.set()
    await fixture.hold("a", 4)
    assert await fixture.read_held() == (1, 4)
