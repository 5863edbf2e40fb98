"""What is sealed opens with its key and for its purpose, and with nothing else."""

import pytest
from retinue_kit.config import SettingError
from retinue_kit.sealing import Sealer, UnsealError, new_key

OLD, NEW = {"old": b"o" * 32}, {"new": b"n" * 32}


def test_a_secret_comes_back_for_its_own_purpose():
    sealer = Sealer(NEW)
    sealed = sealer.seal(b"secret", "webhook a")
    assert b"secret" not in sealed
    assert sealer.open(sealed, "webhook a") == b"secret"
    assert sealer.seal(b"secret", "webhook a") != sealed


def test_it_opens_for_nothing_else_and_not_once_changed():
    sealer = Sealer(NEW)
    sealed = sealer.seal(b"secret", "webhook a")
    for changed, purpose in ((sealed, "webhook b"), (sealed[:-1] + bytes([sealed[-1] ^ 1]), "webhook a")):
        with pytest.raises(UnsealError, match="sealed with another key of this name"):
            sealer.open(changed, purpose)


@pytest.mark.parametrize("sealed", [b"", b"\x03new", b"\x03newshort", b"\xff", b"\x03old" + b"x" * 40])
def test_what_was_never_sealed_here_does_not_open(sealed):
    with pytest.raises(UnsealError):
        Sealer(NEW).open(sealed, "webhook a")


def test_a_new_key_seals_and_the_old_one_still_opens():
    before = Sealer(OLD).seal(b"secret", "a")
    sealer = Sealer({**NEW, **OLD})
    assert sealer.open(before, "a") == b"secret"
    after = sealer.seal(b"secret", "a")
    assert Sealer(NEW).open(after, "a") == b"secret"
    with pytest.raises(UnsealError, match="sealed with the key new, which is not in the file"):
        Sealer(OLD).open(after, "a")


def test_a_file_of_keys_is_read_in_order(tmp_path):
    path = tmp_path / "keys"
    path.write_text(new_key() + new_key())
    first, second = (Sealer.load(path), path.write_text(path.read_text().splitlines()[0]) and Sealer.load(path))
    assert second.open(first.seal(b"secret", "a"), "a") == b"secret"


@pytest.mark.parametrize("text", ["", "key\n", "key c2hvcnQ=\n", "UPPER " + "A" * 44 + "\n", new_key() * 2, "\xff\n"])
def test_a_file_that_holds_no_keys_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"sealing key.* in .*keys"):
        Sealer.load(path)
    with pytest.raises(SettingError, match="cannot be read"):
        Sealer.load(tmp_path / "absent")
