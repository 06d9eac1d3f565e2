"""The ports: what a second implementation would have to promise. One contract suite each, in `tests/contracts/`."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from service.core.pricing import Usage, format_usd
from service.core.records import Intent, Outcome


class Message(msgspec.Struct, frozen=True):
    """One message to a model. `role` is `system` or `user`."""

    role: str
    content: str


class ProviderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to be made. `stream` False lets a provider that can answer in one piece do so."""

    model: str
    messages: list[Message]
    max_tokens: int
    temperature: float | None
    stream: bool


class Delta(msgspec.Struct, frozen=True):
    """What a provider says next. Any of the three may be absent; `usage` is the last word on tokens."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None


class Provider(Protocol):
    """Whoever generates text."""

    def stream(self, request: ProviderRequest) -> AsyncGenerator[list[Delta], None]:
        """Make one attempt and yield what arrives, what arrived together in one list.

        Closing the generator closes the connection. Raises `ProviderError`s only; never retries by itself; ends
        without an error only after a finish reason.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        ...


class EmbeddingResult(msgspec.Struct, frozen=True):
    """Vectors, one for each text in its order, each float32 in little-endian order; `usage`: what the maker says it billed."""

    vectors: list[bytes]
    usage: Usage | None


class Embedder(Protocol):
    """Whoever turns texts into vectors whose cosine says how near they are in meaning."""

    @property
    def model(self) -> str:
        """What the vectors come from: those of different names do not compare."""
        ...

    @property
    def at_once(self) -> int:
        """Most texts of one call."""
        ...

    @property
    def metered(self) -> bool:
        """Whether a call may be billed, and so has a row in the log."""
        ...

    async def embed(self, texts: Sequence[str], *, query: bool) -> EmbeddingResult:
        """One attempt. `query`: these are questions, not what may answer them. Raises `ProviderError`s only; any text will do."""
        ...

    async def aclose(self) -> None:
        """Let go of what it holds. Idempotent."""
        ...


class Similarities(Protocol):
    """How near, in meaning, texts are to one question: cosines, by the hash of the text."""

    def find_nearest(self, most: int) -> list[str]:
        """The nearest texts, nearest first; some may have been deleted meanwhile. Fast, may be called in a thread."""
        ...

    def get_cosines(self, names: Iterable[str]) -> dict[str, float]:
        """The cosines of these texts, of those that have a vector. Fast, may be called in a thread."""
        ...


class VectorSearch(Protocol):
    """Who knows what is near to a question in meaning."""

    async def find_similar(self, query: str) -> Similarities | None:
        """None: nobody could tell. Never raises."""
        ...


class QuotaLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one user or one key may use; None: as much as they like. Money in nano-dollars."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_nano_usd_per_day: int | None = None
    cost_nano_usd_per_month: int | None = None
    concurrent: int | None = None  # answers in progress

    @property
    def limits_cost(self) -> bool:
        """Whether money has a limit."""
        return self.cost_nano_usd_per_day is not None or self.cost_nano_usd_per_month is not None

    def to_wire(self) -> dict[str, Any]:
        """As the wire shows them: what is not limited is absent, money is a decimal string in USD."""
        return {
            name.replace("nano_usd", "usd"): format_usd(value) if "nano_usd" in name else value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not None
        }


USER_PREFIX, KEY_PREFIX = (
    "user:",
    "key:",
)  # of the names of quota subjects, which the table `quota_totals` stores


class QuotaSubject(msgspec.Struct, frozen=True):
    """Who is charged for an answer: a user and, if one was used, an API key. `of` is `user` or `key`."""

    name: str
    of: str
    limits: QuotaLimits | None

    @classmethod
    def for_user(cls, user_id: str, limits: QuotaLimits | None = None) -> "QuotaSubject":
        """The subject of a user with the limits in force for them."""
        return cls(USER_PREFIX + user_id, "user", limits)

    @classmethod
    def for_key(cls, key_id: str, limits: QuotaLimits | None = None) -> "QuotaSubject":
        """The subject of an API key with the limits of the key itself."""
        return cls(KEY_PREFIX + key_id, "key", limits)


