"""The documentation is complete and refers only to what exists."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import typer

from service.api.schemas import AskBody, LimitsBody
from service.cli.app import app
from service.core.auth.principals import Scope
from service.core.errors import KotaeError
from service.core.records import Answer, Status, UsageSource
from service.core.search.results import Hit, SearchResults
from service.core.settings import Settings, describe_settings
from service.core.telemetry import Metrics
from service.main import create_app
from tests.core.test_errors import tree

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
API, ERRORS, METRICS, CLI = (
    (DOCS / "reference" / f"{name}.md").read_text() for name in ("api", "errors", "metrics", "cli")
)
DECISIONS = sorted((DOCS / "decisions").glob("0*.md"))
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("bench/*.md")]
# Pages that describe the current version: changelog and decisions also name removed things.
CURRENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md" and page not in DECISIONS]
OPENAPI = create_app(Settings()).openapi()
COMMANDS: Any = typer.main.get_command(app)


def rows(page: str) -> Iterator[list[str]]:
    """The cells of the rows of all tables of a page."""
    for line in page.splitlines():
        if line.startswith("| "):
            yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def commands(group: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """The visible commands of the command line: name with its group, and command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                yield " ".join((*names, name)), command
            yield from commands(command, *names, name)
        elif not command.hidden:
            yield " ".join((*names, name)), command


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub derives them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "route",
    [
        f"{method.upper()} {path}"
        for path, operations in OPENAPI["paths"].items()
        for method in operations
    ],
)
def test_every_route_is_documented(route: str) -> None:
    """docs/reference/api.md lists each method and path."""
    assert f"`{route}`" in API


@pytest.mark.parametrize(
    "word",
    [
        *AskBody.model_fields, *LimitsBody.model_fields, *Answer.__struct_fields__,
        *SearchResults.__struct_fields__,
        *Hit.__struct_fields__, *Status, *UsageSource, *Scope,
        "start", "done", "failure", "ping", "retry",
    ],
)  # fmt: skip
def test_every_name_of_the_protocol_is_documented(word: str) -> None:
    """Fields, statuses, sources of usage, scopes and events are in docs/reference/api.md."""
    assert re.search(rf"\b{word}\b", API)


@pytest.mark.parametrize("error", tree(KotaeError), ids=lambda error: error.code)
def test_every_error_code_is_documented(error: type[KotaeError]) -> None:
    """docs/reference/errors.md has status, meaning and remedy of each code, and no other code."""
    documented = {row[0]: row[1:] for row in rows(ERRORS) if row[0].startswith("`")}

    if error.code == "settings_invalid":  # ends the start; never in a response
        assert "`settings_invalid`" in ERRORS
        return
    status, meaning, remedy = documented[f"`{error.code}`"]
    assert status == str(error.status)
    assert meaning
    assert remedy
    assert set(documented) <= {f"`{error.code}`" for error in tree(KotaeError)}


def test_every_metric_is_documented() -> None:
    """docs/reference/metrics.md lists each metric with its type and its labels, and no other."""
    types = {
        prometheus_client.Counter: "counter",
        prometheus_client.Gauge: "gauge",
        prometheus_client.Histogram: "histogram",
    }
    expected = {}
    for metric in vars(Metrics()).values():
        kind = next((name for base, name in types.items() if isinstance(metric, base)), None)
        if kind:
            labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "–"
            expected[f"`{metric._name}{'_total' if kind == 'counter' else ''}`"] = (kind, labels)

    assert {
        row[0]: (row[1], row[2]) for row in rows(METRICS) if row[0].startswith("`kotae_")
    } == expected


