"""Workspace files of tenants, opened beneath the tenant's root only."""

import asyncio
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec
from retinue_kit.errors import RetinueError

from retinue_router.domain.workspace import contact_folder

PROFILE_FILE = "profile.json"
MEMORY_FOLDER = "memory"
"""Beside the contacts' folders; the sandbox's file calls reach it, and no box does."""

TENANT = "tenant"
"""The file of what concerns a tenant, whoever it speaks with."""

FOLDER_MODE = 0o700
FILE_MODE = 0o600

LOCK_PAUSE_S = 0.005
LOCK_ATTEMPTS_MAX = 800
"""Four seconds: a lock is held for milliseconds, and the caller waits for five seconds."""

REMOVE_TRIES_MAX = 5
"""A worker that was amid a projection makes a file or two while the folder is removed, and then no more."""


def contact_dir(root: Path, tenant_id: str, contact: str) -> Path:
    """The folder of a contact. Raises ValueError for a name that could lead elsewhere; the edge lets none through."""
    folder = contact_folder(contact)
    for part in (tenant_id, folder):
        if not part or part in (".", "..") or "/" in part or "\0" in part:
            raise ValueError("not a name of a tenant or contact")
    return root / tenant_id / "contacts" / folder


@asynccontextmanager
async def locked(root: Path, tenant_id: str) -> AsyncIterator[None]:
    """Hold a tenant's profiles alone: who writes what the database says must not race with who removes it.

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
def opened(folder: Path) -> Iterator[int]:
    """Open a contact's folder, made if missing. What is opened in it goes with it if the contact is removed."""
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


@contextmanager
def open_in(directory: int, name: str) -> Iterator[int]:
    """Open a file of a contact for reading and writing, made if missing and never followed as a link."""
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE, dir_fd=directory)
    try:
        yield file
    finally:
        os.close(file)


def write_profile(root: Path, tenant_id: str, contact: str, profile: object) -> None:
    """Write profile.json whole: readers see the former one or this one. The caller holds the tenant's lock."""
    with opened(contact_dir(root, tenant_id, contact)) as directory:
        fresh = PROFILE_FILE + ".new"
        _write(directory, fresh, profile)
        os.replace(fresh, PROFILE_FILE, src_dir_fd=directory, dst_dir_fd=directory)


def add_profile(directory: int, profile: object) -> None:
    """Write profile.json whole where there is none; without the lock, since it never replaces one."""
    if PROFILE_FILE in os.listdir(directory):
        return
    fresh = f"{PROFILE_FILE}.{os.getpid()}"
    _write(directory, fresh, profile)
    with suppress(FileExistsError):
        os.link(fresh, PROFILE_FILE, src_dir_fd=directory, dst_dir_fd=directory)
    os.unlink(fresh, dir_fd=directory)


def _write(directory: int, name: str, profile: object) -> None:
    _put(directory, name, msgspec.json.format(msgspec.json.encode(profile)) + b"\n")


def _put(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, FILE_MODE, dir_fd=directory), "wb") as file:
        file.write(data)


def memory_file(root: Path, tenant_id: str, contact: str) -> Path:
    """The file of what is remembered of a contact, or without one of the tenant. Raises ValueError as contact_dir."""
    name = contact_dir(root, tenant_id, contact or TENANT).name  # both names are looked at
    folder = root / tenant_id / MEMORY_FOLDER
    return folder / "contacts" / f"{name}.md" if contact else folder / f"{TENANT}.md"


def write_memory(root: Path, tenant_id: str, contact: str, text: str) -> None:
    """Write what is remembered, whole: readers see the former file or this one. The caller holds the tenant's lock."""
    file = memory_file(root, tenant_id, contact)
    with opened(root / tenant_id / MEMORY_FOLDER), opened(file.parent) as directory:
        fresh = f"{file.name}.new"
        _put(directory, fresh, text.encode())
        os.replace(fresh, file.name, src_dir_fd=directory, dst_dir_fd=directory)


def remove_memory(root: Path, tenant_id: str, contact: str) -> None:
    """Remove what write_memory wrote; nothing happens if there is none. The caller holds the tenant's lock."""
    memory_file(root, tenant_id, contact).unlink(missing_ok=True)


def remove_contact(root: Path, tenant_id: str, contact: str) -> None:
    """Remove a contact's folder with all that is in it, and the file of what is remembered; nothing happens without.

    The caller holds the lock.

    Raises OSError if a worker, which needs no lock, writes into it without a pause.
    """
    remove_memory(root, tenant_id, contact)
    folder = contact_dir(root, tenant_id, contact)
    for remaining in reversed(range(REMOVE_TRIES_MAX)):
        try:
            if folder.exists():
                shutil.rmtree(folder)
            return
        except OSError:
            if not remaining:
                raise
