"""Access control: every route with every role, and tenants that cannot reach each other's data."""

import asyncio
import json
import re
import shutil
import tempfile
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import iter_route_contexts
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.core.auth.jwts import create_token
from service.core.auth.principals import Role, Scope
from service.core.auth.store import ApiKey
from service.core.database.engine import Database
from service.core.documents import library
from service.core.documents.chunk_workers import ChunkWorkers
from service.core.documents.library import NewDocument
from service.core.search.service import SearchService
from service.core.settings import Settings
from service.main import create_app
from tests.access import bearer, client, make_key
from tests.conftest import Serve, Service, http_client
from tests.core.auth.test_jwts import HS
from tests.fakes.provider import ProviderFake
from tests.problems import is_problem

ALL = None  # without a credential
USER, ADMIN = Role.USER, Role.ADMIN
ROUTES: dict[tuple[str, str], tuple[Role, Scope | None] | None] = {
    ("GET", "/openapi.json"): ALL,
    ("GET", "/health/live"): ALL,
    ("GET", "/health/ready"): ALL,
    ("GET", "/metrics"): (ADMIN, Scope.LOGS),
    ("GET", "/"): ALL,
    ("GET", "/docs"): ALL,
    ("GET", "/signin"): ALL,
    ("GET", "/account"): ALL,
    ("GET", "/account/billing"): ALL,
    ("GET", "/account/log"): ALL,
    ("GET", "/admin"): ALL,
    ("GET", "/admin/log"): ALL,
    ("GET", "/admin/people"): ALL,
    ("GET", "/admin/audit-log"): ALL,
    ("GET", "/admin/billing"): ALL,
    ("GET", "/admin/budgets"): ALL,
    ("GET", "/admin/documents"): ALL,
    ("GET", "/admin/system"): ALL,
    ("POST", "/auth/session"): (USER, None),
    ("GET", "/auth/session"): (USER, None),
    ("DELETE", "/auth/session"): ALL,
    ("POST", "/ai/test"): (USER, Scope.ASK),
    ("POST", "/ai/stream"): (USER, Scope.ASK),
    ("GET", "/ai/stream"): (USER, Scope.ASK),
    ("POST", "/ai/answers"): (USER, Scope.ASK),
    ("GET", "/ai/answers/{answer_id}"): (USER, Scope.ASK),
    ("GET", "/ai/answers/{answer_id}/events"): (USER, Scope.ASK),
    ("DELETE", "/ai/answers/{answer_id}"): (USER, Scope.ASK),
    ("GET", "/ai/conversations"): (USER, Scope.ASK),
    ("GET", "/ai/conversations/{conversation_id}"): (USER, Scope.ASK),
    ("DELETE", "/ai/conversations/{conversation_id}"): (USER, Scope.ASK),
    ("POST", "/ai/upload"): (USER, Scope.DOCUMENTS),
    ("POST", "/seed"): (ADMIN, Scope.DOCUMENTS),
    ("GET", "/ai/documents"): (USER, Scope.DOCUMENTS),
    ("GET", "/ai/documents/{document_id}"): (USER, Scope.DOCUMENTS),
    ("GET", "/ai/documents/{document_id}/original"): (USER, Scope.DOCUMENTS),
    ("DELETE", "/ai/documents/{document_id}"): (USER, Scope.DOCUMENTS),
    ("PATCH", "/ai/documents/{document_id}"): (USER, Scope.DOCUMENTS),
    ("GET", "/ai/search"): (USER, Scope.DOCUMENTS),
    ("GET", "/ai/logs"): (USER, Scope.LOGS),
    ("GET", "/ai/logs/{answer_id}"): (USER, Scope.LOGS),
    ("GET", "/ai/logs/{answer_id}/receipt"): (USER, Scope.LOGS),
    ("GET", "/ai/receipts"): (USER, Scope.LOGS),
    ("GET", "/.well-known/jwks.json"): ALL,
    ("GET", "/ai/audit-log"): (ADMIN, Scope.LOGS),
    ("GET", "/ai/analytics"): (USER, Scope.LOGS),
    ("GET", "/ai/analytics/focus"): (USER, Scope.LOGS),
    ("GET", "/ai/analytics/check"): (ADMIN, Scope.LOGS),
    ("POST", "/v1/chat/completions"): (USER, Scope.ASK),
    ("POST", "/v1/responses"): (USER, Scope.ASK),
    ("GET", "/v1/responses/resp_{answer_id}"): (USER, Scope.ASK),
    ("GET", "/v1/responses/resp_{answer_id}/input_items"): (USER, Scope.ASK),
    ("POST", "/v1/responses/resp_{answer_id}/cancel"): (USER, Scope.ASK),
    ("DELETE", "/v1/responses/resp_{answer_id}"): (USER, Scope.ASK),
    ("POST", "/v1/embeddings"): (USER, Scope.ASK),
    ("GET", "/v1/models"): (USER, Scope.ASK),
    ("GET", "/v1/models/{model_id:path}"): (USER, Scope.ASK),
    ("POST", "/mcp"): (USER, None),
    ("POST", "/ai/keys"): (USER, Scope.KEYS),
    ("GET", "/ai/keys"): (USER, Scope.KEYS),
    ("POST", "/ai/keys/{key_id}/rotate"): (USER, Scope.KEYS),
    ("DELETE", "/ai/keys/{key_id}"): (USER, Scope.KEYS),
    ("GET", "/ai/usage"): (USER, Scope.LOGS),
    ("GET", "/ai/users"): (ADMIN, Scope.KEYS),
    ("PUT", "/ai/users/{user_id}"): (ADMIN, Scope.KEYS),
    ("DELETE", "/ai/users/{user_id}/texts"): (ADMIN, Scope.KEYS),
    ("GET", "/ai/users/{user_id}/quota"): (USER, Scope.LOGS),
    ("PUT", "/ai/users/{user_id}/quota"): (ADMIN, Scope.KEYS),
    ("GET", "/ai/plans"): (ADMIN, Scope.KEYS),
    ("PUT", "/ai/plans/{name}"): (ADMIN, Scope.KEYS),
    ("DELETE", "/ai/plans/{name}"): (ADMIN, Scope.KEYS),
    ("POST", "/ai/budgets"): (ADMIN, Scope.KEYS),
    ("GET", "/ai/budgets"): (ADMIN, Scope.KEYS),
    ("GET", "/ai/budget-alerts"): (ADMIN, Scope.KEYS),
    ("POST", "/ai/budget-alerts/{alert_id}/retry"): (ADMIN, Scope.KEYS),
    ("GET", "/ai/budgets/{budget_id}"): (ADMIN, Scope.KEYS),
    ("PATCH", "/ai/budgets/{budget_id}"): (ADMIN, Scope.KEYS),
    ("DELETE", "/ai/budgets/{budget_id}"): (ADMIN, Scope.KEYS),
    ("GET", "/billing/customers"): (ADMIN, Scope.KEYS),
    ("GET", "/billing/customers/{user_id}"): (ADMIN, Scope.KEYS),
    ("PUT", "/billing/customers/{user_id}"): (ADMIN, Scope.KEYS),
    ("DELETE", "/billing/customers/{user_id}"): (ADMIN, Scope.KEYS),
    ("GET", "/billing/events"): (ADMIN, Scope.KEYS),
    ("POST", "/billing/events/{event_id}/resolve"): (ADMIN, Scope.KEYS),
    ("GET", "/billing/inbox"): (ADMIN, Scope.KEYS),
    ("POST", "/billing/inbox/{event_id}/retry"): (ADMIN, Scope.KEYS),
    ("GET", "/billing/reconciliation"): (ADMIN, Scope.KEYS),
    ("GET", "/billing/status"): (ADMIN, Scope.KEYS),
    ("GET", "/billing"): (USER, Scope.LOGS),
    ("POST", "/billing/checkout"): (USER, Scope.KEYS),
    ("POST", "/billing/portal"): (USER, Scope.KEYS),
    ("GET", "/billing/wallets"): (ADMIN, Scope.KEYS),
    ("POST", "/billing/grants"): (ADMIN, Scope.KEYS),
    ("POST", "/billing/webhook"): ALL,  # authenticated by a signature
}  # fmt: skip
BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/ai/test"): {"prompt": "Why?"},
    ("POST", "/ai/stream"): {"prompt": "Why?"},
    ("POST", "/ai/answers"): {"prompt": "Why?"},
    ("POST", "/ai/upload"): {"text": "Because."},
    ("PATCH", "/ai/documents/{document_id}"): {"title": "Reasons"},
    ("POST", "/v1/chat/completions"): {
        "model": "extractive",
        "messages": [{"role": "user", "content": "Why?"}],
    },
    ("POST", "/v1/responses"): {"model": "extractive", "input": "Why?"},
    ("POST", "/v1/embeddings"): {"model": "m", "input": "Why?"},
    ("POST", "/mcp"): {"jsonrpc": "2.0", "id": 1, "method": "ping"},
    ("POST", "/ai/keys"): {},
    ("PUT", "/ai/users/{user_id}"): {"disabled": False},
    ("PUT", "/ai/users/{user_id}/quota"): {},
    ("PUT", "/ai/plans/{name}"): {},
    ("POST", "/ai/budgets"): {
        "name": "b",
        "subject": "all",
        "amount_usd": "1",
        "period": "day",
    },
    ("PATCH", "/ai/budgets/{budget_id}"): {"action": "refuse"},
    ("PUT", "/billing/customers/{user_id}"): {"stripe_customer_id": "cus_x"},
    ("POST", "/billing/events/{event_id}/resolve"): {"decision": "billed"},
    ("POST", "/billing/checkout"): {"amount": "5"},
    ("POST", "/billing/grants"): {"user_id": "alice", "amount": "5"},
}
MOUNTED = {"/web/swagger", "/web/{path:path}"}


