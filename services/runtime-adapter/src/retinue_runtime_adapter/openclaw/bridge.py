"""The way from a gateway's tools into boxes: what our plugin, and the processes that it starts, may ask of the mesh.

A gateway is not believed. Its token says which instance it is; which tenant, session and attempt a call is made for is
taken from the run that this process has under way on that instance, for that agent, in that session. Without one
nothing happens, and what has begun ends with it.
"""

import asyncio
import base64
import binascii
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog
from aiohttp import web
from retinue.sandbox.v1 import sandbox_service_pb2 as pb
from retinue.sandbox.v1 import sandbox_service_pb2_grpc
from retinue_kit import tenancy
from retinue_kit.client import Peer
from retinue_kit.errors import Code, Reason, RetinueError

EXEC_TIMEOUT_S = 600.0
"""Time for one command, as long as an attempt may take by default."""

TOOL_TIMEOUT_S = 60.0
"""Time for one of the mesh's own tools."""

BODY_SIZE_MAX_BYTES = 2 * 1024 * 1024
"""Of a request: a command with its input in base 64."""

COMMAND_LENGTH_MAX = 128 * 1024
"""Characters of a command; the scripts that OpenClaw sends for files have a few thousand."""

STDIN_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes of input: what a tool writes into one file."""

OUTPUT_SIZE_MAX_BYTES = 8 * 1024 * 1024
"""Bytes of output of one command; more, and it is ended."""

CHUNK_SIZE_MAX_BYTES = 64 * 1024
"""Bytes of output in one line of an answer."""

ARGUMENT_LENGTH_MAX = 96 * 1024
"""Characters of one argument of a command. Linux takes 128 KiB."""

CALLS_MAX = 64
"""Calls at once of one instance."""

CHECK_S = 1.0
"""A run that is over is noticed by its commands within this time."""

_ANSWERS = {
    Code.INVALID_ARGUMENT: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNAVAILABLE: 503,
}
"""Status of an answer; 409 for what a state forbids, and for everything else."""

# `printf` joins the pieces again: one argument alone could not hold what a tool writes.
_WITH_INPUT = 'command=$1; shift; printf %s "$@" | base64 -d | /bin/sh -c "$command"'

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """For whom a tool is called: the attempt that is under way."""

    tenant_id: str
    session_id: str
    run_id: str
    fencing_token: int


Resolve = Callable[[str, str, str], RunIdentity | None]
"""Finds the run under way on an instance, for an agent, in a session key; None if there is none."""


@dataclass(frozen=True, slots=True)
class PlatformTool:
    """A tool of the mesh itself. Its name is also in the plugin's manifest, since OpenClaw wants it there."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments."""
    call: Callable[[RunIdentity, dict[str, Any]], Awaitable[str]]
    """Does it and answers text for the model. Raises RetinueError, whose message the model reads."""

    def described(self) -> dict[str, Any]:
        """Describe it as the plugin's configuration does."""
        return {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}


class _Who(NamedTuple):
    instance_id: str
    agent_id: str
    session_key: str


