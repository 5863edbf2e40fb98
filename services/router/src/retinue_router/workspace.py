"""Workspace files of tenants, opened beneath the tenant's root only."""

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
from retinue_kit.errors import RetinueError

from retinue_router.domain.workspace import contact_folder

PROFILE_FILE = "profile.json"
FOLDER_MODE = 0o700
FILE_MODE = 0o600

LOCK_PAUSE_S = 0.005
LOCK_ATTEMPTS_MAX = 800
"""Four seconds: a lock is held for milliseconds, and the caller waits for five seconds."""


def contact_dir(root: Path, tenant_id: str, contact: str) -> Path:
    """The folder of a contact. Raises ValueError for a name that could lead elsewhere; the edge lets none through."""
    folder = contact_folder(contact)
    for part in (tenant_id, folder):
        if not part or part in (".", "..") or "/" in part or "\0" in part:
            raise ValueError("not a name of a tenant or contact")
    return root / tenant_id / "contacts" / folder


@asynccontextmanager
async def locked(root: Path, tenant_id: str) -> AsyncIterator[None]:
    """Hold a tenant's workspace alone: who writes what the database says must not race with who removes it.

    Raises RetinueError(DEPENDENCY_UNAVAILABLE) if another keeps it for too long.
    """
    lock = _open_lock(root, tenant_id)
    try:
        for _ in range(LOCK_ATTEMPTS_MAX):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_PAUSE_S)
        else:
            raise RetinueError.unavailable("workspace", private="the lock is held by another")
        yield
    finally:
        os.close(lock)


def _open_lock(root: Path, tenant_id: str) -> int:
    folder = root / tenant_id
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    return os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)


@contextmanager
def open_beneath(folder: Path, name: str) -> Iterator[int]:
    """Open a file of a contact for reading and appending; both are made if missing, and never followed as links."""
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, FILE_MODE, dir_fd=directory)
        try:
            yield file
        finally:
            os.close(file)
    finally:
        os.close(directory)


def write_profile(root: Path, tenant_id: str, contact: str, profile: object) -> None:
    """Write profile.json whole: readers see the former one or this one. The caller holds the tenant's lock."""
    folder = contact_dir(root, tenant_id, contact)
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fresh = PROFILE_FILE + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(fresh, flags, FILE_MODE, dir_fd=directory), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(profile)) + b"\n")
        os.replace(fresh, PROFILE_FILE, src_dir_fd=directory, dst_dir_fd=directory)
    finally:
        os.close(directory)


def remove_contact(root: Path, tenant_id: str, contact: str) -> None:
    """Remove a contact's folder with all that is in it; nothing happens if there is none. The caller holds the lock."""
    folder = contact_dir(root, tenant_id, contact)
    if folder.exists():
        shutil.rmtree(folder)
