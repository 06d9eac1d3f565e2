"""The ports: protocols with several implementations, tested by `tests/contracts/`."""

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import msgspec

from service.core.pricing import ChargeTerms, Usage, format_usd
from service.core.records import EndedAttempt, Intent, Message, Outcome, Status, UsageSource


class ChatCall(msgspec.Struct, frozen=True, kw_only=True):
    """A client's chat completion request, whose parts reach the provider as they were sent.

    `fields`: the members of the body, without the model, the messages and the stream options.
    `question`: the position of the last user message. `texts`: the messages, and the other parts
    that cost tokens, for estimates. `prompt_tokens_max`: the upper bound of the prompt's tokens;
    `prediction_tokens_max`: of those of a prediction, which are billed as completion tokens.
    """

    messages: list[msgspec.Raw]
    fields: dict[str, msgspec.Raw]
    stream_options: dict[str, Any]
    question: int | None
    choices: int
    texts: list[Message]
    prompt_tokens_max: int
    prediction_tokens_max: int = 0


# The members of a request that limit the completion tokens, the newer one first.
MAX_TOKENS_FIELDS = ("max_completion_tokens", "max_tokens")


class ProviderRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for one attempt. With `stream` False the provider may send a single body.

    With `chat` the deltas have the provider's chunks. `trace_headers`: lines of the request's head.
    """

    model: str
    messages: list[Message]
    max_tokens: int
    temperature: float | None
    stream: bool
    chat: ChatCall | None = None
    trace_headers: tuple[bytes, ...] = ()


class Delta(msgspec.Struct, frozen=True):
    """An increment of an answer. Every field may be absent; the last `usage` counts.

    `raw`: the provider's chunk, or its whole completion, for requests with `chat`. `chunk`: the
    same decoded, unless it has only text of the first choice. `other_text`: what was generated
    beside the text, such as tool calls, reasoning and further choices. `is_text`: the chunk has
    nothing but text.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    other_text: str = ""
    is_text: bool = True
    raw: bytes | None = None
    chunk: dict[str, Any] | None = None


class Provider(Protocol):
    """A service that generates text."""

    def stream(
        self, request: ProviderRequest, on_sent: Callable[[], None]
    ) -> AsyncGenerator[list[Delta], None]:
        """Make one attempt and yield the deltas, those that arrived together in one list.

        Calls `on_sent` as soon as the request may have reached the provider, and be billed.
        Closing the generator closes the connection. Raises only `ProviderError`s; never retries;
        ends without an error only after a finish reason.
        """
        ...

    async def fetch_embeddings(self, body: bytes) -> bytes:
        """Send a request for vectors and return the body. Raises `ProviderError`s."""
        ...

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        ...


class EmbeddingResult(msgspec.Struct, frozen=True):
    """One vector per text, in order, as little-endian float32; `usage` as billed."""

    vectors: list[bytes]
    usage: Usage | None


class Embedder(Protocol):
    """Converts texts to vectors whose cosine is their similarity in meaning."""

    @property
    def model(self) -> str:
        """The name of the model. Vectors of different models cannot be compared."""
        ...

    @property
    def provider(self) -> str:
        """The name of the provider."""
        ...

    @property
    def provider_model(self) -> str:
        """The provider's name of the model."""
        ...

    @property
    def at_once(self) -> int:
        """The maximum number of texts per call."""
        ...

    @property
    def metered(self) -> bool:
        """True if a call may be billed, and therefore has a log row."""
        ...

    async def embed(self, texts: Sequence[str], *, query: bool) -> EmbeddingResult:
        """Make one attempt. `query`: the texts are questions, not passages.

        Accepts any text. Raises only `ProviderError`s.
        """
        ...

    async def aclose(self) -> None:
        """Release all resources. Idempotent."""
        ...


class QueryVector(msgspec.Struct, frozen=True):
    """The vector of a question, of length 1, as little-endian float32."""

    model: str
    vector: bytes


class VectorSearch(Protocol):
    """Converts questions to vectors, which a search compares with those of chunks.

    Compares questions with sentences, of which no vector is stored.
    """

    async def embed_query(self, query: str) -> QueryVector | None:
        """Return the vector of a question; None if it is unavailable. Never raises."""
        ...

    async def compare_texts(self, question: str, texts: Sequence[str]) -> list[float]:
        """Return the similarities of the first of these texts with a question.

        As many as can be computed in a short time; none if a call may be billed. Never raises.
        """
        ...


class QuotaLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The limits of one user or one key; None: unlimited. Costs in nano-dollars."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    cost_nano_usd_per_day: int | None = None
    cost_nano_usd_per_month: int | None = None
    concurrent: int | None = None  # answers in progress

    @property
    def limits_cost(self) -> bool:
        """True if cost is limited."""
        return self.cost_nano_usd_per_day is not None or self.cost_nano_usd_per_month is not None

    def to_wire(self) -> dict[str, Any]:
        """Return the limits for the API: without None, costs as decimal strings in USD."""
        return {
            name.replace("nano_usd", "usd"): format_usd(value) if "nano_usd" in name else value
            for name, value in msgspec.structs.asdict(self).items()
            if value is not None
        }


# Of subject names, which `quota_totals` stores.
USER_PREFIX, KEY_PREFIX = (
    "user:",
    "key:",
)


BUDGET = "budget"  # `QuotaSubject.of` of budgets


class QuotaSubject(msgspec.Struct, frozen=True):
    """A user, an API key or a budget that is charged for an answer.

    `of` is `user`, `key` or `budget`; `title` the name of a budget, for errors. `terms`: what a
    user pays; None: nothing.
    """

    name: str
    of: str
    limits: QuotaLimits | None
    title: str | None = None
    terms: ChargeTerms | None = None

    @classmethod
    def for_user(
        cls, user_id: str, limits: QuotaLimits | None = None, terms: ChargeTerms | None = None
    ) -> "QuotaSubject":
        """Build the subject of a user with the limits and terms in force for them."""
        return cls(USER_PREFIX + user_id, "user", limits, None, terms)

    @classmethod
    def for_key(cls, lineage: str, limits: QuotaLimits | None = None) -> "QuotaSubject":
        """The subject of an API key and the keys it was rotated from, with the key's limits."""
        return cls(KEY_PREFIX + lineage, "key", limits)


def list_subject_names(user_id: str, key_lineage: str | None) -> list[str]:
    """Return the names of the subjects that a log row is charged to."""
    return [USER_PREFIX + user_id, *([KEY_PREFIX + key_lineage] if key_lineage else [])]


