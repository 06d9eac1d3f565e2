"""Keys and signatures of receipts."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest

from service.core.accounting.receipt_keys import (
    FILE_NAME,
    SigningKey,
    load_signing_key,
    read_key_set,
    verify_receipt,
)
from service.core.accounting.receipts import ReceiptInvalid
from tests.core.accounting.test_receipts import build_claims


def publish(*keys: SigningKey) -> dict[str, Any]:
    """The public keys as a verifier reads them."""
    return dict(read_key_set(json.dumps({"keys": [key.public for key in keys]}).encode()))


def test_key_is_created_once(tmp_path: Path) -> None:
    """The file is private, complete, alone, and the same for concurrent processes."""
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(load_signing_key, [tmp_path] * 16))

    assert len({key.id for key in keys}) == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_signed_claims_are_verified(tmp_path: Path) -> None:
    """The public key is sufficient, and the key id selects it."""
    key, other = load_signing_key(tmp_path), load_signing_key(make_folder(tmp_path))
    claims = build_claims(2, "0" * 64)

    assert verify_receipt(key.sign(claims), publish(other, key)) == claims
    assert jwt.PyJWK(key.public).key_id == key.id


def make_folder(folder: Path) -> Path:
    """An empty folder."""
    path = folder / "other"
    path.mkdir()
    return path


def test_forged_receipts_are_rejected(tmp_path: Path) -> None:
    """Changed claims, another key, no signature, and tokens of another kind."""
    key, other = load_signing_key(tmp_path), load_signing_key(make_folder(tmp_path))
    keys = publish(key)
    header, payload, signature = key.sign(build_claims(1, None)).split(".")
    _, changed, _ = key.sign(build_claims(2, None)).split(".")
    unsigned = jwt.api_jws.encode(b"{}", "", algorithm="none", headers={"kid": key.id})
    forgeries = [
        f"{header}.{changed}.{signature}",
        f"{header}.{payload}.",
        other.sign(build_claims(1, None)),
        unsigned,
        jwt.encode({"sub": "ann"}, "secret" * 10, headers={"kid": key.id, "typ": "JWT"}),
        "",
        "a.b.c",
    ]

    for forgery in forgeries:
        with pytest.raises(ReceiptInvalid):
            verify_receipt(forgery, keys)


def test_another_key_under_the_same_id_is_rejected(tmp_path: Path) -> None:
    """The signature decides, not the key id."""
    key, other = load_signing_key(tmp_path), load_signing_key(make_folder(tmp_path))

    with pytest.raises(ReceiptInvalid, match="signature is wrong"):
        verify_receipt(key.sign(build_claims(1, None)), {key.id: other.public})


@pytest.mark.parametrize(
    "content", ["", "-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----"]
)
def test_damaged_key_file_is_an_error(tmp_path: Path, content: str) -> None:
    """It is not replaced: that would hide a mistake of the operator."""
    (tmp_path / FILE_NAME).write_text(content)

    with pytest.raises(ReceiptInvalid, match=FILE_NAME):
        load_signing_key(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == content


@pytest.mark.parametrize("content", [b"", b"[]", b'{"keys": 1}', b'{"keys": [{}]}'])
def test_key_sets_of_another_form_are_rejected(content: bytes) -> None:
    """A file that is not a JSON Web Key Set has a message of one line."""
    with pytest.raises(ReceiptInvalid, match="not a JSON Web Key Set"):
        read_key_set(content)
