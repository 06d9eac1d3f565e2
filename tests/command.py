"""The command line in the process of the tests."""

import anyio.to_thread
from typer.testing import CliRunner

from service.cli.app import app


async def run(*arguments: str, **settings: str) -> tuple[int, str]:
    """Run a command in this process; return (exit status, output)."""
    done = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, arguments, env=settings))
    return done.exit_code, done.output


async def command(*arguments: str) -> str:
    """Run a command and return its output; fail on errors."""
    done = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(app, arguments))
    if done.exception:
        raise done.exception
    return done.output
