"""Starts a mesh apart from this terminal and waits until it is ready."""

import json
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, TextIO

from retinue_kit.config import SettingError
from retinue_local import paths, settings
from retinue_local.supervisor import Progress

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.reports import Screen

if TYPE_CHECKING:
    from retinue_local.options import Options


def detach(built: "Options") -> int:
    """Start the supervisor in a session of its own; its streams go to its log. Answers once the mesh is ready."""
    folders = paths.of_state(built.state_dir)
    try:
        paths.make(folders)
    except SettingError as error:
        raise CommandError(str(error), EXIT_SETTINGS) from None
    log = os.open(folders.logs / "supervisor.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "retinue_cli", "up", "--state-dir", str(built.state_dir), "--no-hello"]
    command += ["--port", str(built.port), "--workers", str(built.workers), "--report-fd", str(theirs)]
    for text in settings.texts_of(built.overrides):
        command += ["--set", text]
    with open(ours, encoding="utf-8") as facts:
        try:
            child = subprocess.Popen(
                command,
                env=dict(built.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs,),
                start_new_session=True,
            )
        finally:
            os.close(theirs)
            os.close(log)
        try:
            code = _wait(facts, Screen())
        except KeyboardInterrupt:
            child.terminate()
            raise
    if code == 0:
        print(f"stop:  retinue down --state-dir {shlex.quote(str(built.state_dir))}")
    return code


def _wait(facts: TextIO, screen: Screen) -> int:
    for line in facts:
        fact = json.loads(line)
        if "progress" in fact:
            screen.progress(Progress(*fact["progress"]))
        elif "note" in fact:
            screen.note(fact["note"])
        elif "ready" in fact:
            screen.ready(*fact["ready"])
        elif "chat" in fact:
            screen.chat(fact["chat"])
            return 0
        else:
            return screen.failed(*fact["failed"])
    raise CommandError("The supervisor ended without a word: its log is logs/supervisor.log in the state folder.")
