// Ask a question as a stream and print the answer with its sources.
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "any",
});
const stream = await client.chat.completions.create({
  model: "kotae/extractive",
  messages: [{ role: "user", content: "How long can I return a product?" }],
  stream: true,
});
for await (const chunk of stream) {
  const { delta } = chunk.choices[0];
  process.stdout.write(delta.content ?? "");
  for (const { url_citation } of delta.annotations ?? []) {
    console.log(`\n${url_citation.title} ${url_citation.url}`);
  }
}
