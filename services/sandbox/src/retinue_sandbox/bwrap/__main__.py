"""`python -m retinue_sandbox.bwrap`: tries out whether boxes hold on this machine, for whoever has no service yet.

Prints the self-test as a list in JSON, with the fields of ports.Check. RETINUE_BWRAP_PATH, RETINUE_BOX_UID_BASE and
RETINUE_BOX_UID_COUNT hold, as they do for the service.
"""

import asyncio
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from retinue_kit import config

from retinue_sandbox.bwrap.backend import BwrapBackend
from retinue_sandbox.bwrap.users import Uids
from retinue_sandbox.config import Settings
from retinue_sandbox.ports import Check


async def main() -> list[Check]:
    """Try it in a folder that is removed afterwards. Raises config.SettingError."""
    settings = config.load(Settings, {"RETINUE_ADDRESS": "unix:/nowhere", **os.environ})
    with tempfile.TemporaryDirectory(prefix="retinue-doctor-") as folder:
        uids = Uids(Path(folder, ".users"), settings.box_uid_base, settings.box_uid_count)
        backend = BwrapBackend(Path(folder), uids, bwrap_path=settings.bwrap_path)
        try:
            return await backend.check()
        finally:
            await backend.close()


if __name__ == "__main__":
    json.dump([asdict(check) for check in asyncio.run(main())], sys.stdout)
