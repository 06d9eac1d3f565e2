"""`kotae settings` and `kotae token`."""

import jwt
import pytest

from service.core.errors import SettingsInvalid
from tests.command import command, run
from tests.core.auth.test_jwts import SECRET


async def test_tokens_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """`kotae token` creates a valid token; without a secret it names the setting."""
    with pytest.raises(SettingsInvalid, match="KOTAE_JWT_SECRET"):
        await command("token", "--user", "alice")
    for name, value in {
        "AUTH": "keys",
        "JWT_ALGORITHM": "HS256",
        "JWT_ISSUER": "i",
        "JWT_AUDIENCE": "a",
        "JWT_SECRET": SECRET,
    }.items():
        monkeypatch.setenv(f"KOTAE_{name}", value)
    token = (await command("token", "--user", "alice")).strip()

    claims = jwt.decode(token, SECRET, algorithms=["HS256"], issuer="i", audience="a")
    assert claims["sub"] == "alice"


async def test_settings_are_printed_without_secrets() -> None:
    """`kotae settings` prints effective values and masks secrets."""
    code, out = await run(
        "settings", KOTAE_PORT="8123", OPENAI_API_KEY="sk-canary", KOTAE_SECRET="c" * 40
    )

    assert code == 0
    assert "KOTAE_PORT=8123" in out
    assert "sk-canary" not in out
    assert "cccc" not in out


async def test_passwords_of_urls_are_masked() -> None:
    """The rest of the URL is printed."""
    code, out = await run(
        "settings",
        KOTAE_DATABASE_URL="postgresql://kotae:canary-1@db/kotae",
        KOTAE_REDIS_URL="redis://:canary-2@redis/0",
        KOTAE_SECRET_KEY="ab" * 32,
    )

    assert code == 0
    assert "KOTAE_DATABASE_URL=postgresql://kotae:**********@db/kotae" in out
    assert "KOTAE_REDIS_URL=redis://:**********@redis/0" in out


async def test_unknown_variables_are_named() -> None:
    """A misspelled variable is one line with the setting that was meant."""
    code, out = await run("settings", KOTAE_PORTT="9")

    assert code == 0
    assert "kotae: KOTAE_PORTT is ignored: it is not a setting: did you mean KOTAE_PORT?" in out
