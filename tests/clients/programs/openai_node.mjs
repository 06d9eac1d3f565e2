// Cases of openai-node.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { serve } from "./serving.mjs";

const client = new OpenAI({ maxRetries: 0 });
const model = "fake-model";
const ask = { model, messages: [{ role: "user", content: "What is the zebra code?" }] };
const stream_options = { include_usage: true };
const schema = z.object({ city: z.string() });
const tools = [zodFunction({ name: "get_weather", parameters: schema })];

function describe(completion) {
  const { message } = completion.choices[0];
  const { usage } = completion;
  return {
    id: completion.id,
    request_id: completion._request_id ?? null,
    text: message.content,
    tools: (message.tool_calls ?? []).map((c) => [c.function.name, JSON.parse(c.function.arguments)]),
    sources: (message.annotations ?? []).map((a) => [a.url_citation.title, a.url_citation.url]),
    tokens: usage && [usage.prompt_tokens, usage.completion_tokens],
  };
}

async function stream() {
  let id, usage;
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options })) {
    id = chunk.id;
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { id, text, tokens: [usage.prompt_tokens, usage.completion_tokens] };
}

function describeResponse(response) {
  return {
    id: response.id,
    text: response.output_text || null,
    tools: response.output.filter((i) => i.type === "function_call").map((i) => [i.name, JSON.parse(i.arguments)]),
    tokens: [response.usage.input_tokens, response.usage.output_tokens],
  };
}

await serve({
  plain: async () => describe(await client.chat.completions.create(ask)),
  stream,
  helper: async () => describe(await client.chat.completions.stream({ ...ask, stream_options }).finalChatCompletion()),
  tools: async () => describe(await client.chat.completions.create({ ...ask, tools })),
  tool_stream: async () =>
    describe(await client.chat.completions.stream({ ...ask, tools, stream_options }).finalChatCompletion()),
  parse: async () => {
    const response_format = zodResponseFormat(schema, "weather");
    const completion = await client.chat.completions.parse({ ...ask, response_format });
    return { ...describe(completion), parsed: completion.choices[0].message.parsed };
  },
  raw: async () => {
    const { data, response } = await client.chat.completions.create(ask).withResponse();
    return { ...describe(data), request_id: response.headers.get("x-request-id") };
  },
  grounded: async () => describe(await client.chat.completions.create({ ...ask, model: `kotae/${model}` })),
  responses: async () => describeResponse(await client.responses.create({ model, input: "What is the zebra code?" })),
  responses_stream: async () =>
    describeResponse(await client.responses.stream({ model, input: "What is the zebra code?" }).finalResponse()),
  error: async () => client.chat.completions.create(ask),
});