class _Exec(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    agent_id: str
    session_key: str
    command: str
    stdin: str = ""
    """In base 64."""


class _Tool(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    agent_id: str
    session_key: str
    call_id: str
    arguments: dict[str, Any]


T = TypeVar("T", _Exec, _Tool)


class Bridge:
    """An HTTP endpoint on loopback. `start` it before its `base_url` is used."""

    def __init__(self, sandbox: Peer, resolve: Resolve, tools: Sequence[PlatformTool] = ()) -> None:
        self.base_url = ""
        self.tools = {tool.name: tool for tool in tools}
        self._peer = sandbox
        self._stub: Any = sandbox_service_pb2_grpc.SandboxServiceStub(sandbox.channel)
        self._resolve = resolve
        # Of the tokens only digests are kept here, so that comparing them takes the same time for all.
        self._instances: dict[bytes, str] = {}
        self._calls: dict[str, int] = {}
        app = web.Application(client_max_size=BODY_SIZE_MAX_BYTES)
        app.router.add_post("/v1/exec", self._exec)
        app.router.add_post("/v1/tools/{name}", self._tool)
        # A call whose asker has gone ends, and with it what it began.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound = self._runner.addresses[0]
        self.base_url = f"http://{bound[0]}:{bound[1]}"

    async def close(self) -> None:
        """End every call and let go of the port."""
        await self._runner.cleanup()

    def credential(self, instance_id: str) -> str:
        """Make a token for an instance; another one each time, all good until it is forgotten."""
        token = secrets.token_urlsafe(32)
        self._instances[_digest(token)] = instance_id
        return token

    def forget(self, instance_id: str) -> None:
        """End the tokens of an instance."""
        self._instances = {digest: owner for digest, owner in self._instances.items() if owner != instance_id}

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        async def run(response: _Lines) -> None:
            body = await _read(request, _Exec)
            argv = _argv(body.command, body.stdin)
            async with self._admitted(request, body.agent_id, body.session_key) as run:
                await self._forward(run, argv, response)

        return await _answer(request, run)

    async def _tool(self, request: web.Request) -> web.StreamResponse:
        async def run(response: _Lines) -> None:
            body = await _read(request, _Tool)
            async with self._admitted(request, body.agent_id, body.session_key) as run:
                tool = self.tools.get(request.match_info["name"])
                if tool is None:
                    raise RetinueError(Reason.CAPABILITY_MISSING, "There is no such tool.")
                async with asyncio.timeout(TOOL_TIMEOUT_S):
                    text = await tool.call(run, body.arguments)
                await response.send({"text": text})

        return await _answer(request, run)

    @asynccontextmanager
    async def _admitted(self, request: web.Request, agent_id: str, session_key: str) -> AsyncIterator[RunIdentity]:
        """Find out for whom a call is made; leave once that run is over. Raises RetinueError."""
        instance_id = self._instances.get(_digest(_bearer(request)))
        if instance_id is None:
            raise RetinueError(Reason.CREDENTIAL_INVALID, "The bridge does not know this gateway.")
        who = _Who(instance_id, agent_id, session_key)
        run = self._run_of(who)
        if run is None:
            log.warning("a tool was called outside of a run", instance_id=instance_id, agent_id=agent_id)
            raise RetinueError(Reason.POLICY_DENIED, "No run of this session is under way.")
        if self._calls.get(instance_id, 0) >= CALLS_MAX:
            raise RetinueError(Reason.QUOTA_EXCEEDED, "Too many tools are at work at once.")
        self._calls[instance_id] = self._calls.get(instance_id, 0) + 1
        tenancy.enter(tenancy.Identity(tenant_id=run.tenant_id))
        try:
            async with asyncio.timeout(None) as scope:
                with self._watched(who, run, scope):
                    yield run
        except TimeoutError:
            if not scope.expired():
                raise RetinueError(Reason.RUN_TIMEOUT, "The tool took too long.") from None
            raise RetinueError(Reason.RUN_TERMINAL, "The run is over.") from None
        finally:
            self._calls[instance_id] -= 1
            if not self._calls[instance_id]:
                del self._calls[instance_id]

    def _run_of(self, who: _Who) -> RunIdentity | None:
        # The key names its agent: one that names another's is not even looked for.
        if not who.agent_id or not who.session_key.startswith(f"agent:{who.agent_id}:"):
            return None
        return self._resolve(*who)

    @contextmanager
    def _watched(self, who: _Who, run: RunIdentity, scope: asyncio.Timeout) -> Iterator[None]:
        """Let the scope expire once the run is over."""
        loop = asyncio.get_running_loop()
        later: asyncio.TimerHandle | None = None

        def check() -> None:
            nonlocal later
            later = loop.call_later(CHECK_S, check)
            now = self._run_of(who)
            if now is None or now.run_id != run.run_id:
                scope.reschedule(0)

        check()
        try:
            yield
        finally:
            if later is not None:
                later.cancel()

    async def _forward(self, run: RunIdentity, argv: Sequence[str], response: "_Lines") -> None:
        """Run a command in the session's box and pass on what it says. Raises RetinueError."""
        request = pb.ExecRequest(
            tenant_id=run.tenant_id, session_id=run.session_id, fencing_token=run.fencing_token, argv=argv
        )
        size = 0
        async with aclosing(self._peer.stream(self._stub.Exec, request, timeout_s=EXEC_TIMEOUT_S)) as answers:  # type: ignore[type-var]
            async for answer in answers:
                if answer.stream == "exit":
                    await response.send({"exitCode": answer.exit_code})
                    return
                size += len(answer.data)
                if size > OUTPUT_SIZE_MAX_BYTES:
                    raise RetinueError(Reason.OUTPUT_TOO_LARGE, "The command said too much.")
                for start in range(0, len(answer.data), CHUNK_SIZE_MAX_BYTES):
                    piece = answer.data[start : start + CHUNK_SIZE_MAX_BYTES]
                    await response.send({"stream": answer.stream, "data": base64.b64encode(piece).decode()})
        raise RetinueError(Reason.DEPENDENCY_UNAVAILABLE, "The box did not say how the command ended.")


class _Lines:
    """An answer of JSON lines; its head is sent with the first of them."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.head: web.StreamResponse | None = None

    async def send(self, line: Mapping[str, Any]) -> None:
        if self.head is None:
            self.head = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await self.head.prepare(self._request)
        await self.head.write(msgspec.json.encode(line) + b"\n")


async def _answer(request: web.Request, run: Callable[[_Lines], Awaitable[None]]) -> web.StreamResponse:
    """Run a call and say how it failed, in the status if nothing was said yet, else in the last line."""
    lines = _Lines(request)
    try:
        await run(lines)
    except RetinueError as error:
        said = {"reason": str(error.reason), "message": error.message}
        if lines.head is None:
            return web.json_response(said, status=_ANSWERS.get(error.code, 409))
        await lines.send(said)
    except OSError:
        # The asker has gone.
        log.info("a tool's answer was not read to its end")
    except Exception:
        log.exception("a tool's call broke")
        said = {"reason": str(Reason.INTERNAL), "message": "Something went wrong inside."}
        if lines.head is None:
            return web.json_response(said, status=500)
        await lines.send(said)
    assert lines.head is not None
    return lines.head


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _bearer(request: web.Request) -> str:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if kind == "Bearer" else ""


async def _read(request: web.Request, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except web.HTTPRequestEntityTooLarge:
        raise RetinueError(Reason.BODY_TOO_LARGE, "The call is too large.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise RetinueError(Reason.FIELD_INVALID, "The call makes no sense.") from None


def _argv(command: str, stdin: str) -> list[str]:
    """Write a shell's command, with its input if there is any, as the sandbox takes it. Raises RetinueError."""
    if not command or len(command) > COMMAND_LENGTH_MAX or "\0" in command:
        raise RetinueError.field("command", f"must have 1 to {COMMAND_LENGTH_MAX} characters, and no NUL")
    if not stdin:
        return ["/bin/sh", "-c", command]
    try:
        size = len(base64.b64decode(stdin, validate=True))
    except binascii.Error:
        raise RetinueError.field("stdin", "must be base 64") from None
    if size > STDIN_SIZE_MAX_BYTES:
        raise RetinueError.field("stdin", f"must have at most {STDIN_SIZE_MAX_BYTES} bytes")
    pieces = [stdin[start : start + ARGUMENT_LENGTH_MAX] for start in range(0, len(stdin), ARGUMENT_LENGTH_MAX)]
    return ["/bin/sh", "-c", _WITH_INPUT, "input", command, *pieces]
