"""Redaction of secrets in texts."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.redaction import PART_CHARACTERS, REDACTED, add_secrets, redact_secrets

SECRET = "Tr0ub4dor/&3+correct-horse"  # of no known form
SHORT = "pw7!"
add_secrets([SECRET, SHORT, None, "", "abc"])


@pytest.mark.parametrize(
    "text",
    [
        "invalid key {}",
        "{}",
        "key='{}', model='m'",
        "({})",
        "https://gateway.example/v1/{}/chat",
        "x{}y",
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        SECRET.upper(),
        SECRET[:PART_CHARACTERS],
        SECRET[-PART_CHARACTERS:],
        SECRET[4:-4],
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(f"user:{SECRET}".encode()).decode(),
        base64.b64encode(f"me:{SECRET}!".encode()).decode(),
    ],
)
def test_configured_secrets_are_redacted(text: str, form: str) -> None:
    """No form of a configured secret is left, wherever it is in a text."""
    redacted = redact_secrets(text.format(form))

    assert REDACTED in redacted
    for start in range(len(form) - PART_CHARACTERS + 1):
        assert form[start : start + PART_CHARACTERS] not in redacted


def test_short_secrets_are_redacted_as_words() -> None:
    """A configured secret of few characters is redacted where it is a word."""
    assert redact_secrets(f"password {SHORT} refused") == f"password {REDACTED} refused"
    assert redact_secrets("spw7!s") == "spw7!s"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bad key sk-proj-abc_DEF123", f"bad key {REDACTED}"),
        ("bad key sk-ab****wxyz.", f"bad key {REDACTED}"),
        ("gsk_abcdef hf_abcdefgh", f"{REDACTED} {REDACTED}"),
        ("AKIAIOSFODNN7EXAMPLE", REDACTED),
        ("AIzaSyA-1234567890abc", REDACTED),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", REDACTED),
        ("kt_0123456789", REDACTED),
        ("0123456789abcdef0123456789abcdef is invalid", f"{REDACTED} is invalid"),
        ("Bearer abc.def-1", f"Bearer {REDACTED}"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: {REDACTED}"),
        ("authorization: Bearer abc\r\nx-id: 7", f"authorization: {REDACTED}\r\nx-id: 7"),
        ("{'x-api-key': 'abc', 'a': 1}", f"{{'x-api-key': '{REDACTED}', 'a': 1}}"),
        ('{"Api-Key":"abc"}', f'{{"Api-Key":"{REDACTED}"}}'),
        ("[(b'authorization', b'Bearer x')]", f"[(b'authorization', b'{REDACTED}')]"),
        ("Set-Cookie: session=abc; Path=/", f"Set-Cookie: {REDACTED}"),
        ("http://user:pass@host/v1", f"http://{REDACTED}@host/v1"),
        ("postgresql://token@host/db", f"postgresql://{REDACTED}@host/db"),
        ("/v1?key=abc&alt=sse", f"/v1?key={REDACTED}&alt=sse"),
        ("/v1?api_key=abc&alt=sse", f"/v1?api_key={REDACTED}&alt=sse"),
        ("access_token=abc, next", f"access_token={REDACTED}, next"),
        ('{"api_key": "abc12345"}', f'{{"api_key": "{REDACTED}"}}'),
        (r"{\"password\": \"abc12345\"}", rf"{{\"password\": \"{REDACTED}\"}}"),
        ("Incorrect API key provided: abcd1234.", f"Incorrect API key provided: {REDACTED}"),
    ],
)
def test_texts_that_look_like_credentials_are_redacted(text: str, expected: str) -> None:
    """Keys, tokens, credentials in headers, in parameters and in URLs are redacted."""
    assert redact_secrets(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "the provider answered 400: max_tokens=5000 is larger than the limit of 4096 tokens",
        "This model's maximum context length is 128000 tokens: reduce the length of the messages.",
        "no answer has the id 01a2095b-6360-75d3-bf35-48878f818b4d",
        "the model `meta-llama/Llama-3.1-405B-Instruct-Turbo` does not exist",
        "send a key as Bearer token, X-API-Key or Basic password",
        "KOTAE_SECRET must have 32 characters or more; generate one with `openssl rand -hex 32`",
        'File "/usr/lib/python3.11/site-packages/service/core/answering/answers.py", line 300',
        "see https://platform.openai.com/docs/api-reference/chat/create#max_tokens",
        "プロンプトが長すぎます（最大20000文字）",
    ],
)
def test_other_texts_are_unchanged(text: str) -> None:
    """Reasons, limits, ids, models, URLs and paths stay readable."""
    assert redact_secrets(text) == text


@given(st.text(max_size=400), st.text(max_size=400))
def test_a_secret_in_any_text_is_redacted(before: str, after: str) -> None:
    """Whatever surrounds a configured secret, it is redacted."""
    assert SECRET.lower() not in redact_secrets(before + SECRET + after).lower()


def test_redaction_is_idempotent() -> None:
    """A redacted text does not change."""
    text = redact_secrets("Authorization: Bearer abcdef12, api_key=abc http://a:b@c")

    assert redact_secrets(text) == text
