"""The way from a gateway's tools into boxes: what our plugin, and the processes that it starts, may ask of the mesh.

A gateway is not believed. Its token says which instance it is; which tenant, session and attempt a call is made for is
taken from the run that this process has under way on that instance, for that agent, in that session. Without one
nothing happens, and what has begun ends with it.
"""

import asyncio
import base64
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
import structlog
from aiohttp import web
from retinue_kit import tenancy
from retinue_kit.errors import Code, Reason, RetinueError

from retinue_runtime_adapter.openclaw.permits import Permits, RunIdentity
from retinue_runtime_adapter.openclaw.tool_arguments import as_ours
from retinue_runtime_adapter.tools import arguments
from retinue_runtime_adapter.tools.ports import Authority, Box, Call, Ended, Execution, Said, Tool

AUTHORIZE_TIMEOUT_S = 10.0
"""Time for policy to say whether a call may be made, and for its beginning to be recorded; milliseconds."""

TOOL_TIMEOUT_S = 60.0
"""Time for one of the mesh's own tools."""

BODY_SIZE_MAX_BYTES = 2 * 1024 * 1024
"""Of a request: a command with its input in base 64."""

COMMAND_LENGTH_MAX = 128 * 1024
"""Characters of a command; the scripts that OpenClaw sends for files have a few thousand."""

STDIN_SIZE_MAX_BYTES = 1024 * 1024
"""Bytes of input: what a tool writes into one file."""

OUTPUT_SIZE_MAX_BYTES = 4 * 1024 * 1024
"""Bytes of output of one command or script, as much as a box keeps of a stream; more, and it is ended. What a box
leaves out of a command's output is said where it is missing; a file with a hole would be written back with it."""

COMMAND_TIME_S = 580.0
"""Time for one command, nearly as long as an attempt may take by default; OpenClaw ends most of them sooner itself."""

CHUNK_SIZE_MAX_BYTES = 64 * 1024
"""Bytes of output in one line of an answer."""

NAME_LENGTH_MAX = 128
"""Characters of a tool's name."""

CALL_ID_LENGTH_MAX = 256
"""Characters of a call's id, which a model's endpoint makes."""

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

log: structlog.stdlib.BoundLogger = structlog.get_logger()


Resolve = Callable[[str, str, str], RunIdentity | None]
"""Finds the run under way on an instance, for an agent, in a session key; None if there is none."""


class _Who(NamedTuple):
    instance_id: str
    agent_id: str
    session_key: str


_CallId = Annotated[str, msgspec.Meta(min_length=1, max_length=CALL_ID_LENGTH_MAX)]


