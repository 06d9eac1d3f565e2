"""Users and keys for tests."""

from typing import Any

import httpx2

from service.core.auth import store
from service.core.auth.principals import BOOTSTRAP, Role
from service.core.auth.store import ApiKey, Wanted
from tests.conftest import Service


async def make_key(service: Service, user_id: str, role: Role = Role.USER, **wanted: Any) -> ApiKey:
    """A key that was made by the command line."""
    made = await store.create_key(service.rooms.database, BOOTSTRAP, Wanted(user_id=user_id, role=role, **wanted), keys_max=100)
    assert isinstance(made.key, str)
    return made


def bearer(key: ApiKey | str | None) -> dict[str, str]:
    """The header of a credential."""
    value = key.key if isinstance(key, ApiKey) else key
    return {"Authorization": f"Bearer {value}"} if value else {}


def client(service: Service, key: ApiKey | str | None = None, **options: Any) -> httpx2.AsyncClient:
    """A client with a key, or with none."""
    headers = bearer(key) | options.pop("headers", {})
    return httpx2.AsyncClient(base_url=service.url, headers=headers, timeout=20, **options)
