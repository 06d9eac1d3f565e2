"""The systemd units, Kubernetes manifests and configurations of several replicas in deploy/."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from service.core.settings import describe_settings
from service.core.telemetry import Metrics
from tests.conftest import Service
from tests.proxies import DEPLOY, require

pytestmark = pytest.mark.slow

ROOT = DEPLOY.parent
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


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_kubernetes_manifests_are_valid(version: str) -> None:
    """The schemas of Kubernetes accept them, without unknown fields."""
    program = ROOT / ".cache/manifests/bin/kubernetes-validate"
    if not program.exists():
        pytest.skip("not run: `make .cache/manifests/.installed` installs kubernetes-validate")
    done = subprocess.run(
        [program, "--strict", "--kubernetes-version", version, DEPLOY / "kubernetes/kotae.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" passed for ") == 6


def test_the_balancer_is_valid_and_knows_the_replicas() -> None:
    """Caddy accepts its configuration, which lists the replicas of compose.yaml."""
    caddy, config = require("caddy", "caddy"), DEPLOY / "Caddyfile-replicas"
    command: list[str | Path] = [caddy, "validate", "--adapter", "caddyfile", "--config", config]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    replicas = re.findall(r"^  (kotae-\d+):$", (ROOT / "compose.yaml").read_text(), re.MULTILINE)

    assert done.returncode == 0, done.stderr
    assert len(replicas) == 3
    assert re.findall(r"(kotae-\d+):8000", config.read_text()) == replicas


@pytest.mark.parametrize("file", ["compose.yaml", "deploy/kubernetes/kotae.yaml"])
def test_variables_are_settings(file: str) -> None:
    """Every variable of Kotae in the files is a setting."""
    names = {setting.name for setting in describe_settings()}
    used = set(re.findall(r"\b((?:KOTAE|OPENAI)_[A-Z_]*[A-Z])\b", (ROOT / file).read_text()))

    assert used - names == set()


ALERTS, DASHBOARD = DEPLOY / "prometheus/alerts.yaml", DEPLOY / "grafana/kotae.json"


def read_dashboard_queries() -> list[str]:
    """The queries of the dashboard, with values for its variables."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [
        target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
        for panel in panels
        for target in panel["targets"]
    ]


def test_alert_rules_are_valid() -> None:
    """Prometheus accepts the rules and their templates."""
    promtool = require("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "rules", ALERTS], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 rules found" in done.stdout


def test_queries_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    """Prometheus can parse every query of the dashboard."""
    promtool = require("promtool", "prometheus")
    rules = [
        {"record": f"panel{n}", "expr": query} for n, query in enumerate(read_dashboard_queries())
    ]
    file = tmp_path / "rules.yaml"  # YAML contains JSON
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [promtool, "check", "rules", file], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


@pytest.mark.parametrize("file", [ALERTS, DASHBOARD], ids=["alerts", "dashboard"])
def test_alerts_and_dashboard_name_metrics_that_exist(file: Path) -> None:
    """Every metric of Kotae in the file is one of the service, with labels that it has."""
    exposed = generate_latest(Metrics().registry).decode()
    names = {line.split()[2] for line in exposed.splitlines() if line.startswith("# TYPE")}
    used = set(re.findall(r"\bkotae_[a-z_]+", file.read_text()))

    assert used
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} <= names


async def test_prometheus_accepts_the_metrics(service: Service) -> None:
    """The metrics pass the lint of Prometheus, without series of creation times."""
    promtool = require("promtool", "prometheus")
    await service.client.post("/ai/test", json={"prompt": "Why?"})
    text = (await service.client.get("/metrics")).text
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "_created" not in text
