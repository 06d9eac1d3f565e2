"""Cases of openai-agents: the Responses API by default, and chat completions."""

from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.models.openai_responses import OpenAIResponsesModel
from openai import AsyncOpenAI
from pydantic import BaseModel
from serving import serve

set_tracing_disabled(disabled=True)
client = AsyncOpenAI(max_retries=0)
MODELS: dict[str, Any] = {
    "responses": OpenAIResponsesModel("fake-model", client),
    "chat": OpenAIChatCompletionsModel("fake-model", client),
    "grounded": OpenAIChatCompletionsModel("kotae/fake-model", client),
}

QUESTION = "What is the zebra code?"


class Weather(BaseModel):
    """The weather of a city."""

    city: str


@function_tool
def get_weather(city: str) -> str:
    """Get the weather."""
    return f"sunny in {city}"


def describe(result: Any) -> dict[str, Any]:
    """The result of a run, with the tokens of all answers."""
    output, usage = result.final_output, result.context_wrapper.usage
    return {
        "text": output if isinstance(output, str) else None,
        "parsed": output.model_dump() if isinstance(output, Weather) else None,
        "tokens": [usage.input_tokens, usage.output_tokens],
    }


async def run(model: str, **options: Any) -> dict[str, Any]:
    """Run an agent."""
    return describe(await Runner.run(Agent("a", model=MODELS[model], **options), QUESTION))


async def stream(model: str, **options: Any) -> dict[str, Any]:
    """Run an agent and read its events."""
    settings = ModelSettings(include_usage=True)
    agent = Agent("a", model=MODELS[model], model_settings=settings, **options)
    result = Runner.run_streamed(agent, QUESTION)
    async for _ in result.stream_events():
        pass
    return describe(result)


cases: dict[str, Any] = {"grounded": lambda: run("grounded"), "error": lambda: run("chat")}
for name in ("chat", "responses"):
    cases |= {
        f"{name}_plain": lambda name=name: run(name),
        f"{name}_stream": lambda name=name: stream(name),
        f"{name}_tool_loop": lambda name=name: run(name, tools=[get_weather]),
        f"{name}_tool_loop_stream": lambda name=name: stream(name, tools=[get_weather]),
        f"{name}_parse": lambda name=name: run(name, output_type=Weather),
    }
serve(cases)