def test_every_command_is_documented() -> None:
    """docs/reference/cli.md lists each command with its options, and no other."""
    documented: dict[str, set[str]] = {}
    for row in rows(CLI):
        for name in re.findall(r"`kotae ([a-z][a-z -]*[a-z])", row[0]):
            documented[name] = set(re.findall(r"--[a-z-]+|(?<=`)-[a-z]\b", row[2]))

    assert documented == {
        name: {
            option
            for parameter in command.params
            for option in parameter.opts
            if option.startswith("-") and not getattr(parameter, "hidden", False)
        }
        for name, command in commands(COMMANDS)
    }


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_exist(page: Path) -> None:
    """Every `kotae` command line of a page uses an existing command and existing options."""
    known_commands = dict(commands(COMMANDS)) | {
        name: COMMANDS.commands[name] for name in ("env-example", "settings-reference")
    }
    lines = re.findall(
        r"(?:^|`|/|\$ |exec kotae |--from \S+ )kotae ([a-z][^`\n|>]*)",
        page.read_text(),
        re.MULTILINE,
    )
    for words in map(str.split, lines):
        group = getattr(COMMANDS.commands[words[0]], "commands", {})
        is_group_itself = words[0] not in known_commands and words[1:] in ([], ["…"])
        if is_group_itself:
            continue
        command = known_commands[" ".join(words[: 2 if group.keys() & set(words[1:2]) else 1])]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}

        assert {word for word in words if word.startswith("--")} <= options, words


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_in_pages_exist(page: Path) -> None:
    """Every variable that a page names is a setting."""
    names = {setting.name for setting in describe_settings()}
    named = set(re.findall(r"\b(?:KOTAE|OPENAI)_[A-Z_]*[A-Z]\b", page.read_text()))

    assert {name for name in named if not name.startswith("KOTAE_TEST_")} - names == set()


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_in_pages_exist(page: Path) -> None:
    """Every source file that a page names exists."""
    named = re.findall(
        r"`((?:service|tests|bench|core|api|workers|cli|web|alembic|docs)/[\w/.-]+)`",
        page.read_text(),
    )

    assert [
        name
        for name in named
        if not any((ROOT / folder / name).exists() for folder in ("", "service"))
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page: Path) -> None:
    """Every relative link of a page leads to a file, and to a heading of it if it names one."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_pages_in_code_exist() -> None:
    """Every page that a comment or docstring names exists."""
    named = {
        page
        for folder in ("service", "tests", "bench", "alembic")
        for module in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"\b(?:docs|bench)/[\w/-]+(?:\.md|/\d{4}\b)", module.read_text())
    }

    assert [
        page
        for page in named
        if not list(ROOT.glob(page if page.endswith(".md") else f"{page}-*.md"))
    ] == []


def test_every_page_is_in_an_index() -> None:
    """docs/README.md links to every page, and docs/decisions/README.md to every decision."""
    index, decisions = (
        (DOCS / "README.md").read_text(),
        (DOCS / "decisions" / "README.md").read_text(),
    )
    pages = {page.relative_to(DOCS) for page in DOCS.rglob("*.md")} - {Path("README.md")}

    assert [
        page for page in pages if page.parent.name != "decisions" and f"({page})" not in index
    ] == []
    assert [page.name for page in DECISIONS if f"({page.name})" not in decisions] == []


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem[:4])
def test_decisions_have_one_form(page: Path) -> None:
    """A decision has a number, a date, and the four sections, on one page."""
    text = page.read_text()

    assert text.startswith(f"# {int(page.stem[:4])}. ")
    assert re.match(r"\d{4}-\d{2}-\d{2} · (accepted|superseded)", text.splitlines()[2])
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [
        "Context",
        "Decision",
        "Consequences",
        "Alternatives",
    ]
    assert len(text.split()) < 500


def test_the_readme_is_short() -> None:
    """At most 500 words, with one picture."""
    text = (ROOT / "README.md").read_text()

    assert len(text.split()) <= 500
    assert text.count("![") == 1


def test_every_dependency_has_a_reason() -> None:
    """docs/dependencies.md names every requirement of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = (
        project["project"]["dependencies"]
        + project["dependency-groups"]["dev"]
        + [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    )
    reasons = (DOCS / "dependencies.md").read_text()

    assert [
        name for line in required if (name := re.split(r"[\[>=; ]", line)[0]) not in reasons
    ] == []


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").iterdir()))
def test_every_example_is_in_a_guide(name: str) -> None:
    """The code of a guide is that of the file, which a test runs."""
    text = (ROOT / "examples" / name).read_text()

    assert any(text in page.read_text() for page in (DOCS / "how-to").glob("*.md"))
