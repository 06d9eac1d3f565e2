"""What a reverse proxy says about a request: the client, the scheme, and the path prefix.

uvicorn's middleware reads `X-Forwarded-For` and `X-Forwarded-Proto`. This one adds the prefix, from
`KOTAE_ROOT_PATH` or `X-Forwarded-Prefix`, as the `root_path` of ASGI: `path` begins with it,
whether or not the proxy has removed it. The headers of other clients than trusted proxies, and a
prefix that could lead to another host, are ignored.
"""

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, HTTPScope, Scope
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.core.settings import Settings, normalize_root_path


class ForwardedHeaders(ProxyHeadersMiddleware):
    """Wraps the application; see the module docstring."""

    def __init__(self, app: ASGI3Application, settings: Settings) -> None:
        super().__init__(app, settings.forwarded_allow_ips)
        self._root_path = settings.root_path

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            prefix, values = self._root_path, []
            for name, value in scope["headers"]:
                if name == b"x-forwarded-prefix":
                    values.append(value)
            if values and not prefix:
                prefix = self._validate_prefix(scope, values)
            if prefix:
                _set_root_path(scope, prefix)
        await super().__call__(scope, receive, send)

    def _validate_prefix(self, scope: HTTPScope, values: list[bytes]) -> str:
        """The prefix in the header of a trusted proxy; empty if it is not valid."""
        if len(values) != 1 or (scope["client"] or ("",))[0] not in self.trusted_hosts:
            return ""
        try:
            return normalize_root_path(values[0].decode("latin-1"))
        except ValueError:
            return ""


def _set_root_path(scope: HTTPScope, prefix: str) -> None:
    path = scope["path"]
    if path == prefix:  # the page redirects to a URL with a slash: its links are relative
        scope["path"] = f"{prefix}/"
    elif not path.startswith(f"{prefix}/"):
        scope["path"] = prefix + path
        scope["raw_path"] = prefix.encode() + scope["raw_path"]
    scope["root_path"] = prefix