def read_requirements() -> dict[tuple[str, str], tuple[Role, Scope | None] | None]:
    """Return the requirement of each route, read from the application."""
    requirements = {}
    for route in iter_route_contexts(create_app(Settings()).routes):
        if route.path in MOUNTED:
            continue
        dependant: Any = getattr(route, "dependant", None)
        needs = (
            [
                dependency.call.requires
                for dependency in dependant.dependencies
                if hasattr(dependency.call, "requires")
            ]
            if dependant
            else []
        )
        for method in (route.methods or set()) - {"HEAD"}:
            requirements[method, str(route.path)] = needs[0] if needs else None
    return requirements


def test_every_route_has_a_requirement() -> None:
    """A route that is missing or different in this table fails the build."""
    assert read_requirements() == ROUTES


async def send_request(caller: httpx2.AsyncClient, method: str, path: str) -> httpx2.Response:
    """Send a request to a route, with ids that do not exist."""
    filled = re.sub(r"\{[^}]+\}", "x", path)
    query = {"prompt": "x", "q": "x"} if method == "GET" else None
    return await caller.request(method, filled, params=query, json=BODIES.get((method, path)))


@pytest.mark.parametrize("way", ["Authorization", "X-API-Key"])
async def test_every_route_with_every_role(serve: Serve, way: str) -> None:
    """Without a credential 401, with a lower role 403, otherwise neither; for every header."""
    service = await serve(auth="keys")
    callers = [
        await make_key(service, "alice"),
        await make_key(service, "root", Role.ADMIN),
        await make_key(service, "alice", scopes=frozenset({Scope.ASK})),
        await make_key(service, "root", Role.ADMIN, scopes=frozenset({Scope.DOCUMENTS})),
    ]
    for key in (None, "kt_wrong", *callers):
        value = key.key if isinstance(key, ApiKey) else key
        headers = (
            {way: f"Bearer {value}" if way == "Authorization" else str(value)} if value else {}
        )
        async with http_client(service.url, headers=headers) as caller:
            for (method, path), needs in ROUTES.items():
                answer = await send_request(caller, method, path)
                if path == "/billing/webhook":
                    is_problem(answer, 404, "not_found")  # it is not enabled
                elif needs is None:
                    assert answer.status_code in {200, 204, 303}, path
                elif not isinstance(key, ApiKey):
                    is_problem(answer, 401, "unauthorized")
                elif (needs[0] is ADMIN and key.role != "admin") or (
                    needs[1] and needs[1] not in key.scopes
                ):
                    is_problem(answer, 403, "forbidden")
                else:
                    assert answer.status_code not in {401, 403, 500}, (method, path, key)


