"""Quotas that also hold credit: for prepaid callers a hold includes funds of their wallet.

The quota is held first and released if the wallet refuses, so either both are held or neither is.
What is held of the wallet is the upper bound of the charge, which callers pass beside that of the
cost, because prices of customers are not derived from it. Callers who are not prepaid cost one
comparison.
"""

from collections.abc import Awaitable, Iterable, Sequence

from service.core.errors import OutOfCredit, UnpricedModel
from service.core.ports import USER_PREFIX, Quota, QuotaSubject, Wallets


class CreditQuota:
    """The quota of a process together with its wallets. `subjects` begin with the user."""

    def __init__(self, quota: Quota, wallets: Wallets) -> None:
        self._quota, self._wallets = quota, wallets
        self.refresh, self.windows = quota.refresh, quota.windows
        self.read_funds = wallets.read_funds
        self._prepaid: dict[str, str] = {}  # the user, by name of the hold

    def hold(
        self,
        name: str,
        subjects: Sequence[QuotaSubject],
        *,
        tokens: int,
        nano_usd: int | None,
        created_at: float | None = None,
        charge_nano_usd: int | None = None,
    ) -> Awaitable[None]:
        """Hold the upper bound of an answer, and of its charge if the user is prepaid.

        `charge_nano_usd` None: a price is unknown. Raises the errors of `Quota.hold` and
        `Wallets.hold`, and `UnpricedModel`.
        """
        holding = self._quota.hold(
            name, subjects, tokens=tokens, nano_usd=nano_usd, created_at=created_at
        )
        if not subjects or (terms := subjects[0].terms) is None or not terms.prepaid:
            return holding
        return self._hold_credit(holding, name, subjects[0], charge_nano_usd)

    async def _hold_credit(
        self, holding: Awaitable[None], name: str, user: QuotaSubject, nano_usd: int | None
    ) -> None:
        await holding
        try:
            await self._set_credit(name, user.name.removeprefix(USER_PREFIX), nano_usd)
        except (OutOfCredit, UnpricedModel):  # nothing is held of the wallet
            self._quota.release(name)
            raise
        except BaseException:
            self._quota.release(name)
            self._wallets.release(name)
            raise

    async def _set_credit(self, name: str, user_id: str, nano_usd: int | None) -> None:
        if nano_usd is None:
            raise UnpricedModel("answers are paid in advance, and the model has no known price")
        await self._wallets.hold(name, user_id, nano_usd)
        self._prepaid[name] = user_id

    def grow(
        self, name: str, *, tokens: int, nano_usd: int | None, charge_nano_usd: int | None = None
    ) -> Awaitable[None]:
        """Change a hold to another bound. Raises as `hold` does.

        The caller then releases the hold: its quota may have been changed.
        """
        growing = self._quota.grow(name, tokens=tokens, nano_usd=nano_usd)
        if name not in self._prepaid:
            return growing
        return self._grow_credit(growing, name, charge_nano_usd)

    async def _grow_credit(self, growing: Awaitable[None], name: str, nano_usd: int | None) -> None:
        await growing
        await self._set_credit(name, self._prepaid[name], nano_usd)

    def release(self, name: str) -> None:
        """Release a hold: nothing was used. Idempotent."""
        self._quota.release(name)
        if self._prepaid.pop(name, None) is not None:
            self._wallets.release(name)

    def remove_written(self, names: Iterable[str]) -> None:
        """Forget the credit held for rows that are committed."""
        if self._prepaid:
            written = [name for name in names if self._prepaid.pop(name, None) is not None]
            self._wallets.remove_written(written)

    async def read_available(self, user_id: str) -> int:
        """The funds of a user that are not held, in nano-dollars. Raises `DatabaseUnavailable`."""
        funds = await self._wallets.read_funds(user_id)
        return max(funds.balance - funds.held, 0)
