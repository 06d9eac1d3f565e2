"""The FinOps Open Cost and Usage Specification (FOCUS) 1.2: costs as rows that FinOps tools read.

See https://focus.finops.org. A row is a day of one user, key, model and endpoint. Amounts that are
not known are rows of their own, without a cost and with `x_CostStatus` (`unknown`: the provider
reported no usage; `unpriced`: the model has no price), because 0 would be wrong.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from service.core.accounting.analytics import Bucket, GroupResult
from service.core.encoding import to_json
from service.core.pricing import format_usd

NOTHING = format_usd(0)
FOCUS_GROUPS = ("user_id", "key_id", "model", "endpoint")
FOCUS_COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceIssuerName",
    "ListCost",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ServiceCategory",
    "ServiceName",
    "SkuId",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_Answers",
    "x_CostStatus",
)


def list_focus_rows(results: Iterable[GroupResult]) -> Iterator[dict[str, Any]]:
    """The rows of results by `FOCUS_GROUPS` with the metrics answers, total tokens and cost."""
    for result in results:
        values = result.values
        missing = {
            "unknown": values["unknown_answers"],
            "unpriced": values["unpriced_answers"],
        }
        priced_answers = values["answers"] - sum(missing.values())
        # Calls of another model than the one that was asked for have a cost, but no answers.
        if priced_answers or values["cost"] != NOTHING:
            yield _build_row(result.bucket, values, "known", priced_answers, values["cost"])
        for status, answers in missing.items():
            if answers:
                yield _build_row(result.bucket, values, status, answers, None)


def _build_row(
    bucket: Bucket, values: dict[str, Any], status: str, answers: int, cost: str | None
) -> dict[str, Any]:
    period = bucket.start.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    next_month = (period.month % 12) + 1
    period_end = period.replace(year=period.year + (next_month == 1), month=next_month)
    tokens = values["total_tokens"] if status == "known" else None
    tags = {name: values[name] for name in FOCUS_GROUPS if values[name] is not None}
    return {
        "BilledCost": cost,
        "BillingAccountId": "kotae",
        "BillingAccountName": "Kotae",
        "BillingCurrency": "USD",
        "BillingPeriodEnd": period_end,
        "BillingPeriodStart": period,
        "ChargeCategory": "Usage",
        "ChargeClass": None,
        "ChargeDescription": f"{values['model']} through {values['endpoint']}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": bucket.end,
        "ChargePeriodStart": bucket.start,
        "ConsumedQuantity": tokens,
        "ConsumedUnit": "Tokens",
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceIssuerName": "Kotae",
        "ListCost": cost,
        "PricingQuantity": tokens,
        "PricingUnit": "Tokens",
        "ProviderName": "Kotae",
        "PublisherName": "Kotae",
        "ResourceId": values["model"],
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Kotae",
        "SkuId": values["model"],
        "SubAccountId": values["user_id"],
        "SubAccountName": values["user_id"],
        "Tags": to_json(tags).decode(),
        "x_Answers": answers,
        "x_CostStatus": status,
    }
