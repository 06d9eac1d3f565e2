"""Limits of a service that are not settings, because no operator had a reason to change them.

`create_app` takes them as a parameter, so that tests can reach a limit quickly. Limits of
connections are in `http_server/connections.py`.
"""

import msgspec


class ServiceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one service. Times are in seconds."""

    # Per answer or embedding call. Calls that may have been billed are not retried.
    attempts_max: int = 3
    # Maximum cost of draining the rest of an answer (`drain_seconds`).
    drain_nano_usd_max: int = 50_000_000
    upload_files_max: int = 20  # per upload
    archive_files_max: int = 500  # in the zip archives of an upload
    # The following are limits of all users, of which one can use a share (`fair_share.py`).
    uploads_max: int = 4  # in progress, of the largest size
    uploads_at_once_max: int = 200  # in progress, of any size
    # `GET /ai/search` in progress, a few seconds of work; those of answers are bounded by answers.
    searches_max: int = 200
    # Of JSON bodies that are being received.
    bodies_bytes_max: int = 268_435_456
    # Of the body of a chat completion request, with its conversation, tools and images.
    chat_bytes_max: int = 4_194_304
    # Interval of comments in a silent stream, which prevent timeouts of proxies.
    ping_seconds: float = 15
    send_seconds_max: float = (
        30  # write timeout, after which a client that does not read is dropped
    )
    queue_records_max: int = 100_000  # records to write, including answers in progress
