"""Conversion between rows of the log and the objects of `records`.

A row that cannot be read completely becomes a `DamagedAnswer`, which says what is missing.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import RowMapping

from service.core.database.damaged_rows import (
    Column,
    KeyedRow,
    StoredValue,
    read_rows,
    read_stored_values,
    report_damaged_row,
)
from service.core.database.engine import ReadSession
from service.core.database.failures import DamagedValue, load_json
from service.core.database.tables import attempts, request_logs
from service.core.encoding import read_id_time
from service.core.errors import AnswerDamaged
from service.core.pricing import Usage, format_markup, format_usd
from service.core.records import (
    RANKS,
    Answer,
    Attempt,
    DamagedAnswer,
    Intent,
    Outcome,
    create_attempt_object,
)

LoggedAnswer = Answer | DamagedAnswer
"""A row of the log."""

_SEQ, _ID, _COST = request_logs.c.seq, request_logs.c.id, request_logs.c.cost_nano_usd
_TYPES = {field.name: field.type for field in msgspec.structs.fields(Answer)}
_TEXTS = (str, str | None, str | msgspec.UnsetType)
_CHARGE = request_logs.c.charge_nano_usd
_DERIVED = ("total_tokens", "estimated_cost", "charge")
_ELSEWHERE = ("attempt_list",)  # in the table of attempts
OMITTED_IN_LISTS = ("nearest", "searched_for", "messages", "choices")  # long, and rarely read
_BOOLEANS = {0: False, 1: True}
# The type of the column would convert any value to a boolean.
_GROUNDED = sa.type_coerce(request_logs.c.grounded, sa.Integer).label("grounded")
ANSWER_COLUMNS: list[Column] = [
    _SEQ,
    *(request_logs.c[name] for name in _TYPES if name not in (*_DERIVED, *_ELSEWHERE, "grounded")),
    _GROUNDED,
    _COST,
    _CHARGE,
]
LISTED_COLUMNS = [column for column in ANSWER_COLUMNS if column.name not in OMITTED_IN_LISTS]
_DAMAGED, _WRONG_TYPE = "the log row of this answer is damaged", "a value has the wrong type"
# What erasure removes: the texts, and the hash of a request, from which a text can be guessed.
ERASED_VALUES: dict[str, Any] = {
    "prompt": "",
    "response": "",
    "sources": [],
    "nearest": None,
    "searched_for": None,
    "choices": None,
    "request_body": None,
    "messages": None,
    "body_hash": None,
}
_NO_COUNTS: dict[str, Any] = dict.fromkeys(Usage.__struct_fields__)
_UNUSABLE = (msgspec.ValidationError, ValueError, TypeError)
_UNREADABLE = (AnswerDamaged, DamagedValue)


def build_row(outcome: Outcome) -> dict[str, Any]:
    """Build the row of an outcome."""
    intent, usage = outcome.intent, outcome.usage
    row = {
        "id": intent.id,
        "created_at": intent.created_at,
        "user_id": intent.user_id,
        "endpoint": intent.endpoint,
        "model": intent.model,
        "status": outcome.status,
        "finish_reason": outcome.finish_reason,
        "error_code": outcome.error_code,
        "prompt": intent.prompt,
        "response": outcome.response,
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "completion_tokens": usage.completion_tokens if usage else None,
        "cached_tokens": usage.cached_tokens if usage else None,
        "reasoning_tokens": usage.reasoning_tokens if usage else None,
        "usage_source": outcome.usage_source,
        "cost_nano_usd": outcome.cost_nano_usd,
        "price": outcome.price,
        "response_time_ms": outcome.response_time_ms,
        "first_token_ms": outcome.first_token_ms,
        "grounded": intent.grounded,
        "sources": msgspec.to_builtins(outcome.sources),
        "nearest": msgspec.to_builtins(outcome.nearest),
        "choices": outcome.choices,
        "attempts": outcome.attempts,
        "request_id": intent.request_id,
        "rank": get_rank(outcome),
        "idempotency_key": intent.idempotency_key,
        "body_hash": intent.body_hash,
        "relevance_share": intent.relevance_share,
        "relevance_terms": intent.relevance_terms,
        "relevance_cosine": intent.relevance_cosine,
        "searched_for": intent.searched_for,
        "key_id": intent.key_id,
        "asked_by": intent.asked_by,
        "held_tokens": intent.held_tokens,
        "held_nano_usd": intent.held_nano_usd,
        "conversation_id": intent.conversation_id,
        "messages": msgspec.to_builtins(intent.messages),
        "request_body": intent.request_body,
        "provider": outcome.provider,
        "provider_model": outcome.provider_model,
        "erased_at": None,
        "markup": None,
        "charge_nano_usd": outcome.charge_nano_usd,
        "prepaid": None,
    }
    if (terms := intent.terms) is not None:
        row["prepaid"] = terms.prepaid
        row["markup"] = None if terms.markup is None else format_markup(terms.markup)
    if not intent.stored:
        row |= ERASED_VALUES | {"erased_at": intent.created_at}
    return row


def build_attempt_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Build the rows of the attempts of an outcome; none if there is only one."""
    rows = []
    for n, attempt in enumerate(outcome.attempt_list or (), 1):
        row = {"answer_id": outcome.intent.id, "n": n, **msgspec.structs.asdict(attempt)}
        usage = row.pop("usage")
        rows.append(row | (msgspec.structs.asdict(usage) if usage else _NO_COUNTS))
    return rows


