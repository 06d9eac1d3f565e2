// Runs the cases of a client: reads a name from each line, prints the result as a line of JSON.
import { createInterface } from "node:readline";

export async function serve(cases) {
  for await (const line of createInterface({ input: process.stdin })) {
    let result;
    try {
      result = await cases[line.trim()]();
    } catch (error) {
      const status = error.status ?? error.statusCode ?? null;
      result = { error: error.name, message: error.message, status };
    }
    console.log(JSON.stringify(result));
  }
}
