// Stands for a command that runs in a box: says what it says, and ends as it ends. OpenClaw wants a process of its own
// for a command that a user may watch or stop; ending this one ends the command. What is to be run, and the credential,
// come through the environment: arguments can be read by whoever lists processes.
import { exec } from "./bridge.mjs";

// Exit code of a command that could not be run, as shells have it.
const NOT_RUN = 126;

try {
  const { url, token, request } = JSON.parse(process.env.RETINUE_BRIDGE_CALL);
  process.exitCode = await exec(
    { url, token },
    request,
    { onOutput: (stream, bytes) => (stream === "stderr" ? process.stderr : process.stdout).write(bytes) },
  );
} catch (error) {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = NOT_RUN;
}
