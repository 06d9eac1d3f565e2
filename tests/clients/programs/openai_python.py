"""Cases of openai-python."""

import json
from typing import Any

import openai
from pydantic import BaseModel
from serving import serve

client = openai.OpenAI(max_retries=0)
MODEL = "fake-model"
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "What is the zebra code?"}],
}


class Weather(BaseModel):
    """Get the weather."""

    city: str


TOOL = openai.pydantic_function_tool(Weather, name="get_weather")


def describe(completion: Any) -> dict[str, Any]:
    """The result of a chat completion."""
    message, usage = completion.choices[0].message, completion.usage
    return {
        "id": completion.id,
        "request_id": getattr(completion, "_request_id", None),
        "text": message.content,
        "tools": [
            [call.function.name, json.loads(call.function.arguments)]
            for call in message.tool_calls or ()
        ],
        "sources": [
            [note.url_citation.title, note.url_citation.url] for note in message.annotations or ()
        ],
        "tokens": usage and [usage.prompt_tokens, usage.completion_tokens],
    }


def stream() -> dict[str, Any]:
    """Read a stream with usage."""
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options=options))
    usage = chunks[-1].usage
    return {
        "id": chunks[0].id,
        "text": "".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        "tokens": usage and [usage.prompt_tokens, usage.completion_tokens],
    }


def stream_with_helper(**options: Any) -> dict[str, Any]:
    """Read a stream with the helper, which assembles the completion."""
    usage = {"include_usage": True}
    with client.chat.completions.stream(**ASK, **options, stream_options=usage) as events:
        return describe(events.get_final_completion())


def parse() -> dict[str, Any]:
    """Parse a structured output."""
    completion = client.chat.completions.parse(**ASK, response_format=Weather)
    parsed = completion.choices[0].message.parsed
    return describe(completion) | {"parsed": parsed and parsed.model_dump()}


def read_raw() -> dict[str, Any]:
    """Read the raw response with its headers."""
    raw = client.chat.completions.with_raw_response.create(**ASK)
    return describe(raw.parse()) | {"request_id": raw.headers["x-request-id"]}


def describe_response(response: Any) -> dict[str, Any]:
    """The result of a response."""
    return {
        "id": response.id,
        "request_id": getattr(response, "_request_id", None),
        "text": response.output_text or None,
        "tools": [
            [item.name, json.loads(item.arguments)]
            for item in response.output
            if item.type == "function_call"
        ],
        "tokens": [response.usage.input_tokens, response.usage.output_tokens],
    }


def respond(**options: Any) -> dict[str, Any]:
    """Create a response."""
    return describe_response(
        client.responses.create(model=MODEL, input="What is the zebra code?", **options)
    )


def stream_response() -> dict[str, Any]:
    """Read the events of a response with the helper."""
    with client.responses.stream(model=MODEL, input="What is the zebra code?") as events:
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        return describe_response(events.get_final_response()) | {"text": text}


RESPONSE_TOOL = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": Weather.model_json_schema() | {"additionalProperties": False},
}
serve(
    {
        "plain": lambda: describe(client.chat.completions.create(**ASK)),
        "stream": stream,
        "helper": stream_with_helper,
        "tools": lambda: describe(client.chat.completions.create(**ASK, tools=[TOOL])),
        "tool_stream": lambda: stream_with_helper(tools=[TOOL]),
        "parse": parse,
        "raw": read_raw,
        "grounded": lambda: describe(
            client.chat.completions.create(**ASK | {"model": f"kotae/{MODEL}"})
        ),
        "responses": respond,
        "responses_stream": stream_response,
        "responses_tools": lambda: respond(tools=[RESPONSE_TOOL]),
        "error": lambda: client.chat.completions.create(**ASK),
    }
)
