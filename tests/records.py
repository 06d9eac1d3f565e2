"""Records for tests."""

from datetime import datetime
from typing import Any

from service.core.encoding import create_id, utc_now
from service.core.pricing import Usage
from service.core.records import Intent, Outcome, Status, UsageSource


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
