"""The tools, as clients of MCP are shown them. Who calls, and in which session, is never among their arguments."""

import base64
import codecs
import datetime
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel, Field
from retinue.router.v1.memory_service_pb2 import NewFact
from retinue.sandbox.v1 import execution_pb2
from retinue_kit import tenancy
from retinue_kit.errors import RetinueError

from retinue_gateway import encode
from retinue_gateway.mcp.boxes import WALL_TIME_S, Ask, Boxes
from retinue_gateway.mcp.keeping import Keeping
from retinue_gateway.mcp.results import (
    Execution,
    FileEntry,
    FileText,
    FileWritten,
    Found,
    FoundFact,
    Listing,
    Noted,
    Removed,
    Scheduled,
    Stopped,
)

NAME = "retinue-sandbox"
VERSION = "1"
INSTRUCTIONS = (
    "A sandbox of your own tenant: files under /workspace stay, processes end with the call that began them. "
    "There is no network unless the operator has granted some. Paths are beneath /workspace."
)

COMMAND_LENGTH_MAX = 100_000
"""Characters of a command, which is one argument of a shell's; Linux takes 128 KiB."""

TEXT_LENGTH_MAX = 512 * 1024
"""Characters of source, of input, and of what is written into a file; a request holds 1 MiB."""

TASK_LENGTH_MAX = 8000
"""Characters of what a task is to do."""

FACT_LENGTH_MAX = 2000
"""Characters of a fact."""

TITLE_LENGTH_MAX = 200
"""Characters of a note's title."""

NOTE_LENGTH_MAX = FACT_LENGTH_MAX - TITLE_LENGTH_MAX - 2
"""Characters of a note, which is one fact together with its title."""

FACTS_MAX = 20
"""Facts that one call remembers."""

QUERY_LENGTH_MAX = 1000
"""Characters of what is looked for in memory."""

PATH_LENGTH_MAX = 4095
DIGEST_LENGTH_MAX = 64

READ_SIZE_MAX_BYTES = 128 * 1024
"""Bytes of a file that one call reads; they are told twice, for clients of either kind."""

PAGE_SIZE_MAX = 500
"""Files of one page."""

TIMEOUT_MAX_S = 600.0
"""Time for one execution, the most that a box gives."""

PROGRESS_LENGTH_MAX = 4096
"""Characters of output that one notification of progress tells; the rest is in the result."""

WORKSPACE = "/workspace"

Path = Annotated[str, Field(min_length=1, max_length=PATH_LENGTH_MAX, description="Path beneath /workspace.")]
Folder = Annotated[str, Field(max_length=PATH_LENGTH_MAX, description="Folder beneath /workspace; itself if empty.")]
Contact = Annotated[str, Field(max_length=128, description="Of whom, by name; empty for what concerns everybody.")]
Text = Annotated[str, Field(max_length=TEXT_LENGTH_MAX)]
Digest = Annotated[
    str,
    Field(
        max_length=DIGEST_LENGTH_MAX,
        description='SHA-256 of what it must hold now; "absent" if it must not be there; empty if that is the same.',
    ),
]
Timeout = Annotated[
    float, Field(ge=0.1, le=TIMEOUT_MAX_S, description="Seconds after which it is ended, with all that it started.")
]


class Fact(BaseModel):
    """A fact to remember."""

    text: str = Field(min_length=1, max_length=FACT_LENGTH_MAX, description="The fact, in a sentence.")
    domain: str = Field(default="", max_length=64, description="What it is about, in a word: letters, digits, - and _.")
    kind: Literal["", "preference", "profile", "event", "task", "note"] = ""
    importance: int = Field(default=0, ge=0, le=10, description="1 to 10; 5 if left out.")


Read = Callable[[Context, str, Mapping[str, Any]], Ask]
"""Reads who calls from the request of a call, and what policy is to know of it: a tool's name, and arguments."""


