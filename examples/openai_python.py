"""Ask a question and print the answer with its sources."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "any"),
)
completion = client.chat.completions.create(
    model="kotae/extractive",
    messages=[{"role": "user", "content": "How long can I return a product?"}],
)
message = completion.choices[0].message
print(message.content)
for annotation in message.annotations or []:
    print(annotation.url_citation.title, annotation.url_citation.url)
