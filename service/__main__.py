"""The command line."""

import asyncio
import json
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from service import __version__, commands
from service.commands import with_database
from service.core import documents
from service.core.audit import audit as compare
from service.core.audit import read_export
from service.core.auth.jwts import mint
from service.core.auth.principals import Role
from service.core.db import Database
from service.core.errors import KotaeError, ProviderError
from service.core.evaluation import Progress, Question, Report, Text, read
from service.core.evaluation import evaluate as measure
from service.core.providers.embedders import embedder_of
from service.core.providers.openai import OpenAIProvider
from service.core.settings import Settings, describe, load_settings
from service.core.telemetry import configure_logging
from service.main import create_app
from service.server import Server

app = typer.Typer(
    help="Kotae: answers from the texts it was given, with an exact account of each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(commands.keys, name="keys")
app.add_typer(commands.users, name="users")
app.add_typer(commands.plans, name="plans")

Url = Annotated[str | None, typer.Option(help="Where the service listens. Default: KOTAE_HOST and KOTAE_PORT.")]
SQLITE_SAFE = (3, 51, 3)  # before it, two connections that write and checkpoint at once may corrupt a WAL


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Instead of KOTAE_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Instead of KOTAE_PORT; 0 takes a free one.")] = None,
    migrate_first: Annotated[bool, typer.Option("--migrate", help="Bring the database up to date first.")] = False,
    seed_first: Annotated[bool, typer.Option("--seed", help="Insert the sample documents first.")] = False,
) -> None:
    """Start the service."""
    given = {"host": host, "port": port}
    settings = load_settings(**{name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level, settings.log_format)
    if migrate_first:
        migrate()
    if seed_first:
        seed()
    server = Server(create_app(settings), settings, _announce)
    server.run()
    if not server.started:  # the reason is in the log
        raise typer.Exit(1)


@app.command()
def migrate(revision: Annotated[str, typer.Argument(help="A revision; `base` undoes all.")] = "head") -> None:
    """Bring the database to a revision, the newest by default."""
    settings = load_settings()
    asyncio.run(with_database(settings, lambda database: database.migrate(revision)))
    print(f"migrated to {revision}: {_shown(settings)}")


@app.command()
def seed() -> None:
    """Insert the sample documents, Japanese and English; twice changes nothing."""
    settings = load_settings()
    stored = asyncio.run(with_database(settings, lambda database: documents.seed(database, settings, user_id="local")))
    print(f"{len(stored)} sample documents, {sum(document.created is True for document in stored)} of them new")


@app.command()
def ask(
    prompt: str,
    url: Url = None,
    free: Annotated[bool, typer.Option("--free", help="Ask without the documents.")] = False,
    model: Annotated[str | None, typer.Option(help="Instead of the default model.")] = None,
) -> None:
    """Ask a running service and stream the answer to the terminal."""
    body = {"prompt": prompt, "grounded": not free} | ({"model": model} if model else {})
    with _client(url) as client, client.stream("POST", "/ai/stream", json=body) as response:
        _check(response)
        name = ""
        for line in response.iter_lines():
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                _show_event(name, json.loads(value))
                name = ""


@app.command()
def logs(
    url: Url = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on, and show each answer as it is recorded.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
) -> None:
    """Show the last answers of a running service."""
    with _client(url) as client:
        last, items = "", _get(client, "/ai/logs", limit=limit)["items"][::-1]
        while True:
            for item in items:
                print(_log_line(item))
            last = items[-1]["id"] if items else last
            if not follow:
                return
            time.sleep(1)
            items = (
                _get(client, "/ai/logs", after=last, limit=200)["items"] if last else _get(client, "/ai/logs", limit=limit)["items"][::-1]
            )


@app.command()
def token(
    user: Annotated[str, typer.Option(help="Whose token it is.")],
    role: Annotated[Role, typer.Option(help="user or admin.")] = Role.USER,
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="Until it ends.")] = 60,
) -> None:
    """Make a JWT for development, by KOTAE_JWT_SECRET."""
    print(mint(load_settings(), user, role, minutes * 60))


@app.command()
def settings() -> None:
    """Print every setting as it is in force. Secrets are masked."""
    loaded = load_settings()
    values = {name: getattr(loaded, name) for name in Settings.model_fields}
    for (environment_name, _, text), value in zip(describe(), values.values(), strict=True):
        print(f"{environment_name}={'' if value is None else value}\n    {text}")


