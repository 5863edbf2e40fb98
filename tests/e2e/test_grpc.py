"""A program that speaks gRPC uses the public API as it is, at the same address as everyone else."""

import json

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue.edge.v1 import contact_pb2, edge_service_pb2, edge_service_pb2_grpc
from whole_mesh import parse_sse

EDGE = "retinue.edge.v1.EdgeService"
TIMEOUT_S = 30


@pytest_asyncio.fixture
async def channel(mesh):
    """A connection to the one address, without TLS."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{mesh.port}") as connected:
        yield connected


@pytest.fixture
def edge(channel):
    return edge_service_pb2_grpc.EdgeServiceStub(channel)


@pytest.fixture
def credential(mesh):
    """What a caller of the tenant `e2e` sends along."""
    return {"metadata": (("authorization", f"Bearer {mesh.token()}"),), "timeout": TIMEOUT_S}


async def error_of(call):
    """Wait for a refusal; answers its code, and the reason and facts in its details."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    error = refused.value
    info = error_details_pb2.ErrorInfo()
    if details := dict(error.trailing_metadata()).get("grpc-status-details-bin"):
        status = status_pb2.Status.FromString(details)
        assert status.code == error.code().value[0]
        assert any(detail.Unpack(info) for detail in status.details)
    return error.code(), info.reason, dict(info.metadata)


async def test_health_is_told_to_anyone(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", EDGE):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=TIMEOUT_S)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_anyone_may_ask_what_is_served(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def asked():
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        yield reflection_pb2.ServerReflectionRequest(file_containing_symbol=EDGE)

    answers = [answer async for answer in stub.ServerReflectionInfo(asked(), timeout=TIMEOUT_S)]
    assert EDGE in {service.name for service in answers[0].list_services_response.service}
    assert any(b"StreamMessage" in file for file in answers[1].file_descriptor_response.file_descriptor_proto)


async def test_a_message_is_sent_and_waited_for(edge, credential, contact):
    request = edge_service_pb2.SendMessageRequest(contact=contact, text="#tokens=3")
    run = (await edge.SendMessage(request, **credential)).run
    assert run.contact == contact
    waited = (await edge.WaitRun(edge_service_pb2.WaitRunRequest(run=run.run_id), **credential)).run
    assert (waited.state, waited.output.text) == ("succeeded", "t0 t1 t2")
    messages = await edge.ListMessages(contact_pb2.ListMessagesRequest(contact=contact), **credential)
    assert [m.text for m in messages.messages] == ["#tokens=3", "t0 t1 t2"]


async def test_a_streamed_message_comes_as_pieces_of_an_event_stream(edge, credential, contact):
    call = edge.StreamMessage(edge_service_pb2.StreamMessageRequest(contact=contact, text="#tokens=4"), **credential)
    bodies = [body async for body in call]
    assert {body.content_type for body in bodies} == {"text/event-stream"}
    frames = parse_sse(b"".join(body.data for body in bodies).decode())
    assert [f["event"] for f in frames if f["event"] != "assistant.delta"] == [
        "run.queued", "user.message", "run.started", "assistant.message", "run.succeeded",
    ]  # fmt: skip
    request = edge_service_pb2.WatchRunRequest(run=frames[0]["data"]["run_id"], after=frames[-2]["id"])
    rest = b"".join([body.data async for body in edge.WatchRun(request, **credential)])
    assert parse_sse(rest.decode()) == frames[-1:]


async def test_same_key_same_answer_over_grpc_and_http(edge, credential, client, contact):
    key = ("idempotency-key", f"k-{contact}")
    keyed = {**credential, "metadata": (*credential["metadata"], key)}
    request = edge_service_pb2.SendMessageRequest(contact=contact, text="#tokens=2")
    call = edge.SendMessage(request, **keyed)
    run = (await call).run
    assert "idempotent-replay" not in dict(await call.initial_metadata())
    again = edge.SendMessage(request, **keyed)
    assert (await again).run.run_id == run.run_id
    assert dict(await again.initial_metadata())["idempotent-replay"] == "true"
    body = {"text": "#tokens=2"}
    response = await client.post(f"/v1/contacts/{contact}/messages", json=body, headers=dict([key]))
    assert response.json()["run"]["run_id"] == run.run_id
    request.text = "something else"
    code, reason, _ = await error_of(edge.SendMessage(request, **keyed))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED")


async def test_without_a_good_token_nothing_is_answered(edge, contact):
    request = contact_pb2.GetContactRequest(contact=contact)
    for metadata in ((), (("authorization", "Bearer nonsense"),), (("x-retinue-tenant", "ten_forged"),)):
        code, _, _ = await error_of(edge.GetContact(request, metadata=metadata, timeout=TIMEOUT_S))
        assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_refusal_arrives_with_its_reason_and_facts(edge, credential, contact):
    code, reason, _ = await error_of(edge.GetContact(contact_pb2.GetContactRequest(contact=contact), **credential))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "CONTACT_NOT_FOUND")
    empty = edge_service_pb2.SendMessageRequest(contact=contact)
    code, reason, facts = await error_of(edge.SendMessage(empty, **credential))
    assert (code, reason, facts["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", "text")
    stream = edge.WatchRun(edge_service_pb2.WatchRunRequest(run="run_missing"), **credential)
    code, reason, _ = await error_of(stream.read())
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "RUN_NOT_FOUND")


async def test_an_error_says_the_same_over_grpc_and_http(edge, credential, client):
    code, reason, facts = await error_of(edge.GetRun(edge_service_pb2.GetRunRequest(run="run_missing"), **credential))
    told = json.loads((await client.get("/v1/runs/run_missing")).text)
    assert told["code"] == code.value[0]
    assert (told["details"][0]["reason"], told["details"][0]["metadata"]) == (reason, facts)


async def test_services_inside_the_mesh_cannot_be_reached(channel, credential):
    stub = directory_service_pb2_grpc.DirectoryServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ListRevocations(directory_service_pb2.ListRevocationsRequest(), **credential)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
