"""Cases of LangChain."""

from typing import Any

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from serving import serve

chat = ChatOpenAI(model="fake-model", max_retries=0)
responses = ChatOpenAI(model="fake-model", max_retries=0, use_responses_api=True)
grounded = ChatOpenAI(model="kotae/fake-model", max_retries=0)


class Weather(BaseModel):
    """Get the weather."""

    city: str


@tool
def get_weather(city: str) -> str:
    """Get the weather."""
    return f"sunny in {city}"


def describe(message: Any) -> dict[str, Any]:
    """The result of a message."""
    usage = message.usage_metadata
    return {
        "id": message.response_metadata.get("id"),
        "text": str(message.text) or None,
        "tools": [[call["name"], call["args"]] for call in message.tool_calls],
        "tokens": usage and [usage["input_tokens"], usage["output_tokens"]],
    }


def stream(model: Any) -> dict[str, Any]:
    """Add up the chunks of a stream."""
    first, *rest = model.stream("What is the zebra code?")
    for chunk in rest:
        first += chunk
    return describe(first)


def parse() -> dict[str, Any]:
    """Parse a structured output."""
    model = chat.with_structured_output(Weather, include_raw=True)
    result: Any = model.invoke("What is the zebra code?")
    return describe(result["raw"]) | {"parsed": result["parsed"].model_dump()}


serve(
    {
        "plain": lambda: describe(chat.invoke("What is the zebra code?")),
        "stream": lambda: stream(ChatOpenAI(model="fake-model", stream_usage=True)),
        "tools": lambda: describe(chat.bind_tools([get_weather]).invoke("What is the zebra code?")),
        "tool_stream": lambda: stream(chat.bind_tools([get_weather])),
        "parse": parse,
        "grounded": lambda: describe(grounded.invoke("What is the zebra code?")),
        "responses": lambda: describe(responses.invoke("What is the zebra code?")),
        "responses_stream": lambda: stream(responses),
        "responses_tools": lambda: describe(
            responses.bind_tools([get_weather]).invoke("What is the zebra code?")
        ),
        "error": lambda: chat.invoke("What is the zebra code?"),
    }
)