def server(boxes: Boxes, keeping: Keeping, read: Read) -> MCPServer:
    """Make the server."""
    made = MCPServer(NAME, instructions=INSTRUCTIONS, version=VERSION, log_level="WARNING", subscriptions=False)
    tools = _Tools(boxes, keeping, read)
    for call, annotations in (
        (tools.sandbox_exec, _hints(destructive=True)),
        (tools.sandbox_python, _hints(destructive=True)),
        (tools.sandbox_read_file, _hints(read_only=True)),
        (tools.sandbox_write_file, _hints(destructive=True, idempotent=True)),
        (tools.sandbox_edit_file, _hints(destructive=True)),
        (tools.sandbox_list, _hints(read_only=True)),
        (tools.sandbox_delete, _hints(destructive=True)),
        (tools.sandbox_stop, _hints(destructive=True, idempotent=True)),
        (tools.memory_note, _hints(idempotent=True)),
        (tools.memory_search, _hints(read_only=True)),
        (tools.schedule_task, _hints()),
    ):
        made.add_tool(call, annotations=annotations)
    return made


def _hints(*, read_only: bool = False, destructive: bool = False, idempotent: bool = False) -> ToolAnnotations:
    return ToolAnnotations(
        read_only_hint=read_only,
        destructive_hint=destructive,
        idempotent_hint=idempotent or read_only,
        open_world_hint=False,
    )


