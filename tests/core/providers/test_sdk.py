"""Translation of the SDK's exceptions."""

import httpx2
import openai
import pytest

from service.core.errors import ProviderError, ProviderUnreachable
from service.core.providers.sdk import translate_error

REQUEST = httpx2.Request("POST", "http://provider.test/v1/chat/completions")


def list_classes(root: type[Exception]) -> list[type[Exception]]:
    """A class and all of its subclasses."""
    return [root, *(item for child in root.__subclasses__() for item in list_classes(child))]


def create_instance(kind: type[Exception]) -> Exception:
    """Create an exception without calling its constructor."""
    error = kind.__new__(kind)
    Exception.__init__(error, "m")
    if isinstance(error, openai.APIStatusError):
        error.response, error.status_code, error.code, error.body = (
            httpx2.Response(418, request=REQUEST),
            418,
            None,
            None,
        )
    return error


ROOTS = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError)


@pytest.mark.parametrize("kind", [kind for root in ROOTS for kind in list_classes(root)])
def test_every_exception_has_a_translation(kind: type[Exception]) -> None:
    """Every exception of the SDK and its transport becomes a provider error."""
    assert isinstance(translate_error(create_instance(kind)), ProviderError)


@pytest.mark.parametrize(
    ("status", "code"),
    [(status, "provider_rejected") for status in (400, 402, 409, 413, 422)]
    + [(status, "provider_refused") for status in (401, 403, 404)]
    + [(status, "provider_timeout") for status in (408, 504)]
    + [(status, "provider_busy") for status in (429, 503)]
    + [(status, "provider_error") for status in (500, 502, 599)],
)
def test_statuses(status: int, code: str) -> None:
    """Each status has one meaning."""
    response = httpx2.Response(status, request=REQUEST)

    assert translate_error(openai.APIStatusError("m", response=response, body=None)).code == code


def test_only_a_failed_connect_may_be_retried() -> None:
    """A request on a broken connection may have been billed, so it is not `ProviderUnreachable`."""
    broken = openai.APIConnectionError(request=REQUEST)
    broken.__cause__ = httpx2.RemoteProtocolError("server disconnected")
    never = openai.APIConnectionError(request=REQUEST)
    never.__cause__ = httpx2.ConnectError("refused")

    assert not translate_error(broken).may_retry
    assert isinstance(translate_error(never), ProviderUnreachable)


def test_the_message_of_a_refusal_is_not_passed_on() -> None:
    """Providers include parts of the key in their 401."""
    response = httpx2.Response(401, request=REQUEST)
    error = openai.AuthenticationError(
        "Incorrect API key provided: sk-abc",
        response=response,
        body={"message": "Incorrect API key provided: sk-abc"},
    )

    assert "sk-abc" not in translate_error(error).detail
