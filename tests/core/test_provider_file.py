"""The file of providers: the example, its errors, and the names of models."""

import json
from pathlib import Path
from typing import Any

import pytest

from service.core.errors import SettingsInvalid
from service.core.provider_file import Catalog, ProviderConfig, TargetConfig, load_catalog
from service.core.settings import Settings, child_environment, load_settings

EXAMPLE = Path(__file__).parents[2] / "deploy" / "providers.toml"
DEFAULTS = ProviderConfig("default", None, connections_max=7, idle_seconds=9)
MODEL = {"name": "m"}
PROVIDER: dict[str, Any] = {"name": "a", "base_url": "http://127.0.0.1:9/v1", "models": [MODEL]}
OTHER: dict[str, Any] = PROVIDER | {"name": "b", "models": [{"name": "n"}]}


def load(folder: Path, *providers: dict[str, Any], **content: Any) -> Catalog:
    """Load a file with these providers."""
    file = folder / "providers.json"
    file.write_text(json.dumps({"providers": list(providers), **content}))
    return load_catalog(file, {"KEY": "sk-secret-key-1"}.get, DEFAULTS)


def test_the_example_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented file describes two providers, their models, an alias and two routes."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-example")
    settings = load_settings(providers=EXAMPLE)
    catalog = settings.catalog

    assert [provider.name for provider in catalog.providers] == ["openai", "local"]
    assert list(catalog.routes) == [
        "chat",
        "chat-always",
        "gpt-5-mini",
        "text-embedding-3-small",
        "llama-3.3-70b",
        "llama",
    ]
    assert catalog.routes["chat-always"].fallback_billed
    assert [target.max_output_tokens for target in catalog.routes["chat"].targets] == [None, 16384]
    assert settings.default_model == "chat"
    assert "sk-of-the-example" in settings.secrets


def test_the_variables_are_the_short_form() -> None:
    """The `OPENAI_` variables are a catalog with one provider that gets every model."""
    settings = Settings(openai_base_url="http://127.0.0.1:9/v1", openai_api_key="sk-1", model="m")
    catalog = settings.catalog

    assert catalog.find_provider("default").api_key == "sk-1"
    assert catalog.routes["m"].targets == (TargetConfig("default", "m"),)
    assert (catalog.fallthrough, catalog.default_model) == ("default", "m")
    assert Settings().catalog == Catalog()


def test_limits_have_defaults(tmp_path: Path) -> None:
    """A provider without limits has those of the settings."""
    first, second = load(
        tmp_path, PROVIDER, OTHER | {"connections_max": 1, "idle_seconds": 2}
    ).providers

    assert (first.connections_max, first.idle_seconds) == (7, 9)
    assert (second.connections_max, second.idle_seconds) == (1, 2)


def test_keys_are_read_from_variables_and_files(tmp_path: Path) -> None:
    """A key or the value of a header is in a variable, or in a file beside the file."""
    (tmp_path / "key").write_text("sk-secret-key-2\n")
    catalog = load(
        tmp_path,
        PROVIDER | {"key": {"env": "KEY"}},
        OTHER | {"key": {"file": "key"}, "headers": {"api-key": {"env": "KEY"}, "X-Team": "t1"}},
    )

    first, second = catalog.providers
    assert (first.api_key, second.api_key) == ("sk-secret-key-1", "sk-secret-key-2")
    assert second.headers == {"api-key": "sk-secret-key-1", "X-Team": "t1"}
    assert "secret" not in repr(catalog)


