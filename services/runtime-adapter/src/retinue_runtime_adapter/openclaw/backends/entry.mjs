// What a container or pod of an instance runs: OpenClaw's gateway as a child, and a relay in front of it.
//
// The gateway believes only who comes from its own loopback, so it binds nothing else; the relay carries bytes from the
// container's port to it, whole and unread, and so adds no header that would give the way away. The gateway's token is
// never in argv, in the environment or on a disk: the configuration comes through standard input, as a line with its
// length and then its bytes, or as a file of a mounted secret, and is kept where only this user reads it, in memory.
//
// Processes without a parent are reaped by whoever is process 1: Docker's init, the pod's pause process. Node cannot
// wait for what it has not started.
//
// Environment: RETINUE_STATE_DIR, RETINUE_RELAY_PORT, RETINUE_GATEWAY_PORT, RETINUE_HEAP_MIB, and, if they are set,
// RETINUE_CONFIG_FILE (else standard input), RETINUE_RELAY_HOST (else every address), RETINUE_ABANDONED_S,
// RETINUE_OPENCLAW (the program; else the image's). What begins with OPENCLAW_ is the gateway's own.

import { spawn } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { constants } from "node:os";
import { join } from "node:path";
import process from "node:process";

// Bytes of a configuration; a tenant takes less than one KiB of it.
const CONFIG_SIZE_MAX_BYTES = 1024 * 1024;

// Milliseconds for the configuration to come through standard input: whoever made the container sends it at once.
const CONFIG_TIMEOUT_MS = 30_000;

// Digits of the length in front of it.
const LENGTH_DIGITS_MAX = 7;

// New space of Node's heap. A larger one costs memory for each of many worker threads.
const SEMI_SPACE_MIB = 2;

// Connections relayed at once: the adapter has one, and now and then asks how the gateway is.
const CONNECTIONS_MAX = 64;

// Idle milliseconds until a peer is asked whether it is still there.
const KEEP_ALIVE_MS = 30_000;

// Bytes of the child's output kept to tell why it did not start. Later output holds tenants' words and is dropped.
const OUTPUT_KEPT_BYTES = 4096;

// Milliseconds to read the last output of a child that has ended.
const OUTPUT_DRAIN_MS = 500;

// Seconds without any connection after which nobody can be there who would end the instance.
const ABANDONED_S = 300;

const EXIT_TROUBLE = 70;
const EXIT_SIGNAL_BASE = 128;

function say(line) {
  process.stderr.write(`retinue-entry: ${line}\n`);
}

function fail(line) {
  say(line);
  process.exit(EXIT_TROUBLE);
}

function number(name, { least = 0, most = 65_535, otherwise } = {}) {
  const text = process.env[name] ?? (otherwise === undefined ? "" : String(otherwise));
  const value = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
  if (!(value >= least && value <= most)) fail(`${name} must be a number from ${least} to ${most}`);
  return value;
}

function readSettings() {
  const folder = process.env.RETINUE_STATE_DIR ?? "";
  if (!folder.startsWith("/")) fail("RETINUE_STATE_DIR must be an absolute path");
  return {
    folder,
    relayHost: process.env.RETINUE_RELAY_HOST || undefined,
    relayPort: number("RETINUE_RELAY_PORT"),
    gatewayPort: number("RETINUE_GATEWAY_PORT", { least: 1 }),
    heapMib: number("RETINUE_HEAP_MIB", { least: 64, most: 1_048_576 }),
    abandonedMs: number("RETINUE_ABANDONED_S", { least: 1, most: 86_400, otherwise: ABANDONED_S }) * 1000,
    configFile: process.env.RETINUE_CONFIG_FILE ?? "",
    program: process.env.RETINUE_OPENCLAW || "/opt/openclaw/node_modules/openclaw/openclaw.mjs",
  };
}

// Answers the bytes after the line with their length; undefined while there are too few.
function framed(received) {
  const end = received.indexOf(0x0a);
  if (end < 0) {
    if (received.length > LENGTH_DIGITS_MAX) fail("standard input does not begin with a length");
    return undefined;
  }
  const head = received.subarray(0, end).toString("latin1");
  if (!/^\d{1,7}$/.test(head) || Number(head) > CONFIG_SIZE_MAX_BYTES) {
    fail("standard input does not begin with a length that is acceptable");
  }
  const length = Number(head);
  return received.length - end - 1 >= length ? received.subarray(end + 1, end + 1 + length) : undefined;
}

async function readConfig(file) {
  if (file) {
    if (statSync(file).size > CONFIG_SIZE_MAX_BYTES) fail("the configuration is too large");
    return readFileSync(file);
  }
  const timer = setTimeout(() => fail("no configuration came"), CONFIG_TIMEOUT_MS);
  let received = Buffer.alloc(0);
  for await (const chunk of process.stdin) {
    received = Buffer.concat([received, chunk]);
    const config = framed(received);
    if (config !== undefined) {
      clearTimeout(timer);
      return config;
    }
  }
  return fail("standard input ended before the whole configuration had come");
}

