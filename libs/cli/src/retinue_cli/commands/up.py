"""retinue up."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retinue_cli.failures import EXIT_SETTINGS, CommandError
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir

if TYPE_CHECKING:
    from retinue_local.options import Options
    from retinue_local.supervisor import Ready

    from retinue_cli.reports import Report

TENANT = "default"
CONTACT = "hello"
HELLO = "Hello! Who are you?"


def up(
    port: Annotated[int | None, typer.Option(help="Port for clients; 0 takes a free one.  [default: 8080]")] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    detach: Annotated[bool, typer.Option("--detach", help="Come back once the mesh is ready; it goes on.")] = False,
    workers: Annotated[int | None, typer.Option(help="Worker processes.  [default: one a core, two at most]")] = None,
    hello: Annotated[bool, typer.Option(help="Send a first message once the mesh is ready.")] = True,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SERVICE.FIELD=VALUE", help="A service's own setting, such as worker.lease_s=5."),
    ] = None,
    report_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> int:
    """Start the mesh, and stay until Ctrl-C."""
    from retinue_kit.config import SettingError
    from retinue_local import options

    try:
        built = options.build(
            state_dir=state_dir,
            port=port,
            workers=workers,
            follow_parent=not detach and report_fd is None,
            overrides=override or (),
        )
    except SettingError as error:
        raise CommandError(str(error), EXIT_SETTINGS) from None
    if detach:
        from retinue_cli.detaching import detach as start_apart

        return start_apart(built)
    if report_fd is not None:
        from retinue_cli.reports import Pipe

        return serve(built, Pipe(report_fd), hello=False)
    from retinue_cli.reports import Screen

    return serve(built, Screen(), hello=hello)


def serve(built: "Options", report: "Report", *, hello: bool) -> int:
    """Run the mesh in this process until it is told to stop."""
    from retinue_kit.config import SettingError
    from retinue_local import processes, supervisor

    from retinue_cli import runtimes

    state = State(built.state_dir)

    async def on_ready(ready: "Ready") -> None:
        stopping = False

        def pause(_: float) -> None:
            if stopping:
                raise CommandError("The mesh is stopping.")

        try:
            token = await asyncio.to_thread(make_token, state)
            report.ready(ready.address, token, ready.model, ready.seconds)
            report.chat(await runtimes.chat(state, ready.runtimes, report.note))
            if hello:
                await asyncio.to_thread(greet, report, ready.address, token, built.tls_cert, pause)
            report.next_steps(ready.address, built.state_dir, built.tls_cert)
            await asyncio.Event().wait()  # until the supervisor is told to stop, which cancels this
        finally:
            stopping = True
            report.stopping()

    try:
        asyncio.run(supervisor.run(built, report.progress, on_ready, on_note=report.note))
    except SettingError as error:
        return report.failed(str(error), EXIT_SETTINGS)
    except (processes.StartError, CommandError) as error:
        return report.failed(str(error), 1)
    report.stopped()
    return 0


def make_token(state: State) -> str:
    """Make the default tenant and a token for it, and keep the token in the state folder."""
    from retinue_cli.mesh import Mesh

    with Mesh(state) as mesh:
        token = mesh.issue(mesh.make_tenant(TENANT).tenant_id, "", [], None)
    state.keep_token(token)
    return token


def greet(report: "Report", address: str, token: str, certificate: Path | None, pause: Callable[[float], None]) -> None:
    """Send a first message as any client would, and show the answer as it comes."""
    from retinue_cli.edge import Edge
    from retinue_cli.transcript import Transcript

    transcript = Transcript()
    report.asked(HELLO)
    try:
        with Edge(address, token, certificate=str(certificate or ""), pause=pause) as edge:
            for event in edge.send(CONTACT, HELLO):
                transcript.apply(event)
                report.answered(transcript.text)
    except CommandError as error:
        report.greeted("", str(error))
        return
    failure = (
        "" if transcript.end == "run.succeeded" else str(transcript.error.get("message") or "The run was stopped.")
    )
    report.greeted(transcript.run_id, failure)
