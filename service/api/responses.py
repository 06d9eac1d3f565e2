"""JSON responses and entity tags."""

from collections.abc import Mapping

from fastapi import Response

from service.core.encoding import to_json


def has_etag(if_none_match: str, etag: str) -> bool:
    """Whether the header `If-None-Match` names an entity tag; weak tags count."""
    return etag in (value.strip().removeprefix("W/") for value in if_none_match.split(","))


def json_response(
    body: object,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """A JSON response. NDJSON and events have their own encoders."""
    return Response(to_json(body), status, headers, media_type)
