"""Where the sandbox can be made to die; see retinue_kit.crashing. Tests sweep all of them."""

from enum import StrEnum


class Point(StrEnum):
    """A place just before or after something that a caller or a tenant's files can see."""

    SESSION_OPENING = "sandbox.session.opening"
    SESSION_OPENED = "sandbox.session.opened"
    EXEC_STARTING = "sandbox.exec.starting"
    EXEC_ENDED = "sandbox.exec.ended"
    EXEC_RECORDED = "sandbox.exec.recorded"
    FILE_STAGED = "sandbox.file.staged"
    FILE_WRITTEN = "sandbox.file.written"
