"""`kotae serve`, `migrate` and `seed`."""

import asyncio
import socket
from contextlib import ExitStack, closing
from functools import partial
from typing import Annotated

import typer

from service.cli.client import service_url
from service.cli.database import describe_database, with_database
from service.cli.supervisor import READY, Supervisor, end_with_supervisor, open_inherited
from service.core.database.engine import Database
from service.core.database.files import is_sqlite
from service.core.database.instance_lock import SERVE, InstanceLock, lock_instance
from service.core.documents import library
from service.core.documents.library import ChunkWorkers
from service.core.errors import SettingsInvalid
from service.core.settings import Settings, find_unknown_variables, load_settings
from service.core.telemetry import configure_logging, log
from service.main import create_app
from service.server import Server, bind_sockets


def serve(
    host: Annotated[str | None, typer.Option(help="Overrides KOTAE_HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Overrides KOTAE_PORT. 0 selects a free port.")
    ] = None,
    migrate_first: Annotated[
        bool, typer.Option("--migrate", help="Migrate the database first.")
    ] = False,
    seed_first: Annotated[
        bool, typer.Option("--seed", help="Insert the sample documents first.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(help="Number of replicas on this machine; more than one needs PostgreSQL."),
    ] = 1,
    inherit: Annotated[
        str | None, typer.Option(hidden=True, help="Sockets of a supervisor.")
    ] = None,
) -> None:
    """Start the service."""
    options = {"host": host, "port": port}
    settings = load_settings(
        **{name: value for name, value in options.items() if value is not None}
    )
    configure_logging(settings.log_level, settings.log_format, traced=settings.tracing)
    address = service_url(settings, settings.port) if settings.port else ""
    if workers > 1:
        _require_shared_database(settings)
    with ExitStack() as stack:
        if workers == 1:  # otherwise each worker locks its own data directory
            lock = stack.enter_context(closing(lock_instance(settings, SERVE, address=address)))
        listeners = (
            open_inherited(inherit) if inherit else bind_sockets(settings.host, settings.port)
        )
        for listener in listeners:
            stack.enter_context(listener)
        for name, remedy in find_unknown_variables().items():
            log.warning("setting.ignored", name=name, remedy=remedy)
        if migrate_first and not _is_current(settings):
            _migrate_database(settings, "head")
        if seed_first:
            seed()
        if workers > 1:
            started = _run_workers(settings, workers, listeners)
        else:
            started = _run_server(settings, lock, listeners, supervised=inherit is not None)
    if not started:  # the reason is in the log
        raise typer.Exit(1)


def _require_shared_database(settings: Settings) -> None:
    """Raise `SettingsInvalid` unless several replicas can use the database."""
    if is_sqlite(settings.database):
        raise SettingsInvalid(
            "--workers needs PostgreSQL: set KOTAE_DATABASE_URL to postgresql://…, because a "
            "SQLite database is served by one process"
        )


def _run_workers(settings: Settings, count: int, listeners: list[socket.socket]) -> bool:
    """Run several replicas until they are stopped. False if one could not start."""
    port = listeners[0].getsockname()[1]
    announce = partial(_print_examples, settings, port)
    return asyncio.run(Supervisor(settings, count, listeners, announce).run())


def _run_server(
    settings: Settings, lock: InstanceLock, listeners: list[socket.socket], *, supervised: bool
) -> bool:
    """Run the server until it is stopped. False if it could not start."""
    if supervised:
        end_with_supervisor()

    def announce(effective: Settings, port: int) -> None:
        lock.set_address(service_url(effective, port))
        if supervised:
            print(READY, flush=True)
        else:
            _print_examples(effective, port)

    server = Server(create_app(settings, locked=True), settings, announce)
    server.run(listeners)
    return server.started


def migrate(
    revision: Annotated[
        str, typer.Argument(help="Target revision; `base` removes the schema.")
    ] = "head",
) -> None:
    """Migrate the database to a revision, by default the newest.

    While a service runs, only a database that is already at the newest revision is accepted.
    """
    settings = load_settings()
    if revision == "head" and asyncio.run(with_database(settings, Database.is_current)):
        print(f"already migrated: {describe_database(settings)}")
        return
    with closing(lock_instance(settings, "migrate")):
        _migrate_database(settings, revision)


def _is_current(settings: Settings) -> bool:
    """Whether a PostgreSQL database needs no migration, which a running service would refuse.

    The start names that service.
    """
    return not is_sqlite(settings.database) and asyncio.run(
        with_database(settings, Database.is_current)
    )


def _migrate_database(settings: Settings, revision: str) -> None:
    asyncio.run(with_database(settings, lambda database: database.migrate(revision)))
    print(f"migrated to {revision}: {describe_database(settings)}")


def seed() -> None:
    """Insert the sample documents in Japanese and English. Idempotent."""
    settings = load_settings()

    async def store_samples(database: Database) -> list[library.Document]:
        with closing(ChunkWorkers()) as chunk_workers:
            return await library.seed_documents(database, settings, chunk_workers, user_id="local")

    stored = asyncio.run(with_database(settings, store_samples))
    created = sum(document.created is True for document in stored)
    print(f"{len(stored)} sample documents, {created} of them new")


def _print_examples(settings: Settings, port: int) -> None:
    url = service_url(settings, port)
    key = "$KOTAE_SECRET" if settings.secret else "$KEY"  # as printed by `kotae keys create`
    auth = "" if settings.auth == "open" else f' -H "Authorization: Bearer {key}"'
    json_type = "-H 'Content-Type: application/json'"
    english, japanese = "How many days do I have to return an item?", "返品は何日以内にできますか？"
    first = english if settings.local_model else japanese  # the local model knows English only
    mode = "" if settings.has_provider else " (it quotes documents; set OPENAI_BASE_URL for an LLM)"
    print(
        f"""
Kotae answers with {settings.default_model}{mode}. Open the page, or paste a command:

  curl -s {url}/ai/test{auth} {json_type} -d '{{"prompt": "{first}"}}'
  curl -N {url}/ai/stream{auth} {json_type} -d '{{"prompt": "{english}"}}'
  curl -s {url}/ai/upload{auth} -F files=@YOUR-FILE.md
  {url}/
""",
        flush=True,
    )
