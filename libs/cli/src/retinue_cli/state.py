"""The state folder as commands see it: what runs, where it listens, and the token kept there."""

import fcntl
from pathlib import Path
from typing import Annotated

import typer
from retinue_local import paths, status
from retinue_local.status import MeshStatus

from retinue_cli.failures import CommandError

DEFAULT_STATE_DIR = Path(".retinue")

StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="RETINUE_STATE_DIR", help="The mesh's state folder.", show_default=True)
]

TOKEN_MODE = 0o600


class State:
    """A state folder, which need not be there."""

    def __init__(self, folder: Path) -> None:
        self.paths = paths.of_state(folder.expanduser().absolute())

    def is_running(self) -> bool:
        """Say whether a supervisor holds this folder; it holds the lock for as long as anything of it runs."""
        try:
            with self.paths.lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CommandError(f"{self.paths.state} cannot be read: {error.strerror}.") from None
        return False

    def mesh(self) -> MeshStatus | None:
        """Read what runs; None if nothing does, also where a supervisor was killed before it could say so."""
        return status.read(self.paths.status) if self.is_running() else None

    def require(self) -> MeshStatus:
        """Read what runs. CommandError if no mesh runs on this folder."""
        found = self.mesh()
        if found is None:
            raise CommandError(
                f"No mesh runs on {self.paths.state}: start one with retinue up, or name its folder with --state-dir."
            )
        return found

    @property
    def token_file(self) -> Path:
        """Where the token of the default tenant lies."""
        return self.paths.state / "token"

    def token(self) -> str:
        """Read the token kept at start; empty if there is none."""
        try:
            return self.token_file.read_text().strip()
        except OSError:
            return ""

    def keep_token(self, token: str) -> None:
        """Keep a token for this folder's owner alone."""
        new = self.token_file.with_name("token.new")
        new.unlink(missing_ok=True)
        new.touch(mode=TOKEN_MODE)
        new.write_text(token + "\n")
        new.replace(self.token_file)
