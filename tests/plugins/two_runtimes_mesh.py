"""A mesh with two runtimes and without OpenClaw, in which the second can be taken away (fakes/two_runtimes.py)."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from retinue_local import paths
from whole_mesh import Mesh, running

FAKE = Path(__file__).parents[1] / "fakes" / "two_runtimes.py"

WINDOW_TOKENS = 4000
"""What the model can read: about what fifty turns of a few sentences have."""

SETTINGS = ("policy.runtimes=light,openclaw", "runtime-adapter.window_min_tokens=0")


class TwoRuntimes:
    """The mesh, and a switch for its second runtime."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.mesh = mesh
        self._folder = folder

    def leave(self) -> None:
        """Have the second runtime be away."""
        (self._folder / "away").touch()

    def come_back(self) -> None:
        """Have it take runs again."""
        (self._folder / "away").unlink(missing_ok=True)

    def attempts(self) -> list[tuple[str, str, int]]:
        """Every attempt that a runtime was asked for: its run, the runtime, its token."""
        file = self._folder / "ledger.jsonl"
        lines = [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []
        return [(line["run_id"], line["name"], line["token"]) for line in lines if line["kind"] == "attempt"]


@contextlib.contextmanager
def two_runtimes(model: str, *more: str) -> Iterator[TwoRuntimes]:
    """Run it, with more settings."""
    folder = Path(tempfile.mkdtemp(prefix="rt-two-"))
    address = f"unix:{folder / 'two.sock'}"
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RETINUE_")},
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "RETINUE_ADDRESS": address,
        "RETINUE_UPSTREAM_ADDRESS": paths.of_state(folder / "state").address("runtime-adapter"),
        "RETINUE_LEDGER_FILE": str(folder / "ledger.jsonl"),
        "RETINUE_AWAY_FILE": str(folder / "away"),
    }
    arguments = []
    window = f"runtime-adapter.model_window_tokens={WINDOW_TOKENS}"
    there = (f"{service}.runtime_adapter_address={address}" for service in ("worker", "policy"))
    for setting in (*SETTINGS, window, *there, *more):
        arguments += ["--set", setting]
    with subprocess.Popen([sys.executable, str(FAKE)], env=environ, stderr=subprocess.DEVNULL) as fake:
        try:
            with running(model, *arguments, folder=folder) as mesh:
                yield TwoRuntimes(mesh, folder)
        finally:
            fake.terminate()
            fake.wait(10)
