"""A real OpenClaw under test, with a scripted model behind it: a word such as `#plain` in a message says what happens.

The words are `TEXTS` (what is said) and `CALLS` (which tools are called first), and `refused` and `overflow`. Agent `a`
may use one tool that does no harm, agent `b` may execute commands.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

STEP_TIMEOUT_S = 300.0
END_TIMEOUT_S = 10.0
TOKEN = "secret-of-the-gateway"

PROGRAM = "node_modules/openclaw/openclaw.mjs"

Frame = dict[str, Any]


# --- the model -----------------------------------------------------------------------------------------------------


def said(messages: list[Frame]) -> tuple[str, int]:
    """The latest instruction, and how many tool results have come since."""
    results = 0
    for message in reversed(messages):
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        results += message["role"] == "tool"
        found = re.search(r"#(\w+)", text) if message["role"] == "user" else None
        if found:
            return found[1], results
    return "", results


class Model:
    """An endpoint of chat completions whose answers are told by a word in the question."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.has_broken = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        word, results = said((await request.json())["messages"])
        if word == "refused":
            return web.json_response({"error": {"message": "model is not served", "code": "no_model"}}, status=400)
        if word == "overflow":
            error = {"message": "This model's maximum context length is 10 tokens.", "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=400)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        with suppress(ConnectionResetError):  # who asked has gone
            await self._answer(response, word, results)
        return response

    async def _send(self, response: web.StreamResponse, delta: Frame, reason: str | None = None, **more: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    async def _answer(self, response: web.StreamResponse, word: str, results: int) -> None:
        texts, call, pause_s = answer_to(word, results)
        for number, text in enumerate(texts):
            await self._send(response, {"role": "assistant", "content": text})
            if pause_s:
                await asyncio.sleep(pause_s)
            if word == "broken" and number == 3 and not self.has_broken:
                self.has_broken = True
                await response.write(b'data: {"error":{"message":"model is gone","type":"server_error"}}\n\n')
                return
            if word in ("held", "talks") and number == 3 and not call:
                await asyncio.wait_for(self.release.wait(), STEP_TIMEOUT_S)
        if call:
            name, arguments = call
            function = {"name": name, "arguments": json.dumps(arguments)}
            made = {"index": 0, "id": f"call_{results}", "type": "function", "function": function}
            await self._send(response, {"role": "assistant", "tool_calls": [made]})
        usage = {"prompt_tokens": 20, "completion_tokens": len(texts), "total_tokens": 20 + len(texts)}
        await self._send(response, {}, "tool_calls" if call else "stop", usage=usage)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()


def words(count: int, what: str = "w") -> list[str]:
    return [f"{what}{number} " for number in range(count)]


TEXTS: dict[str, list[str]] = {
    "plain": ["Hello", " you", "."],
    "long": words(300),
    "slow": words(12),
    "held": words(8),
    "broken": words(8),
    "think": ["<think>", "let me", " see</thi", "nk>", "It is ", "four."],
    "final": ["<final>", "It is ", "four.", "</final>"],
    "card": ["Look:\n\n", "```card\n", '{"kind":"note","title":"T","body":{"a":1}}', "\n```\n", "\nThere."],
    "directives": ["[[reply_to_", "current]] ", "Hello.\n", "MEDIA:/tmp/", "x.png\n", "Bye."],
    "silent": ["NO_", "REPLY"],
    "silently": ["Well, ", "NO_REPLY"],
    "empty": [],
    "blank": [" ", "\n\n"],
    "spaces": ["\n\n  Hello ", "\n you \n", "\n  "],
    "markup": ["a <b>bold</b> ", "`<think>` ", "```py\n<think>\n```\n", "<function_call>x</function_call> end"],
    "unicode": ["na\u00efve \U0001f600", " \u4f60\u597d", " e\u0301"],
}

PAUSES_S = {"slow": 0.1, "think": 0.1, "broken": 0.1, "held": 0.1, "long": 0.0}

Call = tuple[str, Frame]
CALLS: dict[str, list[Call]] = {
    "tool": [("session_status", {})],
    "tools": [("session_status", {}), ("session_status", {"sessionKey": "current"})],
    "toolfails": [("session_status", {"sessionKey": "agent:other:main"})],
    "unknowntool": [("no_such_tool", {"a": 1})],
    "sleeps": [("exec", {"command": "echo begun; sleep 30; echo over"})],
    "exec": [("exec", {"command": "printf 'one\\ntwo\\nthree\\n'; sleep 1; printf 'four\\n'; exit 3"})],
    "works": [("exec", {"command": "echo begun; sleep 2; echo over"})],
    "talks": [("session_status", {})],
}


def answer_to(word: str, results: int) -> tuple[list[str], Call | None, float]:
    """What is said, which tool is called then, and the pause between two pieces."""
    if word in CALLS:
        if results < len(CALLS[word]):
            return ["Let me ", "look ", f"{results}."], CALLS[word][results], 0.0 if word == "tool" else 0.2
        if word == "talks":
            return words(8, "v"), None, 0.1
        return ["It is ", "fine."], None, 0.0
    return (
        TEXTS.get(word, ["?"]),
        None,
        {"slow": 0.1, "think": 0.1, "broken": 0.1, "held": 0.1, "long": 0.0}.get(word, 0.02),
    )


# --- the gateway ---------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def provider(port: int) -> Frame:
    model = {"id": "default", "name": "default", "reasoning": False, "input": ["text"]}
    model |= {"contextWindow": 200000, "maxTokens": 8192, "cost": {"input": 1, "output": 2}}
    model["cost"] |= {"cacheRead": 0, "cacheWrite": 0}
    return {
        "baseUrl": f"http://127.0.0.1:{port}/v1",
        "apiKey": "secret-of-the-model",
        "api": "openai-completions",
        "models": [model],
    }


def configuration(folder: Path, port: int, model_port: int) -> Frame:
    def agent(name: str, tool: str) -> Frame:
        return {"workspace": f"{folder}/ws/{name}", "tools": {"allow": [tool]}}

    gateway = {"mode": "local", "port": port, "bind": "loopback", "auth": {"mode": "token", "token": TOKEN}}
    defaults = {"model": {"primary": "p/default"}, "maxConcurrent": 32, "skipBootstrap": True}
    defaults["heartbeat"] = {"every": "0m"}
    return {
        "gateway": {**gateway, "controlUi": {"enabled": False}},
        "update": {"checkOnStart": False},
        "discovery": {"mdns": {"mode": "off"}},
        "browser": {"enabled": False},
        "plugins": {"allow": ["memory-core"]},
        "logging": {"file": f"{folder}/log"},
        "session": {"dmScope": "per-account-channel-peer"},
        "models": {"mode": "replace", "catalogRefresh": {"enabled": False}, "providers": {"p": provider(model_port)}},
        "agents": {
            "ownership": "explicit",
            "defaults": defaults,
            "entries": {"ops": agent("ops", "none"), "a": agent("a", "session_status"), "b": agent("b", "exec")},
        },
        "tools": {
            "toolSearch": False,
            "sessions": {"visibility": "self"},
            "agentToAgent": {"enabled": False},
            "elevated": {"enabled": False},
        },
    }


def start(openclaw_dir: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "OPENCLAW_STATE_DIR": str(folder),
        "OPENCLAW_CONFIG_PATH": f"{folder}/openclaw.json",
        "NODE_COMPILE_CACHE": str(openclaw_dir.parent / "compile-cache"),
        "MALLOC_ARENA_MAX": "2",
    }
    for name in ("DISABLE_BONJOUR", "NO_RESPAWN", "SKIP_CHANNELS", "SKIP_CANVAS_HOST", "SKIP_CRON"):
        environment[f"OPENCLAW_{name}"] = "1"
    environment["OPENCLAW_EXEC_SHELL_SNAPSHOT"] = "0"
    with (folder / "out").open("wb") as out:
        argv = [openclaw_dir / "node", openclaw_dir / PROGRAM, "gateway", "run", "--port", str(port)]
        return subprocess.Popen(argv, env=environment, stdout=out, stderr=out, cwd=folder, start_new_session=True)


@dataclass
class Running:
    """A gateway that was begun, and may still be starting."""

    folder: Path
    port: int
    model: Model
    model_port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def said(self) -> str:
        """What it has written last."""
        return (self.folder / "out").read_text()[-2000:]


@asynccontextmanager
async def running(openclaw_dir: Path, folder: Path) -> AsyncIterator[Running]:
    """Begin a gateway in an empty folder; end it with everything it has begun."""
    model, port = Model(), free_port()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", model.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    model_port = int(runner.addresses[0][1])
    (folder / "openclaw.json").write_text(json.dumps(configuration(folder, port, model_port)))
    process = start(openclaw_dir, folder, port)
    try:
        yield Running(folder, port, model, model_port, process)
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        await runner.cleanup()
