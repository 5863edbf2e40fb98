"""The mesh's own keys: made once, kept, and closed to everybody else."""

import pytest
from cryptography.hazmat.primitives import serialization
from retinue_kit.config import SettingError
from retinue_kit.sealing import Sealer
from retinue_local import bundle_key, sealing_keys


async def test_keys_are_made_once_and_are_their_owners_alone(tmp_path):
    path = tmp_path / "sealing-keys"
    await sealing_keys.prepare(path)
    sealed = Sealer.load(path).seal(b"secret", "a")
    await sealing_keys.prepare(path)
    assert Sealer.load(path).open(sealed, "a") == b"secret"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SettingError, match="cannot be made"):
        await sealing_keys.prepare(tmp_path / "absent" / "sealing-keys")


async def test_the_key_of_bundles_is_made_once_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "bundle-signing.key"
    await bundle_key.prepare(path)
    made = path.read_bytes()
    key = serialization.load_pem_private_key(made, None)
    assert len(key.sign(b"")) == 64
    await bundle_key.prepare(path)
    assert path.read_bytes() == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["bundle-signing.key"]
    with pytest.raises(SettingError, match="cannot be made"):
        await bundle_key.prepare(tmp_path / "absent" / "bundle-signing.key")
