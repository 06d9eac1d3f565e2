"""`kotae receipts` and `kotae verify`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import command
from tests.conftest import Serve, Service


async def start(serve: Serve, folder: Path, answers: int = 2) -> tuple[Service, list[str]]:
    """A service with receipts of its answers, and files of the receipts and of the keys."""
    service = await serve()
    ids = []
    for _ in range(answers):
        answer = (await service.client.post("/ai/test", json={"prompt": "Why?"})).json()
        ids.append(answer["id"])
        (folder / "answer.json").write_text(json.dumps(answer))
        await command("receipts", answer["id"], "--url", service.url)
    (folder / "receipts").write_text(await command("receipts", "--url", service.url))
    (folder / "keys").write_text(await command("receipts", "--keys", "--url", service.url))
    return service, ids


def verify(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `kotae verify` without any service."""
    arguments = ["verify", str(folder / "receipts"), "--keys", str(folder / "keys"), *options]
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments], capture_output=True, text=True, check=False
    )


async def test_receipts_are_verified_offline(serve: Serve, tmp_path: Path) -> None:
    """Each valid receipt is a row; the texts of the given answer are compared."""
    _, ids = await start(serve, tmp_path)
    result = verify(tmp_path, "--answer", str(tmp_path / "answer.json"))

    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()[1:]
    assert [line.split()[2] for line in lines] == ids
    assert [line.endswith("compared") for line in lines] == [False, True]


async def test_keys_of_the_service(serve: Serve, tmp_path: Path) -> None:
    """Without a file of keys the service is asked."""
    service, _ = await start(serve, tmp_path, 1)
    path = str(tmp_path / "receipts")
    output = await command("verify", path, "--json", "--url", service.url)

    assert json.loads(output)["number"] == 1


async def test_forgeries_are_named(serve: Serve, tmp_path: Path) -> None:
    """Exit code 1 for a changed amount, another text, and an unknown key."""
    await start(serve, tmp_path)
    answer = json.loads((tmp_path / "answer.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(answer | {"response": "Another text."}))
    result = verify(tmp_path, "--answer", str(tmp_path / "other.json"))
    assert result.returncode == 1
    assert "INVALID: receipt 2 of local: the texts are not those of the answer" in result.stderr

    lines = [json.loads(line) for line in (tmp_path / "receipts").read_text().splitlines()]
    header, _, signature = lines[0]["receipt"].split(".")
    lines[0]["receipt"] = ".".join([header, lines[1]["receipt"].split(".")[1], signature])
    (tmp_path / "receipts").write_text("\n".join(map(json.dumps, lines)))
    result = verify(tmp_path)
    assert result.returncode == 1
    assert "INVALID: receipt 1 of local: the signature is wrong" in result.stderr
    assert "receipt 1 of local: not in this file" in result.stderr

    (tmp_path / "keys").write_text('{"keys": []}')
    assert "signed by an unknown key" in verify(tmp_path).stderr


@pytest.mark.parametrize("content", ["{}", "no json", '{"receipt": 1}'])
def test_other_files_are_errors(tmp_path: Path, content: str) -> None:
    """A file of another kind has a message of one line."""
    (tmp_path / "receipts").write_text(content)
    (tmp_path / "keys").write_text('{"keys": []}')
    result = verify(tmp_path)

    assert result.returncode == 2
    assert result.stderr.startswith(f"kotae: line 1 of {tmp_path / 'receipts'} is not a receipt")
    assert len(result.stderr.splitlines()) == 1


def test_file_without_keys_is_an_error(tmp_path: Path) -> None:
    """A file that is not a key set has a message of one line."""
    (tmp_path / "receipts").write_text("")
    (tmp_path / "keys").write_text("[]")
    result = verify(tmp_path)

    assert (result.returncode, result.stderr.splitlines()) == (
        2,
        [f"kotae: {tmp_path / 'keys'} is not a JSON Web Key Set"],
    )
