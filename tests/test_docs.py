"""The documentation is complete, or the suite fails."""

import re
import tomllib
from pathlib import Path

import pytest

from service.core.errors import KotaeError
from service.core.records import Answer, Status, UsageSource
from service.core.settings import Settings
from service.main import create_app
from tests.core.test_errors import tree

ROOT = Path(__file__).parents[1]
API = (ROOT / "docs" / "api.md").read_text()


@pytest.mark.parametrize("path", sorted(create_app(Settings()).openapi()["paths"]))
def test_every_route_is_documented(path: str) -> None:
    """docs/api.md and the README name each route."""
    assert path in API
    assert path.partition("/{")[0] in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", [each.code for each in tree(KotaeError)])
def test_every_error_code_is_documented(code: str) -> None:
    """docs/api.md says what to do about each code."""
    assert f"`{code}`" in API


@pytest.mark.parametrize("word", [*Answer.__struct_fields__, *Status, *UsageSource, "start", "done", "failure"])
def test_every_word_of_the_wire_is_documented(word: str) -> None:
    """Fields of the answer, statuses, sources of usage and events are explained."""
    assert re.search(rf"\b{word}\b", API)


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md has a line for what pyproject.toml requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = (
        project["project"]["dependencies"]
        + project["dependency-groups"]["dev"]
        + [line for extra in project["project"]["optional-dependencies"].values() for line in extra]
    )
    reasons = (ROOT / "docs" / "dependencies.md").read_text()

    assert [name for line in required if (name := re.split(r"[\[>=; ]", line)[0]) not in reasons] == []


def test_links_lead_somewhere() -> None:
    """Every relative link of the Markdown files points at a file that is there."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_map_of_the_house_is_true() -> None:
    """Every room that CONTRIBUTING.md names is there."""
    rooms = re.findall(r"`((?:core|api|workers|main|server|__main__)[\w/]*(?:\.py|/))`", (ROOT / "CONTRIBUTING.md").read_text())

    assert len(rooms) > 25
    assert [room for room in rooms if not (ROOT / "service" / room).exists()] == []