def get_rank(outcome: Outcome) -> int:
    """The completeness of the usage, see `RANKS`."""
    return RANKS[outcome.usage_source]


async def read_answers(
    session: ReadSession, query: sa.Select[Any], *, user_id: str | None
) -> list[LoggedAnswer]:
    """Run a query that selects `ANSWER_COLUMNS` or `LISTED_COLUMNS`.

    `user_id`: the only user whose rows are expected. Of a damaged row that belongs to another user,
    nothing but its id is returned.
    """

    def read(connection: sa.Connection) -> list[LoggedAnswer]:
        rows = read_rows(connection, query, _SEQ, _ID)
        columns = [column for column in ANSWER_COLUMNS if column.name in query.selected_columns]
        # The names are a subclass of str, which msgspec does not accept.
        names = [str(column.name) for column in query.selected_columns]
        items = [_convert_row(connection, keyed, names, columns, user_id) for keyed in rows]
        return _add_attempts(connection, items)

    return await session.run_sync(read)


def _add_attempts(connection: sa.Connection, items: list[LoggedAnswer]) -> list[LoggedAnswer]:
    """Add the attempts of answers with more than one. Damage affects only its own answer."""
    listed = [item.id for item in items if item.provider and (item.attempts or 0) > 1]
    if not listed:
        return items
    by_answer: dict[str, list[Attempt] | None]
    try:
        by_answer = dict(read_attempts(connection, listed))
    except _UNREADABLE:
        by_answer = {id_: _read_attempts_of(connection, id_) for id_ in listed}
    return [_add_list(item, by_answer) for item in items]


def _add_list(item: LoggedAnswer, by_answer: Mapping[str, list[Attempt] | None]) -> LoggedAnswer:
    if item.id not in by_answer:
        return item
    if (attempt_list := by_answer[item.id]) is not None:
        objects = [create_attempt_object(attempt) for attempt in attempt_list]
        return msgspec.structs.replace(item, attempt_list=objects)
    damaged = [*(item.damaged if isinstance(item, DamagedAnswer) else ()), "attempt_list"]
    fields = msgspec.structs.asdict(item) | {"attempt_list": None, "damaged": damaged}
    return DamagedAnswer(**fields)


def _read_attempts_of(connection: sa.Connection, answer_id: str) -> list[Attempt] | None:
    """The attempts of an answer; None if they cannot be read."""
    try:
        return read_attempts(connection, [answer_id]).get(answer_id, [])
    except _UNREADABLE:
        return None


def read_attempts(connection: sa.Connection, ids: Sequence[str]) -> dict[str, list[Attempt]]:
    """Read the attempts of answers, in order. Raises `AnswerDamaged`."""
    by_answer: dict[str, list[Attempt]] = {}
    if not ids:
        return by_answer
    query = (
        sa.select(attempts)
        .where(attempts.c.answer_id.in_(ids))
        .order_by(attempts.c.answer_id, attempts.c.n)
    )
    for row in connection.execute(query).mappings():
        by_answer.setdefault(row["answer_id"], []).append(convert_attempt(row))
    return by_answer


def convert_attempt(row: Mapping[Any, Any]) -> Attempt:
    """The attempt of a row. Raises `AnswerDamaged`."""
    fields: dict[str, Any] = {str(name): value for name, value in row.items()}
    try:
        usage = msgspec.convert(fields, Usage) if fields["prompt_tokens"] is not None else None
        return msgspec.convert(fields | {"usage": usage}, Attempt)
    except _UNUSABLE as error:
        raise AnswerDamaged("an attempt of this answer is damaged") from error


async def read_outcome(session: ReadSession, *where: sa.ColumnElement[bool]) -> Outcome | None:
    """Read the outcome of one answer; None without a row. Raises `AnswerDamaged`."""

    def read(connection: sa.Connection) -> Outcome | None:
        for keyed in read_rows(connection, sa.select(request_logs).where(*where), _SEQ, _ID):
            if (row := require_readable(keyed)) is not None:
                try:
                    return _build_outcome(connection, row)
                except _UNUSABLE as error:
                    report_damaged_row(connection, _SEQ, keyed.key, _WRONG_TYPE)
                    raise AnswerDamaged(_DAMAGED) from error
        return None

    return await session.run_sync(read)


