"""The tables, as SQLAlchemy Core knows them. No logic. Migrations in `alembic/versions` make them.

`chunk_terms`, the full-text index over `chunks.words` and `chunks.grams`, is made by a migration by hand: SQLAlchemy has
no notion of FTS5 tables.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware datetimes in, aware UTC datetimes out; SQLite keeps no offset, so none but UTC is stored."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: ARG002 - the library's signature
        """Store UTC."""
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the library's signature
        """Read UTC."""
        return value.replace(tzinfo=UTC) if value else None


# Integer is what SQLite needs for a rowid alias; BigInteger what any other database needs for the same count.
_Count = BigInteger().with_variant(Integer, "sqlite")

request_logs = Table(
    "request_logs",
    metadata,
    Column(
        "seq", _Count, primary_key=True, autoincrement=True
    ),  # the order of commit, which tailing follows
    Column(
        "id", String(36), nullable=False, unique=True
    ),  # UUIDv7: the order of time, which pages follow
    Column("created_at", UtcDateTime, nullable=False),
    Column("user_id", String(200), nullable=False),
    Column("endpoint", String(50), nullable=False),
    Column("model", String(200), nullable=False),
    Column("status", String(20), nullable=False),
    Column("finish_reason", String(50)),
    Column("error_code", String(50)),
    Column("prompt", Text, nullable=False),
    Column("response", Text, nullable=False),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("cached_tokens", Integer),
    Column("reasoning_tokens", Integer),
    Column("usage_source", String(10), nullable=False),
    Column("cost_nano_usd", BigInteger),
    Column("price", Text),
    Column("response_time_ms", Integer, nullable=False),
    Column("first_token_ms", Integer),
    Column("grounded", Boolean, nullable=False),
    Column("sources", JSON, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("request_id", String(64), nullable=False),
    Column(
        "rank", Integer, nullable=False, server_default="2"
    ),  # how much is known: see `events.RANKS`
    Column("idempotency_key", String(255)),
    Column("body_hash", String(64)),  # of the request that the key came with
    Column("key_id", String(36)),  # of the API key that asked
    Column("asked_by", String(200)),  # the admin who asked on behalf of `user_id`
    Column("held_tokens", Integer),  # of the quota: what counts where nobody knows the usage
    Column("held_nano_usd", BigInteger),
    Column(
        "relevance_share", Float
    ),  # the two numbers that decide whether a question can be answered
    Column("relevance_terms", Float),
    Column("relevance_cosine", Float),  # by which their least was moved; None: it took no part
    Index("uq_request_logs_user_id_idempotency_key", "user_id", "idempotency_key", unique=True),
    # Pages by one filter, in order; the columns behind `id` let further filters be looked up without reading the row.
    Index(None, "user_id", "id", "status", "model", "endpoint"),
    Index(None, "status", "id", "model", "endpoint"),
    Index(None, "model", "id", "status", "endpoint"),
    Index(None, "endpoint", "id", "status"),
    Index(None, "user_id", "seq"),  # a user's tail
    sqlite_autoincrement=True,
)

# Sums over request_logs, changed in the same transaction as the rows: they can always be made anew from them.
daily_totals = Table(
    "daily_totals",
    metadata,
    Column("day", String(10), primary_key=True),  # of created_at, UTC
    Column("user_id", String(200), primary_key=True),
    Column("endpoint", String(50), primary_key=True),
    Column("model", String(200), primary_key=True),
    Column("status", String(20), primary_key=True),
    Column("usage_source", String(10), primary_key=True),
    Column("answers", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
    Column("unpriced", BigInteger, nullable=False),  # answers whose cost nobody knows
)

# What counts toward quotas, by day and by `user:…` or `key:…`; changed together with daily_totals.
quota_totals = Table(
    "quota_totals",
    metadata,
    Column("day", String(10), primary_key=True),
    Column("subject", String(210), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("disabled", Boolean, nullable=False),
    Column("plan", String(50)),  # None: the plan named `default`, if there is one
    Column("limits", JSON),  # of this user alone, instead of a plan's
    Column("created_at", UtcDateTime, nullable=False),
)

plans = Table(
    "plans",
    metadata,
    Column("name", String(50), primary_key=True),
    Column("limits", JSON, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(36), primary_key=True),
    Column(
        "hash", String(64), nullable=False, unique=True
    ),  # SHA-256 of the key, hexadecimal: the key itself is nowhere
    Column(
        "prefix", String(16), nullable=False
    ),  # its first characters, by which people know it again
    Column("name", String(100), nullable=False),
    Column("user_id", String(200), ForeignKey("users.id"), nullable=False),
    Column("role", String(10), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("limits", JSON),  # of this key, beside those of its user
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column(
        "replaced_by", String(36)
    ),  # the id of the key that a rotation created in place of this one
    Index(None, "user_id", "id"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", String(64), primary_key=True),  # SHA-256 of the cookie's value
    Column("user_id", String(200), nullable=False),
    Column("role", String(10), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column(
        "origin", String(100), nullable=False
    ),  # the credential that it was exchanged for: it ends with it
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Index(None, "expires_at"),
)

documents = Table(
    "documents",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", String(200), nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("title", String(300), nullable=False),
    Column("content_hash", String(64), nullable=False),  # SHA-256 of the text, hexadecimal
    Column("text", Text, nullable=False),
    Column("characters", Integer, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("encoding", String(20), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column(
        "indexed_by", String(200), nullable=False, server_default=""
    ),  # what cut it and made its terms
    UniqueConstraint("user_id", "content_hash"),
)

chunks = Table(
    "chunks",
    metadata,
    Column("id", _Count, primary_key=True, autoincrement=True),
    Column(
        "document_id", String(36), ForeignKey("documents.id", ondelete="CASCADE"), nullable=False
    ),
    Column("n", Integer, nullable=False),  # 1, 2, … within the document
    Column("start", Integer, nullable=False),  # characters into the document's text
    Column("end", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("words", Text, nullable=False),  # terms in order, separated by spaces
    Column("grams", Text, nullable=False),
    Column(
        "content_hash", String(64)
    ),  # SHA-256 of the text, by which vectors know it; None until it is made anew
    UniqueConstraint("document_id", "n"),
    Index(None, "content_hash"),  # the chunks of a vector
    sqlite_autoincrement=True,
)

# One row, kept by triggers on chunks: how many there are, and a number that every change makes larger.
index_state = Table(
    "index_state",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("chunks", BigInteger, nullable=False),
)

# What an embedding model made of a text: a cache, by the text's hash.
vectors = Table(
    "vectors",
    metadata,
    Column("model", String(200), primary_key=True),
    Column("content_hash", String(64), primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # little-endian float32, of length 1
)
