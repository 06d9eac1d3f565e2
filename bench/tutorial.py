"""A typical tutorial service for comparison: FastAPI around `AsyncOpenAI`, one commit per answer.

It follows good practice: one client for all requests, no session held during the provider call,
uvloop, no access log. It has no context, quota or resumption, and it loses the rows of clients that
disconnect.

    OPENAI_BASE_URL=http://127.0.0.1:9100/v1 OPENAI_API_KEY=x
        python bench/tutorial.py --port 8001 --database tutorial.db
"""

import argparse
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sse_starlette import EventSourceResponse

MODEL = "gpt-5-mini"


class Base(DeclarativeBase):
    """The tables."""


class RequestLog(Base):
    """The row of one answer."""

    __tablename__ = "request_logs"

    id: Mapped[str] = mapped_column(primary_key=True)
    prompt: Mapped[str]
    response: Mapped[str]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    estimated_cost: Mapped[float]
    response_time_ms: Mapped[int]
    endpoint: Mapped[str]
    model: Mapped[str]
    created_at: Mapped[datetime]


class AnswerRequest(BaseModel):
    """The request body."""

    prompt: str
    grounded: bool = True
    model: str = MODEL


class Answer(BaseModel):
    """The response body."""

    id: str
    response: str
    prompt_tokens: int
    completion_tokens: int
    estimated_cost: float
    response_time_ms: int
    model: str


def create_app(database: str) -> FastAPI:
    """Create the service."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{database}", connect_args={"timeout": 30})
    session_of = async_sessionmaker(engine, expire_on_commit=False)
    client = AsyncOpenAI()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            await connection.exec_driver_sql("PRAGMA synchronous=NORMAL")
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()
        await client.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/ai/test")
    async def test(request: AnswerRequest) -> Answer:
        started = time.perf_counter()
        completion = await client.chat.completions.create(
            model=request.model, messages=[{"role": "user", "content": request.prompt}]
        )
        text = completion.choices[0].message.content or ""
        log = new_log(request, text, completion.usage, started, "/ai/test")
        await save(session_of, log)
        return answer_of(log)

    @app.post("/ai/stream")
    async def stream(request: AnswerRequest) -> EventSourceResponse:
        async def events() -> AsyncIterator[dict[str, str]]:
            started = time.perf_counter()
            text, usage = "", None
            chunks = await client.chat.completions.create(
                model=request.model,
                messages=[{"role": "user", "content": request.prompt}],
                stream=True,
                stream_options={"include_usage": True},
            )
            async for chunk in chunks:
                usage = chunk.usage or usage
                if chunk.choices and (delta := chunk.choices[0].delta.content):
                    text += delta
                    yield {"data": json.dumps({"delta": delta})}
            log = new_log(request, text, usage, started, "/ai/stream")
            await save(session_of, log)
            yield {"event": "done", "data": answer_of(log).model_dump_json(exclude={"response"})}

        return EventSourceResponse(events())

    return app


def new_log(
    request: AnswerRequest, text: str, usage: Any, started: float, endpoint: str
) -> RequestLog:
    """Create the row of an answer."""
    return RequestLog(
        id=str(uuid.uuid4()),
        prompt=request.prompt,
        response=text,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        estimated_cost=usage.prompt_tokens * 0.25e-6 + usage.completion_tokens * 2e-6,
        response_time_ms=round((time.perf_counter() - started) * 1000),
        endpoint=endpoint,
        model=request.model,
        created_at=datetime.now(UTC),
    )


async def save(session_of: async_sessionmaker[AsyncSession], log: RequestLog) -> None:
    """Commit one row."""
    async with session_of() as session:
        session.add(log)
        await session.commit()


def answer_of(log: RequestLog) -> Answer:
    """Convert the row to the response body."""
    return Answer.model_validate(log, from_attributes=True)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(
        description="The tutorial-style service that Kotae is compared with."
    )
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--database", default="tutorial.db")
    options = parser.parse_args()
    uvicorn.run(
        create_app(options.database),
        port=options.port,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