def list_subject_names(user_id: str, key_id: str | None) -> list[str]:
    """The names of the subjects that a log row is charged to."""
    return [USER_PREFIX + user_id, *([KEY_PREFIX + key_id] if key_id else [])]


class QuotaWindow(msgspec.Struct, frozen=True, kw_only=True):
    """Where a limit stands. Without `seconds` it has no window: it counts what is in progress."""

    name: str
    of: str
    unit: str
    limit: int
    used: int
    held: int
    seconds: int | None = None
    reset_seconds: int | None = None


class Quota(Protocol):
    """Who keeps what is used and held. For every limit and at every moment `used + held ≤ limit`; see `quota.ledger`."""

    async def hold(
        self, name: str, subjects: Sequence[QuotaSubject], *, tokens: int, nano_usd: int | None
    ) -> None:
        """Hold the upper bound of an answer, of all subjects or of none.

        `nano_usd` None: nobody knows the price. Raises `QuotaExceeded`, `BeyondQuota`, `UnpricedModel`, `Overloaded`, and
        `DatabaseUnavailable` when it cannot tell what was used: it never lets in what it does not know.
        """
        ...

    async def grow(self, name: str, *, tokens: int, nano_usd: int | None) -> None:
        """Change a hold to another bound. Raises as `hold` does, and leaves the hold as it was."""
        ...

    def settle(self, name: str, *, tokens: int, nano_usd: int) -> None:
        """The truth. Synchronous, never fails, once: what comes again changes nothing."""
        ...

    def release(self, name: str) -> None:
        """Nothing was used. Synchronous, never fails; idempotent."""
        ...

    def windows(self, subjects: Sequence[QuotaSubject]) -> list[QuotaWindow]:
        """Where the limits of these stand."""
        ...


class Worker(Protocol):
    """Something that runs beside the requests."""

    def degraded(self) -> bool:
        """Whether it does not do its work as it should."""
        ...

    def statistics(self) -> msgspec.Struct:
        """A frozen look at it."""
        ...


class QueueStatistics(msgspec.Struct, frozen=True):
    """`open`: answers begun and not ended. `waiting`: outcomes not yet committed. `capacity`: most of both together."""

    open: int
    waiting: int
    capacity: int


class RecordQueue(Protocol):
    """Where records wait for the database. What was taken survives the death of the process."""

    def add_intent(self, intent: Intent) -> None:
        """Take the intent, and with it the room for its outcome. Raises `Overloaded` or `JournalFull` when there is none."""
        ...

    async def wait_synced(self) -> None:
        """Wait until what was taken by now survives the loss of power, if that is configured; else return at once."""
        ...

    def add_outcome(self, outcome: Outcome) -> None:
        """Take the outcome of a begun intent. Never waits, never refuses: its room was taken by `begin`."""
        ...

    async def take_batch(self, most: int) -> list[Outcome]:
        """Wait for outcomes and return up to `most`, oldest first. They stay counted until `committed`."""
        ...

    def mark_committed(self, outcomes: list[Outcome]) -> None:
        """These are in the database."""
        ...

    async def wait_committed(self) -> None:
        """Wait until every outcome taken by now is in the database. The caller sets the bound."""
        ...

    def statistics(self) -> QueueStatistics:
        """A frozen look at the queue."""
        ...


class TicketGrant(msgspec.Struct, frozen=True, array_like=True):
    """What a ticket lets its bearer do: read one answer, as this user. `sees` as `Principal.sees`: None is everyone's."""

    answer_id: str
    user_id: str
    sees: str | None


class IssuedTicket(msgspec.Struct, frozen=True):
    """A ticket, and until when it may be used first (seconds since the epoch)."""

    ticket: str
    expires_at: float


class Tickets(Protocol):
    """One-time tickets to the events of one answer: a credential that may stand in a URL. No one can guess or change one."""

    def issue(self, grant: TicketGrant) -> IssuedTicket:
        """Give a ticket out."""
        ...

    def redeem(self, ticket: str, answer_id: str, *, resuming: bool) -> TicketGrant:
        """What the ticket grants. Its first use must be soon, and there is only one; `resuming` after it is no other use.

        Raises `TicketInvalid`.
        """
        ...
