"""nginx and Caddy in front of a service, with the configurations in deploy/.

Only ports, paths and host names of a configuration are replaced.
"""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

DEPLOY = Path(__file__).parents[1] / "deploy"
PREFIX = "/kotae"
# What a package installs around a site: everything it writes is in the folder.
_NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1; {user}
events {{ worker_connections 512; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    {site}
}}
"""
_CADDY = "{{\n admin off\n auto_https disable_redirects\n skip_install_trust\n}}\n{site}"
# The shortest configuration in tutorials: Host becomes the address of the service.
PLAIN_NGINX = "server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {url}; }} }}"


def require(program: str, package: str) -> str:
    """Return the path of a program. Without it a test is skipped; in CI it fails."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        reason = f"not run: {program} is absent (apt-get install {package})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def find_free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def replace_all(text: str, replacements: Mapping[str, str]) -> str:
    """Replace each of these texts, all of which must occur."""
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def create_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a certificate for localhost, and its key."""
    certificate, key = folder / "kotae.pem", folder / "kotae.key"
    subprocess.run(
        [
            require("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost",
            "-keyout", key, "-out", certificate,
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


@asynccontextmanager
async def running(
    arguments: list[str], url: str, folder: Path, **environment: str
) -> AsyncGenerator[None]:
    """Run a proxy until the end of the block, and wait until it listens at a URL."""
    log = folder / "output.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *arguments, stdout=output, stderr=output, env=os.environ | environment
        )
    try:
        async with asyncio.timeout(20):
            while not await _accepts(url):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.02)
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 20)


async def _accepts(url: str) -> bool:
    """Whether connections are accepted, and TLS has its certificate."""
    parts = urlsplit(url)
    tls = trust_anything() if parts.scheme == "https" else None
    with suppress(OSError):  # errors of TLS too
        _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=tls)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True
    return False


@asynccontextmanager
async def run_nginx(site: str, url: str, folder: Path) -> AsyncGenerator[None]:
    """Run nginx with a site."""
    program = require("nginx", "nginx-light")
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(_NGINX.format(folder=folder, user=user, site=site))
    async with running([program, "-c", str(config), "-e", "stderr"], url, folder):
        yield


@asynccontextmanager
async def nginx(service_url: str, folder: Path) -> AsyncGenerator[str]:
    """nginx.conf: TLS, on a host name of its own. Yields the URL."""
    port, (certificate, key) = find_free_port(), create_certificate(folder)
    site = replace_all(
        (DEPLOY / "nginx.conf").read_text(),
        {
            "listen 80;": f"listen 127.0.0.1:{find_free_port()};",
            "listen [::]:80;": "",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
            "listen [::]:443 ssl http2;": "",
            "kotae.example.com": "localhost",
            "127.0.0.1:8000": urlsplit(service_url).netloc,
            "/etc/ssl/kotae.pem": str(certificate),
            "/etc/ssl/kotae.key": str(key),
            "/var/log/nginx": str(folder),
        },
    )
    url = f"https://localhost:{port}"
    async with run_nginx(site, url, folder):
        yield url


@asynccontextmanager
async def nginx_prefix(service_url: str, folder: Path) -> AsyncGenerator[str]:
    """nginx-prefix.conf: a path of another site, over TLS. Yields the URL."""
    port, (certificate, key) = find_free_port(), create_certificate(folder)
    locations = replace_all(
        (DEPLOY / "nginx-prefix.conf").read_text(),
        {"127.0.0.1:8000": urlsplit(service_url).netloc},
    )
    site = (
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate};"
        f"ssl_certificate_key {key}; {locations} }}"
    )
    url = f"https://localhost:{port}"
    async with run_nginx(site, url, folder):
        yield url + PREFIX


@asynccontextmanager
async def plain_nginx(service_url: str, folder: Path, port: int = 0) -> AsyncGenerator[str]:
    """A plain `proxy_pass`, which changes Host. Yields the URL."""
    port = port or find_free_port()
    url = f"http://localhost:{port}"
    async with run_nginx(PLAIN_NGINX.format(port=port, url=service_url), url, folder):
        yield url


@asynccontextmanager
async def run_caddy(service_url: str, folder: Path, host: str) -> AsyncGenerator[str]:
    """Run Caddy with Caddyfile, with localhost as the name of one of its sites."""
    program = require("caddy", "caddy")
    port = find_free_port()
    config = folder / "Caddyfile"
    site = replace_all(
        (DEPLOY / "Caddyfile").read_text(),
        {f"\n{host} {{": f"\nlocalhost:{port} {{", "127.0.0.1:8000": urlsplit(service_url).netloc},
    )
    other = {"kotae.example.com", "www.example.com"} - {host}
    plain = find_free_port()  # without TLS, so that no certificate is requested for its name
    site = replace_all(site, {f"\n{name} {{": f"\nhttp://{name}:{plain} {{" for name in other})
    config.write_text(_CADDY.format(site=site))
    arguments = [program, "run", "--config", str(config), "--adapter", "caddyfile"]
    url, home = f"https://localhost:{port}", str(folder)
    async with running(arguments, url, folder, XDG_DATA_HOME=home, XDG_CONFIG_HOME=home):
        yield url


@asynccontextmanager
async def caddy(service_url: str, folder: Path) -> AsyncGenerator[str]:
    """Caddyfile: on a host name of its own. Yields the URL."""
    async with run_caddy(service_url, folder, "kotae.example.com") as url:
        yield url


@asynccontextmanager
async def caddy_replicas(service_urls: Sequence[str], folder: Path) -> AsyncGenerator[str]:
    """Caddyfile-replicas: the balancer of three replicas. Yields its URL."""
    port, config = find_free_port(), folder / "Caddyfile"
    replicas = {
        f"kotae-{n}:8000": urlsplit(url).netloc for n, url in enumerate(service_urls, start=1)
    }
    text = (DEPLOY / "Caddyfile-replicas").read_text()
    local = {"\n:8000 {": f"\n:{port} {{\n\tbind 127.0.0.1"}
    config.write_text(replace_all(text, replicas | local))
    url = f"http://127.0.0.1:{port}"
    arguments = [
        require("caddy", "caddy"), "run", "--config", str(config), "--adapter", "caddyfile"
    ]  # fmt: skip
    async with running(arguments, url, folder, HOME=str(folder)):
        yield url


@asynccontextmanager
async def caddy_prefix(service_url: str, folder: Path) -> AsyncGenerator[str]:
    """Caddyfile: a path of another site. Yields the URL."""
    async with run_caddy(service_url, folder, "www.example.com") as url:
        yield f"{url}{PREFIX}"


def trust_anything() -> ssl.SSLContext:
    """A TLS context for the self-signed certificates of these proxies."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
