"""retinue chat."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir

if TYPE_CHECKING:
    from retinue_cli.edge import Edge
    from retinue_cli.transcript import Transcript

SHOWN_MESSAGES = 20
"""Earlier messages that are shown at the beginning: a screenful."""

HISTORY_LINES_MAX = 1000
SIGNS_OF_PATHS = "/\\"
"""The edge refuses paths with these escaped, whatever they stand for; of other names it says itself what is wrong."""

HELP = "/new begins a fresh conversation, /quit ends, Ctrl-C stops an answer."


def chat(
    contact: Annotated[str, typer.Option(help="The contact as whom you speak.")] = "terminal",
    tenant: Annotated[str, typer.Option(help="The tenant whose agent answers; that of the kept token if absent.")] = "",
    url: Annotated[str, typer.Option(envvar="RETINUE_URL", help="The mesh's address.")] = "",
    token: Annotated[str, typer.Option(envvar="RETINUE_TOKEN", help="The token to use.")] = "",
    certificate: Annotated[str, typer.Option(envvar="RETINUE_TLS_CERT", help="A certificate to trust.")] = "",
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """Talk to the agent. With input from a pipe each line is a message, and the answers alone are printed."""
    from retinue_cli.edge import Edge

    if not contact or any(sign in contact for sign in SIGNS_OF_PATHS):
        text = f"--contact {contact!r} is no contact's name: letters and digits of any script and -_.@+: make one."
        raise CommandError(text, EXIT_SETTINGS)
    state = State(state_dir)
    url = url or state.require().address
    with Edge(url, _token(state, tenant, token), certificate=certificate) as edge:
        if not sys.stdin.isatty():
            return _pipe(edge, contact)
        _talk(edge, contact, state.paths.state / "chat_history")
    return 0


def _token(state: State, tenant: str, token: str) -> str:
    if token and not tenant:
        return token
    if tenant:
        from retinue_cli.mesh import Mesh

        with Mesh(state) as mesh:
            return mesh.issue(mesh.make_tenant(tenant).tenant_id, "", [], 86400)
    kept = state.token()
    if not kept:
        raise CommandError(f"There is no token in {state.paths.state}: give one with --token, or a --tenant.")
    return kept


def _pipe(edge: "Edge", contact: str) -> int:
    """Answer each line of the input; 1 if a run failed."""
    from retinue_cli.transcript import Transcript

    code = 0
    for line in sys.stdin:
        text = line.strip()
        if text == "/quit":
            break
        if text == "/new":
            edge.reset(contact)
        elif text:
            transcript = Transcript()
            transcript.apply_all(edge.send(contact, text))
            typer.echo(transcript.text)
            if transcript.end != "run.succeeded":
                typer.echo(f"error: {ending(transcript)}", err=True)
                code = 1
    return code


def _talk(edge: "Edge", contact: str, history: Path) -> None:
    """Read lines and show answers until the person leaves."""
    from rich.console import Console

    console = Console(highlight=False)
    for message in edge.messages(contact, SHOWN_MESSAGES):
        mark = "[bold cyan]you[/]" if message.get("role") == "user" else "[bold green]agent[/]"
        console.print(f"{mark} ", end="")
        console.print(message.get("text", ""), markup=False)
    console.print(f"[dim]{contact} at {edge.url}. {HELP}[/]")
    remember = _line_editing(history)
    try:
        while True:
            try:
                text = input("> ").strip()
            except KeyboardInterrupt:
                console.print()
                continue
            except EOFError:
                console.print()
                return
            if text in ("/quit", "/exit"):
                return
            try:
                if text == "/new":
                    edge.reset(contact)
                    console.print("[dim]A fresh conversation.[/]")
                elif text.startswith("/"):
                    console.print(f"[dim]{HELP}[/]")
                elif text:
                    _answer(edge, contact, text, console.print)
            except CommandError as error:
                console.print(f"[red]{error}[/]")
    finally:
        remember()


def _answer(edge: "Edge", contact: str, text: str, say: Callable[[str], None]) -> None:
    """Show the answer to one message as it grows. Ctrl-C asks the run to stop, a second one leaves it alone."""
    from retinue_cli.screen import Answer
    from retinue_cli.transcript import Transcript

    transcript, answer, stopping = Transcript(), Answer(), False
    events = edge.send(contact, text)
    while not transcript.end:
        try:
            transcript.apply(next(events))
            answer.show(transcript.text)
        except KeyboardInterrupt:
            if stopping or not transcript.run_id:
                answer.close()
                say("[dim]The run goes on without you.[/]")
                return
            stopping = True
            edge.cancel(transcript.run_id)
            events = edge.follow(transcript.run_id, transcript.cursor)
    answer.close()
    if transcript.end != "run.succeeded":
        say(f"[red]{ending(transcript)}[/]")
    elif not transcript.text:
        say("[dim](an empty answer)[/]")


def ending(transcript: "Transcript") -> str:
    """Say in a sentence how a run ended that did not succeed."""
    if transcript.end == "run.cancelled":
        return "The run was stopped."
    return str(transcript.error.get("message") or "The run failed.")


def _line_editing(history: Path) -> Callable[[], None]:
    """Turn on editing and a history of lines; answers what is to be called at the end, to keep it."""
    try:
        import readline
    except ImportError:  # Python may be built without it
        return lambda: None
    readline.set_history_length(HISTORY_LINES_MAX)
    if history.is_file():
        readline.read_history_file(history)

    def remember() -> None:
        if history.parent.is_dir():
            history.touch(mode=0o600)
            readline.write_history_file(history)

    return remember
