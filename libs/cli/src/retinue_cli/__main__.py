"""The command's entry: its subcommands, and how each way to fail is told."""

import sys

import typer

from retinue_cli.commands import (
    approvals,
    bundle,
    chat,
    doctor,
    down,
    files,
    instances,
    memory,
    policy,
    restart,
    runs,
    schedules,
    status,
    tenants,
    token,
    trace,
    up,
    webhooks,
)
from retinue_cli.failures import EXIT_FAILED, CommandError

EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="retinue", help="A private agent for each of your users, one mesh to serve them all.", add_completion=False
)
for command in (
    *(up.up, down.down, restart.restart, status.status, token.token, token.revoke, chat.chat, trace.trace),
    *(tenants.tenants, tenants.tenant, instances.instances, doctor.doctor),
):
    app.command()(command)
app.add_typer(approvals.app, name="approvals")
app.add_typer(bundle.app, name="bundle")
app.add_typer(files.app, name="files")
app.add_typer(memory.app, name="memory")
app.add_typer(policy.app, name="policy")
app.add_typer(runs.app, name="runs")
app.add_typer(schedules.app, name="schedules")
app.add_typer(webhooks.app, name="webhooks")


def main() -> None:
    """Run a command; what it refuses is one line on standard error."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="retinue", standalone_mode=False)
    except CommandError as error:
        _say(str(error))
        code = error.code
    except typer.TyperException as error:
        if text := error.format_message():  # none where a group without a command has shown its help
            _say(text)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has left
        sys.stderr.close()
        code = EXIT_FAILED
    raise SystemExit(code)


def _say(text: str) -> None:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)


if __name__ == "__main__":
    main()
