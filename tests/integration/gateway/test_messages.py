"""Messages over gRPC, as Envoy's transcoder calls: accepted, streamed, resumed, waited for."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from retinue.edge.v1 import approval_pb2, contact_pb2, edge_service_pb2


def send(text: str = "hello there friend", contact: str = "ada", **fields: Any) -> edge_service_pb2.SendMessageRequest:
    return edge_service_pb2.SendMessageRequest(contact=contact, text=text, **fields)


def parse(data: bytes) -> list[dict[str, Any]]:
    """Read whole frames; a comment is an empty one."""
    assert data.endswith(b"\n\n")
    found = []
    for block in data.decode()[:-2].split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            fields["data"] = json.loads(fields["data"])
        found.append(fields)
    return found


async def frames(call: Any) -> AsyncIterator[dict[str, Any]]:
    async for body in call:
        assert body.content_type == "text/event-stream"
        for frame in parse(body.data):
            if frame:
                yield frame


async def collect(call: Any, until: str = "") -> list[dict[str, Any]]:
    """Read a stream to its end, or to an event."""
    found = []
    async with asyncio.timeout(20):
        async for frame in frames(call):
            found.append(frame)
            if frame["event"] == until:
                break
    return found


def reason_of(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return error.code(), info.reason, dict(info.metadata)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in call if hasattr(call, "__aiter__") else _once(call):
            pass
    return reason_of(raised.value)


async def _once(call: Any) -> AsyncIterator[Any]:
    yield await call


def text_of(found: list[dict[str, Any]]) -> str:
    return "".join(f["data"]["data"]["text"] for f in found if f["event"] == "assistant.delta")


async def test_a_message_is_answered_with_its_durable_run(mesh: Any) -> None:
    answer = await mesh.edge.SendMessage(send(), metadata=mesh.metadata())
    run = answer.run
    assert (run.contact, run.kind, run.state, run.attempt_count) == ("ada", "chat", "queued", 0)
    assert not run.HasField("start_time")
    assert not run.HasField("output")
    waited = await mesh.edge.WaitRun(edge_service_pb2.WaitRunRequest(run=run.run_id), metadata=mesh.metadata())
    done = waited.run
    assert (done.state, done.output.text, done.runtime, done.attempt_count) == (
        "succeeded",
        "hello there friend",
        "light",
        1,
    )
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.model) == (3, 3, "fake")
    assert done.end_time.ToDatetime() >= done.start_time.ToDatetime() >= done.create_time.ToDatetime()
    listed = await mesh.edge.ListRuns(
        edge_service_pb2.ListRunsRequest(contact="ada", state="succeeded"), metadata=mesh.metadata()
    )
    assert listed.runs == [done]


async def test_a_streamed_message_tells_its_run_to_the_end(mesh: Any) -> None:
    call = mesh.edge.StreamMessage(send(), metadata=mesh.metadata())
    headers = dict(await call.initial_metadata())
    assert headers["cache-control"] == "no-cache"
    found = await collect(call)
    assert [f["event"] for f in found if f["event"] != "assistant.delta"] == [
        "run.queued",
        "user.message",
        "run.started",
        "assistant.message",
        "run.succeeded",
    ]
    assert text_of(found) == "hello there friend"
    queued, *others = found
    assert "id" not in queued
    assert "cursor" not in queued["data"]
    assert [f["id"] for f in others] == [f["data"]["cursor"] for f in others]
    cursors = [tuple(map(int, f["id"].split("-"))) for f in others]
    assert cursors == sorted(set(cursors))
    assert {f["data"]["run_id"] for f in found} == {queued["data"]["run_id"]}
    assert all(f["data"]["type"] == f["event"] for f in found)
    assert others[-1]["data"]["data"]["usage"]["output_tokens"] == 3


async def test_the_same_key_gives_the_same_run_and_its_events_again(mesh: Any) -> None:
    key = ("idempotency-key", "k 1".replace(" ", "-"))
    first = await collect(mesh.edge.StreamMessage(send(), metadata=mesh.metadata(key)))
    call = mesh.edge.StreamMessage(send(), metadata=mesh.metadata(key))
    assert dict(await call.initial_metadata())["idempotent-replay"] == "true"
    again = await collect(call)
    assert again[1:] == first[1:], "deltas are still on the bus"
    unary = mesh.edge.SendMessage(send(), metadata=mesh.metadata(key))
    assert (await unary).run.run_id == first[0]["data"]["run_id"]
    assert dict(await unary.initial_metadata())["idempotent-replay"] == "true"
    code, reason, _ = await refused(mesh.edge.SendMessage(send("other"), metadata=mesh.metadata(key)))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")


async def test_a_run_is_watched_from_any_cursor_while_it_goes_on_and_afterwards(mesh: Any, gate: asyncio.Event) -> None:
    async def slow(request: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"text_delta": {"text": "one "}}
        await gate.wait()
        yield {"text_delta": {"text": "two"}}
        yield {"message_completed": {"text": "one two"}}
        yield {"finished": {}}

    mesh.adapter.script = slow
    run = (await mesh.edge.SendMessage(send(), metadata=mesh.metadata())).run.run_id
    watch = edge_service_pb2.WatchRunRequest(run=run)
    early = await collect(mesh.edge.WatchRun(watch, metadata=mesh.metadata()), until="assistant.delta")
    resuming = mesh.edge.WatchRun(watch, metadata=mesh.metadata(("last-event-id", early[-1]["id"])))
    gate.set()
    rest = await collect(resuming)
    whole = await collect(mesh.edge.WatchRun(watch, metadata=mesh.metadata()))
    assert early + rest == whole
    assert text_of(whole) == "one two"
    for index, frame in enumerate(whole):
        after = edge_service_pb2.WatchRunRequest(run=run, after=frame["id"])
        assert await collect(mesh.edge.WatchRun(after, metadata=mesh.metadata())) == whole[index + 1 :]


async def test_a_contact_is_watched_from_now_on_and_before_it_is_there(mesh: Any) -> None:
    watch = edge_service_pb2.WatchContactRequest(contact="eva")
    call = mesh.edge.WatchContact(watch, metadata=mesh.metadata())
    await call.initial_metadata()
    await mesh.edge.SendMessage(send("first", "eva"), metadata=mesh.metadata())
    found = await collect(call, until="run.succeeded")
    assert [f["event"] for f in found][:2] == ["user.message", "run.started"]
    later = mesh.edge.WatchContact(watch, metadata=mesh.metadata())
    await later.initial_metadata()
    await mesh.edge.SendMessage(send("second", "eva"), metadata=mesh.metadata())
    second = await collect(later, until="run.succeeded")
    assert second[0]["data"]["data"]["text"] == "second"
    resumed = edge_service_pb2.WatchContactRequest(contact="eva", after=found[-1]["id"])
    again = await collect(mesh.edge.WatchContact(resumed, metadata=mesh.metadata()), until="run.succeeded")
    assert again == second


async def test_a_failed_run_is_told_with_its_error(mesh: Any) -> None:
    async def fail(request: Any) -> AsyncIterator[dict[str, Any]]:
        status = status_pb2.Status(code=9, message="Refused.")
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason="MODEL_AUTH", domain="retinue"))
        yield {"failed": {"error": status}}

    mesh.adapter.script = fail
    found = await collect(mesh.edge.StreamMessage(send(), metadata=mesh.metadata()))
    assert found[-1]["event"] == "run.failed"
    assert found[-1]["data"]["data"]["error"]["details"][0]["reason"] == "MODEL_AUTH"
    run = await mesh.edge.GetRun(
        edge_service_pb2.GetRunRequest(run=found[0]["data"]["run_id"]), metadata=mesh.metadata()
    )
    assert (run.run.state, run.run.error.code, run.run.error.message) == ("failed", 9, "Refused.")


async def test_waiting_answers_when_the_run_is_over_or_the_time_is_up(mesh: Any, gate: asyncio.Event) -> None:
    async def slow(request: Any) -> AsyncIterator[dict[str, Any]]:
        await gate.wait()
        yield {"finished": {}}

    mesh.adapter.script = slow
    run = (await mesh.edge.SendMessage(send(), metadata=mesh.metadata())).run.run_id
    for timeout_s in (0, 1):
        asked = edge_service_pb2.WaitRunRequest(run=run, timeout_s=timeout_s)
        answer = await mesh.edge.WaitRun(asked, metadata=mesh.metadata())
        assert answer.run.state in ("queued", "running")
    waiting = asyncio.ensure_future(
        mesh.edge.WaitRun(edge_service_pb2.WaitRunRequest(run=run), metadata=mesh.metadata())
    )
    gate.set()
    assert (await waiting).run.state == "succeeded"


async def test_cancelling_stops_a_run(mesh: Any, gate: asyncio.Event) -> None:
    async def endless(request: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"text_delta": {"text": "a"}}
        await gate.wait()
        yield {"finished": {}}

    mesh.adapter.script = endless
    call = mesh.edge.StreamMessage(send(), metadata=mesh.metadata())
    begun = await collect(call, until="assistant.delta")
    asked = edge_service_pb2.CancelRunRequest(run=begun[0]["data"]["run_id"])
    await mesh.edge.CancelRun(asked, metadata=mesh.metadata())
    assert (await collect(call))[-1]["event"] == "run.cancelled"


async def test_a_contact_that_could_be_taken_for_another_is_refused(mesh: Any) -> None:
    for contact in (".", "..", "ada:stream", "e\u0301va", "a b", "x" * 129, "ada:a:cancel"):
        code, reason, facts = await refused(mesh.edge.SendMessage(send(contact=contact), metadata=mesh.metadata()))
        assert (code, reason, facts["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "contact")


async def test_bad_keys_and_cursors_are_refused_before_a_stream_begins(mesh: Any) -> None:
    for key in ("", "x" * 256, "a b"):
        metadata = mesh.metadata(("idempotency-key", key))
        code, reason, facts = await refused(mesh.edge.StreamMessage(send(), metadata=metadata))
        assert (code, reason, facts) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "FIELD_INVALID",
            {"field": "Idempotency-Key"},
        )
    for after in ("x", "1", "1-", "-1-2", "1-2-3"):
        watch = edge_service_pb2.WatchContactRequest(contact="ada", after=after)
        assert (await refused(mesh.edge.WatchContact(watch, metadata=mesh.metadata())))[1] == "CURSOR_INVALID"


async def test_who_calls_and_whether_they_may_is_asked_first(mesh: Any) -> None:
    assert (await refused(mesh.edge.SendMessage(send(text=""))))[:2] == (
        grpc.StatusCode.UNAUTHENTICATED,
        "CREDENTIAL_MISSING",
    )
    metadata = mesh.metadata(scope="read")
    assert (await refused(mesh.edge.SendMessage(send(text=""), metadata=metadata)))[:2] == (
        grpc.StatusCode.PERMISSION_DENIED,
        "SCOPE_MISSING",
    )
    await mesh.edge.SendMessage(send(), metadata=mesh.metadata(scope="admin other"))
    metadata = mesh.metadata(ttl_s=-1)
    assert (await refused(mesh.edge.SendMessage(send(), metadata=metadata)))[1] == "CREDENTIAL_EXPIRED"


async def test_another_tenants_things_look_like_missing_ones(mesh: Any) -> None:
    run = (await mesh.edge.SendMessage(send(), metadata=mesh.metadata())).run.run_id
    other = mesh.metadata(tenant="ten_b")
    for id_ in (run, "run_none"):
        for call in (
            mesh.edge.GetRun(edge_service_pb2.GetRunRequest(run=id_), metadata=other),
            mesh.edge.WatchRun(edge_service_pb2.WatchRunRequest(run=id_), metadata=other),
            mesh.edge.WaitRun(edge_service_pb2.WaitRunRequest(run=id_), metadata=other),
            mesh.edge.CancelRun(edge_service_pb2.CancelRunRequest(run=id_), metadata=other),
        ):
            assert (await refused(call))[:2] == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")
    decide = approval_pb2.DecideApprovalRequest(approval="apr_none", decision="deny")
    assert (await refused(mesh.edge.DecideApproval(decide, metadata=other)))[1] == "APPROVAL_NOT_FOUND"


async def test_contacts_are_written_listed_reset_and_removed(mesh: Any) -> None:
    put = contact_pb2.UpdateContactRequest(contact="eva@x", display_name="Eva", channel="web")
    put.profile.update({"likes": ["tea"], "age": 7})
    made = await mesh.edge.UpdateContact(put, metadata=mesh.metadata())
    get = contact_pb2.GetContactRequest(contact="eva@x")
    found = await mesh.edge.GetContact(get, metadata=mesh.metadata())
    assert found.SerializeToString(deterministic=True) == made.SerializeToString(deterministic=True)
    assert (made.display_name, made.channel, made.profile["age"]) == ("Eva", "web", 7)
    listed = await mesh.edge.ListContacts(contact_pb2.ListContactsRequest(), metadata=mesh.metadata())
    assert [contact.contact for contact in listed.contacts] == ["eva@x"]
    run = (await mesh.edge.SendMessage(send(contact="eva@x"), metadata=mesh.metadata())).run
    await mesh.edge.WaitRun(edge_service_pb2.WaitRunRequest(run=run.run_id), metadata=mesh.metadata())
    said = await mesh.edge.ListMessages(contact_pb2.ListMessagesRequest(contact="eva@x"), metadata=mesh.metadata())
    assert [(m.role, m.text, m.run_id) for m in said.messages] == [
        (role, "hello there friend", run.run_id) for role in ("user", "assistant")
    ]
    reset = contact_pb2.ResetContactRequest(contact="eva@x")
    fresh = await mesh.edge.ResetContact(reset, metadata=mesh.metadata())
    assert fresh.session_id not in ("", run.session_id)
    await mesh.edge.DeleteContact(contact_pb2.DeleteContactRequest(contact="eva@x"), metadata=mesh.metadata())
    assert (await refused(mesh.edge.GetContact(get, metadata=mesh.metadata())))[1] == "CONTACT_NOT_FOUND"


async def test_a_tasks_end_is_told_to_its_contact(mesh: Any) -> None:
    watching = mesh.edge.WatchContact(edge_service_pb2.WatchContactRequest(contact="ada"), metadata=mesh.metadata())
    await watching.initial_metadata()
    asked = edge_service_pb2.CreateTaskRequest(contact="ada", kind="extract")
    asked.input.update({"text": "what we know"})
    run = (await mesh.edge.CreateTask(asked, metadata=mesh.metadata())).run
    assert run.kind == "extract"
    told = (await collect(watching, until="task.finished"))[-1]["data"]["data"]
    assert (told["run_id"], told["kind"], told["state"]) == (run.run_id, "extract", "succeeded")


async def test_what_postgres_cannot_hold_is_refused(mesh: Any) -> None:
    request = send()
    request.metadata.update({"a": [{"b": float("nan")}]})
    assert (await refused(mesh.edge.SendMessage(request, metadata=mesh.metadata())))[2] == {"field": "metadata"}
    assert (await refused(mesh.edge.SendMessage(send("a\0b"), metadata=mesh.metadata())))[2] == {"field": "text"}
    get = edge_service_pb2.GetRunRequest(run="run\0")
    assert (await refused(mesh.edge.GetRun(get, metadata=mesh.metadata())))[1] == "FIELD_INVALID"
    many = send()
    many.metadata.update({str(number): number for number in range(65)})
    assert (await refused(mesh.edge.SendMessage(many, metadata=mesh.metadata())))[2] == {"field": "metadata"}


async def test_bounded_a_request_of_more_than_one_mebibyte_is_refused_whoever_brings_it(mesh: Any) -> None:
    """Envoy counts the bytes of JSON only."""
    padding = b"\x92\x3e" + b"\x80\x80\x40" + b"x" * (1 << 20)  # a field that nobody knows, of 1 MiB
    large = send()
    large.MergeFromString(padding)
    assert large.ByteSize() > 1 << 20
    code, why, _ = await refused(mesh.edge.SendMessage(large, metadata=mesh.metadata()))
    assert (code, why) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BODY_TOO_LARGE")
    assert mesh.adapter.requests == []
    text = send("x" * (1 << 20))
    assert (await refused(mesh.edge.SendMessage(text, metadata=mesh.metadata())))[1] == "BODY_TOO_LARGE"
    assert (await mesh.edge.SendMessage(send(), metadata=mesh.metadata())).run.run_id
