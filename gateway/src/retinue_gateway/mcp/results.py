"""What the tools answer, as clients of MCP read it."""

from typing import Literal

from pydantic import BaseModel, Field


class Execution(BaseModel):
    """How a command or source ended, and what it said."""

    outcome: str = Field(description='"exited", "signalled", or the limit that ended it, such as "wall_time".')
    exit_code: int = Field(description="Exit code; 128 and the signal's number where a signal ended it.")
    stdout: str
    stderr: str
    omitted_bytes: int = Field(description="Bytes of output that were left out of the middle.")
    duration_ms: int
    message: str = Field(description="Which limit ended it, in a sentence; empty otherwise.")


class FileText(BaseModel):
    """A file, or a part of it."""

    path: str
    encoding: Literal["utf-8", "base64"] = Field(description="How `content` is written; base64 for what is no text.")
    content: str
    offset_bytes: int
    read_bytes: int
    size_bytes: int = Field(description="Of the whole file.")
    digest: str = Field(description="SHA-256 of the whole file, in hexadecimal digits.")


class FileWritten(BaseModel):
    """A file as it is now."""

    path: str
    size_bytes: int
    digest: str
    replaced_count: int = Field(default=0, description="How often a text was replaced.")


class FileEntry(BaseModel):
    """A file or a folder."""

    path: str
    kind: str = Field(description='"file", "folder" or "other".')
    size_bytes: int


class Listing(BaseModel):
    """A page of files, sorted by path."""

    files: list[FileEntry]
    next_page_token: str = Field(description="Where the next page begins; empty if this is the last.")


class Removed(BaseModel):
    """What was removed."""

    removed_count: int


class Stopped(BaseModel):
    """Whether there was anything to stop."""

    stopped: bool


class Noted(BaseModel):
    """Facts that were remembered."""

    facts: list[str] = Field(description="Their ids, in the order asked; a text that was known keeps its id.")


class FoundFact(BaseModel):
    """A fact that was found."""

    fact: str = Field(description="Its id.")
    contact: str = Field(description="Of whom; empty for what concerns everybody.")
    domain: str
    kind: str
    importance: int
    text: str


class Found(BaseModel):
    """What was found."""

    facts: list[FoundFact] = Field(description="The best first.")


class Scheduled(BaseModel):
    """A task that comes again."""

    schedule: str = Field(description="Its id.")
    contact: str = Field(description="Who hears of each end.")
    next_time: str = Field(description="When it comes next, in ISO 8601.")
