"""Signatures of receipts: JSON Web Signatures (RFC 7515) with Ed25519 (RFC 8037).

Each data directory has its own private key. The public keys of all replicas are in the database, so
that every replica publishes all of them, and receipts stay verifiable after a private key is lost.
Imported at the first receipt: PyJWT and cryptography take 40 ms.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from service.core.accounting.receipts import ReceiptClaims, ReceiptInvalid, encode_base64
from service.core.database.files import FILE_MODE, match_owner

FILE_NAME = "receipt_key.pem"
ALGORITHM, TYPE = "EdDSA", "kotae-receipt+jwt"


class SigningKey:
    """A private key. `public`: the public key as a JWK. `id`: its thumbprint (RFC 7638)."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        jwk = OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
        members = {name: jwk[name] for name in ("crv", "kty", "x")}  # in the order of RFC 7638
        self.id = encode_base64(hashlib.sha256(msgspec.json.encode(members)).digest())
        self.public = {**members, "kid": self.id, "alg": ALGORITHM, "use": "sig"}

    def sign(self, claims: ReceiptClaims) -> str:
        """Return the receipt, a compact JWS."""
        return jwt.api_jws.encode(
            msgspec.json.encode(claims),
            self._private,
            algorithm=ALGORITHM,
            headers={"kid": self.id, "typ": TYPE},
        )


def load_signing_key(directory: Path) -> SigningKey:
    """Read the private key of a data directory, which is created at the first use.

    Raises `OSError`, and `ReceiptInvalid` if the file is not such a key.
    """
    path = directory / FILE_NAME
    if not path.exists():
        _create_key(path)
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise ReceiptInvalid(f"{path} is not a private key in PEM format") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise ReceiptInvalid(f"{path} is not a key for Ed25519")
    return SigningKey(private)


def _create_key(path: Path) -> None:
    """Create the file completely or not at all; the file of a concurrent process is kept."""
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        match_owner(temporary)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def read_key_set(content: bytes) -> dict[str, Mapping[str, Any]]:
    """Parse a JSON Web Key Set; return the public keys by `kid`. Raises `ReceiptInvalid`."""
    try:
        keys = msgspec.json.decode(content)["keys"]
        return {str(key["kid"]): key for key in keys}
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise ReceiptInvalid("the keys are not a JSON Web Key Set") from error


def verify_receipt(receipt: str, keys: Mapping[str, Mapping[str, Any]]) -> ReceiptClaims:
    """Return the claims of a receipt that one of these keys has signed. Raises `ReceiptInvalid`."""
    try:
        header = jwt.get_unverified_header(receipt)
        if header.get("typ") != TYPE:
            raise ReceiptInvalid("it is not a receipt")
        jwk = keys.get(header.get("kid", ""))
        if jwk is None:
            raise ReceiptInvalid("it is signed by an unknown key")
        key = jwt.PyJWK(dict(jwk), algorithm=ALGORITHM)
        payload = jwt.api_jws.decode(receipt, key.key, algorithms=[ALGORITHM])
        return msgspec.json.decode(payload, type=ReceiptClaims)
    except jwt.InvalidSignatureError as error:
        raise ReceiptInvalid("the signature is wrong") from error
    except (jwt.PyJWTError, msgspec.DecodeError) as error:
        raise ReceiptInvalid("it is not a receipt") from error
