"""The tables in SQLAlchemy Core, created by migrations in `alembic/versions` and `postgresql`.

Not declared here are those of one kind of database only. SQLite: `chunk_terms`, the full-text index
over the scope and the terms of chunks. PostgreSQL: `postings`, the same index; the partitions of
`request_logs`, whose primary key is `id`; and `instances`, the process that serves the database.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
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

from service.core.database.failures import DamagedValue

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
    """Aware datetimes, stored as UTC: SQLite does not store an offset."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Convert to UTC, on SQLite without an offset.

        PostgreSQL's driver would take a time without an offset for local time.
        """
        if value is None:
            return None
        at = value.astimezone(UTC)
        return at if dialect.name == "postgresql" else at.replace(tzinfo=None)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Raise `DamagedValue` for a value that is not a time."""
        convert = super().result_processor(dialect, coltype)

        def read(value: Any) -> Any:
            try:
                return convert(value) if convert else value
            except (ValueError, TypeError) as error:
                raise DamagedValue("a time cannot be parsed") from error

        return read

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - signature of the base class
        """Add the UTC offset. Connections to PostgreSQL have the time zone UTC."""
        return value.replace(tzinfo=UTC) if value else None


def _text(length: int | None = None) -> sa.types.TypeEngine[str]:
    """A text that is compared and sorted by its bytes, whatever the locale of the database.

    SQLite does not enforce a length. PostgreSQL would refuse a record that exceeds it.
    """
    kind = Text() if length is None else String(length)
    return kind.with_variant(Text(collation="C"), "postgresql")


_Integer = Integer().with_variant(BigInteger, "postgresql")  # integers of SQLite have 64 bits


# SQLite requires Integer for a rowid alias; other databases need BigInteger for the same range.
_Count = BigInteger().with_variant(Integer, "sqlite")

