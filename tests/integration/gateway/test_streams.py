"""What ends or interrupts an open stream of events: tokens, silence, slow readers, a process that stops."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from retinue.edge.v1 import contact_pb2, edge_service_pb2
from retinue_gateway import events
from retinue_kit import streams


def watch_contact(mesh: Any, **identity: Any) -> Any:
    return mesh.edge.WatchContact(
        edge_service_pb2.WatchContactRequest(contact="ada"), metadata=mesh.metadata(**identity)
    )


def stream_message(mesh: Any) -> Any:
    request = edge_service_pb2.StreamMessageRequest(contact="ada", text="hello there")
    return mesh.edge.StreamMessage(request, metadata=mesh.metadata())


async def read_to_end(call: Any) -> bytes:
    async with asyncio.timeout(20):
        return b"".join([body.data async for body in call])


def last_error(data: bytes) -> dict[str, Any]:
    """Read the error that a stream ended with."""
    *_, last, empty = data.decode().split("\n\n")
    assert empty == ""
    event, text = last.split("\n")
    assert event == "event: error"
    status: dict[str, Any] = json.loads(text.removeprefix("data: "))
    return status


def reason(status: dict[str, Any]) -> str:
    text: str = status["details"][0]["reason"]
    return text


async def test_a_revoked_token_ends_its_streams_within_five_seconds(mesh: Any) -> None:
    call = watch_contact(mesh, jti="jti_stolen")
    other = watch_contact(mesh)
    await call.initial_metadata()
    await other.initial_metadata()
    mesh.directory.revoked.add("jti_stolen")
    async with asyncio.timeout(5):
        status = last_error(await read_to_end(call))
    assert (status["code"], reason(status)) == (16, "CREDENTIAL_INVALID")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await read_to_end(other)


async def test_a_token_that_expires_ends_its_streams(mesh: Any) -> None:
    call = watch_contact(mesh, ttl_s=2)
    assert reason(last_error(await read_to_end(call))) == "CREDENTIAL_EXPIRED"


async def test_revocations_last_while_the_directory_is_away(mesh: Any, serve: Any) -> None:
    mesh.directory.revoked.add("jti_stolen")
    await mesh.gateway.credentials.refresh()

    def away(*_: object) -> None:
        raise RuntimeError("away")

    mesh.directory.ListRevocations = away
    await mesh.gateway.credentials.refresh()
    call = watch_contact(mesh, jti="jti_stolen")
    assert "revoked" in str(await _failure(call))


async def _failure(call: Any) -> Exception:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        await read_to_end(call)
    return raised.value


async def test_silence_is_broken_by_comments(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.0)
    call = aiter(watch_contact(mesh))
    async with asyncio.timeout(10):
        assert [(await anext(call)).data for _ in range(3)] == 3 * [b": keep-alive\n\n"]


async def test_a_stopping_process_ends_what_is_lasting_and_lets_runs_be_told(mesh: Any) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"text_delta": {"text": "still "}}
        await gate.wait()
        yield {"text_delta": {"text": "here"}}
        yield {"message_completed": {"text": "still here"}}
        yield {"finished": {}}

    mesh.adapter.script = slow
    lasting, telling = watch_contact(mesh), stream_message(mesh)
    await lasting.initial_metadata()
    told, pieces = b"", aiter(telling)
    while b"still " not in told:  # it has begun to be told
        told += (await anext(pieces)).data
    draining = asyncio.create_task(mesh.gateway.drain(15))
    assert reason(last_error(await read_to_end(lasting))) == "DRAINING"
    gate.set()
    assert b"event: run.succeeded" in await read_to_end(telling)
    await draining


async def test_a_stream_that_cannot_end_in_time_is_told_that_the_process_stops(mesh: Any) -> None:
    async def endless(request: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"text_delta": {"text": "a"}}
        await asyncio.Event().wait()

    mesh.adapter.script = endless
    telling = stream_message(mesh)
    await telling.initial_metadata()
    draining = asyncio.create_task(mesh.gateway.drain(1.2))
    assert reason(last_error(await read_to_end(telling))) == "DRAINING"
    await draining


async def test_a_reader_that_is_too_slow_is_cut_off_and_resumes(mesh: Any) -> None:
    """bounded"""
    said = asyncio.Event()
    pieces = 300

    async def flood(request: Any) -> AsyncIterator[dict[str, Any]]:
        for _ in range(pieces):
            yield {"text_delta": {"text": "x" * 100_000}}
            await asyncio.sleep(0)
        yield {"message_completed": {"text": "done"}}
        yield {"finished": {}}
        said.set()

    mesh.adapter.script = flood
    call = stream_message(mesh)
    reader = aiter(call)
    first = (await anext(reader)).data
    run = json.loads(first.split(b"data: ")[1])["run_id"]
    async with asyncio.timeout(60):
        await said.wait()
        data = b"".join([body.data async for body in reader])
    assert reason(last_error(data)) == "SLOW_CONSUMER"
    last = [line for line in data.split(b"\n") if line.startswith(b"id: ")][-1].removeprefix(b"id: ")
    resumed = edge_service_pb2.WatchRunRequest(run=run)
    metadata = mesh.metadata(("last-event-id", last.decode()))
    async with asyncio.timeout(60):
        rest = b"".join([body.data async for body in mesh.edge.WatchRun(resumed, metadata=metadata)])
    assert b"event: run.succeeded" in rest
    assert (data + rest).count(b"x" * 1000) == pieces * 100


async def test_redis_that_is_emptied_mid_run_hides_nothing_durable(mesh: Any, redis_url: str) -> None:
    gate = asyncio.Event()

    async def slow(request: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"text_delta": {"text": "one "}}
        await gate.wait()
        yield {"text_delta": {"text": "two"}}
        yield {"message_completed": {"text": "one two"}}
        yield {"finished": {}}

    mesh.adapter.script = slow
    call = stream_message(mesh)
    reader = aiter(call)
    data = b""
    while b"assistant.delta" not in data:
        data += (await anext(reader)).data
    async with streams.connect(redis_url) as client:
        await client.flushall()
    gate.set()
    async with asyncio.timeout(20):
        data += b"".join([body.data async for body in reader])
    for type_ in ("user.message", "run.started", "assistant.message", "run.succeeded"):
        assert data.count(f"event: {type_}\n".encode()) == 1


async def test_a_run_that_is_deleted_with_its_contact_ends_its_stream(
    mesh: Any, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.0)

    async def held(request: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"text_delta": {"text": "Well"}}
        await gate.wait()

    mesh.adapter.script = held
    call = aiter(stream_message(mesh))
    while b"assistant.delta" not in (await anext(call)).data:
        pass
    await mesh.edge.DeleteContact(contact_pb2.DeleteContactRequest(contact="ada"), metadata=mesh.metadata())
    assert reason(last_error(await read_to_end(call))) == "RUN_NOT_FOUND"