class QuotaWindow(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a limit. Without `seconds` it counts answers in progress."""

    name: str
    of: str
    unit: str
    limit: int
    used: int
    held: int
    seconds: int | None = None
    reset_seconds: int | None = None


class QuotaStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot. `holds`: of this process."""

    holds: int


class Quota(Protocol):
    """Counts used and held quota. At any time, for every limit: `used + held ≤ limit`."""

    async def hold(
        self,
        name: str,
        subjects: Sequence[QuotaSubject],
        *,
        tokens: int,
        nano_usd: int | None,
        created_at: float | None = None,
    ) -> None:
        """Hold the upper bound of an answer, for all subjects or for none.

        `nano_usd` None: the price is unknown. `created_at` (seconds since 1970; default: now)
        decides which windows are charged. Raises `QuotaExceeded`, `BeyondQuota`,
        `UnpricedModel`, `Overloaded`, and `QuotaUnavailable` or `DatabaseUnavailable` if the usage
        cannot be read: it fails closed. Subjects without limits are never refused.
        """
        ...

    async def grow(self, name: str, *, tokens: int, nano_usd: int | None) -> None:
        """Change a hold to another bound. Raises as `hold` does, and then leaves it unchanged."""
        ...

    def settle(
        self,
        name: str,
        *,
        tokens: int,
        nano_usd: int,
        shares: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Replace a hold by the actual usage. Synchronous, never fails; only the first counts.

        `shares`: (tokens, nano-dollars) of subjects that are charged for a part only, by name.
        """
        ...

    def release(self, name: str) -> None:
        """Release a hold: nothing was used. Synchronous, never fails; idempotent."""
        ...

    async def refresh(self, subjects: Sequence[QuotaSubject]) -> None:
        """Read the current state of these subjects, limited or not, for `windows`, `get_usage`.

        Raises `QuotaUnavailable` and `DatabaseUnavailable`.
        """
        ...

    def windows(self, subjects: Sequence[QuotaSubject]) -> list[QuotaWindow]:
        """Return the state of the limits of these subjects, as of their last hold or `refresh`."""
        ...

    def get_usage(self, subject: str) -> Mapping[str, tuple[int, int]]:
        """Return (used, held) of a subject by limit, as of its last hold or `refresh`."""
        ...

    def statistics(self) -> QuotaStatistics:
        """Return an immutable snapshot of the counters."""
        ...


class Funds(msgspec.Struct, frozen=True):
    """The balance of a wallet, and what is held of it, in nano-dollars."""

    balance: int
    held: int


class Wallets(Protocol):
    """Holds funds of wallets. At any time: holds ≤ balance, except after a refund or late usage.

    A hold remains until the row of its answer is committed together with the debit, so that an
    amount is always in the hold, the balance or both.
    """

    async def hold(self, name: str, user_id: str, nano_usd: int) -> None:
        """Hold an amount for the answer `name`, or change its hold to another amount.

        Raises `OutOfCredit`, and then leaves the hold unchanged; `DatabaseUnavailable` if the
        balance cannot be read: it fails closed.
        """
        ...

    def release(self, name: str) -> None:
        """Release a hold: nothing will be charged. Synchronous, never fails; idempotent."""
        ...

    def remove_written(self, names: Iterable[str]) -> None:
        """Forget the holds of answers whose rows and debits are committed. Idempotent."""
        ...

    async def read_funds(self, user_id: str) -> Funds:
        """Return the funds of a user. Raises `DatabaseUnavailable`."""
        ...


class Worker(Protocol):
    """A background task of the service."""

    def degraded(self) -> bool:
        """True when the worker is unhealthy."""
        ...

    def statistics(self) -> msgspec.Struct:
        """Return an immutable snapshot of the counters."""
        ...


class QueueStatistics(msgspec.Struct, frozen=True):
    """An immutable snapshot of the counters.

    `open`: answers without an outcome. `waiting`: uncommitted outcomes. `capacity`: the limit of
    their sum.
    """

    open: int
    waiting: int
    capacity: int


class RecordQueue(Protocol):
    """A queue of records for the database. Accepted records survive the process."""

    def add_intent(self, intent: Intent) -> None:
        """Add the intent and reserve space for its outcome. Raises `Overloaded`, `JournalFull`."""
        ...

    async def wait_synced(self) -> None:
        """Wait until the records so far survive a power loss, if that is configured."""
        ...

    def add_attempt(self, record: EndedAttempt) -> None:
        """Add an attempt of an open answer that is followed by another one. Never rejects.

        Used only if the process dies before the outcome, which contains it too.
        """
        ...

    def add_outcome(self, outcome: Outcome) -> None:
        """Add the outcome of an intent. Never waits or rejects: its space is reserved."""
        ...

    def list_open(self) -> list[Intent]:
        """Return the intents without an outcome, oldest first."""
        ...

    async def take_batch(self, count_max: int) -> list[Outcome]:
        """Wait for outcomes and return up to `count_max`, oldest first.

        They count as waiting until `mark_committed`.
        """
        ...

    def mark_committed(self, outcomes: list[Outcome]) -> None:
        """Mark these outcomes as stored in the database."""
        ...

    async def wait_committed(self) -> None:
        """Wait until every outcome added so far is in the database. The caller sets a timeout."""
        ...

    def statistics(self) -> QueueStatistics:
        """Return an immutable snapshot of the counters."""
        ...


class Peer(msgspec.Struct, frozen=True):
    """Another replica. `address`: of its peer listener; empty if it does not respond."""

    slot: int
    address: str


class PeerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request of a client that another replica answers.

    `target`: path and query. `headers`: those of `FORWARDED_HEADERS` that the client sent.
    `principal`: the caller, as checked by this replica, encoded; None: a ticket in the query says
    who it is.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""
    principal: bytes | None = None


class PeerResponse(Protocol):
    """The response of another replica. `close` must follow."""

    status: int
    headers: dict[bytes, bytes]

    async def read(self) -> bytes:
        """Return the body received since the last call, waiting for data; empty at the end.

        Raises `OwnerUnavailable` if the replica ends before.
        """
        ...

    async def close(self) -> None:
        """End the exchange; an unfinished one is cancelled. Idempotent."""
        ...


class Peers(Protocol):
    """The other replicas on the same database. `slot`: of this one; None: there is one process."""

    @property
    def slot(self) -> int | None:
        """The slot of this replica."""
        ...

    def find_owner(self, answer_id: str) -> Peer | None:
        """Return the replica that has the slot in an id; None: this one, or there is none."""
        ...

    def require_written(self, answer_id: str) -> None:
        """Raise `OwnerUnavailable` if there may be a row of this answer that is not written yet.

        That is so while its replica has neither returned, nor left, nor been declared lost.
        """
        ...

    async def send(self, peer: Peer, request: PeerRequest) -> PeerResponse:
        """Send a request to a replica. Raises `OwnerUnavailable` if it does not respond."""
        ...

    async def ask_all(self, request: PeerRequest) -> list[bytes]:
        """Send a request to all replicas, and return the bodies of their responses.

        Replicas that do not respond are left out. Raises `OwnerUnavailable` if one refuses.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        ...


class Claim(msgspec.Struct, frozen=True):
    """The first request with an idempotency key: its hash, and the answer that it starts."""

    body_hash: str
    answer_id: str


class IdempotencyClaims(Protocol):
    """Idempotency keys of all replicas: which answer a key belongs to, before it has a row.

    All methods raise `DatabaseUnavailable`: it is then unknown whether a key is new.
    """

    async def claim(self, user_id: str, key: str, claim: Claim) -> Claim:
        """Claim a key of a user, and return the claim that is in force: the first one."""
        ...

    async def take_over(self, user_id: str, key: str, claim: Claim, *, previous_id: str) -> bool:
        """Replace the claim of an answer that has never started; False if it was replaced."""
        ...

    async def free(self, user_id: str, key: str, answer_id: str) -> None:
        """Remove a claim: its request was rejected. Idempotent."""
        ...


class TicketGrant(msgspec.Struct, frozen=True, array_like=True):
    """The permission of a ticket: read one answer, for as long as the credential is valid.

    The other fields are those of the `Principal` that the ticket was issued to; `sees` is its
    `visible_user_id`.
    """

    answer_id: str
    user_id: str
    sees: str | None
    credential: str
    key_id: str | None = None
    ends_at: float | None = None


class IssuedTicket(msgspec.Struct, frozen=True):
    """A ticket, and the time before which it must be redeemed (seconds since the epoch)."""

    ticket: str
    expires_at: float


class RedeemedTicket(Protocol):
    """A ticket after its first use. Its readers report what decides about later reconnects."""

    grant: TicketGrant

    def add_reader(self) -> None:
        """Count a reader; `remove_reader` must follow."""
        ...

    def remove_reader(self) -> None:
        """A reader has left: the time for a reconnect starts again."""
        ...

    def record_sent(self, seq: int) -> None:
        """Events up to this position were sent, at least in part."""
        ...

    def record_end(self) -> None:
        """The answer has ended: the time for a reconnect starts again."""
        ...


class Tickets(Protocol):
    """One-time tickets to the events of one answer: unforgeable credentials for URLs."""

    def issue(self, grant: TicketGrant) -> IssuedTicket:
        """Issue a ticket."""
        ...

    def check(self, ticket: str, answer_id: str) -> TicketGrant:
        """Return the grant of a ticket for this answer that this replica or another one issued.

        The one that issued it decides whether it may be used. Raises `TicketInvalid`.
        """
        ...

    def redeem(self, ticket: str, answer_id: str) -> RedeemedTicket:
        """Use a ticket for the first time, which must be shortly after it was issued.

        Raises `TicketInvalid` and `Overloaded`.
        """
        ...

    def resume(self, ticket: str, answer_id: str, seq: int) -> RedeemedTicket:
        """Use a redeemed ticket for a reconnect after the event `seq`.

        That event must have been sent to a reader of this ticket, and the reconnect must follow
        within the resume time of its last reader or of the end of the answer. Raises
        `TicketInvalid`.
        """
        ...


class AttemptUsage(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended and what it used, for its span."""

    status: Status
    error_code: str | None
    usage_source: UsageSource
    usage: Usage | None
    cost_nano_usd: int | None
    finish_reason: str | None = None


class SearchSpan(msgspec.Struct):
    """The result of a search, which its caller sets."""

    passages: int = 0
    answerable: bool = False


class AnswerTrace(Protocol):
    """The span of one answer and of its searches and attempts. No method fails or blocks."""

    @property
    def ids(self) -> tuple[str, str]:
        """The ids of the trace and of the answer's span, in hexadecimal."""
        ...

    def describe(self, intent: Intent) -> None:
        """Set the attributes that an intent has."""
        ...

    def search(self, query: str) -> AbstractContextManager[SearchSpan]:
        """A context manager for one search; its caller sets the result."""
        ...

    def begin_attempt(self, provider: str, request: ProviderRequest) -> tuple[bytes, ...]:
        """Begin the span of an attempt. Returns the headers for the provider."""
        ...

    def record_first_output(self) -> None:
        """Note that the first output of a streamed attempt was received."""
        ...

    def end_attempt(self, used: AttemptUsage, *, text: str = "") -> None:
        """End the span of the current attempt, if there is one."""
        ...

    def finish(self, outcome: Outcome, used: AttemptUsage) -> None:
        """End the span, and that of the last attempt, which `used` describes. Idempotent."""
        ...

    def refuse(self, code: str) -> None:
        """End the span of a request that was rejected before it had an intent. Idempotent."""
        ...


class AnswerTracer(Protocol):
    """Exports a span for each answer."""

    def begin_answer(
        self, headers: Mapping[str, str], *, endpoint: str, stored: bool
    ) -> AnswerTrace:
        """Begin a span, below the one that `traceparent` and `tracestate` of a request name.

        Texts of an answer that is not `stored` are never exported.
        """
        ...

    async def aclose(self) -> None:
        """Export what is queued, within a bounded time. Idempotent."""
        ...
