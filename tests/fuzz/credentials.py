"""Forged and mutated values of the `Authorization` header."""

import base64
import json
import random
import time
from collections.abc import Callable
from typing import Any

import jwt

SECRET = "shared-secret-of-more-than-32-bytes!"
HASHED = {"HS256", "HS384", "HS512"}
ISSUER, AUDIENCE = "https://id.test", "kotae"
FRAGMENTS = [
    *(bytes([byte]) for byte in b" \t,;:=.\"'\\-_+/\0\x7f\x80\xff{}[]"),
    *(b"Bearer ", b"Basic ", b"kt_", b"ks_", b"eyJ", b"==", b"null", b"%00", b"\xc3\xa9"),
    b"A" * 100,
]
VALUES: list[Any] = [None, True, 0, -1, 1e300, float("inf"), "", "\0", "9" * 400, [], {}, ["x"]]


def encode_base64url(data: bytes) -> bytes:
    """Encode without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class CredentialFuzzer:
    """Creates header values, none of which is a valid credential. `valid`: credentials to mutate.

    A mutation that happens to have no effect on the credential is not used; `is_valid` decides.
    """

    def __init__(self, valid: list[str], is_valid: Callable[[bytes], bool], seed: int = 17) -> None:
        self._valid = [value.encode() for value in valid]
        self._is_valid = is_valid
        self._choose = random.Random(seed)
        self._kinds = (
            (30, self._mutate_valid),
            (20, self._build_random_key),
            (15, self._build_token),
            (10, self._build_basic),
            (10, self._build_garbage),
            (1, self._build_long),
        )
        self._weights, self._builders = zip(*self._kinds, strict=True)

    def create(self) -> bytes:
        """Create the next value."""
        while True:
            (build,) = self._choose.choices(self._builders, self._weights)
            value: bytes = build()
            # A line cannot contain these, and surrounding spaces are not part of the value.
            value = value.replace(b"\r", b"").replace(b"\n", b"").strip(b" \t")
            if not self._is_valid(value):
                return value

    def _mutate_valid(self) -> bytes:
        scheme = self._choose.choice(
            [b"Bearer ", b"bearer ", b"Basic ", b"Digest ", b"", b"Bearer"]
        )
        data = bytearray(scheme + self._choose.choice(self._valid))
        for _ in range(self._choose.randint(1, 3)):
            place = self._choose.randrange(len(data) + 1)
            length = self._choose.choice([0, 1, 1, 2, 10])
            data[place : place + length] = self._choose.choice(
                [b"", bytes([self._choose.randrange(32, 256)]), self._choose.choice(FRAGMENTS)]
            )
        return bytes(data)

    def _build_random_key(self) -> bytes:
        prefix = self._choose.choice([b"kt_", b"ks_", b"kt_", b"KT_", b"kt-"])
        length = self._choose.choice([32, 32, 32, 31, 33])
        return b"Bearer " + prefix + encode_base64url(self._choose.randbytes(length))

    def _build_token(self) -> bytes:
        """Build a token with a wrong algorithm, signature or claim."""
        algorithm = self._choose.choice([*sorted(HASHED), "none", "RS256", "", None, 7, ["HS256"]])
        header = {"typ": "JWT", "alg": algorithm}
        claims: dict[str, Any] = {"sub": "alice", "iss": ISSUER, "aud": AUDIENCE}
        claims["exp"] = int(time.time()) + 600
        is_signed = algorithm == "HS256" and self._choose.random() < 0.5
        claims[self._choose.choice([*claims])] = self._choose.choice(VALUES)
        if not is_signed:
            name = self._choose.choice([*header, "kid", "jwk", "jku", "crit", "b64"])
            header[name] = self._choose.choice(VALUES)
        head = json.dumps(header).encode()
        if not is_signed and self._choose.random() < 0.05:
            depth = self._choose.choice([10, 900, 2500])
            head = b'{"alg":"HS256","x":' + b"[" * depth + b"]" * depth + b"}"
        signed = encode_base64url(head) + b"." + encode_base64url(json.dumps(claims).encode())
        key = SECRET if is_signed else "other-secret-of-more-than-32-bytes!!"
        signer = jwt.get_algorithm_by_name(self._choose.choice(sorted(HASHED)))
        if is_signed:
            signer = jwt.get_algorithm_by_name("HS256")
        signature = signer.sign(signed, signer.prepare_key(key))
        if not is_signed:
            length = self._choose.choice([0, 31, 32, 64])
            signature = self._choose.choice([signature, self._choose.randbytes(length)])
        return b"Bearer " + signed + b"." + encode_base64url(signature)

    def _build_basic(self) -> bytes:
        user = self._choose.choice([b"", b"admin", b":", b"\xff", self._choose.randbytes(8)])
        password = self._choose.choice([*self._valid, b"", self._choose.randbytes(40)])
        encoded = base64.b64encode(user + b":" + password[: self._choose.randrange(60)])
        return b"Basic " + encoded[: self._choose.randint(0, len(encoded))]

    def _build_garbage(self) -> bytes:
        return bytes(
            self._choose.choice(b"\t !\"#$%&'()*+,-./:;<=>?@[]^_`{|}~09AZaz\x80\xff\xc3\xe3")
            for _ in range(self._choose.randint(0, 80))
        )

    def _build_long(self) -> bytes:
        length = self._choose.choice([4_000, 8_192, 8_193, 12_000])
        return b"Bearer " + self._choose.choice([b"kt_", b"a.b.", b"=", b"\xff"]) + b"A" * length
