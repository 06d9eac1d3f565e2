"""A row of the log that cannot be read fails neither pages nor exports nor other answers."""

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.core.database.engine import Database
from service.core.encoding import to_json, utc_now
from service.core.records import Outcome, create_answer_object
from tests.command import command, run
from tests.conftest import Serve
from tests.damage import change_page, find_pages, set_value
from tests.problems import is_problem
from tests.process import migrate
from tests.records import build_intent, build_outcome
from tests.rows import write

pytestmark = pytest.mark.slow  # about a hundred small services
START = datetime(2026, 3, 1, tzinfo=UTC)
ROWS, DAMAGED = 7, 3  # the number of rows, and the index of the damaged one
LONG = "0123456789abcdef" * 2000  # of a row that continues on other pages
KEY = "0123456789abcdef0123456789abcdef"

Damage = Callable[[Path, str], None]


def store(assignment: str, *values: object) -> Damage:
    """Store a value in the row."""
    return lambda file, answer_id: set_value(file, answer_id, assignment, *values)


def overwrite(begin: int, data: bytes, *, page: int = 3) -> Damage:
    """Overwrite bytes of a page that a long row continues on."""

    def damage(file: Path, _answer_id: str) -> None:
        def change(content: bytearray) -> None:
            content[begin : begin + len(data)] = data

        change_page(file, find_pages(file, LONG[:500].encode())[page], change)

    return damage


INVALID = b"where \xff is \xc3("
DAMAGES = {
    "invalid UTF-8 in prompt": (store("prompt = CAST(? AS TEXT)", INVALID), {"prompt"}),
    "invalid UTF-8 in response": (store("response = CAST(? AS TEXT)", INVALID), {"response"}),
    "invalid UTF-8 in model": (store("model = CAST(? AS TEXT)", INVALID), {"model"}),
    "invalid UTF-8 in user_id": (store("user_id = CAST(? AS TEXT)", INVALID), {"user_id"}),
    "invalid UTF-8 in sources": (store("sources = CAST(? AS TEXT)", b'["\xff"]'), {"sources"}),
    "invalid JSON": (store("sources = '[{'"), {"sources"}),
    "other JSON": (store("sources = '[{\"n\": 1}]'"), {"sources"}),
    "nested JSON": (store("sources = ?", "[" * 100_000), {"sources"}),
    "no JSON": (store("sources = NULL"), {"sources"}),
    "a number as JSON": (store("sources = 7"), {"sources"}),
    "text as tokens": (store("prompt_tokens = 'many'"), {"prompt_tokens", "total_tokens"}),
    "texts as tokens": (
        store("prompt_tokens = 'a', completion_tokens = 'b'"),
        {"prompt_tokens", "completion_tokens", "total_tokens"},
    ),
    "text as milliseconds": (store("response_time_ms = 'x'"), {"response_time_ms"}),
    "no milliseconds": (store("response_time_ms = NULL"), {"response_time_ms"}),
    "no attempts": (store("attempts = NULL"), {"attempts"}),
    "bytes as attempts": (store("attempts = x'00ff'"), {"attempts"}),
    "a fraction": (store("first_token_ms = 1.5"), {"first_token_ms"}),
    "text as cost": (store("cost_nano_usd = 'free'"), {"estimated_cost"}),
    "text as relevance": (store("relevance_share = 'very'"), {"relevance_share"}),
    "no status": (store("status = NULL"), {"status"}),
    "no prompt": (store("prompt = NULL"), {"prompt"}),
    "bytes as prompt": (store("prompt = x'00ff'"), {"prompt"}),
    "no time": (store("created_at = NULL"), {"created_at"}),
    "text as time": (store("created_at = 'yesterday'"), {"created_at"}),
    "a number as time": (store("created_at = 9"), {"created_at"}),
    "text as boolean": (store("grounded = 'maybe'"), {"grounded"}),
    "a flipped byte of a long prompt": (overwrite(700, b"\xff"), {"prompt"}),
    "a flipped byte of a short page": (overwrite(5, b"\xc3"), {"prompt"}),
    "a chain that ends early": (overwrite(0, bytes(4)), {"prompt", "response", "prompt_tokens"}),
    "a chain that leaves the file": (overwrite(0, b"\xff" * 4), {"prompt", "response"}),
    "a chain that leads elsewhere": (overwrite(0, b"\0\0\0\1"), {"prompt"}),
    "an empty page": (overwrite(0, bytes(4096)), {"prompt", "response", "completion_tokens"}),
}


