"""Workspace files of tenants, opened beneath the tenant's root only."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from retinue_router.domain.workspace import contact_folder

PROFILE_FILE = "profile.json"
FOLDER_MODE = 0o700
FILE_MODE = 0o600


def contact_dir(root: Path, tenant_id: str, contact: str) -> Path:
    """The folder of a contact. Raises ValueError for a name that could lead elsewhere; the edge lets none through."""
    folder = contact_folder(contact)
    for part in (tenant_id, folder):
        if not part or part in (".", "..") or "/" in part or "\0" in part:
            raise ValueError("not a name of a tenant or contact")
    return root / tenant_id / "contacts" / folder


@contextmanager
def locked(root: Path, tenant_id: str) -> Iterator[None]:
    """Hold a tenant's workspace alone: who writes what the log says must not race with who removes it."""
    lock = tenant_lock(root, tenant_id)
    try:
        yield
    finally:
        os.close(lock)


def tenant_lock(root: Path, tenant_id: str) -> int:
    """Wait for a tenant's lock; answers the descriptor that holds it until it is closed."""
    folder = root / tenant_id
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:
        os.close(lock)
        raise
    return lock


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
    """Write profile.json whole: readers see the former one or this one."""
    with locked(root, tenant_id):
        folder = contact_dir(root, tenant_id, contact)
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        fresh = folder / (PROFILE_FILE + ".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(profile)) + b"\n")
        fresh.chmod(FILE_MODE)
        fresh.replace(folder / PROFILE_FILE)


def remove_contact(root: Path, tenant_id: str, contact: str) -> None:
    """Remove a contact's folder with all that is in it; nothing happens if there is none."""
    with locked(root, tenant_id):
        folder = contact_dir(root, tenant_id, contact)
        if folder.exists():
            shutil.rmtree(folder)
