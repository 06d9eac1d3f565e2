"""The tools of the Model Context Protocol: `search` and `ask`.

The package `mcp` serves protocol 2026-07-28, in which every request stands alone, and for older
clients the revisions with a handshake, without sessions. Each request has its own session manager,
so nothing outlives it. Imported at the first request.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from service import __version__
from service.api.answers import build_request
from service.api.documents import search_visible
from service.api.openai.flow import get_documents_url
from service.api.schemas import AskBody, DocumentIds, ModelName, NotBlank, Tags
from service.core.answering.answers import create_problem
from service.core.auth import principals
from service.core.auth.principals import Principal, Role
from service.core.errors import KotaeError
from service.core.pricing import format_usd
from service.core.records import Outcome

PRINCIPAL = "kotae.principal"  # in the scope: the caller, whom the route has authenticated
INSTRUCTIONS = (
    "Documents of this organization. `ask` answers a question from them and cites its sources; "
    "`search` returns passages without an answer. Say so if neither finds anything relevant."
)


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")
    documents: Annotated[
        DocumentIds | None, Field(description="Only these documents: their ids")
    ] = None
    tags: Annotated[Tags | None, Field(description="Only documents with one of these tags")] = None


class SearchArguments(_Arguments):
    """Arguments of `search`."""

    query: Annotated[NotBlank, Field(description="A question or words, in any language")]
    limit: Annotated[int, Field(ge=1, le=50, description="Number of passages")] = 10


class AskArguments(_Arguments):
    """Arguments of `ask`."""

    question: Annotated[NotBlank, Field(description="A complete question, in any language")]
    model: Annotated[ModelName | None, Field(description="Default: the service's")] = None


class FoundPassage(BaseModel):
    """A passage that matches a query. `sentence`: the one that matches best."""

    document_id: str
    title: str
    url: str
    text: str
    sentence: str
    score: float


class SearchOutput(BaseModel):
    """Passages, best first. `answerable`: whether they can answer the query."""

    answerable: bool
    passages: list[FoundPassage]


class CitedSource(BaseModel):
    """A passage that the answer cites as `[n]`."""

    n: int
    document_id: str
    title: str
    url: str
    text: str


class AskOutput(BaseModel):
    """An answer. `status`: `completed`, or `no_context` if the documents do not contain it.

    `id`: of its row in the log. `cost_usd`: null if it is unknown.
    """

    id: str
    status: str
    answer: str
    sources: list[CitedSource]
    model: str
    total_tokens: int | None
    cost_usd: str | None


async def _search(arguments: SearchArguments, request: Request) -> tuple[str, BaseModel]:
    principal: Principal = request.scope[PRINCIPAL]
    principal.require_scope(Role.USER, principals.Scope.DOCUMENTS)
    results = await search_visible(
        request.state.services,
        principal,
        arguments.query,
        limit=arguments.limit,
        documents=arguments.documents,
        tags=arguments.tags,
    )
    documents_url = get_documents_url(request)
    output = SearchOutput(
        answerable=results.answerable,
        passages=[
            FoundPassage(
                document_id=hit.document_id,
                title=hit.title,
                url=f"{documents_url}{hit.document_id}",
                text=hit.text,
                sentence=hit.text[slice(*hit.sentence)],
                score=hit.score,
            )
            for hit in results.items
        ],
    )
    return output.model_dump_json(), output


async def _ask(arguments: AskArguments, request: Request) -> tuple[str, BaseModel]:
    services, principal = request.state.services, request.scope[PRINCIPAL]
    principal.require_scope(Role.USER, principals.Scope.ASK)
    body = AskBody(
        prompt=arguments.question,
        model=arguments.model,
        documents=arguments.documents,
        tags=arguments.tags,
    )
    with services.open_requests.hold(principal.user_id):
        answer_request = await build_request(body, request, services, principal, stream=False)
        stream = await services.answers.answer(answer_request)
        try:
            outcome = await stream.wait_finished()
        except KotaeError as error:
            error.extra["answer_id"] = stream.intent.id
            raise
    output = _build_output(outcome, get_documents_url(request))
    lines = [f"[{source.n}] {source.title}: {source.url}" for source in output.sources]
    return "\n\n".join([output.answer, "\n".join(lines)] if lines else [output.answer]), output


def _build_output(outcome: Outcome, documents_url: str) -> AskOutput:
    cost = outcome.cost_nano_usd
    return AskOutput(
        id=outcome.intent.id,
        status=outcome.status,
        answer=outcome.response,
        sources=[
            CitedSource(
                n=source.n,
                document_id=source.document_id,
                title=source.title,
                url=f"{documents_url}{source.document_id}",
                text=source.text,
            )
            for source in outcome.sources
        ],
        model=outcome.intent.model,
        total_tokens=None if outcome.usage is None else outcome.usage.total_tokens,
        cost_usd=None if cost is None else format_usd(cost),
    )


_Call = Callable[[Any, Request], Awaitable[tuple[str, BaseModel]]]
_TOOLS: dict[str, tuple[str, type[_Arguments], type[BaseModel], _Call]] = {
    "search": (
        "Find passages of the documents. Returns their text, title and URL, best first.",
        SearchArguments,
        SearchOutput,
        _search,
    ),
    "ask": (
        "Answer a question from the documents, with citations like [1] of the returned sources.",
        AskArguments,
        AskOutput,
        _ask,
    ),
}
_LISTED = ListToolsResult(
    tools=[
        Tool(
            name=name,
            description=description,
            input_schema=arguments.model_json_schema(),
            output_schema=output.model_json_schema(),
            annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False),
        )
        for name, (description, arguments, output, _) in _TOOLS.items()
    ]
)


async def _list_tools(
    _context: ServerRequestContext[Any, Any], _params: PaginatedRequestParams | None
) -> ListToolsResult:
    return _LISTED


async def _call_tool(
    context: ServerRequestContext[Any, Request], params: CallToolRequestParams
) -> CallToolResult:
    """Call a tool. Its errors are results, so that the model can read them."""
    if params.name not in _TOOLS:
        raise MCPError(INVALID_PARAMS, f"there is no tool {params.name!r}")
    _, arguments_type, _, call = _TOOLS[params.name]
    request = context.request
    assert request is not None  # noqa: S101 - the transport is HTTP
    try:
        arguments = arguments_type.model_validate(params.arguments or {})
        text, output = await call(arguments, request)
    except ValidationError as invalid:
        errors = invalid.errors(include_input=False, include_url=False, include_context=False)
        places = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in errors]
        return _create_error("Invalid arguments: " + "; ".join(places))
    except KotaeError as error:
        problem = create_problem(error, request.scope["request_id"])
        return _create_error(f"{error.title}: {error.detail}", problem)
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=output.model_dump(mode="json"),
    )


def _create_error(text: str, problem: dict[str, Any] | None = None) -> CallToolResult:
    """A failed call. `_meta` has the problem, with its code and the time until a retry."""
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        is_error=True,
        _meta=None if problem is None else {"kotae/problem": problem},
    )


_server: Server[Any] = Server(
    "kotae",
    title="Kotae",
    version=__version__,
    instructions=INSTRUCTIONS,
    on_list_tools=_list_tools,
    on_call_tool=_call_tool,
)


async def serve_message(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one HTTP request of a client, with one JSON response."""
    manager = StreamableHTTPSessionManager(_server, stateless=True, json_response=True)
    async with manager.run():
        await manager.handle_request(scope, receive, send)
