"""A budget and its windows. Pure."""

from datetime import UTC, datetime
from enum import StrEnum

import msgspec

from service.core.ports import QuotaLimits
from service.core.quota.windows import DAY, MONTH, compute_end, compute_starts

THRESHOLDS = (50, 80, 100)  # percent
EVERYTHING = "all"  # the subject of a budget for all answers
BUDGET_PREFIX = "budget:"  # of quota subjects
AMOUNT_USD_MAX = 10**6
THRESHOLD_MAX, THRESHOLDS_MAX = 1000, 10  # percent, and their number
NAME_PATTERN = r"^[A-Za-z0-9._-]{1,50}$"
SUBJECT_PATTERN = (
    r"^(all|(user|model):[^\x00]{1,200}|key:[A-Za-z0-9-]{1,36}|plan:[A-Za-z0-9._-]{1,50})$"
)


class Period(StrEnum):
    """The length of a window, in UTC."""

    DAY = "day"
    MONTH = "month"


class BudgetAction(StrEnum):
    """What happens when the amount is used up."""

    ALERT = "alert"  # nothing but the alert
    REFUSE = "refuse"  # further requests are refused, as by a quota


class SubjectKind(StrEnum):
    """What a budget is for; the part of `Budget.subject` before the colon."""

    USER = "user"
    KEY = "key"  # with the keys of its lineage
    PLAN = "plan"  # all users of the plan together
    MODEL = "model"  # the provider's name of a model, as in analytics
    ALL = EVERYTHING


class Window(msgspec.Struct, frozen=True):
    """An interval of time; `end` is exclusive."""

    start: datetime
    end: datetime


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """A row. `subject`: `user:ID`, `key:LINEAGE`, `plan:NAME`, `model:NAME` or `all`.

    `thresholds`: percentages of the amount, in ascending order.
    """

    id: str
    name: str
    subject: str
    amount_nano_usd: int
    period: Period
    thresholds: tuple[int, ...] = THRESHOLDS
    action: BudgetAction = BudgetAction.ALERT
    created_at: datetime

    @property
    def kind(self) -> SubjectKind:
        """What the budget is for."""
        return SubjectKind(self.subject.partition(":")[0])

    @property
    def target(self) -> str:
        """The id or name of the subject; empty for everything."""
        return self.subject.partition(":")[2]

    @property
    def quota_name(self) -> str:
        """The name of the quota subject that counts the usage of this budget."""
        return BUDGET_PREFIX + self.id

    @property
    def limits(self) -> QuotaLimits:
        """The limit of the quota subject, if requests are refused."""
        if self.period is Period.DAY:
            return QuotaLimits(cost_nano_usd_per_day=self.amount_nano_usd)
        return QuotaLimits(cost_nano_usd_per_month=self.amount_nano_usd)

    def list_reached(self, nano_usd: int) -> list[int]:
        """The thresholds that this spend has reached."""
        return [
            threshold
            for threshold in self.thresholds
            if nano_usd * 100 >= threshold * self.amount_nano_usd
        ]


def compute_window(period: Period, at: datetime) -> Window:
    """The window of a time."""
    kind = DAY if period is Period.DAY else MONTH
    start = compute_starts(at.timestamp())[kind]
    start_at, end_at = (
        datetime.fromtimestamp(moment, UTC) for moment in (start, compute_end(kind, start))
    )
    return Window(start_at, end_at)


def compute_percent(nano_usd: int, amount_nano_usd: int) -> int:
    """The spend in percent of the amount, rounded down."""
    return nano_usd * 100 // amount_nano_usd
