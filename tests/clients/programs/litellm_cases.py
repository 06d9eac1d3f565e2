"""Cases of LiteLLM's SDK."""

import json
from typing import Any

import litellm
from pydantic import BaseModel
from serving import serve

litellm.suppress_debug_info = True
ASK: dict[str, Any] = {
    "model": "openai/fake-model",
    "messages": [{"role": "user", "content": "What is the zebra code?"}],
    "num_retries": 0,
    "max_retries": 0,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Weather(BaseModel):
    """Get the weather."""

    city: str


def describe(completion: Any) -> dict[str, Any]:
    """The result of a completion."""
    message, usage = completion.choices[0].message, completion.usage
    return {
        "id": completion.id,
        "text": message.content,
        "tools": [
            [call.function.name, json.loads(call.function.arguments)]
            for call in message.tool_calls or ()
        ],
        "tokens": [usage.prompt_tokens, usage.completion_tokens],
    }


def stream(**options: Any) -> dict[str, Any]:
    """Assemble the chunks of a stream."""
    usage = {"include_usage": True}
    chunks = list(litellm.completion(**ASK, **options, stream=True, stream_options=usage))
    return describe(litellm.stream_chunk_builder(chunks))


def parse() -> dict[str, Any]:
    """Parse a structured output."""
    completion = litellm.completion(**ASK, response_format=Weather)
    return describe(completion) | {"parsed": json.loads(completion.choices[0].message.content)}


serve(
    {
        "plain": lambda: describe(litellm.completion(**ASK)),
        "stream": stream,
        "tools": lambda: describe(litellm.completion(**ASK, tools=[TOOL])),
        "tool_stream": lambda: stream(tools=[TOOL]),
        "parse": parse,
        "grounded": lambda: describe(
            litellm.completion(**ASK | {"model": "openai/kotae/fake-model"})
        ),
        "error": lambda: litellm.completion(**ASK),
    }
)
