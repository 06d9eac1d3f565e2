"""HTTP client of the commands that talk to a running service."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias
from urllib.parse import unquote

import httpx2
import typer

from service.core.errors import InvalidRequest, KotaeError, NotFound
from service.core.settings import Settings, load_settings

Url = Annotated[
    str | None, typer.Option(help="URL of the service. Default: from KOTAE_HOST and KOTAE_PORT.")
]


Client: TypeAlias = httpx2.Client
Response: TypeAlias = httpx2.Response
FETCHED_BYTES_MAX, FETCH_SECONDS, REDIRECTS_MAX = 50_000_000, 30.0, 5


def open_client(url: str | None) -> httpx2.Client:
    """An HTTP client for the running service, with the configured credential."""
    settings = load_settings()
    credential = settings.api_key or settings.secret
    headers = {"Authorization": f"Bearer {credential.get_secret_value()}"} if credential else {}
    return httpx2.Client(
        base_url=url or service_url(settings, settings.port),
        headers=headers,
        timeout=httpx2.Timeout(330, connect=5),
    )


def service_url(settings: Settings, port: int) -> str:
    """The URL of a service that listens as configured."""
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104 - compared, not listened on
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def get_json(client: httpx2.Client, path: str, **params: Any) -> Any:
    """The JSON body of a GET. Raises `KotaeError` for an error status."""
    response = client.get(path, params=params)
    raise_for_problem(response)
    return response.json()


def find_last_conversation(client: httpx2.Client) -> str:
    """The id of the conversation that was started last. Raises `KotaeError` without one."""
    items = get_json(client, "/ai/conversations", limit=1)["items"]
    if not items:
        raise KotaeError("there is no conversation to continue")
    return str(items[0]["id"])


def list_items(client: httpx2.Client, path: str, **params: Any) -> Iterator[Any]:
    """Yield the items of all pages of a list. Raises `KotaeError`."""
    cursor: str | None = ""
    while cursor is not None:
        page = get_json(client, path, limit=200, **params, **({"cursor": cursor} if cursor else {}))
        yield from page["items"]
        cursor = page["next_cursor"]


def fetch_url(url: str, *, bytes_max: int = FETCHED_BYTES_MAX) -> tuple[bytes, str]:
    """The content of a page of the web and its media type. No credential is sent.

    Raises `KotaeError`, also for an error status or a page that is too large.
    """
    try:
        with (
            httpx2.Client(
                follow_redirects=True, max_redirects=REDIRECTS_MAX, timeout=FETCH_SECONDS
            ) as client,
            client.stream("GET", url, headers={"User-Agent": "kotae"}) as response,
        ):
            if response.status_code >= 400:
                raise KotaeError(f"{response.status_code} {response.reason_phrase}")
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                if len(content) > bytes_max:
                    raise KotaeError(f"the page is larger than {bytes_max} bytes")
            media_type = response.headers.get("content-type", "").partition(";")[0].strip()
            return bytes(content), media_type
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise KotaeError(f"cannot be fetched: {error}") from error


def read_file_name(disposition: str) -> str:
    """The file name in the `Content-Disposition` that the service sends for originals."""
    if match := re.search(r"filename\*=UTF-8''(\S+)", disposition):
        return unquote(match[1])
    match = re.search(r'filename="([^"]*)"', disposition)
    return match[1] if match else ""


def raise_for_problem(response: httpx2.Response) -> None:
    """Raise `KotaeError` with title and detail of a problem response; `NotFound` for 404."""
    if response.status_code >= 400:
        response.read()
        problem = response.json() if "json" in response.headers.get("content-type", "") else {}
        title = problem.get("title", response.reason_phrase)
        error_class = NotFound if response.status_code == 404 else KotaeError
        raise error_class(f"{title}: {problem.get('detail', response.status_code)}")


def require_text(text: str) -> str:
    """Return a question that is not blank. Raises `InvalidRequest`."""
    if not text.strip():
        raise InvalidRequest("the question is empty")
    return text


def summarize(item: dict[str, Any]) -> str:
    """Model, status, tokens, cost and latency of an answer on one line."""
    cost = "unknown cost" if item["estimated_cost"] is None else f"${item['estimated_cost']}"
    tokens = (
        "? tokens"
        if item["total_tokens"] is None
        else f"{item['total_tokens']} tokens ({item['usage_source']})"
    )
    return f"{item['model']}  {item['status']}  {tokens}  {cost}  {item['response_time_ms']} ms"