async def test_in_open_mode_nothing_needs_a_credential(serve: Serve) -> None:
    """On loopback, in open mode, every route accepts the admin; a credential changes nothing."""
    service = await serve()
    for key in (None, "kt_wrong"):
        async with client(service, key) as caller:
            for method, path in ROUTES:
                assert (await send_request(caller, method, path)).status_code not in {
                    401,
                    403,
                    500,
                }, path


async def create_caller(service: Service, user_id: str, way: str) -> httpx2.AsyncClient:
    """Create a client of this user with a key, a JWT or a session."""
    if way == "jwt":
        return client(service, create_token(service.services.settings, user_id, Role.USER, 60))
    key = await make_key(service, user_id)
    if way == "key":
        return client(service, key)
    browser = client(service, headers={"Origin": service.url})
    assert (await browser.post("/auth/session", headers=bearer(key))).status_code == 200
    return browser


@pytest.mark.parametrize("way", ["key", "jwt", "session"])
async def test_users_cannot_read_data_of_others(serve: Serve, fake: ProviderFake, way: str) -> None:
    """Documents, answers, streams, tickets, logs, exports, usage and keys are private to a user."""
    service = await serve(**HS, openai_base_url=fake.base_url, model="m")
    key = await make_key(service, "alice")
    boss = client(service, await make_key(service, "root", Role.ADMIN))
    alice, bob = (
        await create_caller(service, "alice", way),
        await create_caller(service, "bob", way),
    )
    async with aclosing(alice), aclosing(bob), aclosing(boss):
        document = (
            await alice.post(
                "/ai/upload", json={"title": "mine", "text": "The zebra code is 4711."}
            )
        ).json()["document_id"]
        answer = (await alice.post("/ai/test", json={"prompt": "What is the zebra code?"})).json()
        begun = (await alice.post("/ai/answers", json={"prompt": "What is the zebra code?"})).json()
        await service.wait_idle()
        calls = len(fake.calls)

        ids = {
            "document_id": document,
            "answer_id": answer["id"],
            "conversation_id": answer["id"],
            "key_id": key.id,
            "user_id": "alice",
            "name": "default",
            "budget_id": "none",
            "alert_id": "none",
            "event_id": "none",
        }
        reached = set()
        for (method, path), needs in ROUTES.items():
            if "{" not in path or path.startswith("/v1/models"):
                continue
            for answer_id in (answer["id"], begun["id"]):
                response = await bob.request(
                    method,
                    path.format(**ids | {"answer_id": answer_id}),
                    json=BODIES.get((method, path)),
                )
                is_problem(
                    response,
                    403 if needs and needs[0] is ADMIN else 404,
                    "forbidden" if needs and needs[0] is ADMIN else "not_found",
                )
            reached.add(path)
        assert len(reached) >= 8
        ticket = begun["events_url"].partition("ticket=")[2]
        is_problem(
            await bob.get(f"/ai/answers/{answer['id']}/events", params={"ticket": ticket}),
            403,
            "ticket_invalid",
        )
        for event in (f"{answer['id']}.0", f"{begun['id']}.1"):
            is_problem(
                await bob.get("/ai/stream", params={"prompt": "x", "last_event_id": event}),
                404,
                "not_found",
            )
        is_problem(await bob.get("/ai/usage", params={"user_id": "alice"}), 404, "not_found")

        assert (await bob.get("/ai/documents")).json()["items"] == []
        assert (await bob.get("/ai/search", params={"q": "zebra code"})).json()["items"] == []
        question = {"prompt": "What is the zebra code?"}
        for body in (
            question,
            question | {"documents": [document]},
            question | {"user_id": "alice"},
        ):
            assert (await bob.post("/ai/test", json=body)).json()["status"] == "no_context"
        assert (await bob.get("/ai/keys", params={"user_id": "alice"})).json()["items"] == [
            item
            for item in (await bob.get("/ai/keys")).json()["items"]
            if item["user_id"] == "alice"
        ]
        await service.wait_idle()
        for accept in ("application/json", "text/csv", "application/x-ndjson"):
            for params in ({"user_id": "alice"}, {"after": answer["id"]}, {"cursor": begun["id"]}):
                export = (await bob.get("/ai/logs", params=params, headers={"Accept": accept})).text
                assert "alice" not in export
                assert "4711" not in export
        assert len(fake.calls) == calls

        assert (await alice.get(f"/ai/documents/{document}")).status_code == 200
        assert (await alice.get(f"/ai/logs/{answer['id']}")).status_code == 200
        assert (await boss.get(f"/ai/documents/{document}")).status_code == 200
        assert {item["user_id"] for item in (await boss.get("/ai/logs")).json()["items"]} == {
            "alice",
            "bob",
        }


