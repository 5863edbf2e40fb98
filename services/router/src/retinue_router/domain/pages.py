"""Page tokens: where a list goes on. Opaque to clients."""

import re

from retinue_kit.errors import Reason, RetinueError

PAGE_SIZE_DEFAULT = 50
_ID = re.compile(r"[a-z]{2,8}_[0-9a-z_]{1,60}")


def size_of(page_size: int) -> int:
    """Say how many items a page holds where the caller may have left it open."""
    return page_size or PAGE_SIZE_DEFAULT


def write(kind: str, last: str) -> str:
    """Make the token of the page after an item."""
    return f"{kind}.{last}"


def read(kind: str, token: str) -> str:
    """Read the item after which to go on; "" for an empty token. Raises RetinueError(CURSOR_INVALID)."""
    if not token:
        return ""
    found, dot, last = token.partition(".")
    if found != kind or not dot or not last or "\0" in last:
        raise invalid()
    return last


def read_id(kind: str, token: str) -> str:
    """Read a token that holds an id."""
    last = read(kind, token)
    if last and not _ID.fullmatch(last):
        raise invalid()
    return last


def invalid() -> RetinueError:
    """Say that a token was not made here."""
    return RetinueError(Reason.CURSOR_INVALID, "page_token: must be one of this list's answers", field="page_token")