async def create_log(folder: Path) -> list[Outcome]:
    """Create a database with a log, newest first, whose row `DAMAGED` is long."""
    await migrate(folder)
    outcomes = [
        build_outcome(
            build_intent(
                at=START + timedelta(minutes=n),
                prompt=LONG if n == DAMAGED else f"prompt {n}",
                user_id=f"user {n % 2}",
                idempotency_key=f"key-{n}",
            )
        )
        for n in range(ROWS)
    ]
    database = Database(f"sqlite+aiosqlite:///{folder / 'kotae.db'}")
    await write(database, outcomes)
    await database.close()
    return outcomes[::-1]


@pytest.fixture
async def outcomes(tmp_path: Path) -> list[Outcome]:
    """The log in the database of `tmp_path`."""
    return await create_log(tmp_path)


def get_id(outcomes: list[Outcome]) -> str:
    """The id of the row to damage."""
    return outcomes[ROWS - 1 - DAMAGED].intent.id


async def get_items(client: httpx2.AsyncClient, **params: Any) -> list[dict[str, Any]]:
    """All rows, read in pages."""
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        response = await client.get("/ai/logs", params={**params, **cursor})
        assert response.status_code == 200, response.text
        page = response.json()
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor = {"cursor": page["next_cursor"]}


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_damaged_row_does_not_fail_its_page(
    serve: Serve, tmp_path: Path, outcomes: list[Outcome], name: str
) -> None:
    """The page has all rows, and the damaged one says what cannot be read; health is degraded."""
    damage, fields = DAMAGES[name]
    damage(tmp_path / "kotae.db", get_id(outcomes))
    client = (await serve(data_dir=tmp_path)).client
    before = (await client.get("/health/ready")).json()
    items = await get_items(client, limit=200)
    ready = (await client.get("/health/ready")).json()
    metrics = (await client.get("/metrics")).text
    expected = [json.loads(to_json(create_answer_object(outcome))) for outcome in outcomes]
    damaged, original = items[ROWS - 1 - DAMAGED], expected[ROWS - 1 - DAMAGED]

    assert [item["id"] for item in items] == [item["id"] for item in expected]
    assert [item for item in items if item is not damaged] == [
        item for item in expected if item is not original
    ]
    assert fields <= set(damaged.pop("damaged"))
    assert damaged.keys() == original.keys()
    assert damaged["created_at"] == original["created_at"]
    assert before["integrity"]["damaged_rows"] == 0
    assert (ready["status"], ready["integrity"]["damaged_rows"]) == ("degraded", 1)
    assert ready["database"] != "ok"
    assert "kotae_rows_damaged 1.0" in metrics


SOME = [
    "invalid UTF-8 in prompt",
    "other JSON",
    "texts as tokens",
    "no time",
    "a chain that ends early",
    "an empty page",
]


