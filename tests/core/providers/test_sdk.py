"""The one map from the SDK's exceptions to ours."""

import httpx2
import openai
import pytest

from service.core.errors import ProviderError, ProviderUnreachable
from service.core.providers.sdk import translate_error

REQUEST = httpx2.Request("POST", "http://provider.test/v1/chat/completions")


def concrete(root: type[Exception]) -> list[type[Exception]]:
    """A class and all below it."""
    return [root, *(each for child in root.__subclasses__() for each in concrete(child))]


def made(kind: type[Exception]) -> Exception:
    """An instance, whatever the class wants to be made from."""
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


FOREIGN = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError)


@pytest.mark.parametrize("kind", [each for root in FOREIGN for each in concrete(root)])
def test_every_exception_has_a_translation(kind: type[Exception]) -> None:
    """Whatever the SDK or its transports raise becomes one of our provider errors."""
    assert isinstance(translate_error(made(kind)), ProviderError)


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


def test_only_a_connection_that_never_was_may_be_tried_again() -> None:
    """A connection that broke may have been billed: it is not taken for unreachable."""
    broken = openai.APIConnectionError(request=REQUEST)
    broken.__cause__ = httpx2.RemoteProtocolError("server disconnected")
    never = openai.APIConnectionError(request=REQUEST)
    never.__cause__ = httpx2.ConnectError("refused")

    assert not translate_error(broken).may_retry
    assert isinstance(translate_error(never), ProviderUnreachable)


def test_the_words_of_a_refusal_are_not_passed_on() -> None:
    """Providers repeat parts of the key in their 401."""
    response = httpx2.Response(401, request=REQUEST)
    error = openai.AuthenticationError(
        "Incorrect API key provided: sk-abc",
        response=response,
        body={"message": "Incorrect API key provided: sk-abc"},
    )

    assert "sk-abc" not in translate_error(error).detail
