"""What a stream says, what a record says, and their encodings.

*Events* are what a client sees of a stream (server-sent events); *records* are what goes to the queue and becomes a log
row. Both carry `VERSION` where they may be read by another process than the one that wrote them.

An event's payload is JSON on one line: msgspec escapes CR and LF, the only characters that end a line in an event
stream besides each other, so that no text can end an event or begin another
(https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation).
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from service.core.pricing import Usage, format_usd

VERSION = 1


class Status(StrEnum):
    """How an answer ended."""

    COMPLETED = "completed"  # the provider said that it finished
    NO_CONTEXT = "no_context"  # refused: nothing relevant was found, the provider was not called
    STOPPED = "stopped"  # the caller asked to stop
    CLIENT_GONE = "client_gone"  # the caller left and the answer was cancelled
    PROVIDER_ERROR = "provider_error"  # the provider failed, before or during the answer
    TIMEOUT = "timeout"  # the provider was silent too long, or the deadline passed
    INTERRUPTED = "interrupted"  # this process ended in the middle


class UsageSource(StrEnum):
    """Where the token counts come from."""

    PROVIDER = "provider"  # as the provider reported them
    ESTIMATED = "estimated"  # counted here, from the prompt and what was received
    UNKNOWN = "unknown"  # the provider may have billed, and nothing was received to count
    NONE = "none"  # the provider did no work


# How much a row knows. A record may replace one that knows less, never one that knows as much.
RANKS = {
    UsageSource.UNKNOWN: 0,
    UsageSource.ESTIMATED: 1,
    UsageSource.PROVIDER: 2,
    UsageSource.NONE: 2,
}


class Passage(msgspec.Struct, frozen=True):
    """A chunk as given to the model, numbered as the model sees it; or it and its neighbours, by the id of the best.

    `sentence`: where in `text` the sentence stands that fits the question best, or, in `sources`, what cites it.
    """

    n: int
    document_id: str
    chunk_id: str
    title: str
    text: str
    sentence: tuple[int, int] | None = None


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """A record: an answer begins. Everything a row needs should nothing more ever be heard of it."""

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
    key_id: str | None = None  # of the API key that asked
    asked_by: str | None = None  # the admin who asked on behalf of `user_id`
    held_tokens: int | None = (
        None  # the upper bound that was held of the quota; it counts if nobody knows the usage
    )
    held_nano_usd: int | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A record: an answer ended. `cost_nano_usd` None means that the model has no known price."""

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
    version: int = VERSION

    def charge(self) -> tuple[int, int]:
        """(tokens, nano-dollars) that count toward quotas; as `charge`, for a row."""
        if self.usage_source is UsageSource.UNKNOWN:
            return self.intent.held_tokens or 0, self.intent.held_nano_usd or 0
        return self.usage.total_tokens if self.usage else 0, self.cost_nano_usd or 0


def charge_of_row(row: Mapping[Any, Any]) -> tuple[int, int]:
    """(tokens, nano-dollars) that a log row counts toward quotas; what nobody knows counts as what was held for it."""
    if row["usage_source"] == UsageSource.UNKNOWN:
        return row["held_tokens"] or 0, row["held_nano_usd"] or 0
    return (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0), row["cost_nano_usd"] or 0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer object of the wire; a log row has the same names. Costs are USD as decimal strings."""

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
    response_time_ms: int
    first_token_ms: int | None
    endpoint: str
    model: str
    user_id: str
    created_at: datetime
    grounded: bool
    relevance_share: float | None
    relevance_terms: float | None
    relevance_cosine: float | None
    sources: list[Passage]
    attempts: int
    request_id: str
    key_id: str | None
    asked_by: str | None


def create_answer_object(outcome: Outcome, *, texts: bool = True) -> Answer:
    """The answer object of an outcome; without `texts` it leaves out prompt and response, as the `done` event does."""
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
        response_time_ms=outcome.response_time_ms,
        first_token_ms=outcome.first_token_ms,
        endpoint=intent.endpoint,
        model=intent.model,
        user_id=intent.user_id,
        created_at=intent.created_at,
        grounded=intent.grounded,
        relevance_share=intent.relevance_share,
        relevance_terms=intent.relevance_terms,
        relevance_cosine=intent.relevance_cosine,
        sources=outcome.sources,
        attempts=outcome.attempts,
        request_id=intent.request_id,
        key_id=intent.key_id,
        asked_by=intent.asked_by,
    )
