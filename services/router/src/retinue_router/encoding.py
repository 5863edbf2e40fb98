"""Messages of the contract from rows, and rules' own values from messages."""

import math
from datetime import UTC, datetime, timedelta

import msgspec
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2
from retinue.router.v1 import (
    allowance_service_pb2,
    approval_pb2,
    contact_pb2,
    dead_letter_service_pb2,
    decision_service_pb2,
    load_pb2,
    memory_service_pb2,
    router_service_pb2,
    run_pb2,
    schedule_service_pb2,
    webhook_service_pb2,
)
from retinue_kit.errors import RetinueError
from retinue_kit.streams import Cursor, Entry

from retinue_router.domain.load import Bounds, Load
from retinue_router.domain.schedules import ACTIVE, PAUSED, Schedule
from retinue_router.domain.submission import BUSY_DEFAULT, RUNTIME_ANY, Submission
from retinue_router.store.guard import Row

_INTEGER_MAX = 2**53
"""Up to here a double holds every integer."""

# A status is parsed with its details only if their types are known to the process.
assert error_details_pb2.ErrorInfo.DESCRIPTOR.full_name == "google.rpc.ErrorInfo"


def plain(struct: struct_pb2.Struct, field: str) -> dict[str, object]:
    """Read a Struct as JSON would: whole numbers as integers. Refuses numbers that JSON has not."""
    return {name: _plain(value, field) for name, value in struct.fields.items()}