class _Exec(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    agent_id: str
    session_key: str
    kind: Literal["command", "script"]
    """What a model has asked for, or what OpenClaw makes of it."""
    command: str
    stdin: str = ""
    """In base 64."""


class _Begun(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    agent_id: str
    session_key: str
    call_id: _CallId
    tool: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
    arguments: dict[str, Any]


class _Ended(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    agent_id: str
    session_key: str
    call_id: _CallId


class _Tool(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    agent_id: str
    session_key: str
    call_id: _CallId
    arguments: dict[str, Any]


T = TypeVar("T", _Exec, _Begun, _Ended, _Tool)


class Bridge:
    """An HTTP endpoint on loopback. `start` it before its `base_url` is used."""

    def __init__(self, box: Box, authority: Authority, resolve: Resolve, tools: Sequence[Tool] = ()) -> None:
        """`tools` are the mesh's own; their names are in the plugin's manifest too, since OpenClaw wants them there."""
        self.base_url = ""
        self.tools = {tool.name: tool for tool in tools}
        self._box = box
        self._permits = Permits(authority)
        self._resolve = resolve
        # Of the tokens only digests are kept here, so that comparing them takes the same time for all.
        self._instances: dict[bytes, str] = {}
        self._calls: dict[str, int] = {}
        app = web.Application(client_max_size=BODY_SIZE_MAX_BYTES)
        app.router.add_post("/v1/calls", self._begin)
        app.router.add_post("/v1/calls/end", self._end)
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

    async def _begin(self, request: web.Request) -> web.StreamResponse:
        """A tool of the gateway's own is about to be called: its scripts and commands follow if policy allows it."""

        async def run(response: _Lines) -> None:
            body = await _read(request, _Begun)
            async with self._admitted(request, body.agent_id, body.session_key) as run:
                async with asyncio.timeout(AUTHORIZE_TIMEOUT_S):
                    await self._permits.open(run, Call(body.call_id, body.tool, as_ours(body.tool, body.arguments)))
                await response.send({"allowed": True})

        return await _answer(request, run)

    async def _end(self, request: web.Request) -> web.StreamResponse:
        async def run(response: _Lines) -> None:
            body = await _read(request, _Ended)
            async with self._admitted(request, body.agent_id, body.session_key) as run:
                self._permits.close(run, body.call_id)
                await response.send({"ended": True})

        return await _answer(request, run)

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        async def run(response: _Lines) -> None:
            body = await _read(request, _Exec)
            argv, stdin = _argv(body.command), _stdin(body.stdin)
            async with self._admitted(request, body.agent_id, body.session_key) as run:
                call = self._permits.find(run, command=body.kind == "command")
                kept = 0 if body.kind == "command" else OUTPUT_SIZE_MAX_BYTES
                execution = Execution(argv, stdin, wall_time_s=COMMAND_TIME_S, output_size_bytes=kept)
                await self._forward(run, call, execution, response)

        return await _answer(request, run)

    async def _tool(self, request: web.Request) -> web.StreamResponse:
        async def run(response: _Lines) -> None:
            body = await _read(request, _Tool)
            async with self._admitted(request, body.agent_id, body.session_key) as run:
                tool = self.tools.get(request.match_info["name"])
                if tool is None:
                    raise RetinueError(Reason.CAPABILITY_MISSING, "There is no such tool.")
                try:
                    given = arguments.normalised(tool.parameters, body.arguments)
                except arguments.ArgumentsError as error:
                    raise RetinueError(Reason.FIELD_INVALID, str(error)) from None
                call = Call(body.call_id, tool.name, given)
                async with asyncio.timeout(TOOL_TIMEOUT_S):
                    await self._permits.ask(run, call, changes=not tool.parallel)
                    result = await tool.call(run.scope, call, _unheard)
                await response.send({"text" if result.ok else "message": result.text})

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
        tenancy.enter(tenancy.Identity(run.scope.tenant_id, run.scope.principal))
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
            if now is None or now.scope.run_id != run.scope.run_id:
                scope.reschedule(0)

        check()
        try:
            yield
        finally:
            if later is not None:
                later.cancel()

    async def _forward(self, run: RunIdentity, call: Call, execution: Execution, response: "_Lines") -> None:
        """Run a command in the session's box and pass on what it says. Raises RetinueError."""
        size = 0
        async with aclosing(self._box.execute(run.scope, call, execution)) as steps:  # type: ignore[type-var]
            async for step in steps:
                if isinstance(step, Ended):
                    await _tell_end(step, response)
                    return
                stream, data = step
                size += len(data)
                if size > OUTPUT_SIZE_MAX_BYTES:
                    raise RetinueError(Reason.OUTPUT_TOO_LARGE, "That is too much to be handed over at once.")
                await _tell(stream, data, response)


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


async def _tell(stream: str, data: bytes, response: _Lines) -> None:
    for start in range(0, len(data), CHUNK_SIZE_MAX_BYTES):
        piece = data[start : start + CHUNK_SIZE_MAX_BYTES]
        await response.send({"stream": stream, "data": base64.b64encode(piece).decode()})


async def _tell_end(end: Ended, response: _Lines) -> None:
    """Tell how a command ended: shells know no more than a number, so a limit's sentence goes before it."""
    code = end.exit_code
    if end.outcome != "exited":
        code = code or 1
        said = end.message or f"The command was ended: {end.outcome}."
        await _tell("stderr", f"\n{said}\n".encode(), response)
    await response.send({"exitCode": code})


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


def _unheard(_said: Said) -> None:
    """OpenClaw has no ear for what a tool says while it is at work."""


def _argv(command: str) -> list[str]:
    """Write a shell's command. Raises RetinueError(FIELD_INVALID)."""
    if not command or len(command) > COMMAND_LENGTH_MAX or "\0" in command:
        raise RetinueError.field("command", f"must have 1 to {COMMAND_LENGTH_MAX} characters, and no NUL")
    return ["/bin/sh", "-c", command]


def _stdin(text: str) -> bytes:
    """Read a command's input. Raises RetinueError(FIELD_INVALID)."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:  # binascii's is one, and so is that of letters beyond ASCII
        raise RetinueError.field("stdin", "must be base 64") from None
    if len(data) > STDIN_SIZE_MAX_BYTES:
        raise RetinueError.field("stdin", f"must have at most {STDIN_SIZE_MAX_BYTES} bytes")
    return data