WORDS = ("apple", "bridge", "candle", "dragon", "ember", "falcon")
TEXTS = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


@hypothesis_settings(max_examples=25)
@given(
    uploads=st.lists(
        st.tuples(st.sampled_from("abc"), TEXTS, st.booleans()), min_size=1, max_size=6
    ),
    query=TEXTS,
)
def test_search_never_returns_chunks_of_other_users(
    migrated: Path, uploads: list[tuple[str, str, bool]], query: str
) -> None:
    """A search returns only own and shared documents, also after uploads and deletions."""

    async def run(folder: Path) -> None:
        shutil.copy(migrated, folder / "kotae.db")
        database, settings = (
            Database(f"sqlite+aiosqlite:///{folder / 'kotae.db'}"),
            Settings(dictionary="none"),
        )
        retrieval = SearchService(database, settings)
        owners: dict[str, tuple[str, bool]] = {}
        for owner, text, shared in uploads:
            (stored,) = await library.store_documents(
                database,
                settings,
                ChunkWorkers(),
                [NewDocument("", text, "utf-8")],
                user_id=owner,
                shared=shared,
            )
            owners.setdefault(stored.document_id, (owner, shared))
        gone = next(iter(owners))
        for deleted in (False, True):
            if deleted:
                await library.delete_document(database, gone, user_id=None)
            for who in "abcd":
                for hit in (await retrieval.search(query, user_id=who, limit=50)).items:
                    owner, shared = owners[hit.document_id]
                    assert owner == who or shared
                    assert not (deleted and hit.document_id == gone)
        await database.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))


