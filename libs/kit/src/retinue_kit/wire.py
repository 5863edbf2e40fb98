"""Errors as google.rpc.Status, on their way out and back."""

from typing import Any

import grpc
from google.protobuf import duration_pb2, json_format
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from retinue_kit.errors import Code, Reason, RetinueError

DOMAIN = "retinue"

ACCEPTED = "retinue-accepted"
"""Initial metadata of a stream that says that its server has taken the call up, before anything else is said."""


async def accept(context: "grpc.aio.ServicerContext[Any, Any]") -> None:
    """Say that a call is taken up: without this, whoever loses it may know that nothing has come of it."""
    await context.send_initial_metadata(((ACCEPTED, "1"),))


def to_status(error: RetinueError) -> status_pb2.Status:
    """Render an error with its ErrorInfo and, where repeating makes sense, RetryInfo."""
    status = status_pb2.Status(code=int(error.code), message=error.message)
    info = error_details_pb2.ErrorInfo(reason=str(error.reason), domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def to_json(status: status_pb2.Status) -> dict[str, object]:
    """Render a status as the public API shows it; `metadata` and `details` are always there."""
    value = json_format.MessageToDict(status, preserving_proto_field_name=True)
    details = value.setdefault("details", [])
    for detail in details:
        if detail["@type"].endswith("ErrorInfo"):
            detail.setdefault("metadata", {})
    return value


def from_status(status: status_pb2.Status, peer: str = "") -> RetinueError:
    """Read an error back. What has no reason of ours becomes DEPENDENCY_UNAVAILABLE or INTERNAL, by its code."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    reason: Reason | None = None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            reason = Reason(info.reason) if info.reason in Reason.__members__ else None
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) and detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    if reason is None:
        if status.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED):
            return RetinueError.unavailable(peer or "a service", private=status.message)
        return RetinueError(Reason.INTERNAL, "Something went wrong inside.", private=f"{peer}: {status.message}")
    code = Code(status.code) if status.code in Code._value2member_map_ else None
    metadata = {str(k): str(v) for k, v in info.metadata.items()}
    error = RetinueError(reason, status.message, retry_after_s=retry_after_s, code=code)
    error.metadata = metadata
    return error


def from_rpc_error(error: grpc.aio.AioRpcError, peer: str) -> RetinueError:
    """Read the error that a call to `peer` ended with."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    if status is None:
        number = error.code().value[0]
        status = status_pb2.Status(code=number, message=error.details() or "")
    return from_status(status, peer)