def test_variables_of_keys_are_not_passed_to_child_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child process does not get the variable of a key, whatever its name."""
    monkeypatch.setenv("A_PROVIDER_S_KEY", "sk-secret-key-3")
    file = tmp_path / "providers.json"
    file.write_text(json.dumps({"providers": [PROVIDER | {"key": {"env": "A_PROVIDER_S_KEY"}}]}))
    load_settings(providers=file)

    assert "A_PROVIDER_S_KEY" not in child_environment()


TARGET = {"provider": "a", "model": "m"}
ROUTE: dict[str, Any] = {"alias": "r", "targets": [TARGET]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"providers": [PROVIDER | {"prise": 1}]}, "providers.a.prise: unknown member"),
        ({"providers": [PROVIDER], "route": []}, "route: unknown member"),
        (
            {"providers": [PROVIDER | {"key": "sk-inline"}]},
            'providers.a.key: keys are not written here: use { env = "NAME" }',
        ),
        (
            {"providers": [PROVIDER | {"key": {"env": "MISSING"}}]},
            "providers.a.key: the environment variable MISSING is not set",
        ),
        ({"providers": [PROVIDER | {"key": {"file": "no"}}]}, "providers.a.key: "),
        ({"providers": [PROVIDER | {"key": {}}]}, "providers.a.key: give either env or file"),
        (
            {"providers": [PROVIDER | {"headers": {"X-Api-Key": "abc"}}]},
            "providers.a: headers: X-Api-Key may be a secret, which is not written here",
        ),
        (
            {"providers": [PROVIDER | {"headers": {"Host": "x"}}]},
            "providers.a: headers: 'Host' is not a header that can be set",
        ),
        (
            {"providers": [PROVIDER | {"headers": {"X-A": "1\r\nX-B: 2"}}]},
            "providers.a: headers.X-A: the value has characters that are invalid",
        ),
        ({"providers": [PROVIDER | {"base_url": "api.example"}]}, "providers.a: base_url is not"),
        (
            {"providers": [PROVIDER | {"base_url": "https://u:p@api.example/v1"}]},
            "providers.a: base_url contains a credential",
        ),
        ({"providers": [PROVIDER | {"name": "extractive"}]}, "the name extractive is used by"),
        ({"providers": [PROVIDER, PROVIDER]}, "providers.a: the name is used twice"),
        (
            {"providers": [PROVIDER | {"models": [{"name": "m", "price": {"input": 1}}]}]},
            "providers.a.models.m.price.output: Field required",
        ),
        (
            {"providers": [PROVIDER, OTHER | {"models": [MODEL]}]},
            "providers.b.models.m: the name m is used twice",
        ),
        (
            {"providers": [PROVIDER], "routes": [ROUTE | {"alias": "kotae/m"}]},
            "the model name kotae/m is used by Kotae itself",
        ),
        (
            {
                "providers": [PROVIDER],
                "routes": [ROUTE | {"targets": [{"provider": "a", "model": "x"}]}],
            },
            "routes.r: there is no provider a with a model x",
        ),
        (
            {"providers": [PROVIDER], "routes": [ROUTE | {"targets": [TARGET, TARGET]}]},
            "routes.r: the targets must differ",
        ),
        ({"providers": [PROVIDER], "routes": [ROUTE | {"fallback": "no"}]}, "routes.r.fallback: "),
        ({"providers": []}, "providers: "),
        ({}, "providers: "),
    ],
)
def test_an_invalid_file_names_the_entry(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    """The start ends with one line that names the entry and what is wrong with it."""
    file = tmp_path / "providers.json"
    file.write_text(json.dumps(content))

    with pytest.raises(SettingsInvalid) as raised:
        load_settings(providers=file)

    assert str(raised.value).startswith("KOTAE_PROVIDERS: providers.json: ")
    assert message in str(raised.value)
    assert "sk-inline" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.toml", b"[[providers", "not valid TOML"),
        ("p.json", b"{", "not valid JSON"),
        ("p.toml", b"\xff", "not UTF-8"),
        ("p.toml", b"#" * 1_100_000, "larger than"),
        ("missing/p.toml", None, "cannot be read"),
    ],
)
def test_an_unreadable_file_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    """A file that is missing, too large or malformed ends the start with its name."""
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(SettingsInvalid, match=message):
        load_settings(providers=tmp_path / name)


def test_a_route_may_replace_a_model(tmp_path: Path) -> None:
    """A route with the name of a model of two providers is what requests for it get."""
    targets = [{"provider": "b", "model": "m"}, {"provider": "a", "model": "m"}]
    catalog = load(
        tmp_path,
        PROVIDER,
        OTHER | {"models": [MODEL]},
        routes=[{"alias": "m", "targets": targets}],
    )

    assert [target.provider for target in catalog.routes["m"].targets] == ["b", "a"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"openai_base_url": "http://127.0.0.1:9/v1"}, "remove OPENAI_BASE_URL"),
        ({"models": ["m"]}, "KOTAE_MODELS"),
        ({"local_model": "smollm2"}, "KOTAE_LOCAL_MODEL"),
        ({"model": "x"}, "KOTAE_MODEL: x is not a model"),
        ({"embeddings": "openai"}, "KOTAE_EMBEDDINGS_MODEL: text-embedding-3-small is not"),
    ],
)
def test_conflicting_settings_are_refused(
    tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    """Settings that the file replaces, or that name a model which it does not have, are refused."""
    file = tmp_path / "providers.json"
    file.write_text(json.dumps({"providers": [PROVIDER]}))

    with pytest.raises(SettingsInvalid, match=message):
        load_settings(providers=file, **overrides)


def test_keys_may_be_in_the_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is also read from `.env`, which the environment overrides."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("A_KEY=sk-of-the-env-file\nB_KEY=sk-overridden\n")
    monkeypatch.setenv("B_KEY", "sk-of-the-environment")
    file = tmp_path / "providers.json"
    keys = [PROVIDER | {"key": {"env": "A_KEY"}}, OTHER | {"key": {"env": "B_KEY"}}]
    file.write_text(json.dumps({"providers": keys}))

    providers = load_settings(providers=file).catalog.providers
    assert [provider.api_key for provider in providers] == [
        "sk-of-the-env-file",
        "sk-of-the-environment",
    ]
