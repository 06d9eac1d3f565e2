"""Limits of a service that are the same in every installation.

They are not settings: no operator has had a reason to change them. `create_app` takes them as a parameter, so that tests
can reach a limit quickly. Limits of connections are in `http_server/connections.py`.
"""

import msgspec


class ServiceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one service may use. Times are in seconds."""

    attempts_max: int = (
        3  # per answer or embedding call; only what cannot have been billed is retried
    )
    drain_nano_usd_max: int = (
        50_000_000  # for the rest of an answer that is drained (`drain_seconds`)
    )
    upload_files_max: int = 20  # per upload
    ping_seconds: float = (
        15  # of silence, after which a stream gets a comment that keeps proxies awake
    )
    send_seconds_max: float = 30  # without the client reading; then its connection is dropped
    queue_records_max: int = 100_000  # that wait for the database, answers in progress included
