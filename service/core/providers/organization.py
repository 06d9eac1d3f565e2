"""A provider's own account: the usage and costs of an organization, by UTC day and model.

The API of OpenAI, with an admin key: `/organization/usage/completions`, `…/embeddings` and
`/organization/costs`, in pages of days. Other providers that have these endpoints work as well.
Line items of costs begin with the model (`gpt-5-mini, input_tokens`); others, such as searches,
are listed under their own names.
"""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from service.core.accounting.provider_export import Export
from service.core.encoding import EPOCH
from service.core.errors import ProviderInvalid
from service.core.lazy import LazyModule
from service.core.pricing import NANO

if TYPE_CHECKING:
    from service.core.providers import sdk
else:
    sdk = LazyModule("service.core.providers.sdk")

PAGES_MAX = 1000
_USAGE_DAYS, _COST_DAYS = 31, 180  # of a page, the most that the API permits


class _Amount(msgspec.Struct):
    value: Decimal = Decimal()
    currency: str = "usd"


class _Result(msgspec.Struct):
    """Usage or a cost."""

    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    line_item: str | None = None
    amount: _Amount | None = None


class _Bucket(msgspec.Struct):
    start_time: int
    results: list[_Result]


class _Page(msgspec.Struct):
    data: list[_Bucket]
    has_more: bool = False
    next_page: str | None = None


async def read_organization(
    url: str, admin_key: str, provider: str, since: date, until: date
) -> Export:
    """The account from day `since` to before day `until`.

    `provider`: its name in the log. Raises `ProviderError`s, and `KotaeError` for too much data.
    """
    client = sdk.OrganizationClient(url=url, admin_key=admin_key)
    export = Export({}, str(since), str(until - timedelta(days=1)), provider)
    try:
        for path in ("usage/completions", "usage/embeddings"):
            async for day, result in _list_results(client, path, since, until):
                usage = export.find_usage(day, result.model or "unnamed")
                usage.prompt += result.input_tokens
                usage.completion += result.output_tokens
        async for day, result in _list_results(client, "costs", since, until):
            amount = result.amount or _Amount()
            if amount.currency != "usd":
                raise ProviderInvalid(f"costs in {amount.currency}, not in usd")
            name = (result.line_item or "unnamed").partition(", ")[0]
            usage = export.find_usage(day, name)
            usage.nano_usd = (usage.nano_usd or 0) + round(amount.value * NANO)
    finally:
        await client.aclose()
    for usage in export.usages.values():
        usage.nano_usd = usage.nano_usd or 0
    return export


async def _list_results(
    client: "sdk.OrganizationClient", path: str, since: date, until: date
) -> AsyncIterator[tuple[str, _Result]]:
    """The results of all pages with their days."""
    is_cost = path == "costs"
    query: dict[str, str | int] = {
        "start_time": _to_seconds(since),
        "end_time": _to_seconds(until),
        "bucket_width": "1d",
        "group_by[]": "line_item" if is_cost else "model",
        "limit": _COST_DAYS if is_cost else _USAGE_DAYS,
    }
    for _ in range(PAGES_MAX):
        try:
            page = msgspec.json.decode(await client.fetch(path, query), type=_Page)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ProviderInvalid(f"/organization/{path} is not as documented: {error}") from error
        for bucket in page.data:
            day = str((EPOCH + timedelta(seconds=bucket.start_time)).date())
            for result in bucket.results:
                yield day, result
        if not page.has_more or page.next_page is None:
            return
        query["page"] = page.next_page
    raise ProviderInvalid(f"/organization/{path} has more than {PAGES_MAX} pages")


def _to_seconds(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