@app.command("env-example", hidden=True)
def env_example() -> None:
    """Print `.env.example`."""
    print(example())


@app.command()
def doctor() -> None:
    """Check versions, disk, database and provider, and say what to do."""
    loaded = load_settings()
    bad = [_report(*check) for check in asyncio.run(_examine(loaded))].count(False)
    raise typer.Exit(1 if bad else 0)


@app.command()
def audit(
    since: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The first day that is looked at.")] = None,
    usage: Annotated[Path | None, typer.Option(help="A provider's usage export (CSV), to compare tokens by day and model.")] = None,
) -> None:
    """Check the account: rows against totals, and against a provider's export. Ends with 1 if anything differs."""
    loaded = load_settings()
    export = read_export(usage) if usage else None
    day = since.date() if since else None
    report = asyncio.run(with_database(loaded, lambda database: compare(database, loaded.data_dir, since=day, export=export)))
    print(report.text())
    raise typer.Exit(0 if report.agrees else 1)


@app.command("eval")
def evaluate(
    corpus: Annotated[Path, typer.Option(help="JSONL: {id, text, title?} a line.")],
    queries: Annotated[Path, typer.Option(help="JSONL: {question, relevant: [ids], answers?: [texts]} a line.")],
    offtopic: Annotated[Path | None, typer.Option(help="JSONL: {question, kind?}: what the corpus does not answer.")] = None,
    keep: Annotated[Path | None, typer.Option(help="A folder for the vectors of texts: the next run does not make them again.")] = None,
) -> None:
    """Measure the retrieval on texts of your own: recall, abstention, speed. Settings apply, such as the thresholds."""
    loaded = load_settings()
    texts, questions = read(corpus, Text), read(queries, Question)
    others = read(offtopic, Question) if offtopic else []
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kotae-eval-") as folder, _bar() as progress:
        report = asyncio.run(_measured(loaded, keep or Path(folder), texts, questions, others, progress))
    print("\n".join(report.lines()))


async def _measured(
    loaded: Settings, folder: Path, texts: list[Text], questions: list[Question], others: list[Question], progress: Progress
) -> Report:
    embedder = embedder_of(loaded)
    try:
        return await measure(loaded, folder, texts, questions, others, progress, embedder=embedder)
    finally:
        if embedder:
            await embedder.aclose()


