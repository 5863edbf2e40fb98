"""The mesh's answers as the public contract says them."""

import structlog
from google.protobuf import json_format
from google.protobuf.message import Message
from retinue.edge.v1 import approval_pb2, contact_pb2, run_pb2
from retinue.router.v1 import approval_pb2 as router_approval_pb2
from retinue.router.v1 import contact_pb2 as router_contact_pb2
from retinue.router.v1 import run_pb2 as router_run_pb2
from retinue_kit.errors import Reason, RetinueError

_STATE_PREFIX = "RUN_STATE_"
_STATES = {number: name.removeprefix(_STATE_PREFIX).lower() for name, number in router_run_pb2.RunState.items()}
_STATE_NUMBERS = {name: number for number, name in _STATES.items()}
_TERMINAL_STATES = frozenset(_STATE_NUMBERS[name] for name in ("succeeded", "failed", "cancelled"))

log: structlog.stdlib.BoundLogger = structlog.get_logger()


def state_number(name: str) -> router_run_pb2.RunState.ValueType:
    """Read a state; empty stands for any."""
    return _STATE_NUMBERS.get(name, router_run_pb2.RUN_STATE_UNSPECIFIED)


def is_over(run: router_run_pb2.Run) -> bool:
    """Whether a run has reached a terminal state."""
    return run.state in _TERMINAL_STATES


def run(found: router_run_pb2.Run) -> run_pb2.Run:
    """Show a run."""
    shown = run_pb2.Run(
        run_id=found.run_id,
        contact=found.contact,
        session_id=found.session_id,
        kind=found.kind,
        state=_STATES[found.state],
        runtime=found.runtime,
        attempt_count=found.attempt_count,
    )
    for name in ("create_time", "start_time", "end_time", "run_at", "error"):
        if found.HasField(name):
            getattr(shown, name).CopyFrom(getattr(found, name))
    if found.HasField("output_text"):
        shown.output.text = found.output_text
    if found.HasField("usage"):
        usage = found.usage
        shown.usage.CopyFrom(
            run_pb2.Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, model=usage.model)
        )
    return shown


def contact(found: router_contact_pb2.Contact) -> contact_pb2.Contact:
    """Show a contact; the messages have the same fields, by design of the contract."""
    return contact_pb2.Contact.FromString(found.SerializeToString())


def message(found: router_run_pb2.Message) -> contact_pb2.Message:
    """Show a message; the messages have the same fields, by design of the contract."""
    return contact_pb2.Message.FromString(found.SerializeToString())


def approval(found: router_approval_pb2.Approval) -> approval_pb2.Approval:
    """Show an approval; the messages have the same fields, by design of the contract."""
    return approval_pb2.Approval.FromString(found.SerializeToString())


def to_json(shown: Message) -> dict[str, object]:
    """Write an answer as Envoy does: names as in the contract, what is zero shown, what is not set left out."""
    return json_format.MessageToDict(shown, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def error(found: Exception) -> RetinueError:
    """Make an error fit to be told; what is not ours is logged and told with a fixed sentence."""
    if isinstance(found, RetinueError):
        if found.private:
            log.warning("request refused", reason=str(found.reason), detail=found.private)
        return found
    log.error("request failed", exc_info=found)
    return RetinueError(Reason.INTERNAL, "Something went wrong inside; the trace id leads to it.")
