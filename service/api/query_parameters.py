"""Query parameters of API routes: unknown and repeated ones are refused instead of ignored.

Values are validated by the routes. Public routes (pages, static files, health) and metrics accept
any query.
"""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic.fields import FieldInfo

PARAMETERS_MAX = 200  # in a query; a route has at most ten, some of which may be repeated


async def check_query(request: Request) -> None:
    """Refuse parameters that the route does not have. Raises `RequestValidationError`."""
    if not request.scope["query_string"]:
        return
    parameters = list_parameters(request.scope["route"])
    query = request.scope["query_string"].decode("latin-1")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=PARAMETERS_MAX)
    except ValueError:
        raise _refuse([_describe("", f"more than {PARAMETERS_MAX} parameters")]) from None
    names = [name for name, _ in pairs]
    unknown = [name for name in dict.fromkeys(names) if name not in parameters]
    valid = f"valid are {', '.join(sorted(parameters))}" if parameters else "this route has none"
    errors = [_describe(name, f"unknown parameter; {valid}") for name in unknown]
    errors += [
        _describe(name, "must not be repeated")
        for name, repeatable in parameters.items()
        if not repeatable and names.count(name) > 1
    ]
    if errors:
        raise _refuse(errors)


def list_parameters(route: APIRoute) -> dict[str, bool]:
    """The query parameters of a route by name, with whether they may be repeated."""
    return {
        field.alias: _is_repeatable(field.field_info) for field in _list_fields(route.dependant)
    }


def _list_fields(dependant: Any) -> Iterator[Any]:
    """The query parameters of a route and of its dependencies."""
    yield from dependant.query_params
    for dependency in dependant.dependencies:
        yield from _list_fields(dependency)


def _is_repeatable(field: FieldInfo) -> bool:
    return "list[" in str(field.annotation)


def refuse_parameter(name: str, message: str) -> RequestValidationError:
    """The error for a value that a route does not accept."""
    return _refuse([_describe(name, message)])


def _describe(name: str, message: str) -> dict[str, Any]:
    return {"loc": ("query", name) if name else ("query",), "msg": message}


def _refuse(errors: list[dict[str, Any]]) -> RequestValidationError:
    return RequestValidationError(errors)
