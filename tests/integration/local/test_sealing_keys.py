"""The mesh's own keys: made once, kept, and closed to everybody else."""

import pytest
from retinue_kit.config import SettingError
from retinue_kit.sealing import Sealer
from retinue_local import sealing_keys


async def test_keys_are_made_once_and_are_their_owners_alone(tmp_path):
    path = tmp_path / "sealing-keys"
    await sealing_keys.prepare(path)
    sealed = Sealer.load(path).seal(b"secret", "a")
    await sealing_keys.prepare(path)
    assert Sealer.load(path).open(sealed, "a") == b"secret"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SettingError, match="cannot be made"):
        await sealing_keys.prepare(tmp_path / "absent" / "sealing-keys")
