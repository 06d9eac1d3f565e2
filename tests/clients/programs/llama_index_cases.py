"""Cases of LlamaIndex."""

import os
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from serving import serve


def create_model(name: str = "fake-model") -> OpenAILike:
    """A model that can call functions."""
    return OpenAILike(
        model=name,
        api_base=os.environ["OPENAI_BASE_URL"],
        api_key=os.environ["OPENAI_API_KEY"],
        is_chat_model=True,
        is_function_calling_model=True,
        max_retries=0,
    )


model = create_model()
QUESTION = [ChatMessage(role="user", content="What is the zebra code?")]


class Weather(BaseModel):
    """Get the weather."""

    city: str


def get_weather(city: str) -> str:
    """Get the weather."""
    return f"sunny in {city}"


TOOL = FunctionTool.from_defaults(get_weather)


def describe(response: Any) -> dict[str, Any]:
    """The result of a chat."""
    raw = response.raw
    return {
        "id": raw.id,
        "text": response.message.content or None,
        "tokens": raw.usage and [raw.usage.prompt_tokens, raw.usage.completion_tokens],
    }


def call_tools(*, stream: bool = False) -> dict[str, Any]:
    """Let the model call a function."""
    if stream:
        *_, response = model.stream_chat_with_tools([TOOL], chat_history=QUESTION)
    else:
        response = model.chat_with_tools([TOOL], chat_history=QUESTION)
    calls = model.get_tool_calls_from_response(response)
    return {"tools": [[call.tool_name, call.tool_kwargs] for call in calls]}


def stream_chat() -> dict[str, Any]:
    """Read a stream."""
    *_, last = model.stream_chat(QUESTION)
    return {"text": last.message.content}


serve(
    {
        "plain": lambda: describe(model.chat(QUESTION)),
        "stream": stream_chat,
        "tools": call_tools,
        "tool_stream": lambda: call_tools(stream=True),
        "parse": lambda: {
            "parsed": model.as_structured_llm(Weather).chat(QUESTION).raw.model_dump()
        },
        "grounded": lambda: describe(create_model("kotae/fake-model").chat(QUESTION)),
        "error": lambda: model.chat(QUESTION),
    }
)
