// Cases of the Vercel AI SDK: its default model (the Responses API), chat, and the compatible provider.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText, tool } from "ai";
import { z } from "zod";
import { serve } from "./serving.mjs";

const options = { baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY };
const openai = createOpenAI(options);
const compatible = createOpenAICompatible({ name: "kotae", includeUsage: true, supportsStructuredOutputs: true, ...options });
const models = { responses: openai, chat: openai.chat, compatible };
const inputSchema = z.object({ city: z.string() });
const tools = { get_weather: tool({ description: "Get the weather.", inputSchema }) };

async function describe(result) {
  const [response, usage] = [await result.response, await result.usage];
  return {
    id: response.id,
    text: (await result.text) || null,
    tools: (await result.toolCalls).map((call) => [call.toolName, call.input]),
    sources: (await result.sources).map((source) => [source.title, source.url]),
    tokens: [usage.inputTokens, usage.outputTokens],
  };
}

const cases = {};
for (const [name, choose] of Object.entries(models)) {
  const ask = { model: choose("fake-model"), prompt: "What is the zebra code?", maxRetries: 0 };
  cases[`${name}_plain`] = async () => describe(await generateText(ask));
  cases[`${name}_stream`] = async () => describe(streamText({ ...ask, onError: () => {} }));
  cases[`${name}_tools`] = async () => describe(await generateText({ ...ask, tools }));
  cases[`${name}_tool_stream`] = async () => describe(streamText({ ...ask, tools }));
  cases[`${name}_parse`] = async () => {
    const result = await generateText({ ...ask, output: Output.object({ schema: inputSchema }) });
    return { ...(await describe(result)), parsed: result.output };
  };
  cases[`${name}_grounded`] = async () => describe(await generateText({ ...ask, model: choose("kotae/fake-model") }));
  cases[`${name}_error`] = async () => generateText(ask);
}
await serve(cases);
