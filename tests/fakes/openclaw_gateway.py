"""A gateway of OpenClaw without OpenClaw: its protocol over a real WebSocket, with runs told by a word in the message.

The words are those of `openclaw_process`, so that tests/contract can ask the same of both. A test may `sever()` the
connections, let it `forget()` its runs as a new process would, have it not ready for `starting_count` connections, and
`say` frames of its own. It never ticks.
"""

import asyncio
import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from openclaw_process import CALLS, STEP_TIMEOUT_S, TOKEN, answer_to, said
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

Json = dict[str, Any]

STARTING = {
    "code": "UNAVAILABLE",
    "message": "gateway starting; retry shortly",
    "retryable": True,
    "retryAfterMs": 500,
    "details": {"reason": "startup-sidecars"},
}


class Run:
    """One run."""

    def __init__(self, params: Json, owner: ServerConnection, request_id: str) -> None:
        self.run_id = str(params["idempotencyKey"])
        self.session_key = str(params["sessionKey"]).lower()
        self.agent_id = str(params["agentId"])
        self.owner = owner
        self.request_id = request_id
        self.message = str(params["message"])
        self.text = ""
        self.former: list[str] = []
        """Texts before tool calls."""
        self.replayed: list[Json] = []
        self.open_calls: list[str] = []
        self.numbers = itertools.count(1)
        self.final: Json | None = None
        self.task: asyncio.Task[None] | None = None


