"""`kotae settings` and `kotae token`, and the files that are generated from the settings."""

import sys
from itertools import groupby
from operator import attrgetter
from textwrap import wrap
from typing import Annotated
from urllib.parse import urlsplit

import typer
from pydantic import SecretStr

from service.core.auth.jwts import create_token
from service.core.auth.principals import Role
from service.core.settings import Settings, describe_settings, find_unknown_variables, load_settings

REFERENCE_INTRODUCTION = """# Settings

Every setting is an environment variable. Kotae also reads a `.env` file in the working directory;
variables of the environment override it. An invalid value ends the start with one line that names
the setting. `kotae settings` prints the effective values with secrets masked.

This page is generated: `kotae settings-reference > docs/reference/settings.md`, and
`kotae env-example > .env.example` for [.env.example](../../.env.example)."""


def token(
    user: Annotated[str, typer.Option(help="User of the token.")],
    role: Annotated[Role, typer.Option(help="user or admin.")] = Role.USER,
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="Lifetime.")] = 60,
) -> None:
    """Create a JWT for development, signed with KOTAE_JWT_SECRET."""
    print(create_token(load_settings(), user, role, minutes * 60))


def warn_of_unknown_variables() -> None:
    """Print a line on standard error for each `KOTAE_` variable that is not a setting."""
    for name, remedy in find_unknown_variables().items():
        print(f"kotae: {name} is ignored: {remedy}", file=sys.stderr)


def print_settings() -> None:
    """Print the effective value of every setting. Secrets are masked."""
    loaded = load_settings()
    warn_of_unknown_variables()
    for field, setting in zip(Settings.model_fields, describe_settings(), strict=True):
        value = getattr(loaded, field)
        print(
            f"{setting.name}={'' if value is None else _mask_password(value)}\n    {setting.text}"
        )


def _mask_password(value: object) -> object:
    """Mask the password of a URL, as other secrets are."""
    if isinstance(value, str) and "://" in value and (password := urlsplit(value).password):
        return value.replace(f":{password}@", f":{SecretStr(password)}@")
    return value


def print_env_example() -> None:
    """Print `.env.example`."""
    print(format_env_example())


def print_reference() -> None:
    """Print `docs/reference/settings.md`."""
    print(format_reference())


def format_env_example() -> str:
    """Format `.env.example`: every setting with its description and its default."""
    lines = [
        "# Every setting with its default. Copy this file to .env and uncomment what you change;",
        "# variables of the environment override the file.",
    ]
    for section, settings in groupby(describe_settings(), attrgetter("section")):
        lines += ["", "", f"# --- {section} ---"]
        for setting in settings:
            lines += ["", *wrap(setting.text, 98, initial_indent="# ", subsequent_indent="#   ")]
            lines += [f"# {setting.name}={setting.default}"]
    return "\n".join(lines)


def format_reference() -> str:
    """Format the reference of the settings as Markdown: one table per section."""
    lines = [REFERENCE_INTRODUCTION]
    for section, settings in groupby(describe_settings(), attrgetter("section")):
        lines += [
            f"\n## {section}\n",
            "| setting | default | values | description |",
            "|---|---|---|---|",
        ]
        for setting in settings:
            default = f"`{setting.default}`" if setting.default else "–"
            text = setting.text.replace("|", "&#124;")
            lines += [f"| `{setting.name}` | {default} | {setting.limits or '–'} | {text} |"]
    return "\n".join(lines)
