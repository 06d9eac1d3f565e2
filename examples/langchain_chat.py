"""Ask a question with LangChain and print the answer."""

import os

from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="kotae/extractive",
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
)
for chunk in model.stream("How long can I return a product?"):
    print(chunk.text, end="")
print()