@pytest.mark.parametrize("name", SOME)
async def test_exports_contain_every_row(
    serve: Serve, tmp_path: Path, outcomes: list[Outcome], name: str
) -> None:
    """CSV and NDJSON have all rows, and the damaged one is marked."""
    DAMAGES[name][0](tmp_path / "kotae.db", get_id(outcomes))
    client = (await serve(data_dir=tmp_path)).client
    lines = await client.get("/ai/logs", headers={"Accept": "application/x-ndjson"})
    table = await client.get("/ai/logs", headers={"Accept": "text/csv"})
    items = [json.loads(line) for line in lines.text.splitlines()]
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))

    expected = [outcome.intent.id for outcome in outcomes]
    assert [item["id"] for item in items] == [row["id"] for row in rows] == expected
    assert [item["id"] for item in items if "damaged" in item] == [get_id(outcomes)]
    assert [row["id"] for row in rows if row["damaged"]] == [get_id(outcomes)]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    "params",
    [
        {"limit": 1},
        {"user_id": "user 1"},
        {"model": "m", "status": "completed"},
        {"since": "2026-03-01T00:03:00Z", "until": "2026-03-01T00:04:00Z"},
    ],
    ids=str,
)
async def test_filters_find_a_damaged_row(
    serve: Serve, tmp_path: Path, outcomes: list[Outcome], name: str, params: dict[str, Any]
) -> None:
    """Small pages, filters and intervals that contain the row list it."""
    DAMAGES[name][0](tmp_path / "kotae.db", get_id(outcomes))
    client = (await serve(data_dir=tmp_path)).client
    found = [item["id"] for item in await get_items(client, **params) if "damaged" in item]

    assert found == [get_id(outcomes)]


@pytest.mark.parametrize("name", SOME)
async def test_a_tail_continues_after_a_damaged_row(
    serve: Serve, tmp_path: Path, outcomes: list[Outcome], name: str
) -> None:
    """Following `after` lists every later row once, also if each page has one row."""
    DAMAGES[name][0](tmp_path / "kotae.db", get_id(outcomes))
    client = (await serve(data_dir=tmp_path)).client
    ids = [outcome.intent.id for outcome in outcomes[::-1]]
    after, listed = ids[0], []
    for _ in ids[1:]:
        response = await client.get("/ai/logs", params={"after": after, "limit": 1})
        page = response.json()
        listed += [item["id"] for item in page["items"]]
        after = page["next_cursor"]

    assert listed == ids[1:]


@pytest.mark.parametrize("name", SOME)
async def test_a_damaged_answer_is_not_replayed(
    serve: Serve, tmp_path: Path, outcomes: list[Outcome], name: str
) -> None:
    """By id and by key, the damaged answer is a 410, and others are replayed."""
    DAMAGES[name][0](tmp_path / "kotae.db", get_id(outcomes))
    client = (await serve(data_dir=tmp_path, auth="keys", secret=KEY)).client
    by_id = [await client.get(f"/ai/answers/{outcome.intent.id}") for outcome in outcomes]
    events = await client.get(f"/ai/answers/{get_id(outcomes)}/events")
    by_key = await client.post(
        "/ai/test",
        json={"prompt": "Why?", "user_id": f"user {DAMAGED % 2}"},
        headers={"Idempotency-Key": f"key-{DAMAGED}"},
    )
    row = await client.get(f"/ai/logs/{get_id(outcomes)}")

    codes = [200 if n != ROWS - 1 - DAMAGED else 410 for n in range(ROWS)]
    assert [response.status_code for response in by_id] == codes
    for response in (by_id[ROWS - 1 - DAMAGED], events, by_key):
        is_problem(response, 410, "answer_damaged")
    assert (row.status_code, row.json()["id"]) == (200, get_id(outcomes))
    assert row.json()["damaged"]


@pytest.mark.parametrize("name", SOME)
async def test_usage_is_loaded_without_the_damaged_row(
    serve: Serve, tmp_path: Path, name: str
) -> None:
    """At the start, the rows of this minute are counted, and callers with limits are answered."""
    await migrate(tmp_path)
    now = utc_now()
    recent = [
        build_outcome(build_intent(at=now, user_id="u", prompt=LONG if n == DAMAGED else "Why?"))
        for n in range(ROWS)
    ]
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'kotae.db'}")
    await write(database, recent)
    await database.close()
    DAMAGES[name][0](tmp_path / "kotae.db", recent[DAMAGED].intent.id)
    client = (await serve(data_dir=tmp_path, auth="keys", secret=KEY)).client
    quota = await client.put("/ai/users/u/quota", json={"limits": {"tokens_per_day": 1_000_000}})
    answer = await client.post("/ai/test", json={"prompt": "?", "grounded": False, "user_id": "u"})
    usage = (await client.get("/ai/usage", params={"user_id": "u"})).json()

    assert (quota.status_code, answer.status_code) == (200, 200), answer.text
    assert usage["used"]["tokens_per_day"]["used"] >= 15 * ROWS
    is_same_minute = utc_now().replace(second=0, microsecond=0) <= now
    assert usage["used"]["requests_per_minute"]["used"] >= (ROWS if is_same_minute else 1)
    assert usage["totals"][-1]["answers"] >= ROWS