function startGateway(settings, config) {
  mkdirSync(settings.folder, { recursive: true, mode: 0o700 });
  const path = join(settings.folder, "openclaw.json");
  writeFileSync(path, config, { mode: 0o600 });
  chmodSync(path, 0o600);
  const own = Object.entries(process.env).filter(([name]) => !name.startsWith("RETINUE_"));
  const environment = { ...Object.fromEntries(own), HOME: settings.folder, OPENCLAW_STATE_DIR: settings.folder };
  environment.OPENCLAW_CONFIG_PATH = path;
  const options = ["gateway", "run", "--port", String(settings.gatewayPort)];
  const heap = [`--max-old-space-size=${settings.heapMib}`, `--max-semi-space-size=${SEMI_SPACE_MIB}`];
  return spawn(process.execPath, [...heap, settings.program, ...options], {
    cwd: settings.folder,
    env: environment,
    stdio: ["ignore", "pipe", "pipe"],
  });
}

// Keeps the first words of a child that never serves, and reads the rest away so that it is never held up.
class Output {
  constructor(child) {
    this.kept = Buffer.alloc(0);
    this.served = false;
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk) => this.take(chunk));
  }

  take(chunk) {
    if (!this.served) this.kept = Buffer.concat([this.kept, chunk]).subarray(-OUTPUT_KEPT_BYTES);
  }

  hasServed() {
    this.served = true;
    this.kept = Buffer.alloc(0);
  }
}

class Relay {
  constructor(settings, output) {
    this.settings = settings;
    this.output = output;
    this.connections = new Set();
    // A peer that has said all may still listen, and its last words are kept until they are read.
    this.server = createServer({ allowHalfOpen: true, noDelay: true, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_MS });
    this.server.maxConnections = CONNECTIONS_MAX;
    this.server.on("connection", (near) => this.carry(near));
    this.server.on("drop", () => say("too many connections: one was refused"));
  }

  listen() {
    return new Promise((resolve) => {
      this.server.once("error", (error) => fail(`the relay cannot listen: ${error.code}`));
      this.server.listen({ port: this.settings.relayPort, host: this.settings.relayHost }, () => {
        say(`listening on port ${this.server.address().port}`);
        this.watch();
        resolve();
      });
    });
  }

  carry(near) {
    const far = connect({ port: this.settings.gatewayPort, host: "127.0.0.1", allowHalfOpen: true, noDelay: true });
    this.connections.add(near);
    clearTimeout(this.abandoned);
    far.once("connect", () => this.output.hasServed());
    const end = () => {
      near.destroy();
      far.destroy();
    };
    near.once("error", end);
    far.once("error", end);
    near.once("close", () => {
      // Whoever closes early takes the other side along; one that has only said all does not close.
      if (!near.readableEnded || near.errored) far.destroy();
      this.connections.delete(near);
      this.watch();
    });
    far.once("close", () => {
      if (!far.readableEnded || far.errored) near.destroy();
    });
    near.pipe(far);
    far.pipe(near);
  }

  watch() {
    clearTimeout(this.abandoned);
    if (this.connections.size === 0) {
      this.abandoned = setTimeout(() => {
        say("nobody has been connected for too long: the instance ends");
        process.kill(process.pid, "SIGTERM");
      }, this.settings.abandonedMs);
    }
  }

  stopAccepting() {
    clearTimeout(this.abandoned);
    this.server.close();
  }
}

function exitCode(code, signal) {
  return code ?? EXIT_SIGNAL_BASE + (constants.signals[signal] ?? 0);
}

async function main() {
  process.umask(0o077);
  let child;
  let relay;
  for (const signal of ["SIGTERM", "SIGINT"]) {
    process.on(signal, () => {
      relay?.stopAccepting();
      if (child === undefined) process.exit(EXIT_SIGNAL_BASE + constants.signals[signal]);
      child.kill(signal);
    });
  }
  process.on("exit", () => child?.kill("SIGKILL"));
  const settings = readSettings();
  child = startGateway(settings, await readConfig(settings.configFile));
  process.stdin.destroy();
  const output = new Output(child);
  child.once("error", (error) => fail(`the gateway cannot be started: ${error.code}`));
  const over = (code, signal) => {
    if (code !== 0 && output.kept.length > 0) say(`the gateway did not start:\n${output.kept.toString("utf8")}`);
    process.exit(exitCode(code, signal));
  };
  // "close" comes after the last output has been read; a process that the gateway left behind may hold it up.
  child.once("close", over);
  child.once("exit", (code, signal) => setTimeout(over, OUTPUT_DRAIN_MS, code, signal));
  relay = new Relay(settings, output);
  await relay.listen();
}

main().catch((error) => fail(error.code ? `${error.syscall ?? ""} ${error.code}`.trim() : error.message));