class FakeGateway:
    """Serves on a free port of loopback until `close`."""

    def __init__(self, *, protocol: int = 4, tick_interval_ms: int = 30_000) -> None:
        self.protocol = protocol
        self.tick_interval_ms = tick_interval_ms
        self.release = asyncio.Event()
        self.payload_max_bytes = 2**24
        self.starting_count = 0
        self.final_delay_count = 0
        """Times that the end of a settled run is not there yet."""
        self.boot_id = "boot-1"
        self.asked: list[Json] = []
        """Every request, as it came."""
        self.runs: dict[str, Run] = {}
        self.mute = False
        """Whether no request is answered."""
        self.connection_count = 0
        """Connections that were accepted so far."""
        self._connections: set[ServerConnection] = set()
        self._server: Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = await serve(self._serve, "127.0.0.1", port, max_size=2**26, ping_interval=None)

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"127.0.0.1:{next(iter(self._server.sockets)).getsockname()[1]}"

    async def close(self) -> None:
        for run in self.runs.values():
            if run.task is not None:
                run.task.cancel()
        if self._server is not None:
            self._server.close(close_connections=True)
            await self._server.wait_closed()

    # --- what tests do to it ---

    async def sever(self) -> None:
        """Cut every connection, as a lost network does."""
        for connection in list(self._connections):
            connection.transport.abort()
            await connection.wait_closed()

    def forget(self) -> None:
        """Be a new process."""
        for run in self.runs.values():
            if run.task is not None:
                run.task.cancel()
        self.runs = {}
        self.boot_id = "boot-2"

    async def say(self, frame: Json | str, to: ServerConnection | None = None) -> None:
        """Send a frame, to everybody if to nobody in particular."""
        text = frame if isinstance(frame, str) else json.dumps(frame)
        for connection in [to] if to is not None else list(self._connections):
            with suppress(ConnectionClosed):
                await connection.send(text)

    # --- the protocol ---

    async def _serve(self, connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await self.say(
                {"type": "event", "event": "connect.challenge", "payload": {"nonce": "n", "ts": 1}}, connection
            )
            asked = json.loads(await connection.recv())
            fault = self._fault(asked)
            if fault:
                await self.say({"type": "res", "id": asked["id"], "ok": False, "error": fault}, connection)
                return
            await self._answer(connection, asked["id"], self._hello())
            self._connections.add(connection)
            self.connection_count += 1
            try:
                async for text in connection:
                    await self._request(connection, json.loads(text))
            finally:
                self._connections.discard(connection)

    def _fault(self, asked: Json) -> Json | None:
        params = asked["params"]
        assert asked["method"] == "connect"
        if not params["minProtocol"] <= self.protocol <= params["maxProtocol"]:
            details = {"code": "PROTOCOL_MISMATCH", "expectedProtocol": self.protocol}
            return {"code": "INVALID_REQUEST", "message": "protocol mismatch", "details": details}
        if params["auth"]["token"] != TOKEN:
            details = {"code": "AUTH_TOKEN_MISMATCH"}
            return {"code": "INVALID_REQUEST", "message": "unauthorized: gateway token mismatch", "details": details}
        if self.starting_count:
            self.starting_count -= 1
            return STARTING
        return None

    def _hello(self) -> Json:
        policy = {"maxPayload": self.payload_max_bytes, "tickIntervalMs": self.tick_interval_ms}
        server = {"version": "fake", "bootId": self.boot_id}
        return {"type": "hello-ok", "protocol": self.protocol, "server": server, "policy": policy}

    async def _answer(self, to: ServerConnection, request_id: str, payload: Json) -> None:
        if self.mute:
            return
        await self.say({"type": "res", "id": request_id, "ok": True, "payload": payload}, to)

    async def _request(self, connection: ServerConnection, asked: Json) -> None:
        self.asked.append(asked)
        methods: dict[str, Callable[[ServerConnection, str, Json], Any]] = {
            "agent": self._agent,
            "chat.abort": self._abort,
            "chat.history": self._history,
        }
        method = methods.get(asked["method"])
        if method is None:
            error = {"code": "INVALID_REQUEST", "message": f"unknown method: {asked['method']}"}
            await self.say({"type": "res", "id": asked["id"], "ok": False, "error": error}, connection)
            return
        await method(connection, asked["id"], asked["params"])

    async def _agent(self, connection: ServerConnection, request_id: str, params: Json) -> None:
        if not params["sessionKey"].startswith(f"agent:{params['agentId']}:"):
            error = {"code": "INVALID_REQUEST", "message": "the session key belongs to another agent"}
            await self.say({"type": "res", "id": request_id, "ok": False, "error": error}, connection)
            return
        run = self.runs.get(params["idempotencyKey"])
        if run is None:
            run = self.runs[params["idempotencyKey"]] = Run(params, connection, request_id)
            await self._answer(connection, request_id, self._accepted(run, "accepted"))
            run.task = asyncio.create_task(self._execute(run))
        elif run.final is None or self.final_delay_count:
            self.final_delay_count -= run.final is not None
            await self._answer(connection, request_id, self._accepted(run, "in_flight"))
        else:
            await self.say({**run.final, "id": request_id}, connection)

    def _accepted(self, run: Run, status: str) -> Json:
        return {"runId": run.run_id, "sessionKey": run.session_key, "agentId": run.agent_id, "status": status}

    async def _abort(self, connection: ServerConnection, request_id: str, params: Json) -> None:
        run = self.runs.get(params["runId"])
        aborts = run is not None and run.final is None and run.task is not None
        if aborts and run is not None and run.task is not None:
            run.task.cancel()
            data = {"phase": "end", "status": "cancelled", "aborted": True, "stopReason": "rpc"}
            await self._tell(run, "lifecycle", data)
            run.task = asyncio.create_task(self._stop(run))
        payload = {"ok": True, "aborted": aborts, "runIds": [params["runId"]] if aborts else []}
        await self._answer(connection, request_id, payload)

    async def _stop(self, run: Run) -> None:
        """Say the rest of an abort, in the order of the real one: tools end after the run does."""
        run.numbers = itertools.count(1)
        for call_id in list(run.open_calls):
            result = {"content": [{"type": "text", "text": "Aborted"}], "details": {}}
            await self._tell_tool(run, call_id, "result", isError=True, result=result)
        data = {"phase": "error", "error": "This operation was aborted", "aborted": True, "executionSettled": True}
        await self._tell(run, "lifecycle", data)
        await self._end(run, {"runId": run.run_id, "status": "timeout", "summary": "aborted", "stopReason": "rpc"})

    async def _history(self, connection: ServerConnection, request_id: str, params: Json) -> None:
        payload: Json = {"sessionKey": params["sessionKey"], "messages": []}
        for run in self.runs.values():
            if run.session_key == params["sessionKey"].lower() and run.final is None:
                text = "\n\n".join(filter(None, [*run.former, run.text]))
                payload["inFlightRun"] = {"runId": run.run_id, "text": text, "events": run.replayed}
        await self._answer(connection, request_id, payload)

    # --- a run ---

    def event(self, run: Run, stream: str, data: Json) -> Json:
        payload = {"runId": run.run_id, "sessionKey": run.session_key, "agentId": run.agent_id}
        payload |= {"stream": stream, "data": data, "seq": next(run.numbers), "ts": 1_000}
        return {"type": "event", "event": "agent", "payload": payload}

    async def _tell(self, run: Run, stream: str, data: Json) -> None:
        await self.say(self.event(run, stream, data))

    async def _tell_tool(self, run: Run, call_id: str, phase: str, **data: Any) -> None:
        """Tools' events go to the connection that began the run, items to all."""
        told = {"phase": phase, "name": data.pop("name", "tool"), "toolCallId": call_id, **data}
        if phase == "start":
            item = {"kind": "tool", **told, "status": "running"}
            run.open_calls.append(call_id)
            run.replayed.append(self.event(run, "item", item)["payload"])
            await self._tell(run, "item", item)
        await self.say(self.event(run, "tool", told), run.owner)
        if phase == "result":
            status = "failed" if data.get("isError") else "completed"
            item = {"kind": "tool", "phase": "end", "toolCallId": call_id, "status": status}
            run.open_calls.remove(call_id)
            run.replayed.append(self.event(run, "item", item)["payload"])
            await self._tell(run, "item", item)

    async def _execute(self, run: Run) -> None:
        word, _ = said([{"role": "user", "content": run.message}])
        await self._tell(run, "lifecycle", {"phase": "start"})
        if word == "refused":
            error = "LLM request failed: provider rejected the request schema or tool payload."
            seen = {"failoverReason": "format"}
            data = {"phase": "error", "error": error, "errorObservation": seen, "executionSettled": True}
            await self._tell(run, "lifecycle", data)
            payload = {"runId": run.run_id, "status": "error", "summary": error}
            await self._end(run, payload, {"code": "UNAVAILABLE", "message": error})
            return
        await self._tell(run, "lifecycle", {"phase": "model", "provider": "p", "model": "m"})
        for number in range(len(CALLS.get(word, []))):
            await self._say(run, word, number)
            await self._call(run, word, number)
        await self._say(run, word, len(CALLS.get(word, [])))
        await self._settle(run)

    async def _say(self, run: Run, word: str, number: int) -> None:
        texts, _, _ = answer_to(word, number)
        run.former += [run.text] if run.text else []
        whole = run.text = ""
        for at, text in enumerate(texts):
            whole += text
            delta = whole.strip()[len(run.text) :]
            run.text = whole.strip()
            data = {"text": run.text, "delta": delta, "itemId": f"{run.run_id}:{number + 1}"}
            if delta:
                await self._tell(run, "assistant", data)
            if word in ("held", "talks") and at == 3 and number == len(CALLS.get(word, [])):
                await asyncio.wait_for(self.release.wait(), STEP_TIMEOUT_S)

    async def _call(self, run: Run, word: str, number: int) -> None:
        call_id = f"call_{number}"
        name, arguments = CALLS[word][number]
        item = {"kind": "preamble", "phase": "end", "progressText": run.text, "itemId": f"commentary-{number}"}
        run.replayed.append(self.event(run, "item", item)["payload"])
        await self._tell(run, "item", item)
        await self._tell_tool(run, call_id, "start", name=name, args=arguments)
        if word in ("works", "sleeps", "exec"):
            part = {"content": [{"type": "text", "text": "begun\n"}], "details": {"status": "running"}}
            await self._tell_tool(run, call_id, "update", name=name, partialResult=part)
            if word == "sleeps":
                await asyncio.wait_for(self.release.wait(), STEP_TIMEOUT_S)
        result = {"content": [{"type": "text", "text": "done"}], "details": {"durationMs": 5}}
        await self._tell_tool(run, call_id, "result", name=name, isError=word == "toolfails", result=result)

    async def _settle(self, run: Run) -> None:
        reply = {"disposition": "visible" if run.text else "empty", "text": run.text}
        end = {"phase": "end", "executionSettled": True, "aborted": False, "terminalReply": reply}
        if not run.text:
            end |= {"phase": "error", "error": "Agent couldn't generate a response.", "livenessState": "abandoned"}
        await self._tell(run, "lifecycle", end)
        usage = {"input": 20, "output": 3, "cost": {"total": 0.000026}}
        meta = {"agentMeta": {"provider": "p", "model": "m", "usage": usage}}
        if not run.text:
            meta |= {"livenessState": "abandoned", "error": {"kind": "incomplete_turn"}}
        result = {"payloads": [{"text": run.text}] if run.text else [], "meta": meta}
        status = "ok" if run.text else "error"
        await self._end(run, {"runId": run.run_id, "status": status, "summary": "completed", "result": result})

    async def _end(self, run: Run, payload: Json, error: Json | None = None) -> None:
        run.final = {"type": "res", "ok": error is None, "payload": payload}
        if error is not None:
            run.final["error"] = error
        await self.say({**run.final, "id": run.request_id}, run.owner)
