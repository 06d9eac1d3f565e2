"""Wallets over HTTP: balance, entries, top-ups, grants."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from service.core.auth.principals import Role, Scope
from tests.access import client, make_key
from tests.conftest import Serve, Service, http_client
from tests.fakes.stripe import BUSY, CUT, KEY, SECRET, Reply, StripeFake, sign
from tests.problems import is_problem

PUBLIC_URL = "http://127.0.0.1:9"


@pytest.fixture
async def stripe() -> AsyncIterator[StripeFake]:
    """Stripe."""
    async with StripeFake() as stripe:
        yield stripe


async def serve_top_ups(serve: Serve, stripe: StripeFake, **options: Any) -> Service:
    """A service that is connected to the fake, which sends it webhooks."""
    values = {
        "stripe_key": KEY,
        "stripe_webhook_secret": f"whsec_other, {SECRET}",
        "stripe_base_url": stripe.url,
        "public_url": PUBLIC_URL,
    }
    service = await serve(**values | options)
    stripe.payments.endpoint = f"{service.url}/billing/webhook"
    return service


async def wait_balance(caller: httpx2.AsyncClient, balance: str) -> Any:
    """Wait until the balance is this one; return the account."""
    async with asyncio.timeout(30):
        while True:
            account = (await caller.get("/billing")).json()
            if account["balance"] == balance:
                return account
            await asyncio.sleep(0.02)


async def grant(caller: httpx2.AsyncClient, key: str = "k", **values: Any) -> httpx2.Response:
    """Grant 5 USD to alice."""
    body = {"user_id": "alice", "amount": "5"} | values
    return await caller.post("/billing/grants", json=body, headers={"Idempotency-Key": key})


async def test_a_payment_at_checkout_is_credited_once(serve: Serve, stripe: StripeFake) -> None:
    """From the request to the balance, with events that are repeated and in reverse order."""
    service = await serve_top_ups(serve, stripe)
    stripe.payments.copies, stripe.payments.is_asynchronous = 3, True
    response = await service.client.post("/billing/checkout", json={"amount": "12.50"})
    assert (response.status_code, set(response.json())) == (201, {"url", "session_id"})
    async with http_client(stripe.url) as browser:
        page = await browser.get(response.json()["url"])
        assert "Pay $12.50" in page.text
        assert f"{PUBLIC_URL}/account/billing?payment=cancelled" in page.text
        paid = await browser.post(response.json()["url"])
    assert paid.headers["location"] == f"{PUBLIC_URL}/account/billing?payment=success"
    begin = len(stripe.payments.events)
    stripe.payments.settle(response.json()["session_id"])
    await stripe.payments.deliver_new(begin)
    account = await wait_balance(service.client, "12.5")
    ((payment,), (entry,)) = stripe.payments.list_objects("pi_"), account.pop("entries")
    assert (entry["kind"], entry["amount"], entry["cause"], entry["note"]) == (
        ("top_up", "12.5", f"payment:{payment['id']}", None)
    )
    assert account == {
        "user_id": "local",
        "balance": "12.5",
        "held": "0",
        "available": "12.5",
        "prepaid": False,
        "markup": None,
        "currency": "usd",
        "next_cursor": None,
        "invoices": [],
        "checkout": True,
        "portal": True,
        "top_up_min": "5",
        "top_up_max": "10000",
    } | {
        name: account[name]
        for name in ("held", "available", "prepaid", "markup")
        if name in account
    }


async def test_an_event_must_name_its_object(serve: Serve, stripe: StripeFake) -> None:
    """Otherwise nobody could process it."""
    await serve_top_ups(serve, stripe)
    event = {"id": "evt_1", "object": "event", "type": "refund.created"}
    is_problem(await stripe.payments.deliver(event), 422, "invalid_request")


async def test_a_wrong_signature_is_refused(serve: Serve, stripe: StripeFake) -> None:
    """By all secrets of the service."""
    service = await serve_top_ups(serve, stripe)
    headers = {"Content-Type": "application/json", "Stripe-Signature": sign(b"{}", "whsec_x")}
    response = await service.client.post("/billing/webhook", content=b"{}", headers=headers)
    is_problem(response, 400, "signature_invalid")


@pytest.mark.parametrize("amount", ["5.001", "-5", "5,00", "1e3", "", 5, None, "1" * 7])
async def test_amounts_are_decimal_strings(service: Service, amount: Any) -> None:
    """With at most two digits after the point."""
    response = await service.client.post("/billing/checkout", json={"amount": amount})
    is_problem(response, 422, "invalid_request")


async def test_amounts_have_bounds(serve: Serve, stripe: StripeFake) -> None:
    """Those of the settings."""
    service = await serve_top_ups(serve, stripe, top_up_usd_min="1", top_up_usd_max="2")
    for amount, status in (("0.99", 400), ("1", 201), ("2.00", 201), ("2.01", 400)):
        response = await service.client.post("/billing/checkout", json={"amount": amount})
        assert response.status_code == status
    is_problem(response, 400, "amount_invalid")


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (BUSY, 503, "stripe_unavailable"),
        (CUT, 503, "stripe_unavailable"),
        (Reply(401), 502, "stripe_refused"),
    ],
)
async def test_failures_of_stripe_are_problems(
    serve: Serve, stripe: StripeFake, reply: Reply, status: int, code: str
) -> None:
    """With a stable code; the balance does not need Stripe."""
    service = await serve_top_ups(serve, stripe)
    await service.client.post("/billing/checkout", json={"amount": "5"})
    for path, body in (("/billing/checkout", {"amount": "5"}), ("/billing/portal", None)):
        stripe.payments.replies.append(reply)
        response = await service.client.post(path, json=body)
        is_problem(response, status, code)
        assert ("retry-after" in response.headers) == (status == 503)
    stripe.payments.replies.append(reply)
    account = (await service.client.get("/billing")).json()
    assert (account["balance"], account["invoices"]) == ("0", None)
    assert (account["invoices_error"], account["portal"]) == (code, True)


async def test_the_portal_is_for_users_who_paid(serve: Serve, stripe: StripeFake) -> None:
    """Before that it is not found."""
    service = await serve_top_ups(serve, stripe)
    is_problem(await service.client.post("/billing/portal"), 404, "not_found")
    assert not (await service.client.get("/billing")).json()["portal"]
    await service.client.post("/billing/checkout", json={"amount": "5"})
    response = await service.client.post("/billing/portal")
    assert response.json() == {"url": f"{stripe.url}/portal"}


async def test_invoices_are_returned_with_the_first_page(serve: Serve, stripe: StripeFake) -> None:
    """They do not belong to the entries."""
    service = await serve_top_ups(serve, stripe)
    await service.client.post("/billing/checkout", json={"amount": "5"})
    (customer,) = stripe.payments.list_objects("cus_")
    invoice = stripe.payments.add_invoice(customer["id"], 500)
    for n in range(2):
        await grant(service.client, str(n), user_id="local")
    page = (await service.client.get("/billing", params={"limit": 1})).json()
    assert [item["id"] for item in page["invoices"]] == [invoice]
    params = {"limit": 1, "cursor": page["next_cursor"]}
    rest = (await service.client.get("/billing", params=params)).json()
    assert (rest["invoices"], rest["next_cursor"], rest["portal"]) == (None, None, True)
    response = await service.client.get("/billing", params={"cursor": "0"})
    is_problem(response, 400, "invalid_cursor")


async def test_without_stripe_there_are_no_top_ups(service: Service) -> None:
    """Grants and balances need no payments."""
    response = await service.client.post("/billing/checkout", json={"amount": "5"})
    is_problem(response, 404, "not_found")
    is_problem(await service.client.post("/billing/portal"), 404, "not_found")
    assert (await grant(service.client, user_id="local")).status_code == 201
    account = (await service.client.get("/billing")).json()
    assert (account["balance"], account["checkout"], account["portal"]) == ("5", False, False)


async def test_users_see_their_own_wallet(serve: Serve) -> None:
    """That of another user is not found; an admin sees all, and their pages."""
    service = await serve(auth="keys")
    alice, root = (
        client(service, await make_key(service, "alice")),
        client(service, await make_key(service, "root", Role.ADMIN)),
    )
    async with alice, root:
        for user_id in ("alice", "bob"):
            assert (await grant(root, user_id, user_id=user_id)).status_code == 201
        assert (await alice.get("/billing")).json()["balance"] == "5"
        response = await alice.get("/billing", params={"user_id": "bob"})
        is_problem(response, 404, "not_found")
        other = (await root.get("/billing", params={"user_id": "bob"})).json()
        assert (other["user_id"], other["balance"]) == ("bob", "5")
        page = (await root.get("/billing/wallets", params={"limit": 1})).json()
        assert [item["user_id"] for item in page["items"]] == ["alice"]
        page = (await root.get("/billing/wallets", params={"cursor": page["next_cursor"]})).json()
        assert [item["user_id"] for item in page["items"]] == ["bob"]


async def test_the_terms_of_the_plan_are_shown(serve: Serve) -> None:
    """To the user and to an admin; what answers in progress hold is not available."""
    service = await serve(auth="keys")
    alice, root = (
        client(service, await make_key(service, "alice")),
        client(service, await make_key(service, "root", Role.ADMIN)),
    )
    async with alice, root:
        await root.put("/ai/plans/default", json={"prepaid": True, "markup": "1.250"})
        await grant(root)
        await service.services.credit.hold(
            "a",
            (await service.services.authenticator.read_subject("alice"),),
            tokens=1,
            nano_usd=1,
            charge_nano_usd=10**9,
        )
        for caller in (alice, root):
            account = (await caller.get("/billing", params={"user_id": "alice"})).json()
            assert (account["prepaid"], account["markup"]) == (True, "1.25")
            assert (account["balance"], account["held"]) == ("5", "1")
            assert account["available"] == "4"
        assert not (await root.get("/billing")).json()["prepaid"]


async def test_a_key_for_questions_cannot_pay(serve: Serve, stripe: StripeFake) -> None:
    """The portal shows payment methods, so it needs the scope of the account."""
    service = await serve_top_ups(serve, stripe, auth="keys")
    scopes = frozenset({Scope.ASK, Scope.LOGS})
    async with client(service, await make_key(service, "alice", scopes=scopes)) as alice:
        is_problem(await alice.post("/billing/portal"), 403, "forbidden")


async def test_a_grant_is_repeated_safely(service: Service) -> None:
    """The same key returns the same entry, and with another body a conflict."""
    first = await grant(service.client, note="welcome")
    assert (first.status_code, first.json()["note"]) == (201, "welcome")
    assert (await grant(service.client, note="welcome")).json() == first.json()
    is_problem(await grant(service.client, amount="6"), 409, "idempotency_conflict")
    is_problem(await grant(service.client, "n", amount="-1"), 400, "amount_invalid")
    adjusted = await grant(service.client, "n", amount="-1", kind="adjustment")
    assert adjusted.json()["amount"] == "-1"
    wallets = (await service.client.get("/billing/wallets")).json()["items"]
    assert [item["balance"] for item in wallets] == ["4"]


@pytest.mark.parametrize("key", [None, "", "a b", "x" * 256])
async def test_a_grant_needs_an_idempotency_key(service: Service, key: str | None) -> None:
    """Without one, a repeated request would grant twice."""
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"user_id": "alice", "amount": "5"}
    response = await service.client.post("/billing/grants", json=body, headers=headers)
    is_problem(response, 422, "invalid_request")


@pytest.mark.parametrize(
    "change", [{"amount": 5}, {"amount": "1e3"}, {"kind": "top_up"}, {"note": ""}, {"user_id": ""}]
)
async def test_other_grants_are_refused(service: Service, change: Any) -> None:
    """Only admins' kinds, and amounts as decimal strings."""
    is_problem(await grant(service.client, **change), 422, "invalid_request")