class _Tools:
    """The docstrings are what models read."""

    def __init__(self, boxes: Boxes, keeping: Keeping, read: Read) -> None:
        self._boxes = boxes
        self._keeping = keeping
        self._read = read

    async def sandbox_exec(
        self,
        context: Context,
        command: Annotated[str, Field(min_length=1, max_length=COMMAND_LENGTH_MAX)],
        cwd: Folder = "",
        stdin: Text = "",
        timeout_s: Timeout = WALL_TIME_S,
    ) -> Execution:
        """Run a shell command in the sandbox, in /workspace or a folder beneath it."""
        known: dict[str, Any] = {"command": command, "timeout_s": timeout_s}
        if cwd:
            known["cwd"] = cwd
        with self._asked(context, "exec", {**known, "stdin": stdin} if stdin else known) as ask:
            events = self._boxes.execute(ask, command, cwd=_beneath(cwd), stdin=stdin.encode(), timeout_s=timeout_s)
            return await _follow(context, events)

    async def sandbox_python(
        self,
        context: Context,
        source: Annotated[str, Field(min_length=1, max_length=TEXT_LENGTH_MAX)],
        timeout_s: Timeout = WALL_TIME_S,
    ) -> Execution:
        """Run Python source in the sandbox, in /workspace. Print what you want to see."""
        with self._asked(context, "python", {"source": source}) as ask:
            return await _follow(context, self._boxes.run_python(ask, source, timeout_s=timeout_s))

    async def sandbox_read_file(
        self,
        context: Context,
        path: Path,
        offset_bytes: Annotated[int, Field(ge=0)] = 0,
        size_bytes: Annotated[int, Field(ge=1, le=READ_SIZE_MAX_BYTES)] = READ_SIZE_MAX_BYTES,
    ) -> FileText:
        """Read a file of the workspace, or a part of it."""
        with self._asked(context, "read", {"path": path}) as ask:
            answer = await self._boxes.read(ask, _beneath(path), offset_bytes=offset_bytes, size_bytes=size_bytes)
            content, data, is_text = _shown(answer.data)
            return FileText(
                path=answer.info.path,
                encoding="utf-8" if is_text else "base64",
                content=content,
                offset_bytes=offset_bytes,
                read_bytes=len(data),
                size_bytes=answer.info.size_bytes,
                digest=answer.info.digest,
            )

    async def sandbox_write_file(
        self, context: Context, path: Path, content: Text, expected_digest: Digest = ""
    ) -> FileWritten:
        """Write a text file of the workspace whole, with the folders above it. What it held before is gone."""
        with self._asked(context, "write", {"path": path, "content": content}) as ask:
            answer = await self._boxes.write(ask, _beneath(path), content.encode(), expected_digest=expected_digest)
            info = answer.info
            return FileWritten(path=info.path, size_bytes=info.size_bytes, digest=info.digest)

    async def sandbox_edit_file(
        self,
        context: Context,
        path: Path,
        old_text: Annotated[str, Field(min_length=1, max_length=TEXT_LENGTH_MAX)],
        new_text: Text,
        all: Annotated[bool, Field(description="Replace every occurrence.")] = False,
    ) -> FileWritten:
        """Replace a text in a file. The old text must be there exactly once, unless all is true."""
        known = {"path": path, "old_text": old_text, "new_text": new_text, "all": all}
        with self._asked(context, "edit", known) as ask:
            answer = await self._boxes.edit(ask, _beneath(path), old_text, new_text, every=all)
            info = answer.info
            return FileWritten(
                path=info.path,
                size_bytes=info.size_bytes,
                digest=info.digest,
                replaced_count=answer.replaced_count,
            )

    async def sandbox_list(
        self,
        context: Context,
        path: Folder = "",
        recursive: bool = False,
        page_size: Annotated[int, Field(ge=1, le=PAGE_SIZE_MAX)] = PAGE_SIZE_MAX,
        page_token: Annotated[str, Field(max_length=8192, description="Where to go on; from the start if empty.")] = "",
    ) -> Listing:
        """List files and folders of the workspace."""
        known: dict[str, Any] = {"recursive": recursive, **({"path": path} if path else {})}
        with self._asked(context, "list", known) as ask:
            answer = await self._boxes.list(
                ask, _beneath(path), recursive=recursive, page_size=page_size, page_token=page_token
            )
            entries = [FileEntry(path=f.path, kind=f.kind, size_bytes=f.size_bytes) for f in answer.files]
            return Listing(files=entries, next_page_token=answer.next_page_token)

    async def sandbox_delete(self, context: Context, path: Path, recursive: bool = False) -> Removed:
        """Remove a file of the workspace, or with recursive a folder and all that it holds."""
        with self._asked(context, "delete", {"path": path, "recursive": recursive}) as ask:
            answer = await self._boxes.delete(ask, _beneath(path), recursive=recursive)
            return Removed(removed_count=answer.removed_count)

    async def sandbox_stop(self, context: Context) -> Stopped:
        """End every process of this session. The files stay."""
        with self._asked(context, "stop", {}) as ask:
            return Stopped(stopped=await self._boxes.stop(ask))

    async def memory_note(
        self,
        context: Context,
        facts: Annotated[list[Fact], Field(max_length=FACTS_MAX)] = [],  # noqa: B006
        title: Annotated[str, Field(max_length=TITLE_LENGTH_MAX, description="Of a single note.")] = "",
        text: Annotated[str, Field(max_length=NOTE_LENGTH_MAX, description="A single note; else use facts.")] = "",
        contact: Contact = "",
    ) -> Noted:
        """Remember facts for good, in the agent's long-term memory."""
        told = " ".join(title.split()), " ".join(text.split())
        wanted = [*facts, Fact(text=": ".join(part for part in told if part))] if any(told) else facts
        known: dict[str, Any] = {"facts": [fact.model_dump(exclude_defaults=True) for fact in wanted]}
        with self._asked(context, "memory_note", known) as ask:
            made = [
                NewFact(text=fact.text, domain=fact.domain, kind=fact.kind, importance=fact.importance)
                for fact in wanted
            ]
            return Noted(facts=await self._keeping.remember(ask, contact, made))

    async def memory_search(
        self,
        context: Context,
        query: Annotated[str, Field(min_length=1, max_length=QUERY_LENGTH_MAX)],
        contact: Contact = "",
    ) -> Found:
        """Look for what the agent remembers; the best first."""
        with self._asked(context, "memory_search", {"query": query}) as ask:
            found = await self._keeping.search(ask, contact, query)
            return Found(
                facts=[
                    FoundFact(
                        fact=one.fact_id,
                        contact=one.contact,
                        domain=one.domain,
                        kind=one.kind,
                        importance=one.importance,
                        text=one.text,
                    )
                    for one in found
                ]
            )

    async def schedule_task(
        self,
        context: Context,
        contact: Annotated[str, Field(min_length=1, max_length=128, description="Whom the agent reminds, by name.")],
        text: Annotated[str, Field(min_length=1, max_length=TASK_LENGTH_MAX, description="What to do.")],
        cron: Annotated[str, Field(min_length=1, max_length=128, description="When: five fields of cron.")],
        time_zone: Annotated[str, Field(max_length=64, description="Such as Europe/Paris; UTC if empty.")] = "",
    ) -> Scheduled:
        """Schedule a task of the agent that comes again by the clock, such as a reminder."""
        known = {"text": text, "cron": cron, **({"time_zone": time_zone} if time_zone else {})}
        with self._asked(context, "schedule_task", known) as ask:
            found = await self._keeping.schedule(ask, contact, text, cron, time_zone)
            when = found.next_time.ToDatetime(datetime.UTC).isoformat(timespec="minutes")
            return Scheduled(schedule=found.schedule_id, contact=found.contact, next_time=when)

    @contextmanager
    def _asked(self, context: Context, tool: str, arguments: Mapping[str, Any]) -> Iterator[Ask]:
        """Act for who calls; what goes wrong is told as the client's model can read it."""
        ask = self._read(context, tool, arguments)
        tenancy.enter(ask.caller.identity)
        try:
            yield ask
        except RetinueError as error:
            told = encode.error(error)
            raise ToolError(f"{told.message} ({told.reason})") from error


