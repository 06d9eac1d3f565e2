"""Browser sessions: a cookie that replaces a key, ends with it, and is useless to other sites."""

from contextlib import aclosing
from datetime import timedelta
from typing import Any

import httpx2
from pydantic import SecretStr

from service.core.auth import store
from service.core.auth.credentials import hash_credential
from service.core.auth.principals import BOOTSTRAP
from service.core.encoding import utc_now
from tests.access import SECRET, bearer, client, make_key
from tests.conftest import Serve, Service, http_client
from tests.problems import is_problem


async def signed_in(service: Service, credential: Any, **headers: str) -> httpx2.AsyncClient:
    """A browser that has signed in."""
    browser = client(service)
    answer = await browser.post("/auth/session", headers=bearer(credential) | headers)
    assert answer.status_code == 200, answer.text
    return browser


async def test_session_has_the_rights_of_its_key_until_sign_out(serve: Serve) -> None:
    """The cookie has the rights of its key; signing out invalidates it but not the key."""
    service = await serve(auth="keys")
    key = await make_key(service, "alice")
    async with aclosing(await signed_in(service, key)) as browser, client(service) as thief:
        cookie = browser.cookies["kotae"]
        thief.cookies["kotae"] = cookie
        assert (await browser.get("/auth/session")).json()["user_id"] == "alice"
        assert (await browser.get("/ai/logs")).status_code == 200
        is_problem(await browser.get("/metrics"), 403, "forbidden")
        is_problem(
            await browser.post("/auth/session", headers={"Origin": service.url}),
            401,
            "unauthorized",
        )
        assert (
            await browser.delete("/auth/session", headers={"Origin": service.url})
        ).status_code == 204
        assert "kotae" not in browser.cookies
        is_problem(await thief.get("/ai/logs"), 401, "unauthorized")
        is_problem(await browser.get("/ai/logs"), 401, "unauthorized")
    async with client(service, key) as alice:
        assert (await alice.get("/ai/logs")).status_code == 200


async def test_session_cookie_attributes(serve: Serve) -> None:
    """HttpOnly and Lax always; over TLS `__Host-` and Secure, and no other name is accepted."""
    service = await serve(auth="keys")
    key = await make_key(service, "alice")
    async with client(service, key) as alice:
        plain = (await alice.post("/auth/session")).headers["set-cookie"]
        alice.cookies.clear()
        safe = (await alice.post("/auth/session", headers={"X-Forwarded-Proto": "https"})).headers[
            "set-cookie"
        ]
    async with client(service) as browser:
        value = plain.split("=")[1].split(";")[0]
        secure = {"X-Forwarded-Proto": "https"}
        is_problem(
            await browser.get("/ai/logs", headers=secure | {"Cookie": f"kotae={value}"}),
            401,
            "unauthorized",
        )
        assert (
            await browser.get("/ai/logs", headers=secure | {"Cookie": f"__Host-kotae={value}"})
        ).status_code == 200

    for cookie, name in ((plain, "kotae"), (safe, "__Host-kotae")):
        assert cookie.startswith(f"{name}=ks_")
        assert {"HttpOnly", "SameSite=lax", "Path=/"} <= set(cookie.split("; "))
        assert ("Secure" in cookie) is (name == "__Host-kotae")
        assert "Domain" not in cookie


async def test_session_ends_with_its_credential(serve: Serve) -> None:
    """A session ends with its key's revocation or expiry, its user, or a new KOTAE_SECRET."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    revoked, disabled = await make_key(service, "alice"), await make_key(service, "bob")
    short = await make_key(service, "carol", expires_at=utc_now() + timedelta(minutes=5))
    browsers = [await signed_in(service, key) for key in (revoked, disabled, short, SECRET)]
    assert (await browsers[3].get("/metrics")).status_code == 200
    expires_at = (await browsers[2].get("/auth/session")).json()["expires_at"]
    assert expires_at <= (utc_now() + timedelta(minutes=5)).isoformat().replace("+00:00", "Z")
    await store.revoke_key(service.services.database, BOOTSTRAP, revoked.id)
    await store.put_user(service.services.database, BOOTSTRAP, "bob", disabled=True)
    service.services.authenticator._secret_hash = hash_credential("another" * 8)
    service.services.authenticator.clear_cache()
    for browser, status in zip(browsers, (401, 401, 200, 401), strict=True):
        assert (await browser.get("/ai/logs")).status_code == status
        await browser.aclose()


async def test_other_sites_cannot_use_the_cookie(serve: Serve) -> None:
    """Requests of foreign pages are refused for every combination of headers."""
    service = await serve(auth="keys")
    async with aclosing(await signed_in(service, await make_key(service, "alice"))) as browser:
        for headers in (
            {"Origin": "https://evil.test"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {},
        ):
            is_problem(
                await browser.post("/ai/test", json={"prompt": "x"}, headers=headers),
                403,
                "foreign_origin",
            )
        is_problem(
            await browser.get(
                "/ai/stream", params={"prompt": "x"}, headers={"Accept": "text/html"}
            ),
            403,
            "foreign_origin",
        )
        is_problem(
            await browser.get(
                "/ai/stream", params={"prompt": "x"}, headers={"Sec-Fetch-Site": "cross-site"}
            ),
            403,
            "foreign_origin",
        )
        for headers in ({"Origin": service.url}, {"Sec-Fetch-Site": "same-origin"}):
            assert (
                await browser.post("/ai/test", json={"prompt": "x"}, headers=headers)
            ).status_code == 200


async def test_open_mode_has_no_sign_in(serve: Serve) -> None:
    """In open mode every caller is an admin without a cookie."""
    service = await serve()
    answer = await service.client.post("/auth/session")
    assert (answer.json()["user_id"], "set-cookie" in answer.headers) == ("local", False)
    assert (await service.client.delete("/auth/session")).status_code == 204


async def test_only_sessions_are_cookies(serve: Serve) -> None:
    """A key or secret in the cookie is refused: only sessions are protected from other sites."""
    service = await serve(auth="keys", secret=SecretStr(SECRET))
    key = await make_key(service, "alice")
    for value in (str(key.key), SECRET):
        async with http_client(service.url, cookies={"kotae": value}) as browser:
            is_problem(await browser.get("/auth/session"), 401, "unauthorized")
            headers = {"Origin": "https://evil.test", "Sec-Fetch-Site": "cross-site"}
            refused = await browser.post("/ai/test", json={"prompt": "?"}, headers=headers)
            assert refused.status_code in {401, 403}
