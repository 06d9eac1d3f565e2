"""Records for tests."""

from datetime import datetime
from typing import Any

from service.core.encoding import create_id, utc_now
from service.core.pricing import Usage
from service.core.records import (
    Attempt,
    EndedAttempt,
    Intent,
    Outcome,
    Status,
    UsageSource,
    sum_attempts,
)


def build_intent(*, at: datetime | None = None, **fields: Any) -> Intent:
    """Build an intent; keyword arguments set its fields."""
    at = at or utc_now()
    defaults: dict[str, Any] = {
        "id": create_id(at),
        "created_at": at,
        "endpoint": "/ai/test",
        "model": "m",
        "user_id": "local",
        "request_id": "r",
        "prompt": "Why?",
        "grounded": False,
    }
    return Intent(**(defaults | fields))


def build_outcome(intent: Intent | None = None, **fields: Any) -> Outcome:
    """Build a completed outcome; keyword arguments set its fields."""
    defaults: dict[str, Any] = {
        "intent": intent or build_intent(),
        "status": Status.COMPLETED,
        "usage_source": UsageSource.PROVIDER,
        "usage": Usage(prompt_tokens=10, completion_tokens=5),
        "response": "Because.",
        "finish_reason": "stop",
        "error_code": None,
        "cost_nano_usd": 1500,
        "price": "p",
        "response_time_ms": 12,
        "first_token_ms": 3,
        "attempts": 1,
        "sources": [],
    }
    return Outcome(**(defaults | fields))


def build_attempt(**fields: Any) -> Attempt:
    """Build an attempt with usage and cost; keyword arguments set its fields."""
    defaults: dict[str, Any] = {
        "provider": "first",
        "model": "small",
        "status": Status.COMPLETED,
        "error_code": None,
        "unbilled": False,
        "usage_source": UsageSource.PROVIDER,
        "usage": Usage(prompt_tokens=10, completion_tokens=5),
        "cost_nano_usd": 1500,
        "price": "p",
        "started_at": utc_now(),
        "ended_at": utc_now(),
    }
    return Attempt(**(defaults | fields))


def build_failed_attempt(**fields: Any) -> Attempt:
    """Build an attempt that was certainly not billed; keyword arguments set its fields."""
    defaults: dict[str, Any] = {
        "status": Status.PROVIDER_ERROR,
        "error_code": "provider_busy",
        "unbilled": True,
        "usage_source": UsageSource.UNKNOWN,
        "usage": None,
        "cost_nano_usd": None,
        "price": None,
    }
    return build_attempt(**(defaults | fields))


def build_ended_attempt(intent: Intent, **fields: Any) -> EndedAttempt:
    """Build the record of a failed attempt of an answer that the second provider goes on with."""
    return EndedAttempt(
        answer_id=intent.id,
        attempt=build_failed_attempt(**fields),
        next_provider="second",
        next_model="large",
    )


def build_outcome_of_attempts(
    *attempts: Attempt, intent: Intent | None = None, **fields: Any
) -> Outcome:
    """Build the outcome of an answer with these attempts."""
    source, usage, nano_usd, price = sum_attempts(attempts)
    values: dict[str, Any] = {
        "usage_source": source,
        "usage": usage,
        "cost_nano_usd": nano_usd,
        "price": price,
        "attempts": len(attempts),
        "attempt_list": list(attempts),
        "provider": attempts[-1].provider,
        "provider_model": attempts[-1].model,
    }
    return build_outcome(intent, **(values | fields))
