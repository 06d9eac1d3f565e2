"""Records: what the journal and the queue carry and a log row is made of.

Records carry `VERSION`, because another process may read them than the one that wrote them.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from service.core.pricing import ChargeTerms, Usage, format_usd

VERSION = 1


class Status(StrEnum):
    """How an answer ended."""

    COMPLETED = "completed"  # the provider reported the end
    NO_CONTEXT = "no_context"  # refused without a provider call: no relevant passage
    STOPPED = "stopped"  # stopped by the caller
    CLIENT_GONE = "client_gone"  # the client disconnected and the answer was cancelled
    PROVIDER_ERROR = "provider_error"  # the provider failed, before or during the answer
    TIMEOUT = "timeout"  # read timeout of the provider, or the deadline
    INTERRUPTED = "interrupted"  # this process ended first


# What `error` stands for in filters.
FAILURES = (Status.PROVIDER_ERROR, Status.TIMEOUT, Status.INTERRUPTED)


class UsageSource(StrEnum):
    """Where the token counts come from."""

    PROVIDER = "provider"  # as the provider reported them
    ESTIMATED = "estimated"  # counted here, from the prompt and the text received
    UNKNOWN = "unknown"  # the provider may have billed; nothing was received to count
    NONE = "none"  # no request reached a provider


# A record replaces a row only if its usage source has a higher rank.
RANKS = {
    UsageSource.UNKNOWN: 0,
    UsageSource.ESTIMATED: 1,
    UsageSource.PROVIDER: 2,
    UsageSource.NONE: 2,
}


class Passage(msgspec.Struct, frozen=True):
    """One or more chunks as given to the model, numbered; has the id of the best one.

    `sentence`: the range in `text` of the sentence that matches the question best or, in `sources`,
    the one cited. `page`: the page of the sentence, in a document with pages, which page breaks
    (form feeds) in `text` separate. `supported`: false in `sources` if words of a claim that cites
    the passage are missing in it; otherwise unset. `date`: of the document, as a year or an ISO
    date, if other versions of it differ.
    """

    n: int
    document_id: str
    chunk_id: str
    title: str
    text: str
    sentence: tuple[int, int] | None = None
    page: int | msgspec.UnsetType = msgspec.UNSET
    supported: bool | msgspec.UnsetType = msgspec.UNSET
    date: str | msgspec.UnsetType = msgspec.UNSET


class Message(msgspec.Struct, frozen=True):
    """A message to or from a model. `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A record: an answer starts. It has everything that a row needs if no outcome follows."""

    id: str
    created_at: datetime
    endpoint: str
    model: str
    user_id: str
    request_id: str
    prompt: str
    grounded: bool
    idempotency_key: str | None = None
    body_hash: str | None = None
    relevance_share: float | None = None
    relevance_terms: float | None = None
    relevance_cosine: float | None = None
    searched_for: str | None = None  # the question as corrected; None: as it is
    key_id: str | None = None  # of the API key used
    asked_by: str | None = None  # the admin who acted for `user_id`
    held_tokens: int | None = None  # the quota held, charged if the usage stays unknown
    held_nano_usd: int | None = None
    conversation_id: str | None = None  # the id of its first answer; None: not part of one
    messages: list[Message] | None = None  # as sent, if there are more than the prompt
    request_body: dict[str, Any] | None = None  # of a response that can be retrieved
    stored: bool = True  # False: the row has no texts
    provider: str | None = None  # of the first attempt
    provider_model: str | None = None  # if it differs from `model`
    terms: ChargeTerms | None = None  # None: nothing is charged


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """The account of one call to a provider, of an answer with several.

    `unbilled`: it was certainly not billed. `cost_nano_usd` None: unknown usage, or no known price.
    """

    provider: str
    model: str
    status: Status
    error_code: str | None
    unbilled: bool
    usage_source: UsageSource
    usage: Usage | None
    cost_nano_usd: int | None
    price: str | None
    started_at: datetime
    ended_at: datetime


class EndedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """A record: an attempt of an answer ended, and the next one, of this model, begins."""

    answer_id: str
    attempt: Attempt
    next_provider: str
    next_model: str


class AttemptSum(NamedTuple):
    """The account of an answer as the sum of its attempts."""

    usage_source: UsageSource
    usage: Usage | None
    cost_nano_usd: int | None
    price: str | None


def sum_attempts(attempts: Sequence[Attempt]) -> AttemptSum:
    """Add the attempts of an answer.

    Usage that is unknown and may have been billed makes the sum unknown. An attempt that was
    certainly not billed adds nothing; without any other the sum is unknown, never a silent 0.
    """
    counted = [
        attempt
        for attempt in attempts
        if attempt.usage_source in {UsageSource.PROVIDER, UsageSource.ESTIMATED}
    ]
    unknown = [attempt for attempt in attempts if attempt.usage_source is UsageSource.UNKNOWN]
    if any(not attempt.unbilled for attempt in unknown) or (unknown and not counted):
        return AttemptSum(UsageSource.UNKNOWN, None, None, None)
    if not counted:
        return AttemptSum(UsageSource.NONE, Usage(prompt_tokens=0, completion_tokens=0), 0, None)
    sums = [
        sum(getattr(attempt.usage, name) for attempt in counted) for name in Usage.__struct_fields__
    ]
    costs = [attempt.cost_nano_usd for attempt in counted if attempt.cost_nano_usd is not None]
    is_priced = len(costs) == len(counted)
    labels = dict.fromkeys(attempt.price or "" for attempt in counted)
    return AttemptSum(
        min((attempt.usage_source for attempt in counted), key=RANKS.__getitem__),
        Usage(**dict(zip(Usage.__struct_fields__, sums, strict=True))),
        sum(costs) if is_priced else None,
        "; ".join(labels) if is_priced else None,
    )


def sum_charges(terms: ChargeTerms, attempts: Sequence[Attempt]) -> int | None:
    """Return the charge of an answer with these attempts, whose sum is not unknown.

    None if an attempt has neither a customer price nor a known cost.
    """
    charge = 0
    for attempt in attempts:
        if attempt.usage_source is UsageSource.NONE or attempt.usage is None:
            continue  # certainly not billed
        amount = terms.compute_charge(attempt.model, attempt.usage, attempt.cost_nano_usd)
        if amount is None:
            return None
        charge += amount
    return charge


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A record: an answer ended. `cost_nano_usd` None: the model has no known price.

    `provider` and `provider_model`: of the last attempt, the second only if the provider has
    another name for the model. `attempt_list`: of several attempts, whose sum the outcome is.
    `charge_nano_usd`: what the customer pays; None: nothing, or unknown usage or price.
    """

    intent: Intent
    status: Status
    usage_source: UsageSource
    usage: Usage | None
    response: str
    finish_reason: str | None
    error_code: str | None
    cost_nano_usd: int | None
    price: str | None
    response_time_ms: int
    first_token_ms: int | None
    attempts: int
    sources: list[Passage]
    nearest: list[Passage] | None = None  # of a refusal: shown, but not an answer
    choices: list[dict[str, Any]] | None = None  # of a chat completion, if more than a text
    provider: str | None = None  # None: none was called
    provider_model: str | None = None
    attempt_list: list[Attempt] | None = None
    charge_nano_usd: int | None = None
    version: int = VERSION
    erased_at: datetime | None = None  # set only when it is read from a row

    @property
    def was_not_stored(self) -> bool:
        """Whether a row never had texts: it was erased when it began."""
        return self.erased_at is not None and self.erased_at == self.intent.created_at

    def compute_charge(self) -> tuple[int, int]:
        """Return (tokens, nano-dollars) charged to quotas; `compute_row_charge` for a record."""
        if self.usage_source is UsageSource.UNKNOWN:
            return self.intent.held_tokens or 0, self.intent.held_nano_usd or 0
        return self.usage.total_tokens if self.usage else 0, self.cost_nano_usd or 0


def compute_row_charge(row: Mapping[Any, Any]) -> tuple[int, int]:
    """Return (tokens, nano-dollars) that a row charges to quotas: if unknown, the hold."""
    if row["usage_source"] == UsageSource.UNKNOWN:
        return row["held_tokens"] or 0, row["held_nano_usd"] or 0
    return (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0), row["cost_nano_usd"] or 0


class AttemptObject(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt in the API and the log. `unbilled`: it was certainly not billed."""

    provider: str
    model: str
    status: str
    error_code: str | None
    unbilled: bool
    usage_source: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    estimated_cost: str | None
    started_at: datetime
    ended_at: datetime


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer object of the API and the log. Costs are decimal strings in USD.

    `attempt_list` is present if there was more than one attempt; their sum is the account. Lists
    omit `nearest`, which refusals have, `searched_for`, present if words of the question were
    corrected, `messages`, present if the prompt was not alone, and `choices`, present with a chat
    completion that is more than a text. `charge` is present if the customer pays for it.
    """

    id: str
    prompt: str | msgspec.UnsetType
    response: str | msgspec.UnsetType
    status: str
    finish_reason: str | None
    error_code: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    usage_source: str
    estimated_cost: str | None
    charge: str | msgspec.UnsetType = msgspec.UNSET
    response_time_ms: int
    first_token_ms: int | None
    endpoint: str
    model: str
    provider: str | None
    provider_model: str | None
    user_id: str
    created_at: datetime
    grounded: bool
    relevance_share: float | None
    relevance_terms: float | None
    relevance_cosine: float | None
    sources: list[Passage]
    nearest: list[Passage] | msgspec.UnsetType = msgspec.UNSET
    searched_for: str | msgspec.UnsetType = msgspec.UNSET
    choices: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    attempts: int
    attempt_list: list[AttemptObject] | msgspec.UnsetType = msgspec.UNSET
    request_id: str
    key_id: str | None
    asked_by: str | None
    conversation_id: str | None
    messages: list[Message] | msgspec.UnsetType = msgspec.UNSET
    erased_at: datetime | None


class DamagedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A log row that cannot be read completely. `damaged`: the fields that cannot.

    Those are null, except `id` and `created_at`, which are taken from the index, and texts, whose
    undecodable bytes are replaced by U+FFFD.
    """

    id: str
    prompt: str | None
    response: str | None
    status: str | None
    finish_reason: str | None
    error_code: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    usage_source: str | None
    estimated_cost: str | None
    charge: str | msgspec.UnsetType | None = msgspec.UNSET
    response_time_ms: int | None
    first_token_ms: int | None
    endpoint: str | None
    model: str | None
    provider: str | None
    provider_model: str | None
    user_id: str | None
    created_at: datetime | None
    grounded: bool | None
    relevance_share: float | None
    relevance_terms: float | None
    relevance_cosine: float | None
    sources: list[Passage] | None
    nearest: list[Passage] | msgspec.UnsetType | None = msgspec.UNSET
    searched_for: str | msgspec.UnsetType | None = msgspec.UNSET
    choices: list[dict[str, Any]] | msgspec.UnsetType | None = msgspec.UNSET
    attempts: int | None
    attempt_list: list[AttemptObject] | msgspec.UnsetType | None = msgspec.UNSET
    request_id: str | None
    key_id: str | None
    asked_by: str | None
    conversation_id: str | None
    messages: list[Message] | msgspec.UnsetType | None = msgspec.UNSET
    erased_at: datetime | None
    damaged: list[str]


def create_attempt_object(attempt: Attempt) -> AttemptObject:
    """Build the object of an attempt."""
    usage, cost = attempt.usage, attempt.cost_nano_usd
    return AttemptObject(
        provider=attempt.provider,
        model=attempt.model,
        status=attempt.status,
        error_code=attempt.error_code,
        unbilled=attempt.unbilled,
        usage_source=attempt.usage_source,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        reasoning_tokens=usage.reasoning_tokens if usage else None,
        estimated_cost=None if cost is None else format_usd(cost),
        started_at=attempt.started_at,
        ended_at=attempt.ended_at,
    )


def create_answer_object(outcome: Outcome, *, texts: bool = True) -> Answer:
    """Build the answer object; without `texts` it has no prompt, messages and response (`done`)."""
    intent, usage = outcome.intent, outcome.usage
    return Answer(
        id=intent.id,
        prompt=intent.prompt if texts else msgspec.UNSET,
        response=outcome.response if texts else msgspec.UNSET,
        status=outcome.status,
        finish_reason=outcome.finish_reason,
        error_code=outcome.error_code,
        prompt_tokens=usage.prompt_tokens if usage else None,
        completion_tokens=usage.completion_tokens if usage else None,
        total_tokens=usage.total_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        reasoning_tokens=usage.reasoning_tokens if usage else None,
        usage_source=outcome.usage_source,
        estimated_cost=None if outcome.cost_nano_usd is None else format_usd(outcome.cost_nano_usd),
        charge=msgspec.UNSET
        if outcome.charge_nano_usd is None
        else format_usd(outcome.charge_nano_usd),
        response_time_ms=outcome.response_time_ms,
        first_token_ms=outcome.first_token_ms,
        endpoint=intent.endpoint,
        model=intent.model,
        provider=outcome.provider,
        provider_model=outcome.provider_model,
        user_id=intent.user_id,
        created_at=intent.created_at,
        grounded=intent.grounded,
        relevance_share=intent.relevance_share,
        relevance_terms=intent.relevance_terms,
        relevance_cosine=intent.relevance_cosine,
        sources=outcome.sources,
        nearest=msgspec.UNSET if outcome.nearest is None else outcome.nearest,
        searched_for=intent.searched_for or msgspec.UNSET,
        choices=outcome.choices if texts and outcome.choices else msgspec.UNSET,
        attempts=outcome.attempts,
        attempt_list=[create_attempt_object(attempt) for attempt in outcome.attempt_list]
        if outcome.attempt_list
        else msgspec.UNSET,
        request_id=intent.request_id,
        key_id=intent.key_id,
        asked_by=intent.asked_by,
        conversation_id=intent.conversation_id,
        messages=intent.messages if texts and intent.messages else msgspec.UNSET,
        erased_at=outcome.erased_at,
    )
