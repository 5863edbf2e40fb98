"""Which runtimes a mesh starts with: those that are wanted, without OpenClaw where it cannot be had."""

from typing import NamedTuple

from retinue_kit.config import SettingError

from retinue_local import openclaw
from retinue_local.openclaw import Installed, OpenClawError, Tell
from retinue_local.options import LIGHT, OPENCLAW, Options
from retinue_local.paths import Paths


class Runtimes(NamedTuple):
    """The runtimes that are on."""

    names: str
    """As the services are told: separated by commas, in the operator's order."""
    openclaw: Installed | None = None
    """Set if OpenClaw is on."""
    missing: str = ""
    """Why OpenClaw is not on although it is wanted, in one line."""


async def prepare(options: Options, folders: Paths, tell: Tell) -> Runtimes:
    """Find or install what the wanted runtimes need. Raises SettingError if nothing that is wanted can be had."""
    names = options.runtimes.split(",")
    if OPENCLAW not in names:
        return Runtimes(options.runtimes)
    try:
        return Runtimes(options.runtimes, await openclaw.get(options.environ, folders.openclaw, tell))
    except OpenClawError as error:
        rest = ",".join(name for name in names if name != OPENCLAW)
        if not rest:
            raise SettingError(f"RUNTIMES={options.runtimes!r}: {error} RUNTIMES={LIGHT} does without.") from None
        return Runtimes(rest, missing=str(error))
