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

SECRET = "0123456789abcdef0123456789abcdef"  # long enough for the minimum length


async def make_key(
    service: Service, user_id: str, role: Role = Role.USER, **options: Any
) -> ApiKey:
    """Create a key as the command line does."""
    key = await store.create_key(
        service.services.database,
        BOOTSTRAP,
        NewKey(user_id=user_id, role=role, **options),
        keys_max=100,
    )
    assert isinstance(key.key, str)
    return key


def bearer(key: ApiKey | str | None) -> dict[str, str]:
    """Return the header of a credential."""
    value = key.key if isinstance(key, ApiKey) else key
    return {"Authorization": f"Bearer {value}"} if value else {}


def client(service: Service, key: ApiKey | str | None = None, **options: Any) -> httpx2.AsyncClient:
    """Create a client with or without a credential."""
    headers = bearer(key) | options.pop("headers", {})
    return http_client(service.url, headers=headers, **options)


class Clocks:
    """Wall clock and monotonic clock of an authenticator, set by the test."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


async def create_key(
    database: Database, user_id: str = "alice", by: Principal = BOOTSTRAP, **options: Any
) -> ApiKey:
    """Create a key."""
    return await store.create_key(database, by, NewKey(user_id=user_id, **options), keys_max=100)


def create_authenticator(
    database: Database, clocks: Clocks | None = None, **settings: Any
) -> Authenticator:
    """Create an authenticator with manual clocks."""
    clocks = clocks or Clocks()
    return Authenticator(
        Settings(auth="keys", **settings), database, monotonic=clocks, clock=clocks
    )


def create_credentials(key: ApiKey | str) -> Credentials:
    """Return the credentials of a request with this key."""
    return Credentials(authorization=[f"Bearer {key.key if isinstance(key, ApiKey) else key}"])
