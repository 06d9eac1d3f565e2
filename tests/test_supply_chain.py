"""Licenses and vulnerabilities of the locked dependencies, and the SBOM of the image."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from requirements.audit import LOCK, check_licenses, is_allowed, list_locked, read_report

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / ".cache" / "audit" / "bin"
needs_tools = pytest.mark.skipif(
    not (TOOLS.parent / ".installed").exists(),
    reason="not run: `make .cache/audit/.installed` installs the tools",
)


def test_licenses_of_all_dependencies_are_allowed() -> None:
    """Every locked and installed dependency of the service has an allowed license."""
    names = list_locked(LOCK.read_text())

    assert len(names) > 40
    assert check_licenses(names) == []


def test_vendored_files_are_unchanged() -> None:
    """Every library in `service/web/vendor` has its documented hash and a license beside it."""
    vendor = ROOT / "service" / "web" / "vendor"
    rows = re.findall(
        r"^\| `(\S+)` \|.*\(`(\S+)`\) \| `([0-9a-f]{64})` \|$",
        (vendor / "README.md").read_text(),
        re.MULTILINE,
    )
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.iterdir()
        if path.suffix in {".js", ".mjs", ".css"}
    }

    assert {name: digest for name, _, digest in rows} == hashes
    assert all((vendor / license_).exists() for _, license_, _ in rows)


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND PSF-2.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("MIT AND GPL-3.0-only", False),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_license_expressions(expression: str, allowed: bool) -> None:
    """All parts must be allowed, or one of their alternatives; an unknown license is not."""
    assert is_allowed(expression) is allowed


def test_a_known_vulnerability_is_reported() -> None:
    """A vulnerability is named with the versions that fix it."""
    dependency = {
        "name": "example",
        "version": "1.0",
        "vulns": [{"id": "CVE-2026-1", "fix_versions": ["1.1"], "description": ""}],
    }
    report = json.dumps({"dependencies": [dependency], "fixes": []}).encode()

    assert read_report(report) == (["example 1.0: CVE-2026-1 (fixed in 1.1)"], "")


def test_missing_advisory_data_is_not_a_pass() -> None:
    """Packages without advisory data are counted and reported."""
    dependencies = [
        {"name": "example", "skip_reason": "not found"},
        {"name": "other", "version": "1.0", "vulns": []},
    ]
    report = json.dumps({"dependencies": dependencies}).encode()

    assert read_report(report) == ([], "no advisory data for 1 of 2 packages")


def test_an_unavailable_check_is_stated_and_no_failure() -> None:
    """Without pip-audit the vulnerability check reports *not run*."""
    process = subprocess.run(
        [sys.executable, "-m", "requirements.audit", "/nonexistent/pip-audit"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert process.returncode == 0, process.stderr
    assert "audit: vulnerabilities: not run: " in process.stdout


@needs_tools
@pytest.mark.slow
def test_the_sbom_lists_every_locked_dependency(tmp_path: Path) -> None:
    """The SBOM of the image is CycloneDX with a name, version and hashes per locked package."""
    sbom = tmp_path / "sbom.cdx.json"
    subprocess.run(
        [
            TOOLS / "cyclonedx-py",
            *("requirements", "--output-reproducible", "--output-file", sbom, LOCK),
        ],
        check=True,
    )
    document = json.loads(sbom.read_text())

    assert document["bomFormat"] == "CycloneDX"
    assert sorted(item["name"] for item in document["components"]) == sorted(
        list_locked(LOCK.read_text())
    )
    assert all(item["externalReferences"][0]["hashes"] for item in document["components"])
