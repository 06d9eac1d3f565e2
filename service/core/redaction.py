r"""Redaction: replaces secrets in texts that leave the process.

Providers, proxies and drivers repeat credentials in their error messages. Replaced are

- the configured secrets (`add_secrets`), whole or in part, also percent-encoded or in Base64;
- texts that look like credentials: keys with a known prefix, JSON web tokens, `Authorization` and
  similar headers, values of parameters such as `api_key=`, the user part of URLs, and runs of 32
  or more letters and digits.

Errors are redacted when they are constructed (`errors.KotaeError`), and log lines when they are
rendered (`telemetry`). The configured secrets are process-wide, like the log: an error is
constructed without access to the settings. Prompts, answers and documents are not redacted; they
are stored for their user as they are, and are neither logged nor part of errors.
"""

import base64
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

REDACTED = "[redacted]"
PART_CHARACTERS = 8  # a shorter part of a configured secret is not recognized
SECRET_CHARACTERS_MIN = 4  # shorter values, such as "none", are not secrets
_CACHED_CHARACTERS_MAX = 300

_VALUE = r"[^\s&\"'<>;,\\]+"
_QUOTE = r"(?:b(?=[\"']))?\\?[\"']?"
_SEPARATOR = rf"\s*[:=]\s*{_QUOTE}|\\?[\"']\s*[:=,]\s*{_QUOTE}"
_NAMES = r"api[-_ ]?key|access[-_ ]?key|secret|token|passw(?:or)?d|pwd|credentials?|signature"


class _Rule(NamedTuple):
    """What looks like a credential. Applied only to texts with one of the hints, in lower case."""

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    replacement: str


_RULES = (
    # scheme://user:password@host
    _Rule(("://",), re.compile(r"(://)[^/\s@\"'<>]+@"), rf"\1{REDACTED}@"),
    # Headers with credentials, to the end of the quoted text or of the line.
    _Rule(
        ("authorization", "-key", "-token", "cookie"),
        re.compile(
            r"((?:proxy-)?authorization|x-api-key|api-key|x-auth-token|x-goog-api-key"
            rf"|ocp-apim-subscription-key|(?:set-)?cookie)({_SEPARATOR})[^\"'\\\r\n]+",
            re.IGNORECASE,
        ),
        rf"\1\2{REDACTED}",
    ),
    _Rule(
        ("bearer", "basic"),
        re.compile(r"\b(bearer|basic)\s+(?=\S*[\d_+/=*-]|\S{20})[\w.~+/*…-]{6,}=*", re.IGNORECASE),
        rf"\1 {REDACTED}",
    ),
    # Parameters: `api_key=…`, `?key=…`
    _Rule(
        ("=",),
        re.compile(rf"((?:{_NAMES}|[?&]key)\\?[\"']?\s*=\s*{_QUOTE}){_VALUE}", re.IGNORECASE),
        rf"\1{REDACTED}",
    ),
    # `"secret": "…"`, `API key provided: …`
    _Rule(
        ("key", "secret", "token", "pass", "pwd", "credential", "signature"),
        re.compile(
            rf"((?:{_NAMES})\b[^:\n]{{0,20}}:\s*{_QUOTE})(?=\S*\d)(?=\S*[A-Za-z*])"
            r"[^\s&\"'<>;,\\]{8,}",
            re.IGNORECASE,
        ),
        rf"\1{REDACTED}",
    ),
    # Keys by their prefix, also partly masked (`sk-…****abcd`), and JSON web tokens.
    _Rule(
        ("",),
        re.compile(
            r"\b(?:sk|pk|rk|gsk|csk|kt|r8|fw|tgp|xai|pplx|nvapi|whsec|glpat|dop|shpat|gh[opsu]"
            r"|github_pat|xox[a-z])[-_][\w.*…-]{4,}"
            r"|\bhf_\w{6,}|\bAIza[\w*-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9*]{8,}|\bya29\.[\w.*-]{6,}"
            r"|\bkey-(?=\S*\d)\w{8,}|\beyJ[\w-]{8,}(?:\.[\w-]*)*"
        ),
        REDACTED,
    ),
    _Rule(
        ("",),
        re.compile(r"\b(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{32,}=*"),
        REDACTED,
    ),
)


class _ConfiguredSecrets:
    """The secrets of this process: `words` are matched whole, `parts` anywhere in a text."""

    def __init__(self) -> None:
        self.words: set[str] = set()
        self.parts: set[str] = set()

    def add(self, secret: str) -> None:
        if len(secret) < PART_CHARACTERS:
            self.words.add(secret.lower())
            return
        for form in _list_encodings(secret):
            folded = form.lower()
            for start in range(len(folded) - PART_CHARACTERS + 1):
                self.parts.add(folded[start : start + PART_CHARACTERS])

    def redact(self, text: str) -> str:
        folded = text.lower()
        if len(folded) != len(text):  # a few characters change their length
            folded = text
        if not any(word in folded for word in self.words) and self.parts.isdisjoint(
            folded[start : start + PART_CHARACTERS]
            for start in range(len(folded) - PART_CHARACTERS + 1)
        ):
            return text
        spans = [
            match.span()
            for word in self.words
            for match in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", folded)
        ]
        spans += [
            (start, start + PART_CHARACTERS)
            for start in range(len(folded) - PART_CHARACTERS + 1)
            if folded[start : start + PART_CHARACTERS] in self.parts
        ]
        return _replace_spans(text, sorted(_extend_span(text, *span) for span in spans))


_configured = _ConfiguredSecrets()


def add_secrets(secrets: Iterable[str | None]) -> None:
    """Redact these from now on. Values of fewer than `SECRET_CHARACTERS_MIN` are ignored."""
    for secret in secrets:
        stripped = (secret or "").strip()
        if len(stripped) >= SECRET_CHARACTERS_MIN:
            _configured.add(stripped)
    _redact_cached.cache_clear()


def redact_secrets(text: str) -> str:
    """Return the text with `[redacted]` in place of secrets."""
    if len(text) <= _CACHED_CHARACTERS_MAX:
        return _redact_cached(text)
    return _redact(text)


def _redact(text: str) -> str:
    folded = text.lower()
    for rule in _RULES:
        if any(hint in folded for hint in rule.hints):
            text = rule.pattern.sub(rule.replacement, text)
    return _configured.redact(text)


_redact_cached = lru_cache(maxsize=1024)(_redact)


def _list_encodings(secret: str) -> list[str]:
    """Return the secret as it is, percent-encoded, and in Base64 at the three alignments."""
    data = secret.encode()
    forms = [secret, quote(secret, safe="")]
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + data).decode()
        # The first and the last group also depend on the neighbouring bytes.
        forms.append(encoded[4 if offset else 0 :].rstrip("=")[:-1])
    return forms


def _extend_span(text: str, start: int, end: int) -> tuple[int, int]:
    """Extend a span to the word that it is part of."""
    while start and _is_key_character(text[start - 1]):
        start -= 1
    while end < len(text) and _is_key_character(text[end]):
        end += 1
    return start, end


def _is_key_character(character: str) -> bool:
    return character.isalnum() or character in "-_"


def _replace_spans(text: str, spans: list[tuple[int, int]]) -> str:
    """Replace the union of the sorted spans, each connected run once."""
    parts: list[str] = []
    position = 0
    for start, end in spans:
        if start >= position:
            if not parts or start > position:
                parts += [text[position:start], REDACTED]
            position = end
        else:
            position = max(position, end)
    return "".join([*parts, text[position:]])
