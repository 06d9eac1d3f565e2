"""Credentials are required by the routes."""

import pytest
from pydantic import SecretStr

from service.core.settings import Settings
from service.main import create_app
from tests.access import SECRET
from tests.conftest import Serve, Service, http_client, shared_fixture, shared_loop
from tests.problems import is_problem

ASK = {"prompt": "Why?", "grounded": False}
PUBLIC = {
    ("delete", "/auth/session"),
    ("get", "/.well-known/jwks.json"),
    ("post", "/billing/webhook"),  # signed by Stripe
}
PATHS = create_app(Settings()).openapi()["paths"]


@shared_fixture
async def shared_with_secret(serve_shared: Serve) -> Service:
    """A service that requires its secret."""
    return await serve_shared(auth="keys", secret=SecretStr(SECRET))


@shared_loop
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer x",
        f"Bearer {SECRET[:-1]}",
        "Bearer ' OR '1'='1",
        "Basic !",
        f"Digest {SECRET}",
        "Basic Og==",
        "Bearer",
    ],
)
async def test_every_route_but_health_requires_the_secret(
    shared_with_secret: Service, authorization: str | None
) -> None:
    """Without the secret every route that is not public is a 401 with a challenge."""
    headers = {"Authorization": authorization} if authorization else {}
    async with http_client(shared_with_secret.url, headers=headers) as stranger:
        for path, methods in PATHS.items():
            for method in methods:
                if not path.startswith("/health") and (method, path) not in PUBLIC:
                    body = ASK if method == "post" else None
                    is_problem(
                        await stranger.request(method.upper(), path + "?prompt=x&q=x", json=body),
                        401,
                        "unauthorized",
                    )
        assert (await stranger.get("/ai/logs")).headers[
            "www-authenticate"
        ] == 'Bearer realm="Kotae"'
        assert (await stranger.get("/health/ready")).status_code == 200


async def test_bearer_and_basic_are_equivalent(serve: Serve) -> None:
    """The secret works as a bearer token and as a Basic password."""
    service = await serve(auth="keys", secret=SecretStr(SECRET), seeded=True)
    assert (await service.client.get("/ai/logs")).status_code == 200
    async with http_client(service.url, auth=("anyone", SECRET)) as browser:
        assert (
            await browser.get("/ai/stream", params={"prompt": "返品は何日以内にできますか？"})
        ).status_code == 200
        assert (await browser.get("/", headers={"Host": "kotae.example"})).status_code == 200


async def test_user_id_is_accepted_in_open_mode(service: Service) -> None:
    """In open mode the answer is recorded for the user named in the body."""
    await service.client.post("/ai/test", json=ASK | {"user_id": "alice"})

    assert (await service.row())["user_id"] == "alice"