def require_readable(keyed: KeyedRow) -> RowMapping:
    """The row. Raises `AnswerDamaged` if it cannot be read."""
    if keyed.row is None:
        raise AnswerDamaged(_DAMAGED)
    return keyed.row


def _build_outcome(connection: sa.Connection, row: RowMapping) -> Outcome:
    fields: dict[str, Any] = {str(name): value for name, value in row.items()}
    usage = msgspec.convert(fields, Usage) if fields["prompt_tokens"] is not None else None
    listed = fields["provider"] is not None and fields["attempts"] > 1
    by_answer = read_attempts(connection, [fields["id"]] if listed else [])
    return msgspec.convert(
        fields
        | {
            "intent": msgspec.convert(fields, Intent),
            "usage": usage,
            "attempt_list": by_answer.get(fields["id"]),
        },
        Outcome,
    )


def _convert_row(
    connection: sa.Connection,
    keyed: KeyedRow,
    names: Sequence[str],
    columns: Sequence[Column],
    user_id: str | None,
) -> LoggedAnswer:
    """Convert a row. `names`: of its values, in their order."""
    if keyed.row is not None:
        try:
            return _build_answer(dict(zip(names, keyed.row.values(), strict=True)))
        except _UNUSABLE:
            report_damaged_row(connection, _SEQ, keyed.key, _WRONG_TYPE)
    stored = read_stored_values(connection, columns, request_logs.c.seq == keyed.key)
    return _build_damaged_answer(keyed, columns, stored, user_id)


def _build_answer(fields: dict[str, Any]) -> Answer:
    prompt, completion = fields["prompt_tokens"], fields["completion_tokens"]
    cost = fields[_COST.name]
    fields["total_tokens"] = None if None in (prompt, completion) else prompt + completion
    fields["estimated_cost"] = None if cost is None else format_usd(cost)
    if (charge := fields[_CHARGE.name]) is not None:
        fields["charge"] = format_usd(charge)
    fields["grounded"] = _BOOLEANS.get(fields["grounded"])
    for name in OMITTED_IN_LISTS:
        if fields.get(name, ...) is None:
            del fields[name]
    return msgspec.convert(fields, Answer)


def _build_damaged_answer(
    keyed: KeyedRow,
    columns: Sequence[Column],
    stored: Mapping[str, StoredValue],
    user_id: str | None,
) -> LoggedAnswer:
    answer_id = keyed.name.encode(errors="surrogateescape").decode(errors="replace")
    other_id = stored.get("id")
    is_other = isinstance(other_id, str) and other_id != answer_id and read_id_time(other_id)
    if is_other or user_id not in {None, stored.get("user_id")}:
        stored = {}  # the index leads to another row
    names = {*_DERIVED, *(column.name for column in columns)}
    expected = [name for name in Answer.__struct_fields__ if name in names]
    readable = _convert_stored_values(stored)
    values: dict[str, Any] = {
        name: _replace_undecodable(stored.get(name)) if _TYPES[name] in _TEXTS else None
        for name in expected
        if readable.get(name) is not msgspec.UNSET
    }
    values |= {"id": answer_id, "created_at": read_id_time(answer_id)}
    damaged = [name for name in expected if name not in readable]
    fields = {key: value for key, value in readable.items() if value is not msgspec.UNSET}
    if not damaged:  # it could not be read for a moment
        return msgspec.convert(fields, Answer)
    return msgspec.convert(values | fields | {"damaged": damaged}, DamagedAnswer)


def _convert_stored_values(stored: Mapping[str, StoredValue]) -> dict[str, Any]:
    """The fields of an answer that can be read."""
    values: dict[str, Any] = {}
    for name, value in stored.items():
        with suppress(*_UNUSABLE):
            if name == _CHARGE.name:
                charge = msgspec.convert(value, int | None)
                values["charge"] = msgspec.UNSET if charge is None else format_usd(charge)
            elif name == _COST.name:
                amount = msgspec.convert(value, int | None)
                values["estimated_cost"] = None if amount is None else format_usd(amount)
            elif name in _TYPES:
                values[name] = _convert_stored(name, value)
    with suppress(KeyError, TypeError):
        counts = values["prompt_tokens"], values["completion_tokens"]
        values["total_tokens"] = None if None in counts else sum(counts)
    return values


def _convert_stored(name: str, value: StoredValue) -> Any:
    """The value of a field. Raises `ValueError` or `TypeError`."""
    converted: Any = value
    if name in OMITTED_IN_LISTS and value is None:
        return msgspec.UNSET
    if name == "created_at" or (name == "erased_at" and value is not None):
        converted = datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
    elif name in {"sources", "nearest", "messages", "choices"}:
        converted = load_json(str(value))
    elif name == "grounded":
        converted = _BOOLEANS.get(value)  # type: ignore[arg-type]  # any value may be looked up
    return msgspec.convert(converted, _TYPES[name])


def _replace_undecodable(value: StoredValue) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else None
