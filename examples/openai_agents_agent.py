"""Ask a question with openai-agents and print the answer."""

import os

from agents import Agent, Runner, set_default_openai_client, set_tracing_disabled
from openai import AsyncOpenAI

set_tracing_disabled(disabled=True)  # traces would be sent to OpenAI
set_default_openai_client(
    AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "any"),
    )
)
agent = Agent("Assistant", model="openai/kotae/extractive")
print(Runner.run_sync(agent, "How long can I return a product?").final_output)