request_logs = Table(
    "request_logs",
    metadata,
    # Commit order, which tailing follows.
    Column("seq", _Count, primary_key=True, autoincrement=True),
    # UUIDv7: order of creation, which pages follow.
    Column("id", _text(36), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("user_id", _text(200), nullable=False),
    Column("endpoint", _text(50), nullable=False),
    Column("model", _text(200), nullable=False),
    Column("status", _text(20), nullable=False),
    Column("finish_reason", _text(50)),
    Column("error_code", _text(50)),
    Column("prompt", _text(), nullable=False),
    Column("response", _text(), nullable=False),
    Column("prompt_tokens", _Integer),
    Column("completion_tokens", _Integer),
    Column("cached_tokens", _Integer),
    Column("reasoning_tokens", _Integer),
    Column("usage_source", _text(10), nullable=False),
    Column("cost_nano_usd", BigInteger),
    Column("price", _text()),
    Column("response_time_ms", _Integer, nullable=False),
    Column("first_token_ms", _Integer),
    Column("grounded", Boolean, nullable=False),
    Column("sources", JSON, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("request_id", _text(64), nullable=False),
    # Completeness of the usage, see `records.RANKS`: a record with a lower rank never overwrites.
    Column("rank", Integer, nullable=False, server_default="2"),
    Column("idempotency_key", _text(255)),
    Column("body_hash", _text(64)),  # of the first request with this idempotency key
    Column("key_id", _text(36)),  # the API key of the request
    Column("asked_by", _text(200)),  # the admin who sent the request on behalf of `user_id`
    Column("held_tokens", _Integer),  # quota held; it is charged where the usage is unknown
    Column("held_nano_usd", BigInteger),
    Column("relevance_share", Float),  # the two scores that decide about abstention
    Column("relevance_terms", Float),
    Column("relevance_cosine", Float),  # adjusts their thresholds; None: not used
    Column(
        "nearest", JSON(none_as_null=True)
    ),  # passages shown with a refusal; None: not a refusal
    Column("conversation_id", _text(36)),  # the id of its first answer; None: not part of one
    Column("messages", JSON(none_as_null=True)),  # as sent; None: the prompt alone
    Column("erased_at", UtcDateTime),  # the texts are erased, also those of later records
    # Of a chat completion, as the provider sent them; None: the response is everything
    Column("choices", JSON(none_as_null=True)),
    Column("request_body", JSON(none_as_null=True)),
    Column("searched_for", _text()),  # the question as corrected; None: as it is
    # Of the last attempt. None: no provider was called, or the row is from before the table
    # `attempts`; the model only if the provider has another name for it.
    Column("provider", _text(50)),
    Column("provider_model", _text(200)),
    # What the customer pays. None: nothing, or the usage or the price is unknown.
    Column("charge_nano_usd", BigInteger),
    Column("markup", _text(20)),  # the factor of the cost; None: none, or a price of the model
    Column("prepaid", Boolean),  # the charge was debited from the wallet
    Index("uq_request_logs_user_id_idempotency_key", "user_id", "idempotency_key", unique=True),
    # Pages by one filter, in order. The columns after `id` cover further filters.
    Index(None, "user_id", "id", "status", "model", "endpoint"),
    Index(None, "status", "id", "model", "endpoint"),
    Index(None, "model", "id", "status", "endpoint"),
    Index(None, "endpoint", "id", "status"),
    Index(None, "user_id", "seq"),  # a user's tail
    sqlite_autoincrement=True,
)
# The first answers of a user's conversations, and the others of a conversation.
_starts = request_logs.c.conversation_id == request_logs.c.id
Index(
    "ix_request_logs_user_id_conversations",
    request_logs.c.user_id,
    request_logs.c.id,
    sqlite_where=sa.and_(_starts, request_logs.c.erased_at.is_(None)),
    postgresql_where=sa.and_(_starts, request_logs.c.erased_at.is_(None)),
)
Index(
    "ix_request_logs_conversation_id_id",
    request_logs.c.conversation_id,
    request_logs.c.id,
    sqlite_where=request_logs.c.conversation_id != request_logs.c.id,
    postgresql_where=request_logs.c.conversation_id != request_logs.c.id,
)

# The attempts of answers with more than one: the row of an answer with one has its numbers.
attempts = Table(
    "attempts",
    metadata,
    Column("answer_id", _text(36), primary_key=True),
    Column("n", Integer, primary_key=True),  # 1, 2, …
    Column("provider", _text(50), nullable=False),
    Column("model", _text(200), nullable=False),  # the provider's name of it
    Column("status", _text(20), nullable=False),
    Column("error_code", _text(50)),
    Column("unbilled", Boolean, nullable=False),  # it was certainly not billed
    Column("usage_source", _text(10), nullable=False),
    Column("prompt_tokens", _Integer),
    Column("completion_tokens", _Integer),
    Column("cached_tokens", _Integer),
    Column("reasoning_tokens", _Integer),
    Column("cost_nano_usd", BigInteger),
    Column("price", _text()),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=False),
)

# The combinations of dimensions in rollups; the id is a hash of them, see `accounting.rollups`.
rollup_groups = Table(
    "rollup_groups",
    metadata,
    Column("id", _Count, primary_key=True, autoincrement=False),
    Column("user_id", _text(200), nullable=False),
    Column("key_id", _text(36), nullable=False),  # empty: without a key
    Column("model", _text(200), nullable=False),
    Column("provider", _text(50), nullable=False),  # empty: none was called
    Column("endpoint", _text(50), nullable=False),
    Column("status", _text(20), nullable=False),
    Column("usage_source", _text(10), nullable=False),
)

# Sums over request_logs for each quarter of an hour, updated in the same transaction as the rows;
# they can be computed again. See `accounting.rollups`.
rollups = Table(
    "rollups",
    metadata,
    Column("quarter", Integer, primary_key=True, autoincrement=False),  # since 1970, of created_at
    Column("group_id", BigInteger, primary_key=True, autoincrement=False),
    Column("answers", BigInteger, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
    Column("unpriced", BigInteger, nullable=False),  # answers with unknown cost
    sqlite_with_rowid=False,
)

# Latencies as counts in bins, see `accounting.latency_bins`.
latency_counts = Table(
    "latency_counts",
    metadata,
    Column("quarter", Integer, primary_key=True, autoincrement=False),
    Column("group_id", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Integer, primary_key=True, autoincrement=False),  # see `rollups.LATENCIES`
    Column("bin", Integer, primary_key=True, autoincrement=False),
    Column("answers", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Usage charged to quotas, by day and subject (`user:…`, `key:…` or `budget:…`); updated with the
# rows.
quota_totals = Table(
    "quota_totals",
    metadata,
    Column("day", _text(10), primary_key=True),
    Column("subject", _text(210), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("cost_nano_usd", BigInteger, nullable=False),
)

# Signed accounts of answers: see `accounting.receipts`.
receipts = Table(
    "receipts",
    metadata,
    Column("id", _text(36), primary_key=True),
    Column("answer_id", _text(36), nullable=False),
    Column("user_id", _text(200), nullable=False),
    Column("number", BigInteger, nullable=False),  # 1, 2, … of the user
    Column("created_at", UtcDateTime, nullable=False),
    Column("receipt", _text(), nullable=False),  # a compact JWS
    Column("nonce", _text(36)),  # None: the texts are erased
    UniqueConstraint("user_id", "number"),
    Index(None, "answer_id", "number"),
)

# The public keys of all receipts. The private ones are in the data directories of the replicas.
receipt_keys = Table(
    "receipt_keys",
    metadata,
    Column("id", _text(50), primary_key=True),  # the thumbprint, which is `kid`
    Column("public", JSON, nullable=False),  # as a JWK
    Column("created_at", UtcDateTime, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", _text(200), primary_key=True),
    Column("disabled", Boolean, nullable=False),
    Column("plan", _text(50)),  # None: the plan named `default`, if it exists
    Column("limits", JSON),  # override those of the plan
    Column("created_at", UtcDateTime, nullable=False),
)

plans = Table(
    "plans",
    metadata,
    Column("name", _text(50), primary_key=True),
    Column("limits", JSON, nullable=False),
    Column("prepaid", Boolean, nullable=False, server_default=sa.false()),
    Column("markup", _text(20)),  # factor of the cost, a decimal number; None: nothing is charged
)

# The ledger of wallets; entries are only added, which triggers enforce. See `billing.ledger`.
ledger_entries = Table(
    "ledger_entries",
    metadata,
    Column("seq", _Count, primary_key=True, autoincrement=True),
    Column("id", _text(36), nullable=False, unique=True),  # UUIDv7
    Column("user_id", _text(200), nullable=False),
    Column("kind", _text(10), nullable=False),  # see `billing.ledger.EntryKind`
    Column("amount_nano_usd", BigInteger, nullable=False),  # never 0
    Column("cause", _text(300), nullable=False, unique=True),
    Column("note", _text(500)),
    Column("created_at", UtcDateTime, nullable=False),
    sa.CheckConstraint("amount_nano_usd <> 0", name="amount"),
    Index(None, "user_id", "seq"),
    sqlite_autoincrement=True,
)

# The sum of a user's entries, updated in the transaction of the entries.
wallets = Table(
    "wallets",
    metadata,
    Column("user_id", _text(200), primary_key=True),
    Column("balance_nano_usd", BigInteger, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("credit_id", _text(36)),  # the entry of the latest credit
)

# Amounts per window, see `core.budgets`.
budgets = Table(
    "budgets",
    metadata,
    Column("id", _text(36), primary_key=True),
    Column("name", _text(50), nullable=False, unique=True),
    Column("subject", _text(210), nullable=False),  # see `budgets.store.Budget`
    Column("amount_nano_usd", BigInteger, nullable=False),
    Column("period", _text(5), nullable=False),  # day, month
    Column("thresholds", JSON, nullable=False),  # percentages
    Column("action", _text(10), nullable=False),  # alert, refuse
    Column("created_at", UtcDateTime, nullable=False),
)

# Alerts: one for each budget, window and threshold. They are also the outbox of the webhook.
budget_alerts = Table(
    "budget_alerts",
    metadata,
    Column("id", _text(36), primary_key=True),
    Column("budget_id", _text(36), nullable=False),  # the budget may have been deleted
    Column("window_start", UtcDateTime, nullable=False),
    Column("threshold", Integer, nullable=False),
    Column("body", _text(), nullable=False),  # the JSON that receivers get
    Column("created_at", UtcDateTime, nullable=False),
    Column("state", _text(10), nullable=False),  # see `budgets.outbox.AlertState`
    Column("attempts", Integer, nullable=False),  # deliveries that were begun
    Column("next_at", UtcDateTime),  # of the next delivery; None: there is none
    Column("delivered_at", UtcDateTime),
    Column("error", _text(200)),  # of the last delivery
    UniqueConstraint("budget_id", "window_start", "threshold"),
    Index(None, "state", "next_at"),
)

# Which user is billed as which customer at Stripe, see `core.billing.customers`.
billing_customers = Table(
    "billing_customers",
    metadata,
    Column("id", _text(36), primary_key=True),
    Column("user_id", _text(200), nullable=False),
    Column("stripe_customer_id", _text(210), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),  # None: in force
    Index(None, "user_id", "ended_at"),
)

# Meter events: differences of the usage of a customer in an hour, and their outbox.
billing_events = Table(
    "billing_events",
    metadata,
    Column("id", _text(100), primary_key=True),  # the identifier at Stripe
    Column("customer_id", _text(36), nullable=False),
    Column("hour", UtcDateTime, nullable=False),
    Column("number", Integer, nullable=False),
    Column("value_nano_usd", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("state", _text(10), nullable=False),  # see `billing.meter_events.EventState`
    Column("attempts", Integer, nullable=False),  # that were begun
    Column("first_attempt_at", UtcDateTime),  # of the first one whose result is unknown
    Column("next_at", UtcDateTime),  # of the next attempt; None: there is none
    Column("ended_at", UtcDateTime),  # when it was delivered or went to review
    Column("error", _text(200)),
    UniqueConstraint("customer_id", "hour", "number"),
    Index(None, "state", "next_at"),
    Index(None, "hour"),
)

# As which customer at Stripe a user pays for top-ups, see `core.billing.payers`.
billing_payers = Table(
    "billing_payers",
    metadata,
    Column("user_id", _text(200), primary_key=True),
    Column("request_key", _text(36), nullable=False),  # of the creation of the customer
    Column("requested_at", UtcDateTime, nullable=False),
    Column("stripe_customer_id", _text(210), unique=True),  # None: it is being created
)

# Events from Stripe, to be processed once.
billing_inbox = Table(
    "billing_inbox",
    metadata,
    Column("id", _text(255), primary_key=True),
    Column("type", _text(100), nullable=False),
    Column("object_id", _text(255)),  # of the object that the event is about
    Column("received_at", UtcDateTime, nullable=False),
    Column("state", _text(10), nullable=False),  # see `billing.inbox.InboxState`
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcDateTime),
    Column("error", _text(200)),
    Index(None, "state", "next_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _text(36), primary_key=True),
    # Hexadecimal SHA-256 of the key; the key itself is not stored.
    Column("hash", _text(64), nullable=False, unique=True),
    Column("prefix", _text(16), nullable=False),  # first characters of the key, for people
    Column("name", _text(100), nullable=False),
    Column("user_id", _text(200), ForeignKey("users.id"), nullable=False),
    Column("role", _text(10), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("limits", JSON),  # apply in addition to those of the user
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column("replaced_by", _text(36)),  # the id of the key that a rotation created
    Column("made_by", _text(36)),  # the id of the key that created this one
    # The id of the first key of the chain of rotations, which quotas are charged to.
    Column("lineage", _text(36), nullable=False, server_default=""),
    Index(None, "user_id", "id"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("hash", _text(64), primary_key=True),  # SHA-256 of the cookie's value
    Column("user_id", _text(200), nullable=False),
    Column("role", _text(10), nullable=False),
    Column("scopes", JSON, nullable=False),
    # The credential that was exchanged for the session, which ends with it.
    Column("origin", _text(100), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Index(None, "expires_at"),
)

# Who did what; entries are only added, which triggers enforce. See `core/audit_log.py`.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", _text(36), primary_key=True),  # UUIDv7
    Column("created_at", UtcDateTime, nullable=False),
    Column("action", _text(50), nullable=False),
    Column("actor", _text(200), nullable=False),  # a user id
    Column("credential", _text(20), nullable=False),  # the kind of the actor's credential
    Column("key_id", _text(36)),  # the actor's API key
    Column("user_id", _text(200)),  # whom it is about; None: all users, or a plan
    Column("target_kind", _text(20), nullable=False),
    Column("target_id", _text(200)),
    Column("detail", JSON, nullable=False),
    Column("request_id", _text(64)),
    Index(None, "action", "id"),
    Index(None, "actor", "id"),
    Index(None, "user_id", "id"),
)

documents = Table(
    "documents",
    metadata,
    Column("id", _text(36), primary_key=True),
    Column("user_id", _text(200), nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("title", _text(300), nullable=False),
    Column("content_hash", _text(64), nullable=False),  # SHA-256 of the text, hexadecimal
    Column("text", _text(), nullable=False),
    Column("characters", Integer, nullable=False),
    Column("chunks", Integer, nullable=False),
    Column("encoding", _text(20), nullable=False),
    Column("format", _text(20), nullable=False, server_default="text"),
    Column("pages", Integer),  # their number; None: the format has no pages
    Column("date", Date),  # of the content: from the file, or set by its owner
    # The path or URL that the uploader gave. An upload replaces the documents of its source.
    Column("source", _text(1000)),
    Column("file_hash", _text(64)),  # SHA-256 of the uploaded file, hexadecimal
    Column("tags", _text(), nullable=False, server_default=""),  # see `documents.tags`
    Column("created_at", UtcDateTime, nullable=False),
    # `library.index_name` when the chunks and terms were created.
    Column("indexed_by", _text(200), nullable=False, server_default=""),
    Column("file_name", _text(200)),  # of the file in `original_parts`
    Column("original_bytes", _Integer),  # its size; None: it is not stored
    UniqueConstraint("user_id", "content_hash"),
    Index(None, "user_id", "source"),
)
Index(
    "ix_documents_user_id_original_bytes",
    documents.c.user_id,
    documents.c.original_bytes,
    sqlite_where=documents.c.original_bytes.is_not(None),
    postgresql_where=documents.c.original_bytes.is_not(None),
)

# The uploaded files of documents (`documents/originals.py`).
original_parts = Table(
    "original_parts",
    metadata,
    Column(
        "document_id", _text(36), ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("n", Integer, primary_key=True),  # 0, 1, …
    Column("content", LargeBinary, nullable=False),
)

chunks = Table(
    "chunks",
    metadata,
    Column("id", _Count, primary_key=True, autoincrement=True),
    Column(
        "document_id", _text(36), ForeignKey("documents.id", ondelete="CASCADE"), nullable=False
    ),
    Column("n", Integer, nullable=False),  # 1, 2, … within the document
    Column("start", Integer, nullable=False),  # offset in the document's text, in characters
    Column("end", Integer, nullable=False),
    Column("text", _text(), nullable=False),
    Column("words", _text(), nullable=False),  # terms in order, separated by spaces
    Column("grams", _text(), nullable=False),
    # SHA-256 of the text, the key in `vectors`; None until the document is reindexed.
    Column("content_hash", _text(64)),
    # `index_scopes.id`; the default makes a chunk invisible. Sharing a document changes it.
    Column("scope", Integer, nullable=False, server_default="-1"),
    Column("page", Integer),  # on which the chunk begins; None: the document has no pages
    UniqueConstraint("document_id", "n"),
    Index(None, "scope", "content_hash"),  # the chunks of a vector
    sqlite_autoincrement=True,
)

# The scopes of the search index: that of shared documents (id 0, no user), and one per owner of
# others. Triggers update them with the chunks: their number, that of their terms, and a version
# that every change increments.
index_scopes = Table(
    "index_scopes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("user_id", _text(200), unique=True),
    Column("version", BigInteger, nullable=False),
    Column("chunks", BigInteger, nullable=False),
    Column("terms", BigInteger, nullable=False),  # words and grams, with repetitions
    # Incremented from time to time while vectors are added (`core/search/embeddings.py`).
    Column("vectors", BigInteger, nullable=False, server_default="0"),
    sqlite_autoincrement=True,
)

# Cache of embedding vectors, by the hash of the text. Each scope has its own: otherwise the time
# when a text has its vector would reveal whether another user has the same text.
vectors = Table(
    "vectors",
    metadata,
    Column("scope", Integer, primary_key=True),
    Column("content_hash", _text(64), primary_key=True),
    Column("model", _text(200), primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # little-endian float32, of length 1
)