async def _follow(context: Context, events: AsyncIterator[execution_pb2.Output | execution_pb2.Exit]) -> Execution:
    """Follow an execution to its end; those who asked for progress are told what it says meanwhile."""
    said: dict[str, list[str]] = {"stdout": [], "stderr": []}
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in said}
    omitted = size = 0
    end = execution_pb2.Exit()
    async with aclosing(events) as found:  # type: ignore[type-var]
        async for event in found:
            if isinstance(event, execution_pb2.Exit):
                end = event
                break
            stream = event.stream if event.stream in said else "stdout"
            text = decoders[stream].decode(event.data)
            if event.omitted_size_bytes:
                omitted += event.omitted_size_bytes
                text = f"\n[... {event.omitted_size_bytes} bytes left out ...]\n{text}"
            said[stream].append(text)
            size += len(event.data)
            if text:
                await context.report_progress(size, None, text[:PROGRESS_LENGTH_MAX])
    return Execution(
        outcome=end.outcome,
        exit_code=end.exit_code,
        stdout="".join(said["stdout"]) + decoders["stdout"].decode(b"", final=True),
        stderr="".join(said["stderr"]) + decoders["stderr"].decode(b"", final=True),
        omitted_bytes=omitted,
        duration_ms=end.duration_ms,
        message=end.message,
    )


def _beneath(path: str) -> str:
    """Write a path as the sandbox takes it; models name the workspace, too. What leads out of it is refused there."""
    if path == WORKSPACE or path.startswith(f"{WORKSPACE}/"):
        path = path.removeprefix(WORKSPACE).lstrip("/")
    return "/".join(part for part in path.split("/") if part != ".")


def _shown(data: bytes) -> tuple[str, bytes, bool]:
    """Write what was read; answers how much of it that is, and whether it is text. A letter cut at the end is left."""
    try:
        return data.decode(), data, True
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.start > 0:
            return data[: error.start].decode(), data[: error.start], True
        return base64.b64encode(data).decode(), data, False
