"""Rules for modules, test files and names.

Every module is on the map in CONTRIBUTING.md and has a test file of its name. Names describe their
values, class names are unique, and tests pass parameters instead of patching constants.
"""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.sources import parse_service

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT / "service").as_posix()
    for path in (ROOT / "service").rglob("*.py")
    if path.name != "__init__.py"
)
MAP = set(re.findall(r"`([\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text()))

# Modules without a test file of their name, and where their behavior is tested instead.
TESTED_ELSEWHERE = {
    "core/billing/failures.py": "with the client: tests/core/billing/test_stripe.py",
    "api/openai/chat_format.py": "with its route: tests/api/openai/test_chat.py",
    "core/accounting/retention.py": "with its worker: tests/workers/test_retention.py",
    "core/accounting/audit_rules.py": "with the audit: tests/core/accounting/test_audit.py",
    "api/log_queries.py": "with its routes: tests/api/test_logs.py",
    "api/openai/documentation.py": "schemathesis, over the document: tests/api/test_openapi.py",
    "api/relaying.py": "between services: tests/end_to_end/test_replicas.py",
    "api/responses.py": "two functions that every route test uses",
    "api/shapes.py": "schemathesis compares them with responses: tests/api/test_openapi.py",
    "cli/database.py": "tests/cli/test_keys.py, test_users.py and tests/end_to_end/test_process.py",
    "cli/plans.py": "with `kotae users`: tests/cli/test_users.py",
    "core/accounting/queue.py": "the suite of its port: tests/contracts/test_record_queue.py",
    "core/billing/wallets.py": "the suite of its port: tests/contracts/test_wallets.py",
    "core/auth/tickets.py": "the suite of its port: tests/contracts/test_tickets.py",
    "core/database/backup.py": "through its commands: tests/cli/test_backup.py",
    "core/database/constructs.py": "by queries of both: tests/core/accounting/test_log.py",
    "core/database/outboxes.py": "with the outbox of alerts: tests/core/budgets/test_outbox.py",
    "core/database/sqlite.py": "through its only caller: tests/core/database/test_engine.py",
    "core/database/upserts.py": "by statements on both databases: tests/core/auth/test_store.py",
    "core/database/tables.py": "declarations; `make lint` compares them with the migrations",
    "core/limits.py": "constants; each limit is tested where it applies",
    "core/providers/embedders.py": "the suite of its port: tests/contracts/test_embedder.py",
    "core/replicas/peers.py": "the suite of its port: tests/contracts/test_peers.py",
    "core/search/engine.py": "through its only caller: tests/core/search/test_service.py",
    "core/search/postings/cached.py": "the suite of its port: tests/contracts/test_postings.py",
    "core/search/postings/fts5.py": "the suite of its port: tests/contracts/test_postings.py",
    "core/search/postings/postgres.py": "the suite of its port: tests/contracts/test_postings.py",
    "core/search/fts5_merge.py": "through its only caller: tests/workers/test_merging.py",
    "http_server/exchange.py": "over raw sockets: tests/attacks",
    "http_server/reader.py": "through its only caller: tests/http_server/test_protocol.py",
    "main.py": "by every test with a `service`",
    "replication.py": "by tests with replicas: tests/end_to_end/test_replicas.py",
    "workers/quarantine.py": "with the writer and recovery: tests/workers",
}

# Names that do not say what a value is.
PLACEHOLDERS = {
    "asked", "each", "found", "given", "got", "kept", "known", "made", "more", "one", "said",
    "seen", "shown", "taken", "told",
}  # fmt: skip

# Placeholders that have a reason.
ALLOWED_PLACEHOLDERS = {
    ("core/answering/answers.py", "kept"): "a field of /health/ready",
}


def find_placeholders(tree: ast.Module) -> set[str]:
    """Return the placeholders among variables, fields, parameters and functions."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
    return {name for name in names if name.strip("_") in PLACEHOLDERS}


def find_patched_constants(tree: ast.Module) -> set[str]:
    """Return the constants that `setattr` is called for: names in upper case."""
    return {
        str(argument.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "setattr"
        for argument in node.args[:2]
        if isinstance(argument, ast.Constant)
        and re.fullmatch(r"([\w.]+\.)?_?[A-Z][A-Z0-9_]+", str(argument.value))
    }


def mirrored_test(module: str) -> Path:
    """The test file that mirrors a module of service/."""
    path = Path(module)
    return ROOT / "tests" / path.parent / f"test_{path.name}"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_on_the_map(module: str) -> None:
    """CONTRIBUTING.md has an entry for each module of service/."""
    assert module in MAP


def test_the_map_names_modules_that_exist() -> None:
    """The map names no module that was renamed or removed."""
    assert {name for name in MAP if name.split("/")[0] not in {"service", "tests"}} - set(
        MODULES
    ) == set()


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_test_file_of_its_name(module: str) -> None:
    """The file is in the same folder of tests/, or the module is an exception with a reason."""
    assert mirrored_test(module).exists() != (module in TESTED_ELSEWHERE)


def test_exceptions_name_modules_and_tests_that_exist() -> None:
    """An exception ends with its module and with the tests that it refers to."""
    assert TESTED_ELSEWHERE.keys() - set(MODULES) == set()
    named = {
        path
        for reason in TESTED_ELSEWHERE.values()
        for path in re.findall(r"tests/[\w/]+(?:\.py)?", reason)
    }
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_values_have_names() -> None:
    """No variable, field, parameter or function of service/ has a placeholder as its name."""
    placeholders = {
        (module, name)
        for module, tree in parse_service().items()
        for name in find_placeholders(tree)
    }
    assert placeholders == ALLOWED_PLACEHOLDERS.keys()


def test_class_names_are_unique() -> None:
    """No two modules of service/ define a class with the same name."""
    names = Counter(
        node.name
        for tree in parse_service().values()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_tests_patch_no_constants() -> None:
    """Values that a test has to vary are parameters."""
    patched = {
        path.relative_to(ROOT).as_posix(): constants
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if "setattr" in (source := path.read_text())
        and (constants := find_patched_constants(ast.parse(source)))
    }
    assert patched == {}


def test_patched_constants_are_detected() -> None:
    """The check recognizes constants by module and name, and by a dotted path."""
    source = 'patch.setattr(journal, "SIZE_MAX", 1); patch.setattr("service.a.LIMIT", 2)'
    assert find_patched_constants(ast.parse(source)) == {"SIZE_MAX", "service.a.LIMIT"}
