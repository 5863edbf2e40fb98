"""As whom boxes run. Where the service is root each tenant has a user of its own, written down beside its files."""

import os
import secrets
import zlib
from contextlib import suppress
from pathlib import Path

from retinue_kit.errors import Reason, RetinueError

TENANT_ID_MAX_BYTES = 256
"""More than any id of a tenant has; a note that is longer is not one of ours."""

_PRIVATE = 0o700


class Uids:
    """Gives each tenant a user of this machine; the same one for as long as the notes are there.

    A user's note is a file named after its number that holds the tenant's id. It appears under its name with what is in
    it, at once and only once, so that two processes, or a crash at any moment, cannot give one number to two tenants.
    Notes are never removed: the files of a tenant that is gone must not become another's.
    """

    def __init__(self, folder: Path, base: int, count: int, *, root: bool | None = None) -> None:
        """`folder` is made when first needed, for this user alone; the numbers are base to base + count - 1, above 0.

        `root` says whether other users can be had; by default, whether this process is root.
        """
        if base < 1 or count < 1:
            raise ValueError("Boxes never run as root, and need at least one user.")
        self._folder, self._base, self._count = folder, base, count
        self._root = os.geteuid() == 0 if root is None else root
        self._known: dict[str, int] = {}

    def of(self, tenant_id: str) -> int:
        """Tell a tenant's user; whoever runs this, unless that is root. Blocks: a few file operations, once a tenant.

        Raises RetinueError(SANDBOX_UNAVAILABLE, metadata.check "users") where all numbers are taken.
        """
        if not self._root:
            return os.geteuid()
        if (known := self._known.get(tenant_id)) is not None:
            return known
        written = tenant_id.encode()
        if not 0 < len(written) <= TENANT_ID_MAX_BYTES:
            raise RetinueError(Reason.FIELD_INVALID, "This is no id of a tenant.", field="tenant_id")
        self._folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        uid = self._known[tenant_id] = self._find(written)
        return uid

    def _find(self, written: bytes) -> int:
        first = zlib.crc32(written)
        for step in range(self._count):
            uid = self._base + (first + step) % self._count
            note = self._folder / str(uid)
            if self._read(note) == written or self._write(note, written):
                return uid
        raise RetinueError(
            Reason.SANDBOX_UNAVAILABLE,
            f"All {self._count} users for boxes have tenants; more of them are a setting away.",
            check="users",
        )

    def _read(self, note: Path) -> bytes | None:
        try:
            with note.open("rb") as file:
                return file.read(TENANT_ID_MAX_BYTES + 1)
        except FileNotFoundError:
            return None

    def _write(self, note: Path, written: bytes) -> bool:
        """Whether the number is this tenant's now."""
        draft = self._folder / f".{secrets.token_hex(8)}"
        try:
            with draft.open("xb") as file:
                file.write(written)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, note)
        except FileExistsError:
            return self._read(note) == written  # another process was faster, maybe for the same tenant
        finally:
            with suppress(FileNotFoundError):
                draft.unlink()
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return True
