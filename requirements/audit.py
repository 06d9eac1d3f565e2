"""Check the locked dependencies: `make audit`.

Licenses are read from the metadata of the installed packages and must be on the list below; a
missing or unknown license is a failure. Vulnerabilities are looked up by pip-audit, which needs
advisory data from the network. Where it is unavailable, the check reports *not run*; that is not a
failure, because CI also runs without a network. A known vulnerability is a failure.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import msgspec

ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "PSF-2.0",
    "Zlib",
}
# Trove classifiers and free texts of older packages, as SPDX identifiers.
SPDX = {
    "Apache Software License": "Apache-2.0",
    # pypdfium2; its dependencies are the permissive ones of PDFium
    "BSD-3-Clause, Apache-2.0, dependency licenses": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
LOCK = Path(__file__).parent / "base.txt"
AUDIT_SECONDS_MAX = 180


class Vulnerability(msgspec.Struct):
    """A known vulnerability as reported by pip-audit."""

    id: str
    fix_versions: list[str] = []


class Dependency(msgspec.Struct):
    """A dependency as reported by pip-audit; `skip_reason` if no data was available."""

    name: str
    version: str = ""
    skip_reason: str = ""
    vulns: list[Vulnerability] = []


class AuditReport(msgspec.Struct):
    """The JSON report of pip-audit."""

    dependencies: list[Dependency]


def main() -> int:
    """Run both checks; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check licenses and known vulnerabilities.")
    parser.add_argument("pip_audit", type=Path, help="the program pip-audit")
    pip_audit = parser.parse_args().pip_audit
    problems = check_licenses(list_locked(LOCK.read_text()))
    report, reason = run_pip_audit(pip_audit)
    vulnerabilities, unavailable = read_report(report) if report else ([], reason)
    for problem in problems + vulnerabilities:
        print(f"audit: {problem}")
    if not problems:
        print("audit: licenses: ok")
    if unavailable:
        print(f"audit: vulnerabilities: not run: {unavailable}")
    elif not vulnerabilities:
        print("audit: vulnerabilities: none known")
    return 1 if problems or vulnerabilities else 0


def list_locked(lock: str) -> list[str]:
    """The names of the locked packages."""
    return re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)


def check_licenses(names: Iterable[str]) -> list[str]:
    """Problems with the licenses of these packages; those of other platforms are skipped."""
    problems = []
    for name in names:
        try:
            license_text = read_license(name)
        except PackageNotFoundError:
            continue
        if not is_allowed(license_text):
            problems.append(f"license of {name} is not allowed: {license_text or 'unknown'}")
    return problems


def read_license(name: str) -> str:
    """The SPDX expression of an installed package; empty if unknown."""
    fields = metadata(name)
    if "License-Expression" in fields:
        return fields["License-Expression"]
    classifiers = [
        value.rpartition(" :: ")[2]
        for value in fields.get_all("Classifier") or []
        if value.startswith("License ::")
    ]
    if classifiers:
        return " AND ".join(SPDX.get(value, value) for value in classifiers)
    if "License" in fields:
        return SPDX.get(fields["License"], fields["License"])
    return ""


def is_allowed(expression: str) -> bool:
    """True if every part of a license expression is allowed, or one of its alternatives."""
    return all(
        any(option.strip(" ()") in ALLOWED for option in part.split(" OR "))
        for part in expression.split(" AND ")
    )


def run_pip_audit(program: Path) -> tuple[bytes | None, str]:
    """The report of pip-audit, or None and the reason why there is none."""
    options = ["--disable-pip", "--require-hashes", "--format=json", "--progress-spinner=off"]
    try:
        process = subprocess.run(  # noqa: S603 - the program of our own environment
            [program, *options, "--requirement", LOCK],
            capture_output=True,
            timeout=AUDIT_SECONDS_MAX,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    if process.stdout.strip():
        return process.stdout, ""
    return None, process.stderr.decode(errors="replace").strip()[-300:] or "pip-audit has no output"


def read_report(report: bytes) -> tuple[list[str], str]:
    """Return the known vulnerabilities, and why the report is incomplete; empty if complete."""
    dependencies = msgspec.json.decode(report, type=AuditReport).dependencies
    vulnerabilities = [
        f"{item.name} {item.version}: {vulnerability.id}"
        f" (fixed in {', '.join(vulnerability.fix_versions) or 'no version'})"
        for item in dependencies
        for vulnerability in item.vulns
    ]
    skipped = sum(1 for item in dependencies if item.skip_reason)
    reason = f"no advisory data for {skipped} of {len(dependencies)} packages" if skipped else ""
    return vulnerabilities, reason


if __name__ == "__main__":
    sys.exit(main())