@pytest.mark.parametrize("name", SOME)
async def test_the_audit_names_the_damaged_row(
    tmp_path: Path, outcomes: list[Outcome], name: str
) -> None:
    """`kotae audit` checks all rows, and reports the damaged one as a difference."""
    DAMAGES[name][0](tmp_path / "kotae.db", get_id(outcomes))
    status, out = await run("audit", KOTAE_DATA_DIR=str(tmp_path))
    if name in {"invalid UTF-8 in prompt", "other JSON"}:  # texts are not audited
        assert status == 0, out
        return

    assert status == 1, out
    assert f"answer {get_id(outcomes)}" in out
    assert re.search(rf"rows of the log +{ROWS} +1\b", out)
    assert not any(
        outcome.intent.id in out for outcome in outcomes if outcome.intent.id != get_id(outcomes)
    )


@pytest.mark.parametrize("name", SOME)
async def test_the_command_line_lists_a_damaged_row(
    serve: Serve, tmp_path: Path, outcomes: list[Outcome], name: str
) -> None:
    """`kotae logs` prints all rows and marks the damaged one."""
    DAMAGES[name][0](tmp_path / "kotae.db", get_id(outcomes))
    service = await serve(data_dir=tmp_path)
    _, *lines = (await command("logs", "--url", service.url)).splitlines()

    assert len(lines) == ROWS
    assert [n for n, line in enumerate(lines) if f"damaged row {get_id(outcomes)}" in line] == [
        DAMAGED
    ]


@pytest.mark.parametrize(
    "changed",
    [b"\xff", b"\xc3\xa9", b"\xe3\x81\x82"],
    ids=["undecodable", "two bytes", "three bytes"],
)
@pytest.mark.parametrize("limit", [1, 2, 50])
async def test_a_damaged_id_does_not_end_the_pages(
    serve: Serve, tmp_path: Path, outcomes: list[Outcome], changed: bytes, limit: int
) -> None:
    """Every row is listed once, whichever page ends with the damaged id."""
    raw = bytearray(get_id(outcomes).encode())
    raw[20 : 20 + len(changed)] = changed
    store("id = CAST(? AS TEXT)", bytes(raw))(tmp_path / "kotae.db", get_id(outcomes))
    client = (await serve(data_dir=tmp_path)).client
    items = await get_items(client, limit=limit)
    expected = [outcome.intent.id for outcome in outcomes]
    expected[ROWS - 1 - DAMAGED] = raw.decode(errors="replace")

    assert [item["id"] for item in items] == expected


async def test_a_row_of_another_user_is_not_shown(
    serve: Serve, tmp_path: Path, outcomes: list[Outcome]
) -> None:
    """If an index attributes a damaged row to a user, but the row names another: only its id."""
    store("prompt = CAST(? AS TEXT)", INVALID)(tmp_path / "kotae.db", get_id(outcomes))
    file, answer_id = tmp_path / "kotae.db", get_id(outcomes)

    def change_owner(data: bytearray) -> None:
        begin = data.index(b"user 1/ai/test", data.index(answer_id.encode() + b"2026"))
        data[begin : begin + 6] = b"user 0"

    (page,) = find_pages(file, answer_id.encode() + b"2026")
    change_page(file, page, change_owner)
    client = (await serve(data_dir=tmp_path)).client
    items = await get_items(client, user_id="user 1")
    (damaged,) = (item for item in items if item["id"] == answer_id)

    assert {name for name, value in damaged.items() if value is not None} == {
        "id",
        "created_at",
        "damaged",
    }
