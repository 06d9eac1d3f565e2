"""Start a response in the background and read its events; after a lost connection, continue."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
)
created = client.responses.create(
    model="kotae/extractive", input="How long can I return a product?", background=True
)
last = -1
for event in client.responses.retrieve(created.id, stream=True, starting_after=last):
    last = event.sequence_number  # continue with this number
    if event.type == "response.output_text.delta":
        print(event.delta, end="")
print()
