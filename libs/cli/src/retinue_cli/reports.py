"""How the start of a mesh is told: on a terminal, as plain lines, or to the process that waits for it."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from retinue_cli.screen import Answer

if TYPE_CHECKING:
    from retinue_local.supervisor import Progress

SERVING = "serving"
STARTING = "starting"


class Report(Protocol):
    """Whoever is told."""

    def progress(self, progress: "Progress") -> None:
        """A process has changed."""

    def note(self, text: str) -> None:
        """Something takes a while."""

    def ready(self, address: str, token: str, model: str, seconds: float) -> None:
        """The mesh serves."""

    def chat(self, text: str) -> None:
        """What chat runs on is known."""

    def asked(self, text: str) -> None:
        """A first message is sent."""

    def answered(self, text: str) -> None:
        """Its answer is this so far."""

    def greeted(self, run_id: str, failure: str) -> None:
        """Its answer is complete, or failed."""

    def next_steps(self, address: str, state_dir: Path, certificate: Path | None) -> None:
        """The person may go on."""

    def stopping(self) -> None:
        """The mesh is told to stop."""

    def stopped(self) -> None:
        """It has stopped."""

    def failed(self, text: str, code: int) -> int:
        """It did not start; answers the exit code."""


class Screen:
    """Tells a person: a live display on a terminal, one line a change elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live: Live | None = None
        self._seen: dict[str, tuple[str, float]] = {}
        self._is_ready = False
        self._run_id = ""
        self._text = ""
        self._answer = Answer(self._console.file)

    def progress(self, progress: "Progress") -> None:
        """Show which parts serve already."""
        self._seen[progress.process] = (progress.state, progress.seconds)
        if self._is_ready or not self._console.is_terminal:
            took = f" after {progress.seconds:.2f} s" if progress.state == SERVING else ""
            if self._is_ready or progress.state != STARTING:
                self._console.print(f"{progress.process}: {progress.state}{took}", markup=False)
            return
        if self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=12)
            self._live.start()
        self._live.update(self._table())

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, (state, seconds) in self._seen.items():
            mark = Text("✓", style="green") if state == SERVING else Spinner("dots")
            table.add_row(mark, name, Text(f"{seconds:.2f} s" if seconds else state, style="dim"))
        return table

    def _end_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Say what is waited for."""
        self._console.print(text, markup=False, soft_wrap=True, style="dim")

    def chat(self, text: str) -> None:
        """Say what chat runs on."""
        self._console.print(text, markup=False, soft_wrap=True)

    def ready(self, address: str, token: str, model: str, seconds: float) -> None:
        """Say where the mesh is, and with what it is used."""
        self._end_live()
        self._is_ready = True
        self._say(f"[bold green]Retinue is ready[/] at [bold]{address}[/] after {seconds:.1f} s.")
        self._console.print(f"model: {model}", markup=False, soft_wrap=True)
        self._console.print(f"token: {token}", markup=False, soft_wrap=True)

    def asked(self, text: str) -> None:
        """Show the question."""
        self._say(f"\n[bold cyan]you[/]    {text}")
        self._console.print("[bold green]agent[/]  ", end="")

    def answered(self, text: str) -> None:
        """Show the answer so far."""
        self._text = text
        if self._console.is_terminal:
            self._answer.show(text)

    def greeted(self, run_id: str, failure: str) -> None:
        """End the answer, or say why there is none."""
        if not self._console.is_terminal:
            self._answer.show(self._text)
        self._answer.close()
        self._run_id = run_id
        if failure:
            self._say(f"[red]The first message failed: {failure}[/]")

    def next_steps(self, address: str, state_dir: Path, certificate: Path | None) -> None:
        """Say what to try."""
        folder = shlex.quote(shortened(state_dir))
        program = shlex.quote(shortened(Path(sys.executable).parent / "retinue"))
        option = "" if folder == ".retinue" else f" --state-dir {folder}"
        trusted = shlex.quote(shortened(certificate)) if certificate else ""
        cacert = f"--cacert {trusted} " if trusted else ""
        certified = f" --certificate {trusted}" if trusted else ""
        lines = [
            f"curl -N {cacert}{address}/v1/contacts/me/messages:stream -H 'Content-Type: application/json' \\",
            f'  -H "Authorization: Bearer $(cat {folder}/token)" -d \'{{"text": "What can you do?"}}\'',
            f"{program} chat{option}{certified}",
        ]
        if self._run_id:
            lines.append(f"{program} trace {self._run_id}{option}")
        self._say("\nTry next:")
        for line in lines:
            self._console.print(f"  {line}", markup=False, soft_wrap=True)
        self._say("\nCtrl-C stops the mesh.")

    def stopping(self) -> None:
        """Say that it takes a moment."""
        self._say("Stopping …")

    def stopped(self) -> None:
        """Say that nothing is left."""
        self._end_live()
        self._say("The mesh has stopped.")

    def failed(self, text: str, code: int) -> int:
        """Say why in one line."""
        self._end_live()
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        return code

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


class Pipe:
    """Tells the process that waits, one line of JSON each; once it has left, nobody."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._descriptor: int | None = descriptor

    def _tell(self, **fact: object) -> None:
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, json.dumps(fact).encode() + b"\n")
            except OSError:
                self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def progress(self, progress: "Progress") -> None:
        """Pass it on."""
        self._tell(progress=list(progress))

    def note(self, text: str) -> None:
        """Pass it on."""
        self._tell(note=text)

    def ready(self, address: str, token: str, model: str, seconds: float) -> None:
        """Pass it on."""
        self._tell(ready=[address, token, model, seconds])

    def chat(self, text: str) -> None:
        """Pass it on; it was the last that is waited for."""
        self._tell(chat=text)
        self._close()

    def failed(self, text: str, code: int) -> int:
        """Pass it on."""
        self._tell(failed=[text, code])
        self._close()
        return code

    def stopped(self) -> None:
        """Pass on that it was told to stop before it was ready."""
        self._tell(failed=["The mesh was told to stop before it was ready.", 1])
        self._close()

    def asked(self, text: str) -> None:
        """Nobody asks here."""

    def answered(self, text: str) -> None:
        """Nobody asks here."""

    def greeted(self, run_id: str, failure: str) -> None:
        """Nobody asks here."""

    def next_steps(self, address: str, state_dir: Path, certificate: Path | None) -> None:
        """Nobody reads on here."""

    def stopping(self) -> None:
        """Nobody reads on here."""


def shortened(path: Path) -> str:
    """Write a path from the current folder, if that is shorter."""
    return min(os.path.relpath(path), str(path), key=len)
