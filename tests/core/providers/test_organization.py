"""The account of an organization, read by the SDK from a fake of the API."""

from datetime import date

import pytest

from service.core.accounting.provider_export import ProviderUsage
from service.core.errors import ProviderError, ProviderInvalid
from service.core.providers.organization import read_organization
from tests.fakes.organization import ADMIN_KEY, OrganizationFake, Usage

DAY, NEXT_DAY, END = date(2026, 3, 1), date(2026, 3, 2), date(2026, 3, 11)


async def test_usage_and_costs_are_added_up_over_pages() -> None:
    """Days and models of all pages, snapshots of a model together, costs exact to their digits."""
    usages = [
        Usage(DAY, "gpt-5-mini-2025-08-07", 20, 10, "0.000123456"),
        Usage(DAY, "gpt-5-mini", 1, 2, "0.06"),
        Usage(date(2026, 3, 10), "vectors", 7, 0, kind="embeddings"),
        Usage(END, "gpt-5-mini", 9, 9),
    ]
    async with OrganizationFake(usages) as fake:
        export = await read_organization(fake.url, ADMIN_KEY, "openai", DAY, END)
    assert export.usages == {
        ("2026-03-01", "gpt-5-mini"): ProviderUsage(21, 12, 60_123_456),
        ("2026-03-10", "vectors"): ProviderUsage(7, 0, 0),
    }
    assert (export.first, export.last, export.provider) == ("2026-03-01", "2026-03-10", "openai")
    assert len(fake.requests) == 3 * 5
    assert "group_by%5B%5D=model" in fake.requests[0]


async def test_reads_are_repeated() -> None:
    """A rate limit or an outage delays a read; a wrong key ends it."""
    async with OrganizationFake([Usage(DAY, "m", 1, 1)]) as fake:
        fake.failures = [429, 500]
        export = await read_organization(fake.url, ADMIN_KEY, "openai", DAY, NEXT_DAY)
        assert list(export.usages) == [("2026-03-01", "m")]
        count = len(fake.requests)
        with pytest.raises(ProviderError):
            await read_organization(fake.url, "sk-other", "openai", DAY, NEXT_DAY)
        assert len(fake.requests) == count + 1


async def test_another_response_is_an_error() -> None:
    """What is not as documented is not taken for an empty account."""
    async with OrganizationFake([Usage(DAY, "m", 1, 1)]) as fake:
        fake.failures = [200]
        with pytest.raises(ProviderInvalid, match="not as documented"):
            await read_organization(fake.url, ADMIN_KEY, "openai", DAY, NEXT_DAY)
