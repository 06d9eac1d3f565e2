"""Webhooks: signatures, failures, and the addresses to which they may be sent."""

import datetime as dt
import ipaddress
import re
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.core.budgets.webhooks import (
    WebhookFailed,
    WebhookReceiver,
    is_public,
    sign_message,
)
from service.core.secret_keys import parse_webhook_secret
from tests.fakes.receiver import SECRET, Failure, ReceiverFake

AT = 1_800_000_000.7
NAME = "hooks.example"
GUIDE = Path(__file__).parents[3] / "docs/how-to/set-budgets.md"


class Names:
    """Resolves every name to the next of these lists of addresses, and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers, self.count = list(answers), 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a name."""
        self.count += 1
        return self.answers.pop(0)


def create_receiver(fake: ReceiverFake, **options: Any) -> WebhookReceiver:
    """A receiver at the address of the fake."""
    return WebhookReceiver(fake.url, SECRET, **{"allow_private": True} | options)


async def test_a_message_is_signed() -> None:
    """Id, time and body are in the signature, as the specification says."""
    async with ReceiverFake() as fake:
        await create_receiver(fake).deliver("msg1", '{"data": {"a": "é"}}', AT)
    (delivery,) = fake.deliveries
    assert delivery.headers[":request"] == "POST /hook?token=t HTTP/1.1"
    assert delivery.headers["host"] == f"127.0.0.1:{fake.port}"
    assert delivery.headers["content-type"] == "application/json"
    assert (delivery.id, delivery.headers["webhook-timestamp"]) == ("msg1", "1800000000")
    assert delivery.data == {"a": "é"}
    assert delivery.is_signed()
    assert not delivery.is_signed("whsec_" + "A" * 32)


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the specification's reference library."""
    key = parse_webhook_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign_message(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (500, "status 500"),
        (404, "status 404"),
        (302, "status 302"),
        (Failure.CUT, "broke"),
        (Failure.HANG, "in time"),
    ],
)
async def test_what_is_not_confirmed_fails(response: int | Failure, message: str) -> None:
    """Errors, redirects, a cut connection and silence are failures; a redirect is not followed."""
    async with ReceiverFake() as fake, ReceiverFake() as other:
        fake.responses.append(response)
        fake.location = other.url
        with pytest.raises(WebhookFailed, match=message) as caught:
            await create_receiver(fake, attempt_seconds=0.3).deliver("m", "{}", AT)
    assert not caught.value.is_final
    assert other.connections == 0


async def test_the_documented_verification_accepts_and_refuses() -> None:
    """The example of the how-to guide accepts what is sent, and neither forged nor old messages."""
    (example,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    async with ReceiverFake() as fake:
        await create_receiver(fake).deliver("m", "{}", time.time())
        await create_receiver(fake).deliver("m", "{}", time.time() - 400)
    new, old = fake.deliveries
    assert names["verify"](SECRET, new.headers, new.body)
    assert not names["verify"](SECRET, new.headers, b"{ }")
    assert not names["verify"](SECRET, old.headers, old.body)


async def test_gone_is_final() -> None:
    """A receiver that is gone wants no further attempt."""
    async with ReceiverFake() as fake:
        fake.responses.append(410)
        with pytest.raises(WebhookFailed) as caught:
            await create_receiver(fake).deliver("m", "{}", AT)
    assert caught.value.is_final


async def test_an_absent_receiver_fails() -> None:
    """A port on which nobody listens, and a name without an address, are failures."""
    async with ReceiverFake() as fake:
        receiver = create_receiver(fake)
    with pytest.raises(WebhookFailed, match="no connection"):
        await receiver.deliver("m", "{}", AT)
    with pytest.raises(WebhookFailed, match="no connection"):
        await create_receiver_of([]).deliver("m", "{}", AT)


def create_receiver_of(addresses: Sequence[str], **options: Any) -> WebhookReceiver:
    """A receiver with a name of these addresses."""
    return WebhookReceiver(f"https://{NAME}/", SECRET, resolve=Names(addresses), **options)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "240.0.0.1",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b::7f00:1", "2002:a00:1::",
    ],
)  # fmt: skip
async def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """Nothing is sent to such an address, also if it is one of several."""
    assert not is_public(address)
    with pytest.raises(WebhookFailed, match="not public"):
        await create_receiver_of(["8.8.8.8", address]).deliver("m", "{}", AT)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses_are_recognized(address: str) -> None:
    """Also IPv4 addresses within IPv6 ones."""
    assert is_public(address)


