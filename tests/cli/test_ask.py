"""`kotae ask` and `kotae logs` with a credential."""

import re
from pathlib import Path

import pytest

from tests.fakes.provider import Behaviour, ProviderFake
from tests.process import kotae, migrate, serving

pytestmark = pytest.mark.slow


async def test_a_refusal_lists_the_closest_passages(tmp_path: Path) -> None:
    """`kotae ask` prints title and sentence of the closest passages, labelled, and the mode."""
    async with serving(tmp_path, "--seed") as service:
        question = "How do I install nginx in the kitchen of an office or a museum?"
        code, output, _ = await kotae("ask", question, "--url", service.url, data_dir=tmp_path)

    assert code == 0
    assert "The documents do not mention nginx." in output
    listed = output.partition("Closest passages, not an answer:\n")[2].splitlines()
    assert [line[:2] for line in listed[:3]] == ["- "] * 3
    assert "Quoting mode: connect a model" in output


async def test_a_corrected_question_is_printed(tmp_path: Path) -> None:
    """`kotae ask` and `kotae search` print what was searched instead of a misspelled question."""
    async with serving(tmp_path, "--seed") as service:
        for command in ("ask", "search"):
            question = "How many days of paid laeve are there per year?"
            arguments = (command, question, "--url", service.url)
            code, output, errors = await kotae(*arguments, data_dir=tmp_path)

            assert code == 0
            corrected = "searched for: How many days of paid leave are there per year?"
            assert corrected in output + errors


async def test_unverified_citations_are_marked(tmp_path: Path) -> None:
    """`kotae ask` marks a source whose claim failed the verification, and prints no escapes."""
    answer = ["Returns take \x1b[31m", "a thousand\nyears [1]."]
    async with (
        ProviderFake(default=Behaviour(deltas=answer)) as fake,
        serving(tmp_path, "--seed", OPENAI_BASE_URL=fake.base_url, KOTAE_MODEL="m") as service,
    ):
        question = "Within how many days can I return a product?"
        code, output, _ = await kotae("ask", question, "--url", service.url, data_dir=tmp_path)

    assert code == 0
    assert "Returns take \ufffd[31ma thousand\nyears" in output
    assert re.search(r"^\[1\] .* \(not verified: ", output, re.MULTILINE)


async def test_a_conversation_is_continued(tmp_path: Path) -> None:
    """`kotae ask --continue` asks in the last conversation; without one it fails with one line."""
    async with serving(tmp_path, "--seed") as service:
        arguments = ("--continue", "What about opened tea?", "--url", service.url)
        failed = await kotae("ask", *arguments, data_dir=tmp_path)
        first = "How many days do I have to return a product?"
        await kotae("ask", first, "--url", service.url, data_dir=tmp_path)
        _, output, _ = await kotae("ask", *arguments, data_dir=tmp_path)

    assert (failed[0] != 0, failed[2].count("\n")) == (True, 1), failed
    assert "no conversation" in failed[2]
    assert "Opened tea cannot be returned" in output


async def test_commands_send_the_api_key(tmp_path: Path) -> None:
    """`kotae ask` and `kotae logs` send KOTAE_API_KEY; without it, they print one line and fail."""
    await migrate(tmp_path)
    _, created, _ = await kotae("keys", "create", "--user", "alice", data_dir=tmp_path)
    key = created.split()[0]
    async with serving(tmp_path, KOTAE_AUTH="keys") as service:
        refused = await kotae("ask", "Why?", "--url", service.url, data_dir=tmp_path)
        answered = await kotae(
            "ask", "Why?", "--url", service.url, data_dir=tmp_path, KOTAE_API_KEY=key
        )
        _, log, _ = await kotae("logs", "--url", service.url, data_dir=tmp_path, KOTAE_API_KEY=key)

    assert (
        refused[0],
        "credential" in refused[2] or "API key" in refused[2],
        refused[2].count("\n"),
    ) == (2, True, 1), refused
    assert answered[0] == 0, answered
    assert "no_context" in log
    assert key not in answered[1] + answered[2] + log
