"""`kotae doctor`: check versions, disk, database and provider."""

import asyncio
import os
import platform
import shutil
import sqlite3
from pathlib import Path

import typer

from service import __version__
from service.cli.database import shown_database, with_database
from service.core.database.engine import Database
from service.core.errors import KotaeError, ProviderError
from service.core.providers.openai import OpenAIProvider
from service.core.settings import Settings, load_settings

SQLITE_SAFE = (
    3,
    51,
    3,
)  # before it, two connections that write and checkpoint at once may corrupt a WAL


def doctor() -> None:
    """Check versions, disk, database and provider, and say what to do."""
    loaded = load_settings()
    bad = [_report(*check) for check in asyncio.run(_examine(loaded))].count(False)
    raise typer.Exit(1 if bad else 0)


def _report(good: bool, what: str, remedy: str) -> bool:
    print(
        f"{'ok ' if good else 'BAD'}  {what}" + ("" if good or not remedy else f"\n     → {remedy}")
    )
    return good


async def _examine(settings: Settings) -> list[tuple[bool, str, str]]:
    version = sqlite3.sqlite_version_info
    free = shutil.disk_usage(_existing(settings.data_dir)).free
    checks = [
        (True, f"kotae {__version__}, python {platform.python_version()}", ""),
        (
            True,
            f"sqlite {sqlite3.sqlite_version}"
            + (
                ""
                if version >= SQLITE_SAFE
                else " (before 3.51.3: safe here, because one connection alone writes and checkpoints)"
            ),
            "",
        ),
        (
            free > 1_000_000_000,
            f"disk: {free / 1e9:.1f} GB free for {settings.data_dir}",
            "make room, or move KOTAE_DATA_DIR",
        ),
        (
            os.access(_existing(settings.data_dir), os.W_OK),
            f"{settings.data_dir} can be written",
            "change its owner, or KOTAE_DATA_DIR",
        ),
        await _examine_database(settings),
    ]
    if settings.has_provider:
        checks.append(await _examine_provider(settings))
    else:
        checks.append(
            (
                True,
                "provider: none; the extractive model answers (set OPENAI_API_KEY or OPENAI_BASE_URL for another)",
                "",
            )
        )
    return checks


async def _examine_database(settings: Settings) -> tuple[bool, str, str]:
    where = shown_database(settings)
    try:
        found, newest = await with_database(settings, Database.read_revision)
    except KotaeError as error:
        return (
            False,
            f"database {where}: {error.detail}",
            "see that the file exists and nothing locks it; `kotae migrate` makes it",
        )
    return (
        found == newest,
        f"database {where}: revision {found or 'none'}, newest {newest}",
        "run `kotae migrate`",
    )


async def _examine_provider(settings: Settings) -> tuple[bool, str, str]:
    url = settings.openai_base_url or "OpenAI"
    provider = OpenAIProvider(
        base_url=settings.openai_base_url,
        api_key=settings.openai_api_key.get_secret_value() if settings.openai_api_key else None,
        idle_seconds=10,
        answer_bytes_max=settings.answer_bytes_max,
    )
    try:
        models = await provider.models()
    except ProviderError as error:
        return (
            False,
            f"provider {url}: {error.detail}",
            "check OPENAI_BASE_URL (with its /v1), OPENAI_API_KEY and the network",
        )
    finally:
        await provider.aclose()
    there = settings.default_model in models
    return (
        there,
        f"provider {url}: {len(models)} models, {settings.default_model!r} {'among' if there else 'not among'} them",
        "set KOTAE_MODEL",
    )


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path
