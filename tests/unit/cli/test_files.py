"""What `retinue files` shows, reads and writes."""

from types import SimpleNamespace
from typing import Any

import pytest
from retinue.sandbox.v1.file_service_pb2 import FileInfo, ReadFileResponse
from retinue_cli.commands import files
from retinue_cli.failures import CommandError
from retinue_cli.files import PIECE_SIZE_BYTES, Files
from retinue_cli.places import write_new
from typer.testing import CliRunner


def test_a_name_that_somebody_else_chose_gives_the_terminal_no_orders() -> None:
    shown = files.line(FileInfo(path="a\x1b[2J\nb\u202e", kind="file", size_bytes=3))
    assert shown == ("a\ufffd[2J\ufffdb\ufffd", "file", "3", "")
    assert files.line(FileInfo(path="é/x y", kind="folder"))[:3] == ("é/x y", "folder", "")


def test_programs_get_the_size_as_a_number() -> None:
    assert files.plain(FileInfo(path="a", kind="file", size_bytes=1 << 40))["size_bytes"] == 1 << 40


class Sandbox:
    """Has a file, in pieces; tells its size as a test says."""

    def __init__(self, pieces: list[bytes], sizes: list[int]) -> None:
        self._answers = zip(pieces, sizes, strict=True)
        self.offsets: list[int] = []

    def call(self, request: Any, **_: object) -> ReadFileResponse:
        self.offsets.append(request.offset_bytes)
        data, size = next(self._answers)
        return ReadFileResponse(data=data, info=FileInfo(path="a", kind="file", size_bytes=size))


def reading(sandbox: Sandbox) -> Files:
    made = Files.__new__(Files)
    made._stub, made._tenant_id = SimpleNamespace(ReadFile=sandbox.call), "ten_a"
    return made


def test_a_large_file_is_read_in_pieces() -> None:
    whole, size = b"x" * PIECE_SIZE_BYTES, 2 * PIECE_SIZE_BYTES + 1
    sandbox = Sandbox([whole, whole, b"y", b""], [size] * 4)
    assert b"".join(reading(sandbox).read("a")) == whole + whole + b"y"
    # The last look is for whether it is still what it was.
    assert sandbox.offsets == [0, PIECE_SIZE_BYTES, 2 * PIECE_SIZE_BYTES, size]
    assert list(reading(Sandbox([b""], [0])).read("a")) == [b""]


def test_a_file_that_is_written_while_it_is_read_is_no_whole() -> None:
    whole, size = b"x" * PIECE_SIZE_BYTES, PIECE_SIZE_BYTES + 1
    for pieces, sizes in (
        ([b"x"], [0]),
        ([whole, b"y"], [size, PIECE_SIZE_BYTES]),
        ([whole, b""], [size, size]),
        ([whole, b"y", b""], [size, size, size + 1]),
    ):
        with pytest.raises(CommandError, match="was written while"):
            list(reading(Sandbox(pieces, sizes)).read("a"))


def test_a_file_has_its_name_on_this_machine_only_once_it_is_whole(tmp_path: Any) -> None:
    place = tmp_path / ("é" * 120)

    def broken() -> Any:
        yield b"half"
        assert not place.exists()
        raise CommandError("It broke.")

    with pytest.raises(CommandError, match="It broke"):
        write_new(place, broken())
    assert list(tmp_path.iterdir()) == []
    write_new(place, [b"who", b"le"])
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(place, b"whole")]

    def late() -> Any:
        (tmp_path / "late").write_bytes(b"another's")
        yield b"mine"

    for name, pieces in ((place.name, [b"new"]), ("late", late())):
        with pytest.raises(CommandError, match="is there already"):
            write_new(tmp_path / name, pieces)
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"another's", b"whole"]


def test_what_is_too_large_or_has_no_name_is_refused_before_anybody_is_asked(tmp_path: Any) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(files.UPLOAD_SIZE_MAX_BYTES + 1)
    for arguments, words in (([str(large)], "larger than 4 MiB"), (["-"], "called"), ([str(tmp_path)], "directory")):
        done = CliRunner().invoke(files.app, ["put", *arguments])
        assert isinstance(done.exception, CommandError)
        assert words in str(done.exception)
