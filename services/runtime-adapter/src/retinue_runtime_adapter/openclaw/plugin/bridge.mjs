// One call of the adapter's bridge over loopback, for the plugin and for the process that stands for a command.
import http from "node:http";

// What a command may say, and what a tool may answer. The bridge has the same bound, and is not believed here.
export const OUTPUT_SIZE_MAX_BYTES = 8 * 1024 * 1024;

// A line of the answer holds one piece of output; the bridge makes them of 64 KiB at most.
const LINE_LENGTH_MAX = 256 * 1024;

// The bridge ends a call of its own accord within ten minutes; this is for one that is gone without a word.
const SILENCE_MAX_MS = 660_000;

function failure(status, text) {
  let said;
  try {
    said = JSON.parse(text).message;
  } catch {
    said = undefined;
  }
  return new Error(typeof said === "string" ? said : `The bridge answered ${status}.`);
}

// Post `body` and hand each line of the answer, parsed, to `onLine`. Resolves at the end of the answer; rejects if there
// is no bridge, if it refuses, and if it says too much.
export function post({ url, token }, path, body, { signal, onLine }) {
  return new Promise((resolve, reject) => {
    if (!url) {
      reject(new Error("There is no bridge to a box in this deployment."));
      return;
    }
    const payload = Buffer.from(JSON.stringify(body));
    const headers = {
      authorization: `Bearer ${token}`,
      "content-type": "application/json",
      "content-length": payload.length,
    };
    const request = http.request(new URL(path, url), { method: "POST", headers, signal, agent: false });
    const fail = (error) => {
      request.destroy();
      reject(error);
    };
    request.setTimeout(SILENCE_MAX_MS, () => fail(new Error("The bridge does not answer.")));
    request.on("error", fail);
    request.on("response", (response) => {
      let size = 0;
      let rest = "";
      response.setEncoding("utf8");
      response.on("error", fail);
      response.on("aborted", () => fail(new Error("The bridge broke off.")));
      response.on("data", (chunk) => {
        size += chunk.length;
        rest += chunk;
        // Base 64 and its wrapping make three bytes four, and a little more.
        if (size > OUTPUT_SIZE_MAX_BYTES * 2) return fail(new Error("The bridge says too much."));
        if (response.statusCode !== 200) return undefined;
        const lines = rest.split("\n");
        rest = lines.pop();
        if (rest.length > LINE_LENGTH_MAX) return fail(new Error("The bridge sent a line without end."));
        try {
          for (const line of lines) onLine(JSON.parse(line));
        } catch (error) {
          return fail(error);
        }
        return undefined;
      });
      response.on("end", () => {
        if (response.statusCode !== 200) reject(failure(response.statusCode, rest));
        else resolve();
      });
    });
    request.end(payload);
  });
}

// Run a command in the box of a session; `onOutput(stream, bytes)` is told what it says. Answers its exit code.
export async function exec(bridge, request, { signal, onOutput }) {
  let exitCode;
  await post(bridge, "/v1/exec", request, {
    signal,
    onLine(line) {
      if (line.message !== undefined) throw new Error(line.message);
      if (line.exitCode !== undefined) exitCode = line.exitCode;
      else onOutput(line.stream, Buffer.from(line.data, "base64"));
    },
  });
  if (!Number.isInteger(exitCode)) throw new Error("The bridge did not say how the command ended.");
  return exitCode;
}
