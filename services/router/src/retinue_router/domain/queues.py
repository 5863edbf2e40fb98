"""The classes of the queue: each has a ring of its own, so that a task never stands before what somebody waits for."""

from enum import StrEnum

TASK_LOG = "tsk"
"""What ids of tasks' logs begin with; those of contacts begin with `log`."""


class QueueClass(StrEnum):
    """A class of runs that are queued together."""

    CHAT = "chat"
    TASK = "task"


def class_of(log_id: str) -> QueueClass:
    """Tell from its id in which class a log waits."""
    return QueueClass.TASK if log_id.startswith(f"{TASK_LOG}_") else QueueClass.CHAT
