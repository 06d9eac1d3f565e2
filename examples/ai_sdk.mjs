// Ask a question with the AI SDK and print the answer with its sources.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText } from "ai";

const kotae = createOpenAI({
  baseURL: process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1",
  apiKey: process.env.OPENAI_API_KEY ?? "any",
});
const { text, sources } = await generateText({
  model: kotae("kotae/extractive"),
  prompt: "How long can I return a product?",
});
console.log(text);
for (const source of sources) {
  console.log(source.title, source.url);
}
