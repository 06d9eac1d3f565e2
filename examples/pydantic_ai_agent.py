"""Ask a question with pydantic-ai and print the answer."""

import os

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
)
agent = Agent(OpenAIChatModel("kotae/extractive", provider=provider))
print(agent.run_sync("How long can I return a product?").output)