def _plain(value: struct_pb2.Value, field: str) -> object:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            raise RetinueError.field(field, "must hold finite numbers only")
        return int(number) if number.is_integer() and abs(number) < _INTEGER_MAX else number
    if kind == "struct_value":
        return plain(value.struct_value, field)
    if kind == "list_value":
        return [_plain(item, field) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def to_submission(request: router_service_pb2.SubmitRunRequest) -> Submission:
    """Read what is asked."""
    return Submission(
        tenant_id=request.tenant_id,
        contact=request.contact,
        kind=request.kind,
        principal=request.principal,
        text=request.text,
        runtime=request.runtime or RUNTIME_ANY,
        on_busy=request.on_busy or BUSY_DEFAULT,
        metadata=plain(request.metadata, "metadata"),
        reasoning=request.reasoning,
        context=[{"role": line.role, "text": line.text} for line in request.context],
        input=plain(request.input, "input"),
        parameters=plain(request.parameters, "parameters"),
        idempotency_key=request.idempotency_key,
        run_at=_time(request.run_at, "run_at") if request.HasField("run_at") else None,
    )


def to_schedule(request: schedule_service_pb2.CreateScheduleRequest) -> Schedule:
    """Read what is asked of a schedule."""
    return Schedule(
        tenant_id=request.tenant_id,
        contact=request.contact,
        kind=request.kind,
        input=plain(request.input, "input"),
        cron=request.cron,
        time_zone=request.time_zone,
        principal=request.principal,
        idempotency_key=request.idempotency_key,
    )


def _time(instant: timestamp_pb2.Timestamp, field: str) -> datetime:
    try:
        return instant.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise RetinueError.field(field, "must be an instant of the years 1 to 9999, with 0 to 999999999 ns") from None


def _instant(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    if time is None:
        return None
    instant = timestamp_pb2.Timestamp()
    instant.FromDatetime(time)
    return instant


def _struct(text: str | None) -> struct_pb2.Struct | None:
    if text is None:
        return None
    struct = struct_pb2.Struct()
    struct.update(msgspec.json.decode(text))
    return struct


def state_name(state: "run_pb2.RunState.ValueType") -> str:
    """Name a state as rows do; "" for the unspecified one."""
    return run_pb2.RunState.Name(state).removeprefix("RUN_STATE_").lower() if state else ""


def run(row: Row) -> run_pb2.Run:
    """Write a run."""
    message = run_pb2.Run(
        tenant_id=row["tenant_id"],
        run_id=row["run_id"],
        contact=row["contact"],
        session_id=row["session_id"],
        log_id=row["log_id"],
        kind=row["kind"],
        state=run_pb2.RunState.Value(f"RUN_STATE_{row['state'].upper()}"),
        runtime=row["runtime"] or "",
        attempt_count=row["attempt"],
        create_time=_instant(row["create_time"]),
        start_time=_instant(row["start_time"]),
        end_time=_instant(row["end_time"]),
        output_text=row["output"],
        after_cursor=str(Cursor(row["after_token"], row["after_n"])),
        trace_id=row["traceparent"][3:35],
        decision=_struct(row["decision"]),
        run_at=_instant(row["run_at"]),
    )
    if row["usage"]:
        json_format.ParseDict(msgspec.json.decode(row["usage"]), message.usage, ignore_unknown_fields=True)
    if row["error"]:
        message.error.CopyFrom(_status(row["error"]))
    return message


def _status(text: str) -> status_pb2.Status:
    document = msgspec.json.decode(text)
    status = status_pb2.Status()
    try:
        json_format.ParseDict(document, status, ignore_unknown_fields=True)
    except json_format.ParseError:
        # A detail of a release to come: the code and the message stay.
        status = status_pb2.Status(code=document.get("code", 13), message=document.get("message", ""))
    return status


def event(entry: Entry) -> run_pb2.Event:
    """Write an event."""
    session_id = msgspec.json.decode(entry.json, type=_Session).session_id
    return run_pb2.Event(
        cursor=str(entry.cursor), type=entry.type, session_id=session_id, run_id=entry.run_id, json=entry.json
    )


class _Session(msgspec.Struct):
    session_id: str


def contact(row: Row) -> contact_pb2.Contact:
    """Write a contact; without its profile where the row has none."""
    return contact_pb2.Contact(
        contact=row["contact"],
        display_name=row["display_name"],
        channel=row["channel"],
        create_time=_instant(row["create_time"]),
        profile=_struct(row.get("profile")),
    )


def message(row: Row) -> run_pb2.Message:
    """Write a message of a conversation."""
    data = msgspec.json.decode(row["data"])
    return run_pb2.Message(
        message_id=data.get("message_id") or "",
        role="user" if row["type"] == "user.message" else "assistant",
        text=data.get("text") or "",
        run_id=row["run_id"],
        create_time=_instant(row["time"]),
        session_id=row["session_id"],
    )


def approval(row: Row) -> approval_pb2.Approval:
    """Write an approval."""
    return approval_pb2.Approval(
        approval_id=row["approval_id"],
        run_id=row["run_id"],
        contact=row["contact"],
        call_id=row["call_id"],
        tool=row["tool"],
        summary=row["summary"],
        state=row["state"],
        expire_time=_instant(row["expire_time"]),
        pattern=row["pattern"],
    )


def allowance(row: Row) -> allowance_service_pb2.Allowance:
    """Write an allowance."""
    return allowance_service_pb2.Allowance(
        allowance_id=row["allowance_id"],
        tool=row["tool"],
        pattern=row["pattern"],
        principal=row["principal"],
        create_time=_instant(row["create_time"]),
    )


def schedule(row: Row) -> schedule_service_pb2.Schedule:
    """Write a schedule."""
    return schedule_service_pb2.Schedule(
        schedule_id=row["schedule_id"],
        contact=row["contact"],
        kind=row["kind"],
        input=_struct(row["input"]),
        cron=row["cron"],
        time_zone=row["time_zone"],
        state=ACTIVE if row["next_time"] else PAUSED,
        next_time=_instant(row["next_time"]),
        last_run_id=row["last_run_id"] or "",
        create_time=_instant(row["create_time"]),
    )


def dead_letter(row: Row) -> dead_letter_service_pb2.DeadLetter:
    """Write a dead letter; without what was asked where the row has none."""
    return dead_letter_service_pb2.DeadLetter(
        run=run(row),
        state=row["dead"],
        text=row.get("asked") or "",
        retry_run_id=row["retried_as"] or "",
        dead_time=_instant(row["dead_time"]),
    )


def load(found: Load, bounds: Bounds) -> load_pb2.GetLoadResponse:
    """Write how much waits, and how much may."""
    message = load_pb2.GetLoadResponse(
        dead_letter_count=found.dead,
        waiting_count_max=bounds.waiting,
        tenant_waiting_count_max=bounds.tenant_waiting,
    )
    for name, queue in found.queues.items():
        one = message.queues.add(queue_class=name, waiting_count=queue.waiting, later_count=queue.later)
        one.oldest_wait.FromTimedelta(timedelta(seconds=queue.oldest_s))
    if found.count_time is not None:
        message.count_time.FromDatetime(found.count_time)
    return message


def webhook(row: Row) -> webhook_service_pb2.Webhook:
    """Write a webhook, without its secret."""
    return webhook_service_pb2.Webhook(
        webhook_id=row["webhook_id"],
        url=row["url"],
        kind=row["kind"],
        event_types=row["event_types"],
        state=row["state"],
        create_time=_instant(row["create_time"]),
    )


def delivery(row: Row) -> webhook_service_pb2.Delivery:
    """Write a delivery, without what it tells."""
    state = row["state"]
    return webhook_service_pb2.Delivery(
        delivery_id=row["delivery_id"],
        webhook_id=row["webhook_id"],
        event_type=row["event_type"],
        run_id=row["run_id"],
        state=state,
        attempt_count=row["attempt"],
        last_result=row["last_result"],
        create_time=_instant(row["event_time"]),
        due_time=_instant(row["due_time"]) if state == "pending" else None,
        deliver_time=_instant(row["end_time"]) if state == "delivered" else None,
    )


def fact(row: Row) -> memory_service_pb2.Fact:
    """Write a fact."""
    return memory_service_pb2.Fact(
        fact_id=row["fact_id"],
        contact=row["contact"],
        domain=row["domain"],
        kind=row["kind"],
        importance=row["importance"],
        text=row["text"],
        run_id=row["run_id"],
        create_time=_instant(row["create_time"]),
    )


def decision(row: Row) -> decision_service_pb2.StoredDecision:
    """Write what was decided for a run."""
    return decision_service_pb2.StoredDecision(
        tenant_id=row["tenant_id"],
        run_id=row["run_id"],
        create_time=_instant(row["create_time"]),
        decision=_struct(row["decision"]),
    )