@pytest.mark.parametrize("address", ["224.0.0.1", "0.0.0.0", "ff02::1"])
async def test_addresses_of_no_host_are_always_refused(address: str) -> None:
    """Private addresses are permitted, those of groups are not."""
    with pytest.raises(WebhookFailed, match="not public"):
        await create_receiver_of([address], allow_private=True).deliver("m", "{}", AT)


async def test_a_public_address_needs_https() -> None:
    """Without TLS only private addresses are permitted."""
    receiver = WebhookReceiver(
        f"http://{NAME}/", SECRET, allow_private=True, resolve=Names(["8.8.8.8"])
    )
    with pytest.raises(WebhookFailed, match="needs https"):
        await receiver.deliver("m", "{}", AT)


async def test_a_name_that_changes_its_address_is_checked_each_time() -> None:
    """The name is resolved once per attempt, and the checked address is the one connected to."""
    async with ReceiverFake() as fake:
        names = Names(["127.0.0.1"], ["224.0.0.1"], ["127.0.0.1"])
        receiver = WebhookReceiver(
            f"http://{NAME}:{fake.port}/", SECRET, allow_private=True, resolve=names
        )
        await receiver.deliver("m", "{}", AT)
        with pytest.raises(WebhookFailed, match="not public"):
            await receiver.deliver("m", "{}", AT)
        assert (names.count, fake.connections) == (2, 1)
        await receiver.deliver("m", "{}", AT)
    assert fake.deliveries[0].headers["host"] == f"{NAME}:{fake.port}"


async def test_loopback_is_refused_by_default() -> None:
    """A name of a local address is refused before a connection is made."""
    async with ReceiverFake() as fake:
        with pytest.raises(WebhookFailed, match="not public"):
            await create_receiver(fake, allow_private=False).deliver("m", "{}", AT)
    assert fake.connections == 0


async def test_the_next_address_is_tried() -> None:
    """If nobody listens at an address, nothing was sent, and the next one is used."""
    async with ReceiverFake() as fake:
        names = Names(["127.0.0.2", "127.0.0.1"])
        receiver = WebhookReceiver(
            f"http://{NAME}:{fake.port}/", SECRET, allow_private=True, resolve=names
        )
        await receiver.deliver("m", "{}", AT)
    assert len(fake.deliveries) == 1


def create_certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server with a certificate for a name, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    names, constraints = (
        x509.SubjectAlternativeName([x509.DNSName(name)]),
        x509.BasicConstraints(ca=True, path_length=0),
    )
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(constraints, critical=True)
    )
    certificate = builder.sign(key, hashes.SHA256())
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    return server, ssl.create_default_context(cafile=str(path))


@pytest.mark.parametrize(("certified", "delivered"), [(NAME, True), ("other.example", False)])
async def test_the_certificate_must_be_that_of_the_name(
    tmp_path: Path, certified: str, *, delivered: bool
) -> None:
    """TLS verifies the name in the URL, although the connection is made to an address."""
    server, client = create_certificate(tmp_path, certified)
    async with ReceiverFake(server) as fake:
        receiver = WebhookReceiver(
            f"https://{NAME}:{fake.port}/",
            SECRET,
            allow_private=True,
            tls=client,
            resolve=Names(["127.0.0.1"]),
        )
        if delivered:
            await receiver.deliver("m", "{}", AT)
        else:
            with pytest.raises(WebhookFailed, match="no connection"):
                await receiver.deliver("m", "{}", AT)
    assert len(fake.deliveries) == delivered


def test_all_private_networks_are_refused() -> None:
    """No address of the networks of RFC 1918 and RFC 4193 is public."""
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"):
        parsed = ipaddress.ip_network(network)
        assert not is_public(str(parsed[0]))
        assert not is_public(str(parsed[-1]))
