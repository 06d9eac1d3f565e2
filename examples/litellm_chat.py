"""Ask a question with LiteLLM's SDK and print the answer with its sources."""

import os

import litellm

completion = litellm.completion(
    model="openai/kotae/extractive",
    api_base=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
    messages=[{"role": "user", "content": "How long can I return a product?"}],
)
message = completion.choices[0].message
print(message.content)
for annotation in message.annotations or []:
    print(annotation["url_citation"]["title"], annotation["url_citation"]["url"])
