// What a gateway of ours can do beyond talking: run tools in the box of their session, and call the mesh's own tools. Every
// call carries the agent and the session that OpenClaw runs it for; the bridge compares them with the runs that it
// has under way, asks policy, and nothing runs if it refuses: neither in a box nor on this host.
import { createHash } from "node:crypto";
import { fileURLToPath } from "node:url";
import { definePluginEntry } from "openclaw/plugin-sdk/plugin-entry";
import {
  SANDBOX_COMMAND_MAX_BUFFER_BYTES,
  createRemoteShellSandboxBackend,
  registerSandboxBackend,
  shellEscape,
} from "openclaw/plugin-sdk/sandbox";
import { exec, post } from "./bridge.mjs";

const BACKEND_ID = "retinue";
const EXEC = fileURLToPath(new URL("./exec.mjs", import.meta.url));

// Where a box has the session's files.
const WORKSPACE = "/workspace";

// A string of a process's environment holds 128 KiB.
const COMMAND_LENGTH_MAX = 96 * 1024;

// For policy to answer; the bridge gives up a little sooner. A call without an answer is not made.
const ASK_TIMEOUT_MS = 15_000;

// The key of a session begins with its agent; `agent:<agent>:…`.
function identity(sessionKey) {
  const agentId = /^agent:([^:]+):/.exec(sessionKey ?? "")?.[1];
  if (!agentId) throw new Error("A tool was called outside of a session.");
  return { agentId, sessionKey };
}

// The shell that OpenClaw's remote backend speaks to: small scripts for files go through here, commands through EXEC.
function session(bridge, who) {
  return {
    async runCommand({ remoteCommand, stdin, allowFailure, signal }) {
      const said = { stdout: [], stderr: [] };
      let size = 0;
      const code = await exec(
        bridge,
        { ...who, kind: "script", command: remoteCommand, stdin: Buffer.from(stdin ?? "").toString("base64") },
        {
          signal,
          onOutput(stream, bytes) {
            size += bytes.length;
            if (size > SANDBOX_COMMAND_MAX_BUFFER_BYTES) throw new Error("The command said too much.");
            said[stream === "stderr" ? "stderr" : "stdout"].push(bytes);
          },
        },
      );
      const stdout = Buffer.concat(said.stdout);
      const stderr = Buffer.concat(said.stderr);
      if (code !== 0 && !allowFailure) {
        const message = stderr.toString("utf8").trim() || `The command ended with ${code}.`;
        throw Object.assign(new Error(message), { code, stdout, stderr });
      }
      return { stdout, stderr, code };
    },
    async uploadDirectory() {
      throw new Error("Files of this host are not taken into a box.");
    },
    async prepareExec({ remoteCommand, env }) {
      // The box has a path of its own; this host's is of no use there, and not to be told.
      const given = Object.entries(env ?? {}).filter(([name]) => name !== "PATH");
      const command = given.map(([name, value]) => `export ${name}=${shellEscape(value)}; `).join("") + remoteCommand;
      if (command.length > COMMAND_LENGTH_MAX) throw new Error("The command is too long.");
      const call = { ...bridge, request: { ...who, kind: "command", command, stdin: "" } };
      return {
        argv: [process.execPath, EXEC],
        env: { RETINUE_BRIDGE_CALL: JSON.stringify(call) },
        cleanup: async () => {},
      };
    },
    dispose: async () => {},
  };
}

// A tool of OpenClaw's own is begun only if policy allows the call. The mesh's own tools ask when they are called.
function ask(api, bridge, ours) {
  api.on(
    "before_tool_call",
    async ({ toolName, toolCallId, params }, { sessionKey, abortSignal }) => {
      if (ours.has(toolName)) return undefined;
      try {
        const request = { ...identity(sessionKey), callId: toolCallId, tool: toolName, arguments: params };
        let allowed = false;
        await post(bridge, "/v1/calls", request, { signal: abortSignal, onLine: (line) => (allowed = line.allowed) });
        return allowed === true ? undefined : { block: true, blockReason: "The bridge did not allow it." };
      } catch (error) {
        return { block: true, blockReason: error.message };
      }
    },
    { timeoutMs: ASK_TIMEOUT_MS },
  );
  api.on(
    "after_tool_call",
    async ({ toolName, toolCallId }, { sessionKey }) => {
      if (ours.has(toolName)) return;
      // Of no use to a run that is over, which takes its calls with it.
      await post(bridge, "/v1/calls/end", { ...identity(sessionKey), callId: toolCallId }, { onLine() {} }).catch(() => {});
    },
    { timeoutMs: ASK_TIMEOUT_MS },
  );
}

function register(api) {
  const { bridgeUrl: url, token, tools = [] } = api.pluginConfig;
  const bridge = { url, token };
  ask(api, bridge, new Set(tools.map(({ name }) => name)));
  registerSandboxBackend(BACKEND_ID, {
    factory: async (params) => {
      const who = identity(params.sessionKey);
      const runtimeId = `retinue-${createHash("sha256").update(who.sessionKey).digest("hex").slice(0, 32)}`;
      return createRemoteShellSandboxBackend(params, {
        backendId: BACKEND_ID,
        // The box has its workspace: no file of this host is copied into it.
        preprovisionedWorkdir: { remoteWorkspaceDir: WORKSPACE, runtimeId },
        createSession: async () => session(bridge, who),
      });
    },
    manager: {
      describeRuntime: async () => ({ running: true, configLabelMatch: true }),
      removeRuntime: async () => {},
    },
  });
  for (const { name, description, parameters } of tools) {
    api.registerTool(
      (context) => ({
        name,
        label: name,
        description,
        parameters,
        async execute(callId, params, signal) {
          const said = [];
          const request = { ...identity(context.sessionKey), callId, arguments: params };
          const onLine = (line) => {
            if (line.message !== undefined) throw new Error(line.message);
            said.push(line.text);
          };
          await post(bridge, `/v1/tools/${name}`, request, { signal, onLine });
          return { content: [{ type: "text", text: said.join("") }], details: {} };
        },
      }),
      { name },
    );
  }
}

export default definePluginEntry({
  id: "retinue-bridge",
  name: "Retinue bridge",
  description: "Carries the tools of an OpenClaw gateway into boxes of Retinue.",
  register,
});
