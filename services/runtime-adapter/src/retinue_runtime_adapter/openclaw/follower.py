"""One reader of one run: the frames that wait for it, and how it stands with the run."""

import asyncio
from collections import deque

from retinue_runtime_adapter.openclaw import protocol
from retinue_runtime_adapter.openclaw.ports import Frame, RunCall

QUEUE_COUNT_MAX = 1_024
"""Frames of one run that wait to be read; text that waits is one frame however long."""


class Follower:
    """One reader of one run."""

    def __init__(self, call: RunCall) -> None:
        self.call = call
        self.session_key = call.session_key.lower()  # as gateways write them
        self.frames: deque[Frame] = deque()
        self.woken = asyncio.Event()
        self.join_count = 0
        self.has_begun = False
        self.is_joined = False
        self.has_settled = False
        self.is_overflown = False

    def matches(self, head: protocol.Head) -> bool:
        call = self.call
        return (
            head.run_id == call.run_id
            and head.agent_id == call.agent_id
            and head.session_key.lower() == self.session_key
        )

    def put(self, frame: Frame) -> None:
        """Add a frame, or make one of it and the last where that says the same."""
        if frame.kind == "event" and frame.body.get("stream") == "lifecycle":
            data = frame.body.get("data")
            self.has_settled = self.has_settled or (isinstance(data, dict) and data.get("executionSettled") is True)
        self.has_begun = True
        merged = merge(self.frames[-1], frame) if self.frames else None
        if merged is not None:
            self.frames[-1] = merged
        elif len(self.frames) >= QUEUE_COUNT_MAX:
            self.is_overflown = True
        else:
            self.frames.append(frame)
        self.woken.set()


def merge(former: Frame, latter: Frame) -> Frame | None:
    """Make one frame of two pieces of the same message's text, or of one tool call's output; None if they differ."""
    if former.kind != "event" or latter.kind != "event":
        return None
    stream = latter.body.get("stream")
    if former.body.get("stream") != stream:
        return None
    old, new = former.body.get("data"), latter.body.get("data")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return None
    if stream == "assistant" and old.get("itemId") == new.get("itemId") and isinstance(new.get("text"), str):
        data = {**new, "delta": f"{old.get('delta') or ''}{new.get('delta') or ''}"}
        if old.get("replace") or new.get("replace"):
            data["replace"] = True
        return Frame("event", {**latter.body, "data": data})
    if (
        stream == "tool"
        and old.get("phase") == new.get("phase") == "update"
        and old.get("toolCallId") == new.get("toolCallId")
    ):
        return latter
    return None
