"""Tools that run what a model has written, in the box of its session."""

import codecs
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from retinue_kit.errors import RetinueError

from retinue_runtime_adapter.tools.bounded import bounded
from retinue_runtime_adapter.tools.box import WALL_TIME_MAX_S
from retinue_runtime_adapter.tools.builtin_files import PATH_LENGTH_MAX, BuiltIn, beneath, schema
from retinue_runtime_adapter.tools.ports import (
    RESULT_LENGTH_MAX,
    Box,
    Call,
    Ended,
    Execution,
    Progress,
    Result,
    Said,
    Scope,
)

COMMAND_LENGTH_MAX = 100_000
"""Characters of a command, which is one argument of a shell's; Linux takes 128 KiB."""

SOURCE_LENGTH_MAX = 512 * 1024
"""Characters of Python code."""

STDIN_LENGTH_MAX = 512 * 1024
"""Characters of a command's input."""

OUTPUT_SIZE_BYTES = RESULT_LENGTH_MAX
"""Bytes of each stream that the box keeps: what a result can hold."""


def run_tools(box: Box) -> list[BuiltIn]:
    """Make them."""
    made = _Runs(box)
    return [
        BuiltIn(
            "exec",
            "Run a shell command in a sandbox, in /workspace, with no network but what was opened. Files there stay; "
            "processes that it leaves behind end with it.",
            schema(
                ["command"],
                command={"type": "string", "minLength": 1, "maxLength": COMMAND_LENGTH_MAX},
                cwd={"type": "string", "maxLength": PATH_LENGTH_MAX, "description": "Folder beneath /workspace."},
                stdin={"type": "string", "maxLength": STDIN_LENGTH_MAX},
                timeout_s={
                    "type": "number",
                    "minimum": 0.1,
                    "maximum": WALL_TIME_MAX_S,
                    "description": "Seconds after which it is ended; 30 if left out.",
                },
            ),
            made.execute,
        ),
        BuiltIn(
            "python",
            "Run Python code in a sandbox, in /workspace. Print what you want to see.",
            schema(["code"], code={"type": "string", "minLength": 1, "maxLength": SOURCE_LENGTH_MAX}),
            made.python,
        ),
    ]


class _Runs:
    def __init__(self, box: Box) -> None:
        self._box = box

    async def execute(self, scope: Scope, call: Call, progress: Progress) -> Result:
        asked = call.arguments
        if "\0" in asked["command"]:
            raise RetinueError.field("command", "must not hold NUL.")
        execution = Execution(
            argv=["/bin/sh", "-c", asked["command"]],
            stdin=asked.get("stdin", "").encode(),
            cwd=beneath(asked.get("cwd", "")),
            wall_time_s=float(asked.get("timeout_s", 0.0)),
            output_size_bytes=OUTPUT_SIZE_BYTES,
        )
        return await _told(self._box.execute(scope, call, execution), progress)

    async def python(self, scope: Scope, call: Call, progress: Progress) -> Result:
        return await _told(self._box.run_python(scope, call, call.arguments["code"]), progress)


async def _told(steps: AsyncIterator[tuple[str, bytes] | Ended], progress: Progress) -> Result:
    """Follow an execution; its result is what it said, then how it ended unless that was well."""
    said: dict[str, list[str]] = {"stdout": [], "stderr": []}
    decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in said}
    end = Ended("lost")
    async with aclosing(cast("Any", steps)) as found:
        async for step in found:
            if isinstance(step, Ended):
                end = step
                break
            stream = step[0] if step[0] in said else "stdout"
            text = decoders[stream].decode(step[1])
            if text:
                said[stream].append(text)
                progress(Said(stream, text))
    out, err = ("".join(said[name]) + decoders[name].decode(b"", final=True) for name in ("stdout", "stderr"))
    ok = end.outcome == "exited" and end.exit_code == 0
    parts = [bounded(out, RESULT_LENGTH_MAX // 2), bounded(err, RESULT_LENGTH_MAX // 4)]
    if not ok:
        how = end.message or (f"Ended: {end.outcome}." if end.outcome != "exited" else "")
        parts.append(f"{how} Exit code {end.exit_code}.".strip())
    text = "\n".join(part.rstrip("\n") for part in parts if part)
    return Result(ok, text or "It said nothing and ended well.")