def main() -> None:
    """Run the command line; a known error is one line on standard error, never a traceback."""
    try:
        app()
    except KotaeError as error:
        print(f"kotae: {error.detail}", file=sys.stderr)
        sys.exit(2)
    except httpx2.TransportError as error:
        print(f"kotae: no service answers ({error}); start one with `kotae serve`, or pass --url", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of a pipe has left
        sys.exit(0)


def example() -> str:
    """The text of `.env.example`: every setting, its help, its default."""
    lines = ["# Every setting, with its default. Copy to .env and uncomment what you change; the environment wins over the file."]
    for name, default, text in describe():
        lines += ["", f"# {text}", f"# {name}={default}"]
    return "\n".join(lines)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A line on standard error that tells how far it is, if somebody looks at it."""

    def show(what: str, done: int, of: int) -> None:
        if sys.stderr.isatty() and (done == of or done % 20 == 0):
            filled = 30 * done // of
            print(
                f"\r{what:<10} [{'#' * filled}{'.' * (30 - filled)}] {done}/{of}",
                end="\n" if done == of else "",
                file=sys.stderr,
                flush=True,
            )

    yield show


def _announce(settings: Settings, port: int) -> None:
    url = _url(settings, port)
    key = "$KOTAE_SECRET" if settings.secret else "$KEY"  # one that `kotae keys create` has printed
    auth = "" if settings.auth == "open" else f' -H "Authorization: Bearer {key}"'
    json_type = "-H 'Content-Type: application/json'"
    print(
        f"""
Kotae answers with {settings.default_model}. Paste one of these:

  curl -s {url}/ai/test{auth} {json_type} -d '{{"prompt": "返品は何日以内にできますか？"}}'
  curl -N {url}/ai/stream{auth} {json_type} -d '{{"prompt": "How many days do I have to return an item?"}}'
  {url}/
""",
        flush=True,
    )


def _client(url: str | None) -> httpx2.Client:
    settings = load_settings()
    credential = settings.api_key or settings.secret
    headers = {"Authorization": f"Bearer {credential.get_secret_value()}"} if credential else {}
    return httpx2.Client(base_url=url or _url(settings, settings.port), headers=headers, timeout=httpx2.Timeout(330, connect=5))


def _url(settings: Settings, port: int) -> str:
    host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host  # noqa: S104 - compared, not listened on
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _get(client: httpx2.Client, path: str, **params: Any) -> Any:
    response = client.get(path, params=params)
    _check(response)
    return response.json()


def _check(response: httpx2.Response) -> None:
    if response.status_code >= 400:
        response.read()
        problem = response.json() if "json" in response.headers.get("content-type", "") else {}
        raise KotaeError(f"{problem.get('title', response.reason_phrase)}: {problem.get('detail', response.status_code)}")


def _show_event(name: str, data: dict[str, Any]) -> None:
    if name == "":
        print(data["delta"], end="", flush=True)
    elif name == "done":
        for source in data["sources"]:
            print(f"\n[{source['n']}] {source['title']}", end="")
        print(f"\n\n{_facts(data)}")
    elif name == "failure":
        raise KotaeError(f"{data['title']}: {data['detail']} (request {data['request_id']})")


def _facts(item: dict[str, Any]) -> str:
    cost = "unknown cost" if item["estimated_cost"] is None else f"${item['estimated_cost']}"
    tokens = "? tokens" if item["total_tokens"] is None else f"{item['total_tokens']} tokens ({item['usage_source']})"
    return f"{item['model']}  {item['status']}  {tokens}  {cost}  {item['response_time_ms']} ms"


def _log_line(item: dict[str, Any]) -> str:
    prompt = " ".join(item["prompt"].split())
    return f"{item['created_at']}  {item['user_id']}  {item['endpoint']}  {_facts(item)}  {prompt[:60]}"


def _shown(settings: Settings) -> str:
    return settings.database if settings.database_url else str(settings.data_dir / "kotae.db")


def _report(good: bool, what: str, remedy: str) -> bool:
    print(f"{'ok ' if good else 'BAD'}  {what}" + ("" if good or not remedy else f"\n     → {remedy}"))
    return good


async def _examine(settings: Settings) -> list[tuple[bool, str, str]]:
    version = sqlite3.sqlite_version_info
    free = shutil.disk_usage(_existing(settings.data_dir)).free
    checks = [
        (True, f"kotae {__version__}, python {platform.python_version()}", ""),
        (
            True,
            f"sqlite {sqlite3.sqlite_version}"
            + ("" if version >= SQLITE_SAFE else " (before 3.51.3: safe here, because one connection alone writes and checkpoints)"),
            "",
        ),
        (free > 1_000_000_000, f"disk: {free / 1e9:.1f} GB free for {settings.data_dir}", "make room, or move KOTAE_DATA_DIR"),
        (os.access(_existing(settings.data_dir), os.W_OK), f"{settings.data_dir} can be written", "change its owner, or KOTAE_DATA_DIR"),
        await _examine_database(settings),
    ]
    if settings.has_provider:
        checks.append(await _examine_provider(settings))
    else:
        checks.append((True, "provider: none; the extractive model answers (set OPENAI_API_KEY or OPENAI_BASE_URL for another)", ""))
    return checks


async def _examine_database(settings: Settings) -> tuple[bool, str, str]:
    where = _shown(settings)
    try:
        found, newest = await with_database(settings, Database.revision)
    except KotaeError as error:
        return False, f"database {where}: {error.detail}", "see that the file exists and nothing locks it; `kotae migrate` makes it"
    return found == newest, f"database {where}: revision {found or 'none'}, newest {newest}", "run `kotae migrate`"


async def _examine_provider(settings: Settings) -> tuple[bool, str, str]:
    url = settings.openai_base_url or "OpenAI"
    provider = OpenAIProvider(
        base_url=settings.openai_base_url,
        api_key=settings.openai_api_key.get_secret_value() if settings.openai_api_key else None,
        connect_seconds=settings.provider_connect_seconds,
        idle_seconds=10,
        answer_bytes_max=settings.answer_bytes_max,
    )
    try:
        models = await provider.models()
    except ProviderError as error:
        return False, f"provider {url}: {error.detail}", "check OPENAI_BASE_URL (with its /v1), OPENAI_API_KEY and the network"
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


if __name__ == "__main__":
    main()
