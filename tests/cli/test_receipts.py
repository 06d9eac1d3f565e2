"""`kotae receipts` and `kotae verify`."""

import json
from pathlib import Path

import pytest

from service.core.errors import KotaeError
from tests.command import command, run
from tests.conftest import Serve, Service


async def start(serve: Serve, folder: Path, answers: int = 2) -> tuple[Service, list[str]]:
    """A service with receipts of its answers, and files of the receipts and of the keys."""
    service = await serve()
    ids = []
    for _ in range(answers):
        answer = (await service.client.post("/ai/test", json={"prompt": "Why?"})).json()
        ids.append(answer["id"])
        await service.wait_idle()
        (folder / "answer.json").write_text(json.dumps(answer))
        await command("receipts", answer["id"], "--url", service.url)
    (folder / "receipts").write_text(await command("receipts", "--url", service.url))
    (folder / "keys").write_text(await command("receipts", "--keys", "--url", service.url))
    return service, ids


async def verify(folder: Path, *options: str) -> tuple[int, str]:
    """Run `kotae verify` with the files of a folder; return (exit status, output)."""
    return await run("verify", str(folder / "receipts"), "--keys", str(folder / "keys"), *options)


async def test_receipts_are_verified_offline(serve: Serve, tmp_path: Path) -> None:
    """Each valid receipt is a row; the texts of the given answer are compared."""
    _, ids = await start(serve, tmp_path)
    status, output = await verify(tmp_path, "--answer", str(tmp_path / "answer.json"))

    assert status == 0
    lines = output.splitlines()[1:]
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
    status, output = await verify(tmp_path, "--answer", str(tmp_path / "other.json"))
    assert status == 1
    assert "INVALID: receipt 2 of local: the texts are not those of the answer" in output

    lines = [json.loads(line) for line in (tmp_path / "receipts").read_text().splitlines()]
    header, _, signature = lines[0]["receipt"].split(".")
    lines[0]["receipt"] = ".".join([header, lines[1]["receipt"].split(".")[1], signature])
    (tmp_path / "receipts").write_text("\n".join(map(json.dumps, lines)))
    status, output = await verify(tmp_path)
    assert status == 1
    assert "INVALID: receipt 1 of local: the signature is wrong" in output
    assert "receipt 1 of local: not in this file" in output

    (tmp_path / "keys").write_text('{"keys": []}')
    assert "signed by an unknown key" in (await verify(tmp_path))[1]


@pytest.mark.parametrize("content", ["{}", "no json", '{"receipt": 1}'])
async def test_other_files_are_errors(tmp_path: Path, content: str) -> None:
    """A file of another kind has a message that names the line."""
    (tmp_path / "receipts").write_text(content)
    (tmp_path / "keys").write_text('{"keys": []}')

    with pytest.raises(KotaeError, match=r"line 1 of .*receipts is not a receipt"):
        await command("verify", str(tmp_path / "receipts"), "--keys", str(tmp_path / "keys"))


async def test_file_without_keys_is_an_error(tmp_path: Path) -> None:
    """A file that is not a key set has a message that names the file."""
    (tmp_path / "receipts").write_text("")
    (tmp_path / "keys").write_text("[]")

    with pytest.raises(KotaeError, match="keys is not a JSON Web Key Set"):
        await command("verify", str(tmp_path / "receipts"), "--keys", str(tmp_path / "keys"))
