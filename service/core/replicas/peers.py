"""The other replicas: who owns an answer, and requests to the owner.

An answer lives in the replica that started it. Other replicas forward requests about it over
HTTP/1.1, signed (`signatures.py`), and pass the bytes of the response through. A replica without a
valid lease, or without an address, does not respond: then the row of the answer is read, or the
client retries until there is one.

A replica that hangs, or that the network has separated, keeps nobody waiting: a response begins
within `HEAD_SECONDS`, and where it begins only with the end of an answer, the replica is asked
meanwhile whether it is alive.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

import msgspec

from service.core.encoding import read_id_time, read_slot, utc_now
from service.core.errors import OwnerUnavailable, ProviderError, ProviderUnreachable
from service.core.http1 import ConnectionPool, HttpConnection
from service.core.ports import Peer, PeerRequest, PeerResponse
from service.core.replicas.signatures import HEADER, REFUSED_HEADER, PeerSigner
from service.core.replicas.slots import Replica, ReplicaState

CONNECT_SECONDS = 1.0
RECENT_SECONDS = 15.0  # in which every replica learns of a new one, with a margin for clocks
ASK_SECONDS = 8.0  # maximum wait for a replica that is asked like all others
HEAD_SECONDS = 8.0  # maximum wait for the head of a response, or until the next sign of life
SILENCE_SECONDS = 45.0  # read timeout of a body; a stream has a comment every 15 s
_REPEATABLE = {"GET", "DELETE"}
_SILENT = "the replica of this answer does not respond"
_ALIVE = PeerRequest(method="GET", target="/peer/alive", headers={})


class NoPeers:
    """See `Peers`: one process."""

    slot: int | None = None

    def find_owner(self, answer_id: str) -> Peer | None:  # noqa: ARG002 - as in the port
        """See `Peers.find_owner`."""
        return None

    def require_written(self, answer_id: str) -> None:
        """See `Peers.require_written`."""

    async def send(self, peer: Peer, request: PeerRequest) -> PeerResponse:  # noqa: ARG002
        """See `Peers.send`."""
        raise OwnerUnavailable(_SILENT)

    async def ask_all(self, request: PeerRequest) -> list[bytes]:  # noqa: ARG002 - as in the port
        """See `Peers.ask_all`."""
        return []

    async def aclose(self) -> None:
        """See `Peers.aclose`."""


class HttpPeers:
    """See `Peers`. `read_replicas`: returns the table of replicas, as read last.

    `patient_seconds`: maximum wait of requests for an answer, while the replica is alive.
    """

    def __init__(
        self,
        slot: int,
        keys: Sequence[bytes],
        read_replicas: Callable[[], Mapping[int, Replica]],
        *,
        patient_seconds: float,
        head_seconds: float = HEAD_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._signer, self._read_replicas = PeerSigner(keys), read_replicas
        self.slot: int | None = slot
        self._patient_seconds, self._head_seconds = patient_seconds, head_seconds
        self._silence_seconds = silence_seconds
        self._pools: dict[str, ConnectionPool] = {}

    def find_owner(self, answer_id: str) -> Peer | None:
        """See `Peers.find_owner`."""
        replica = self._find_replica(answer_id)
        if replica is None:
            return None
        return Peer(replica.slot, replica.address if replica.is_alive else "")

    def require_written(self, answer_id: str) -> None:
        """See `Peers.require_written`. A replica that has just started may not be known yet."""
        at, replica = read_id_time(answer_id), self._find_replica(answer_id)
        if at is None or read_slot(answer_id) == self.slot:
            return
        is_recent = abs((utc_now() - at).total_seconds()) < RECENT_SECONDS
        if is_recent if replica is None else replica.state is ReplicaState.SERVING:
            raise OwnerUnavailable(_SILENT)

    def _find_replica(self, answer_id: str) -> Replica | None:
        if read_id_time(answer_id) is None or (slot := read_slot(answer_id)) == self.slot:
            return None
        return self._read_replicas().get(slot)

    async def send(self, peer: Peer, request: PeerRequest) -> PeerResponse:
        """See `Peers.send`. A request is repeated if an idle connection had just been closed."""
        if not peer.address:
            raise OwnerUnavailable(_SILENT)
        pool = self._get_pool(peer.address)
        try:
            try:
                return await self._exchange(pool, peer, request)
            except ProviderUnreachable:
                raise
            except ProviderError:
                if request.method not in _REPEATABLE:
                    raise
                return await self._exchange(pool, peer, request)
        except ProviderError as error:
            raise OwnerUnavailable(_SILENT) from error

    async def ask_all(self, request: PeerRequest) -> list[bytes]:
        """See `Peers.ask_all`."""
        others = [
            Peer(replica.slot, replica.address)
            for replica in self._read_replicas().values()
            if replica.is_alive and replica.address and replica.slot != self.slot
        ]
        bodies = await asyncio.gather(*(self._ask(peer, request) for peer in others))
        return [body for body in bodies if body is not None]

    async def _ask(self, peer: Peer, request: PeerRequest) -> bytes | None:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                response = await self.send(peer, request)
                try:
                    body = b"".join([part async for part in _iterate_parts(response)])
                finally:
                    await response.close()
        except (OwnerUnavailable, TimeoutError):
            return None
        if response.status >= 300:
            raise OwnerUnavailable("another replica cannot do this now")
        return body

    async def _exchange(
        self, pool: ConnectionPool, peer: Peer, request: PeerRequest
    ) -> PeerResponse:
        headers = {"host": "localhost"} | request.headers
        request = msgspec.structs.replace(request, headers=headers)
        head = [
            f"{request.method} {request.target} HTTP/1.1",
            f"{HEADER}: {self._signer.sign(peer.slot, request)}",
            *(f"{name}: {value}" for name, value in request.headers.items()),
            *([f"content-length: {len(request.body)}"] if request.body else []),
            "\r\n",
        ]
        connection = await pool.send_request("\r\n".join(head).encode("latin-1") + request.body)
        try:
            await self._wait_head(connection, peer, request)
        except BaseException:
            await connection.close()
            raise
        if REFUSED_HEADER.encode() in connection.headers:  # for example, it has another secret key
            await connection.close()
            raise OwnerUnavailable(_SILENT)
        connection.set_read_timeout(self._silence_seconds)
        return HttpPeerResponse(connection)

    async def _wait_head(
        self, connection: HttpConnection, peer: Peer, request: PeerRequest
    ) -> None:
        waiting = asyncio.create_task(connection.wait_head())
        try:
            while not (await asyncio.wait([waiting], timeout=self._head_seconds))[0]:
                if request.method in _REPEATABLE:
                    raise OwnerUnavailable(_SILENT)
                await (await self.send(peer, _ALIVE)).close()
            await waiting
        finally:
            waiting.cancel()

    def _get_pool(self, address: str) -> ConnectionPool:
        pool = self._pools.get(address)
        if pool is None:
            host, _, port = address.rpartition(":")
            pool = self._pools[address] = ConnectionPool(
                host.strip("[]"),
                int(port),
                None,
                connect_seconds=CONNECT_SECONDS,
                idle_seconds=self._patient_seconds,
            )
        return pool

    async def aclose(self) -> None:
        """See `Peers.aclose`."""
        while self._pools:
            await self._pools.popitem()[1].aclose()


async def _iterate_parts(response: PeerResponse) -> AsyncGenerator[bytes]:
    while part := await response.read():
        yield part


class HttpPeerResponse:
    """See `PeerResponse`."""

    def __init__(self, connection: HttpConnection) -> None:
        self._connection = connection
        self.status, self.headers = connection.status, connection.headers
        self._open = True

    async def read(self) -> bytes:
        """See `PeerResponse.read`."""
        try:
            return await self._connection.read()
        except ProviderError as error:
            raise OwnerUnavailable(_SILENT) from error

    async def close(self) -> None:
        """See `PeerResponse.close`."""
        if self._open:
            self._open = False
            await self._connection.close()
