"""Tools for the files of a tenant's workspace. They need no box, only the sandbox's file calls."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from retinue_kit.errors import RetinueError

from retinue_runtime_adapter.tools.box import SandboxFiles
from retinue_runtime_adapter.tools.ports import RESULT_LENGTH_MAX, Call, Json, Progress, Result, Scope

WORKSPACE = "/workspace"
"""What a box sees the files as; models name them both ways."""

READ_SIZE_MAX_BYTES = RESULT_LENGTH_MAX
"""Bytes of a file that one call reads; more would be cut out of the result."""

WRITE_LENGTH_MAX = 512 * 1024
"""Characters that one call writes: as many as a model's whole answer may have, about."""

LISTED_MAX = 500
"""Files that one call lists."""

PATH_LENGTH_MAX = 4095
"""Characters of a path."""

_PATH: Json = {
    "type": "string",
    "minLength": 1,
    "maxLength": PATH_LENGTH_MAX,
    "description": "Path beneath /workspace, such as notes/today.md.",
}

Do = Callable[[Scope, Call, Progress], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A tool that this build brings along. Implements ports.Tool."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    do: Do
    parallel: bool = False
    idempotent: bool = False

    async def call(self, scope: Scope, call: Call, progress: Progress) -> Result:
        """Do it."""
        return await self.do(scope, call, progress)


def schema(required: list[str], **properties: Json) -> Json:
    """The schema of an object's arguments."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def beneath(path: str) -> str:
    """A path beneath the workspace, however a model has named it; "" is the workspace itself. Raises FIELD_INVALID."""
    found = path.strip()
    if found == WORKSPACE or found.startswith(f"{WORKSPACE}/"):
        found = found.removeprefix(WORKSPACE).lstrip("/")
    elif found.startswith("/"):
        raise RetinueError.field("path", f"must lie beneath {WORKSPACE}.")
    parts = [part for part in found.split("/") if part not in ("", ".")]
    return "/".join(parts)


def file_tools(files: SandboxFiles) -> list[BuiltIn]:
    """Make them."""
    made = _Files(files)
    return [
        BuiltIn(
            "read",
            "Read a text file of the workspace, whole or from an offset in bytes.",
            schema(
                ["path"],
                path=_PATH,
                offset={"type": "integer", "minimum": 0, "description": "Where to begin, in bytes; 0 if left out."},
                limit={
                    "type": "integer",
                    "minimum": 1,
                    "maximum": READ_SIZE_MAX_BYTES,
                    "description": "In bytes.",
                },
            ),
            made.read,
            parallel=True,
            idempotent=True,
        ),
        BuiltIn(
            "write",
            "Write a file of the workspace whole, with the folders above it. What it held before is gone.",
            schema(["path", "content"], path=_PATH, content={"type": "string", "maxLength": WRITE_LENGTH_MAX}),
            made.write,
            idempotent=True,
        ),
        BuiltIn(
            "edit",
            "Replace a text in a file. The old text must be there exactly once, unless all is true.",
            schema(
                ["path", "old_text", "new_text"],
                path=_PATH,
                old_text={"type": "string", "minLength": 1, "maxLength": WRITE_LENGTH_MAX},
                new_text={"type": "string", "maxLength": WRITE_LENGTH_MAX},
                all={"type": "boolean", "description": "Replace every occurrence."},
            ),
            made.edit,
        ),
        BuiltIn(
            "list",
            "List files and folders of the workspace, with their sizes in bytes.",
            schema(
                [],
                path={"type": "string", "maxLength": PATH_LENGTH_MAX, "description": "A folder; all if left out."},
                recursive={"type": "boolean", "description": "List folders within too."},
            ),
            made.list,
            parallel=True,
            idempotent=True,
        ),
        BuiltIn(
            "delete",
            "Remove a file of the workspace, or with recursive a folder and all that it holds.",
            schema(["path"], path=_PATH, recursive={"type": "boolean"}),
            made.delete,
        ),
    ]


class _Files:
    def __init__(self, files: SandboxFiles) -> None:
        self._files = files

    async def read(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        path, offset = beneath(call.arguments["path"]), int(call.arguments.get("offset", 0))
        limit = int(call.arguments.get("limit", READ_SIZE_MAX_BYTES))
        answer = await self._files.read(scope, path, offset_bytes=offset, size_bytes=limit)
        size = answer.info.size_bytes
        if b"\0" in answer.data:
            return Result(False, f"{path} holds no text: {size} bytes.")
        # A letter that the bounds have cut is left out rather than shown as broken.
        text = answer.data.decode("utf-8", "ignore" if len(answer.data) < size else "replace")
        if len(answer.data) == size:
            return Result(True, text)
        end = offset + len(answer.data)
        return Result(True, f"{text}\n[bytes {offset} to {end} of {size}]")

    async def write(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        path, data = beneath(call.arguments["path"]), call.arguments["content"].encode()
        await self._files.write(scope, call, path, data)
        return Result(True, f"Wrote {len(data)} bytes to {path}.")

    async def edit(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        asked = call.arguments
        path, every = beneath(asked["path"]), bool(asked.get("all"))
        answer = await self._files.edit(scope, call, path, asked["old_text"], asked["new_text"], every=every)
        times = "once" if answer.replaced_count == 1 else f"{answer.replaced_count} times"
        return Result(True, f"Replaced {times} in {path}.")

    async def list(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        path, recursive = beneath(call.arguments.get("path", "")), bool(call.arguments.get("recursive"))
        answer = await self._files.list(scope, path, recursive=recursive, page_size=LISTED_MAX)
        lines = [
            f"{found.path}/" if found.kind == "folder" else f"{found.path}  {found.size_bytes}"
            for found in answer.files
        ]
        if answer.next_page_token:
            lines.append(f"[only the first {LISTED_MAX}]")
        return Result(True, "\n".join(lines) or "Nothing is there.")

    async def delete(self, scope: Scope, call: Call, _progress: Progress) -> Result:
        path = beneath(call.arguments["path"])
        if not path:
            raise RetinueError.field("path", "must not be the workspace itself.")
        count = await self._files.delete(scope, call, path, recursive=bool(call.arguments.get("recursive")))
        return Result(True, f"Removed {path}." if count == 1 else f"Removed {path} with all in it, {count} in all.")
