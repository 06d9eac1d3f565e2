"""The systemd units in deploy/."""

import subprocess
from pathlib import Path

import pytest

from tests.proxies import DEPLOY, require

pytestmark = pytest.mark.slow

EXPOSURE_MAX = 25  # 2.5 on the scale of systemd-analyze, from 0 to 10


@pytest.mark.parametrize("unit", ["kotae.service", "kotae-backup.service"])
def test_units_are_hardened(unit: str) -> None:
    """The exposure of a service is low; without sandboxing it is above 9."""
    analyze = require("systemd-analyze", "systemd")
    done = subprocess.run(
        [analyze, "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", DEPLOY / unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_units_are_valid(tmp_path: Path) -> None:
    """Systemd knows every directive of the units, once their program exists."""
    analyze = require("systemd-analyze", "systemd")
    program = tmp_path / "opt/kotae/.venv/bin/kotae"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    units = []
    for source in sorted(DEPLOY.glob("kotae*.*")):
        unit = tmp_path / source.name
        unit.write_text(source.read_text().replace("/opt/kotae", f"{tmp_path}/opt/kotae"))
        units.append(unit)
    assert len(units) == 3
    done = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