async def test_shared_documents_are_context_for_everyone(serve: Serve, fake: ProviderFake) -> None:
    """Documents shared by an admin are readable by all users and deletable by admins only."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    async with (
        client(service, await make_key(service, "root", Role.ADMIN)) as root,
        client(service, await make_key(service, "bob")) as bob,
    ):
        shared = {"title": "rules", "text": "The quokka desk opens at nine.", "shared": True}
        document = (await root.post("/ai/upload", json=shared)).json()

        assert document["shared"] is True
        assert (await bob.get("/ai/search", params={"q": "quokka desk"})).json()["items"]
        assert (await bob.get(f"/ai/documents/{document['document_id']}")).status_code == 200
        is_problem(await bob.delete(f"/ai/documents/{document['document_id']}"), 404, "not_found")
        is_problem(await bob.post("/ai/upload", json=shared), 403, "forbidden")
        is_problem(
            await bob.post(
                "/ai/upload", params={"shared": True}, files={"a": ("a.txt", b"Hello there.")}
            ),
            403,
            "forbidden",
        )


async def test_only_admins_set_user_id(serve: Serve, fake: ProviderFake) -> None:
    """`user_id` is ignored from users and accepted from admins; the row names the caller."""
    service = await serve(auth="keys", openai_base_url=fake.base_url, model="m")
    hers, boss = await make_key(service, "alice"), await make_key(service, "root", Role.ADMIN)
    body = {"prompt": "Why?", "grounded": False, "user_id": "bob"}
    async with client(service, hers) as alice, client(service, boss) as root:
        own = (await alice.post("/ai/test", json=body)).json()
        await alice.post("/ai/upload", json={"text": "The zebra code is 4711."})
        about_hers = {"prompt": "What is the zebra code?", "user_id": "bob"}
        assert (await root.post("/ai/test", json=about_hers)).json()["status"] == "no_context"
        behalf = (await root.post("/ai/test", json=body)).json()
        await service.wait_idle()
        row = (await root.get(f"/ai/logs/{behalf['id']}")).json()

    assert (own["user_id"], own["asked_by"], own["key_id"]) == ("alice", None, hers.id)
    assert (behalf["user_id"], behalf["asked_by"], behalf["key_id"]) == ("bob", "root", boss.id)
    assert json.loads(json.dumps(row)) == behalf
