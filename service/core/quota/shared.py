"""Quota in a store that replicas share: what does not depend on the store.

The store compares and changes accounts atomically; this module batches operations, remembers the
holds of this process, and creates the errors. At most one batch is in flight; operations that
arrive meanwhile form the next one. Subjects without limits need no store, so they are never refused
and never wait.

A store may lose the latest holds, because it does not wait for a disk. It then has a new
*generation*, which is closed: it admits nothing until every live replica has registered its holds
again. Usage is not lost, because it is derived from log rows.

Failure policy: closed. While the store does not answer, holds are refused with `QuotaUnavailable`:
the first ones after `seconds`, later ones at once, until `keep_alive` has reached the store again.
A hold whose reply is missing may exist, and is released by its name.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from cachetools import FIFOCache

from service.core.errors import Overloaded, QuotaUnavailable
from service.core.ports import QuotaStatistics, QuotaSubject, QuotaWindow
from service.core.quota.limits import LimitChecker, iterate_windows, read_account
from service.core.quota.windows import (
    COST,
    LIMITS,
    Starts,
    UsageAccount,
    compute_starts,
    list_limits,
)
from service.core.telemetry import log

ACCOUNTS_MAX = 10_000  # whose last known state is kept, for headers
BATCH_MAX = 200
LEASE_SECONDS = 15.0  # a replica without a sign of life for this time is not waited for
PROLONG_SECONDS = 30.0  # holds whose row is not written after this time are prolonged
EXPIRE_MAX = 100  # holds per `keep_alive`
TRIES = 3  # of an operation whose accounts the store does not have


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """An operation of a batch. `kind`: hold, grow, release or read.

    `limits`: seven per subject, in the order of `LIMITS`, then `concurrent`; None: no limit.
    """

    kind: str
    subjects: Sequence[str]
    name: str = ""
    limits: Sequence[int | None] = ()
    starts: Sequence[int] = ()
    tokens: int = 0
    cost: int = 0


class StoredHold(msgspec.Struct):
    """A hold of this process. `settled_at`: when its outcome was recorded; None: it is open."""

    name: str
    subjects: Sequence[str]
    starts: Sequence[int]
    tokens: int
    cost: int
    limited: Sequence[QuotaSubject] = ()  # the same subjects, with their limits
    settled_at: float | None = None


AccountState = Sequence[int]
"""The open holds of an account, then its windows: for minutes, days and months the newest one and
the one before, each with its start, and the used and held requests, tokens and nano-dollars."""


class Reply(msgspec.Struct, frozen=True):
    """The reply to an operation: ok, full, absent (no such hold) or missing (an account).

    `accounts`: those that a full one was compared with.
    """

    result: str
    accounts: Mapping[str, AccountState] = {}


class Generation(msgspec.Struct, frozen=True):
    """`open`: every live replica has registered its holds."""

    number: int
    open: bool


class QuotaStore(Protocol):
    """Accounts and holds of all replicas. Methods raise `QuotaUnavailable`; none waits for long."""

    async def apply(
        self, generation: int, operations: Sequence[Operation]
    ) -> tuple[Sequence[Reply], Mapping[str, AccountState]] | None:
        """Apply operations in order; None: the generation is another one, or closed."""
        ...

    def load(self, subjects: Sequence[str], starts: Starts) -> Coroutine[Any, Any, None]:
        """Create accounts, and restore windows, from the log."""
        ...

    async def register(self, holds: Sequence[StoredHold]) -> Generation:
        """Register this replica with all its holds."""
        ...

    async def keep_alive(self, generation: int, prolonged: Sequence[str]) -> bool:
        """Give a sign of life, and prolong holds. False: registering is necessary."""
        ...

    async def expire(self, count_max: int) -> int:
        """Remove holds that have expired, of any replica, and return their number."""
        ...

    def notify_written(self) -> None:
        """Rows were written: their charges can be delivered to the store, if it is elsewhere."""
        ...

    async def close(self) -> None:
        """Close the connections, and withdraw this replica. Idempotent."""
        ...


class SharedQuotaStatistics(QuotaStatistics, frozen=True):
    """`waiting`: operations. `expired`: holds of any replica that this one has expired."""

    available: bool
    generation: int
    waiting: int
    expired: int


class SharedQuota:
    """See the module. `start` before use, `stop` at the end; `keep_alive` once per second."""

    def __init__(
        self,
        store: QuotaStore,
        *,
        seconds: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._seconds = store, seconds
        self._clock, self._monotonic = clock, monotonic
        self._holds: dict[str, StoredHold] = {}
        self._accounts: FIFOCache[str, UsageAccount] = FIFOCache(ACCOUNTS_MAX)
        self._checker = LimitChecker(clock, self.windows)
        self._queue: list[tuple[Operation, asyncio.Future[Reply] | None]] = []
        self._wake = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._registration = asyncio.Lock()
        self._loads: dict[tuple[Any, ...], asyncio.Task[None]] = {}
        self._generation, self._available = -1, False
        self._expire_from = monotonic() + LEASE_SECONDS
        self._expired = 0

    async def start(self) -> None:
        """Start sending, and register this replica. An unavailable store is only logged."""
        self._sender = asyncio.create_task(self._send_batches(), name="quota")
        try:
            await self._register()
        except QuotaUnavailable as error:
            log.warning("quota.unavailable", error=str(error))

    async def stop(self) -> None:
        """Stop sending, and close the store. Idempotent."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])
            self._sender = None
            releases = [(operation, None) for operation, future in self._queue if future is None]
            if self._available and releases:
                await self._send_batch(list(releases))
        await self._store.close()

    async def hold(
        self,
        name: str,
        subjects: Sequence[QuotaSubject],
        *,
        tokens: int,
        nano_usd: int | None,
        created_at: float | None = None,
    ) -> None:
        """See `Quota.hold`."""
        if all(subject.limits is None for subject in subjects):
            return
        starts = compute_starts(self._clock() if created_at is None else created_at)
        amount = (1, tokens, nano_usd or 0)
        await self._require_possible(subjects, starts, amount, amount, nano_usd)
        operation = Operation(
            kind="hold",
            name=name,
            subjects=[subject.name for subject in subjects],
            limits=_list_limits(subjects),
            starts=starts,
            tokens=tokens,
            cost=amount[COST],
        )
        reply = await self._submit(operation)
        if reply.result != "ok":
            accounts = self._remember(reply.accounts)
            self._require_fit(accounts, subjects, starts, amount, amount, nano_usd)
            raise Overloaded("the quota store refused this request")
        self._holds[name].limited = subjects

    async def grow(self, name: str, *, tokens: int, nano_usd: int | None) -> None:
        """See `Quota.grow`."""
        hold = self._holds.get(name)
        if hold is None:
            return
        starts: Starts = tuple(hold.starts)  # type: ignore[assignment]  # there are three
        subjects, bound = hold.limited, (1, tokens, nano_usd or 0)
        increase = (0, tokens - hold.tokens, bound[COST] - hold.cost)
        await self._require_possible(subjects, starts, bound, increase, nano_usd)
        operation = Operation(
            kind="grow",
            name=name,
            subjects=hold.subjects,
            limits=_list_limits(subjects),
            starts=starts,
            tokens=tokens,
            cost=bound[COST],
        )
        reply = await self._submit(operation)
        if reply.result == "absent":  # it has expired
            increase = bound
            reply = await self._submit(msgspec.structs.replace(operation, kind="hold"))
        if reply.result != "ok":
            accounts = self._remember(reply.accounts)
            self._require_fit(accounts, subjects, starts, bound, increase, nano_usd)
            raise Overloaded("the quota hold of this answer has expired")

    def settle(
        self,
        name: str,
        *,
        tokens: int,  # noqa: ARG002 - the row has the amounts
        nano_usd: int,  # noqa: ARG002
        shares: Mapping[str, tuple[int, int]] | None = None,  # noqa: ARG002
    ) -> None:
        """See `Quota.settle`. The hold remains until its row is written: see `remove_written`."""
        hold = self._holds.get(name)
        if hold is not None and hold.settled_at is None:
            hold.settled_at = self._monotonic()

    def remove_written(self, names: Iterable[str]) -> None:
        """Forget holds that the store has replaced by usage, together with their rows."""
        for name in names:
            self._holds.pop(name, None)
        self._store.notify_written()

    def release(self, name: str) -> None:
        """See `Quota.release`."""
        hold = self._holds.pop(name, None)
        if hold is not None:
            self._enqueue_release(name, hold.subjects)

    async def refresh(self, subjects: Sequence[QuotaSubject]) -> None:
        """See `Quota.refresh`."""
        names = list(dict.fromkeys(subject.name for subject in subjects))
        starts = compute_starts(self._clock())
        await self._submit(Operation(kind="read", subjects=names, starts=starts))

    def windows(self, subjects: Sequence[QuotaSubject]) -> list[QuotaWindow]:
        """See `Quota.windows`. Subjects without a known state are left out."""
        cached = [subject for subject in subjects if subject.name in self._accounts]
        return list(iterate_windows(cached, self._accounts, self._clock()))

    def get_usage(self, subject: str) -> Mapping[str, tuple[int, int]]:
        """See `Quota.get_usage`."""
        return read_account(self._accounts.get(subject), self._clock())

    def statistics(self) -> SharedQuotaStatistics:
        """An immutable snapshot of the counters."""
        return SharedQuotaStatistics(
            holds=sum(hold.settled_at is None for hold in self._holds.values()),
            available=self._available,
            generation=self._generation,
            waiting=len(self._queue),
            expired=self._expired,
        )

    async def keep_alive(self) -> None:
        """Do the periodic work. Raises `QuotaUnavailable`."""
        now = self._monotonic()
        late = [
            hold.name
            for hold in self._holds.values()
            if hold.settled_at is not None and now - hold.settled_at > PROLONG_SECONDS
        ]
        try:
            if not await self._store.keep_alive(self._generation, late):
                await self._register()
            self._set_available(available=True)
            if now >= self._expire_from:
                expired = await self._store.expire(EXPIRE_MAX)
                self._expired += expired
                if expired:
                    log.warning("holds.expired", holds=expired)
        except QuotaUnavailable:
            self._set_available(available=False)
            raise

    async def _require_possible(
        self,
        subjects: Sequence[QuotaSubject],
        starts: Starts,
        bound: Sequence[int],
        increase: Sequence[int],
        nano_usd: int | None,
    ) -> None:
        """Raise if no state of the accounts admits this bound: it is not sent as an operation."""
        limits = [
            limit for subject in subjects if subject.limits for limit in list_limits(subject.limits)
        ]
        if any(
            bound[amount] > limit or (amount == COST and nano_usd is None)
            for _, _, amount, limit, _, _ in limits
        ):
            await self.refresh(subjects)
            self._require_fit(self._accounts, subjects, starts, bound, increase, nano_usd)

    def _require_fit(
        self,
        accounts: Mapping[str, UsageAccount],
        subjects: Sequence[QuotaSubject],
        starts: Starts,
        bound: Sequence[int],
        increase: Sequence[int],
        nano_usd: int | None,
    ) -> None:
        """Raise the error of an operation that does not fit these accounts."""
        listed = [accounts[subject.name] for subject in subjects]
        if increase is bound:
            self._checker.check_hold(subjects, listed, starts, bound, nano_usd)
            return
        for subject, account in zip(subjects, listed, strict=True):
            if subject.limits is not None:
                self._checker.check_limits(subject, account, starts, bound, increase, nano_usd)

    async def _submit(self, operation: Operation) -> Reply:
        """Apply an operation. Raises `QuotaUnavailable`."""
        for _ in range(TRIES):
            reply = await self._send(operation)
            if reply.result == "closed":
                await self._register()
            elif reply.result == "missing":
                await self._load(operation)
            else:
                return reply
        raise QuotaUnavailable("the accounts of this request cannot be loaded")

    async def _load(self, operation: Operation) -> None:
        """Load accounts, once for all operations that wait for them."""
        key = (tuple(operation.subjects), tuple(operation.starts))
        task = self._loads.get(key)
        if task is None:
            starts: Starts = tuple(operation.starts)  # type: ignore[assignment]
            loading = self._store.load(operation.subjects, starts)
            task = self._loads[key] = asyncio.create_task(loading, name="quota load")
            task.add_done_callback(lambda _: self._loads.pop(key))
        await asyncio.shield(task)

    async def _send(self, operation: Operation) -> Reply:
        if not self._available:
            raise QuotaUnavailable("the quota store does not answer")
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._queue.append((operation, future))
        self._wake.set()
        try:
            async with asyncio.timeout(self._seconds):
                return await future
        except TimeoutError as error:
            self._set_available(available=False)
            raise QuotaUnavailable("the quota store does not answer") from error
        finally:
            if operation.kind == "hold" and (future.cancelled() or future.exception()):
                self._holds.pop(operation.name, None)
                self._enqueue_release(operation.name, operation.subjects)

    def _enqueue_release(self, name: str, subjects: Sequence[str]) -> None:
        self._queue.append((Operation(kind="release", name=name, subjects=subjects), None))
        self._wake.set()

    async def _send_batches(self) -> None:
        while True:
            await self._wake.wait()
            if not self._available:  # `keep_alive` sets the event when the store is back
                self._refuse_waiting()
                self._wake.clear()
                continue
            batch, self._queue = self._queue[:BATCH_MAX], self._queue[BATCH_MAX:]
            if not self._queue:
                self._wake.clear()
            if batch:
                await self._send_batch(batch)

    async def _send_batch(
        self, batch: list[tuple[Operation, asyncio.Future[Reply] | None]]
    ) -> None:
        operations = [operation for operation, _ in batch]
        try:
            result = await self._store.apply(self._generation, operations)
        except Exception as error:  # noqa: BLE001 - callers get it
            if not isinstance(error, QuotaUnavailable):
                log.exception("quota.broken")
            self._set_available(available=False)
            # Releases are repeated: they are idempotent.
            self._queue[:0] = [item for item in batch if item[1] is None]
            for _, future in batch:
                if future is not None and not future.done():
                    future.set_exception(QuotaUnavailable(str(error)))
            return
        if result is None:
            self._queue[:0] = [item for item in batch if item[1] is None]
            replies: Sequence[Reply] = [Reply("closed")] * len(batch)
        else:
            replies = result[0]
            self._remember(result[1])
        for (operation, future), reply in zip(batch, replies, strict=True):
            if future is not None and not future.done():
                if reply.result == "ok":
                    self._note_hold(operation)
                future.set_result(reply)

    def _note_hold(self, operation: Operation) -> None:
        """Note a hold at once: it must be in the next registration."""
        hold = self._holds.get(operation.name)
        if operation.kind not in {"hold", "grow"}:
            return
        if hold is None and operation.kind == "hold":
            self._holds[operation.name] = StoredHold(
                operation.name,
                operation.subjects,
                operation.starts,
                operation.tokens,
                operation.cost,
            )
        elif hold is not None:
            hold.tokens, hold.cost = operation.tokens, operation.cost

    async def _register(self) -> None:
        """Register this replica's holds. Raises `QuotaUnavailable` unless the store then admits."""
        before = self._generation
        async with self._registration:
            if self._generation == before or not self._available:
                generation = await self._store.register(list(self._holds.values()))
                if not generation.open:
                    raise QuotaUnavailable(
                        "the quota store has lost its holds, and replicas register them again"
                    )
                self._set_available(available=True)
                self._generation = generation.number

    def _set_available(self, *, available: bool) -> None:
        if self._available and not available:
            log.warning("quota.unavailable")
        elif available and not self._available and self._generation >= 0:
            log.info("quota.available", generation=self._generation)
        if not available:
            self._expire_from = self._monotonic() + LEASE_SECONDS
            self._refuse_waiting()
        self._available = available
        if available and self._queue:
            self._wake.set()

    def _refuse_waiting(self) -> None:
        """Refuse the operations that wait; releases stay."""
        waiting, self._queue = self._queue, [item for item in self._queue if item[1] is None]
        for _, future in waiting:
            if future is not None and not future.done():
                future.set_exception(QuotaUnavailable("the quota store does not answer"))

    def _remember(self, states: Mapping[str, AccountState]) -> Mapping[str, UsageAccount]:
        accounts = {name: build_account(state) for name, state in states.items()}
        self._accounts.update(accounts)
        return accounts


def build_account(state: AccountState) -> UsageAccount:
    """Build an account from its state in a store."""
    account = UsageAccount()
    account.open = state[0]
    for kind in range(3):
        for begin in (1 + kind * 14, 8 + kind * 14):
            if start := state[begin]:
                window = account.open_window(kind, start)
                window.used = list(state[begin + 1 : begin + 4])
                window.held = list(state[begin + 4 : begin + 7])
    return account


def _list_limits(subjects: Sequence[QuotaSubject]) -> list[int | None]:
    names = [*(name for name, *_ in LIMITS), "concurrent"]
    return [getattr(subject.limits, name, None) for subject in subjects for name in names]
