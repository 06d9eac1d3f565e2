"""Ask a question with LlamaIndex and print the answer."""

import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

model = OpenAILike(
    model="kotae/extractive",
    api_base=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
    is_chat_model=True,
)
question = ChatMessage(role="user", content="How long can I return a product?")
print(model.chat([question]).message.content)
