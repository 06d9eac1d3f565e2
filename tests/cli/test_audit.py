"""`kotae audit`: comparisons with a provider and with Stripe."""

from datetime import timedelta

import pytest

from service.core.billing.meter_events import create_events
from service.core.database.engine import Database
from service.core.encoding import create_id, utc_now
from service.core.errors import KotaeError
from service.core.pricing import format_usd
from tests.billing import connect, use
from tests.command import command, run
from tests.fakes.organization import ADMIN_KEY, OrganizationFake, Usage
from tests.fakes.stripe import KEY, METER, StripeFake
from tests.records import build_intent, build_outcome
from tests.rows import write


@pytest.fixture(autouse=True)
def _data_dir(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands use the database of the test."""
    assert database.file
    monkeypatch.setenv("KOTAE_DATA_DIR", str(database.file.parent))


async def test_the_account_of_a_provider_is_compared(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kotae audit --provider` reads the days before today, and compares the provider's calls."""
    at = utc_now() - timedelta(days=2)
    intents = [build_intent(id=create_id(at), created_at=at, model="m") for _ in range(2)]
    await write(
        database,
        [
            build_outcome(intents[0], provider="openai", provider_model="m"),
            build_outcome(intents[1], provider="other", provider_model="m"),
        ],
    )
    with pytest.raises(KotaeError, match="KOTAE_PROVIDER_ADMIN_KEY"):
        await command("audit", "--provider", "openai")
    usage = build_outcome(intents[0]).usage
    assert usage
    reported = Usage(at.date(), "m", usage.prompt_tokens, usage.completion_tokens)
    async with OrganizationFake([reported], page_days=31) as fake:
        monkeypatch.setenv("KOTAE_PROVIDER_ADMIN_KEY", ADMIN_KEY)
        monkeypatch.setenv("KOTAE_PROVIDER_ADMIN_URL", fake.url)
        reported.usd = format_usd(build_outcome(intents[0]).cost_nano_usd or 0)
        status, output = await run("audit", "--provider", "openai")
        assert (status, "all agrees" in output) == (0, True), output
        assert "beside the export: 0 answers of unknown usage" in output
        reported.prompt += 1
        status, output = await run("audit", "--provider", "openai")
        assert (status, "calls from elsewhere with this account" in output) == (1, True), output
        with pytest.raises(KotaeError, match="days before today"):
            await command("audit", "--provider", "openai", "--since", "2020-01-01")


async def test_the_audit_compares_with_stripe(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undelivered usage is a line, and the exit status is 1 unless it is explained."""
    now = utc_now()
    start = (now - timedelta(hours=5)).replace(minute=0, second=0, microsecond=0)
    await connect(database, at=start)
    await use(database, 1500, start)
    with pytest.raises(KotaeError, match="KOTAE_STRIPE_KEY"):
        await command("audit", "--stripe")
    async with StripeFake() as fake:
        monkeypatch.setenv("KOTAE_STRIPE_KEY", KEY)
        monkeypatch.setenv("KOTAE_STRIPE_METER", METER)
        monkeypatch.setenv("KOTAE_STRIPE_BASE_URL", fake.url)
        status, output = await run("audit", "--stripe")
        assert (status, "$0.0000015 open (unexplained)" in output) == (1, True)
        (event,) = await create_events(database, start, now, now)
        status, output = await run("audit", "--stripe")
        assert (status, f"pending: event {event.id}" in output) == (0, True)
        fake.meters = []
        with pytest.raises(KotaeError, match="Stripe could not be read: no active meter"):
            await command("audit", "--stripe")


async def test_payments_are_compared_without_a_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation that only sells credit needs no meter."""
    async with StripeFake() as fake:
        monkeypatch.setenv("KOTAE_STRIPE_KEY", KEY)
        monkeypatch.setenv("KOTAE_STRIPE_BASE_URL", fake.url)
        output = await run("audit", "--stripe")
    assert (output[0], "0 entries of the ledger" in output[1]) == (0, True), output
    assert "at Stripe  $" not in output[1]
