"""Retries: how long to wait before the next one."""

import random

_DOUBLINGS_MAX = 30  # far beyond any maximum, and a float still holds the product


def retry_delay(failures: int, *, first_seconds: float, seconds_max: float) -> float:
    """Seconds to wait after this many failures in a row, counted from 1: doubled each time, with jitter of ±50 %."""
    delay = first_seconds * 2.0 ** min(failures - 1, _DOUBLINGS_MAX)
    return min(delay * random.uniform(0.5, 1.5), seconds_max)  # noqa: S311 - not for secrets
