"""Cases of pydantic-ai, which validates every member of an answer."""

from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from serving import serve

MODELS = {
    "chat": OpenAIChatModel("fake-model"),
    "responses": OpenAIResponsesModel("fake-model"),
    "grounded": OpenAIChatModel("kotae/fake-model"),
}


class Weather(BaseModel):
    """Get the weather."""

    city: str


def get_weather(city: str) -> str:
    """Get the weather."""
    return f"sunny in {city}"


def describe(result: Any) -> dict[str, Any]:
    """The result of a run: its last answer, and the sum of the tokens of all."""
    usage = result.usage() if callable(result.usage) else result.usage
    response = result.all_messages()[-1]
    return {
        "id": getattr(response, "provider_response_id", None),
        "text": result.output if isinstance(result.output, str) else None,
        "tokens": [usage.input_tokens, usage.output_tokens],
    }


async def run(model: str, **options: Any) -> dict[str, Any]:
    """Run an agent."""
    return describe(await Agent(MODELS[model], retries=0, **options).run("What is the zebra code?"))


async def stream(model: str) -> dict[str, Any]:
    """Read a stream."""
    async with Agent(MODELS[model], retries=0).run_stream("What is the zebra code?") as result:
        text = await result.get_output()
        usage = result.usage() if callable(result.usage) else result.usage
        return {"text": text, "tokens": [usage.input_tokens, usage.output_tokens]}


async def parse() -> dict[str, Any]:
    """Parse a structured output, which is the arguments of a function."""
    result = await Agent(MODELS["chat"], output_type=Weather, retries=0).run(
        "What is the zebra code?"
    )
    return {"parsed": result.output.model_dump()}


serve(
    {
        "plain": lambda: run("chat"),
        "stream": lambda: stream("chat"),
        "tool_loop": lambda: run("chat", tools=[get_weather]),
        "parse": parse,
        "grounded": lambda: run("grounded"),
        "responses": lambda: run("responses"),
        "responses_stream": lambda: stream("responses"),
        "responses_tool_loop": lambda: run("responses", tools=[get_weather]),
        "error": lambda: run("chat"),
    }
)
