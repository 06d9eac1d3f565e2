"""Users and keys for tests."""

from typing import Any

import httpx2

from service.core.auth import store
from service.core.auth.authenticator import Authenticator
from service.core.auth.credentials import Credentials
from service.core.auth.principals import BOOTSTRAP, Principal, Role
from service.core.auth.store import ApiKey, NewKey
from service.core.database.engine import Database
from service.core.settings import Settings
from tests.conftest import Service, http_client

SECRET = "0123456789abcdef0123456789abcdef"  # long enough, and nobody's


async def make_key(service: Service, user_id: str, role: Role = Role.USER, **wanted: Any) -> ApiKey:
    """A key that was made by the command line."""
    made = await store.create_key(
        service.services.database,
        BOOTSTRAP,
        NewKey(user_id=user_id, role=role, **wanted),
        keys_max=100,
    )
    assert isinstance(made.key, str)
    return made


def bearer(key: ApiKey | str | None) -> dict[str, str]:
    """The header of a credential."""
    value = key.key if isinstance(key, ApiKey) else key
    return {"Authorization": f"Bearer {value}"} if value else {}


def client(service: Service, key: ApiKey | str | None = None, **options: Any) -> httpx2.AsyncClient:
    """A client with a key, or with none."""
    headers = bearer(key) | options.pop("headers", {})
    return http_client(service.url, headers=headers, **options)


class Clocks:
    """Both clocks of a door, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


async def made(
    database: Database, user_id: str = "alice", by: Principal = BOOTSTRAP, **wanted: Any
) -> ApiKey:
    """A key, made."""
    return await store.create_key(database, by, NewKey(user_id=user_id, **wanted), keys_max=100)


def door(database: Database, clocks: Clocks | None = None, **settings: Any) -> Authenticator:
    """A door with clocks that stand still."""
    clocks = clocks or Clocks()
    return Authenticator(
        Settings(auth="keys", **settings), database, monotonic=clocks, clock=clocks
    )


def carrying(key: ApiKey | str) -> Credentials:
    """What a request with this key carries."""
    return Credentials(authorization=[f"Bearer {key.key if isinstance(key, ApiKey) else key}"])
