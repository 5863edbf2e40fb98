"""The keys that the mesh seals secrets with: made once, for the state folder's owner alone."""

import os
from pathlib import Path

from retinue_kit import sealing
from retinue_kit.config import SettingError


async def prepare(path: Path) -> None:
    """Make the file of keys if there is none. Raises SettingError in one line if it cannot be made."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise SettingError(f"The sealing keys {path} cannot be made: {error.strerror}.") from None
    with os.fdopen(descriptor, "w") as file:
        file.write(sealing.new_key())
