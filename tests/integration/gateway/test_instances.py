"""Instances in the public API: the caller's own, and nothing of what else the adapter knows."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from retinue.edge.v1 import instance_service_pb2 as edge
from retinue_gateway import instances
from retinue_kit.errors import Reason, RetinueError

OPENCLAW = {"runtime": "openclaw", "isolation": "cell"}


class Refusal:
    """What a call was refused with."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        status = rpc_status.from_call(error)
        assert status is not None
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        self.reason, self.metadata, self.message = info.reason, dict(info.metadata), status.message
        self.code = error.code()
        self.retry_after_s = 0
        for detail in status.details[1:]:
            if detail.Unpack(retry):
                self.retry_after_s = retry.retry_delay.seconds


async def call(mesh: Any, method: str, *more: tuple[str, str], scope: str = "chat", tenant: str = "ten_a") -> Any:
    request = getattr(edge, f"{method}Request")()
    return await getattr(mesh.edge_instances, method)(
        request, metadata=mesh.metadata(*more, scope=scope, tenant=tenant)
    )


async def refused(mesh: Any, method: str, **identity: str) -> Refusal:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(mesh, method, **identity)
    return Refusal(raised.value)


async def test_an_instance_is_made_as_policy_says_read_and_given_back(mesh: Any) -> None:
    mesh.policy.decision = OPENCLAW
    made = (await call(mesh, "CreateInstance")).instance
    assert (made.instance, made.runtime, made.isolation, made.state, made.version) == (
        *("ins_1", "openclaw", "cell", "pending"),
        "2026.9.6",
    )
    assert made.HasField("create_time")
    (asked,) = mesh.instances.asked
    assert (asked.tenant_id, asked.isolation) == ("ten_a", "cell")
    (decided,) = mesh.policy.requests
    assert (decided.tenant_id, decided.kind, decided.requested_runtime) == ("ten_a", "chat", "auto")
    assert (await call(mesh, "CreateInstance")).instance == made
    assert (await call(mesh, "GetInstanceStatus")).instance == made
    await call(mesh, "DeleteInstance")
    for method in ("GetInstanceStatus", "DeleteInstance"):
        assert (await refused(mesh, method)).reason == "INSTANCE_NOT_FOUND"


async def test_nobody_reads_or_ends_what_is_another_tenants(mesh: Any) -> None:
    mesh.policy.decision = OPENCLAW
    await call(mesh, "CreateInstance")
    for method in ("GetInstanceStatus", "DeleteInstance"):
        assert (await refused(mesh, method, tenant="ten_b")).reason == "INSTANCE_NOT_FOUND"
    assert not (await call(mesh, "ListInstances", scope="admin", tenant="ten_b")).instances
    assert list(mesh.instances.held) == ["ten_a"]


async def test_neither_clients_nor_a_tenants_operators_hear_of_hosts_processes_or_other_tenants(mesh: Any) -> None:
    mesh.policy.decision = OPENCLAW
    made = await call(mesh, "CreateInstance")
    (report,) = (await call(mesh, "ListInstances", scope="admin")).instances
    for told in (str(made), str(report)):
        assert not [word for word in ("4711", "host-7", "ten_other") if word in told]
    assert made.instance.detail == instances.DETAILS["pending"]
    assert (list(report.tenants), report.tenant_count) == (["ten_a"], 1)
    assert (report.memory_bytes, report.running_count, report.waiting_count) == (1 << 33, 3, 0)
    assert (report.backend, report.instance) == ("process", made.instance)
    assert report.HasField("use_time")


@pytest.mark.parametrize("state", ["pending", "ready", "error"])
async def test_each_state_is_explained(mesh: Any, state: str) -> None:
    mesh.policy.decision = OPENCLAW
    await call(mesh, "CreateInstance")
    mesh.instances.held["ten_a"].state = state
    assert (await call(mesh, "GetInstanceStatus")).instance.detail == instances.DETAILS[state]


async def test_listing_needs_the_scope_admin_and_the_others_do_not(mesh: Any) -> None:
    error = await refused(mesh, "ListInstances")
    assert (error.reason, error.metadata) == ("SCOPE_MISSING", {"scope": "admin"})
    assert (await refused(mesh, "GetInstanceStatus", scope="none")).reason == "SCOPE_MISSING"
    assert (await refused(mesh, "GetInstanceStatus", scope="admin")).reason == "INSTANCE_NOT_FOUND"


async def test_a_tenant_whose_chat_runs_elsewhere_is_told_so_and_gets_none(mesh: Any) -> None:
    error = await refused(mesh, "CreateInstance")
    assert (error.reason, error.metadata) == ("RUNTIME_UNAVAILABLE", {"runtime": "openclaw"})
    assert error.message == "Chat of this tenant runs on light, which needs no instance."
    assert (error.code, error.retry_after_s) == (grpc.StatusCode.FAILED_PRECONDITION, 0)
    assert mesh.instances.asked == []


async def test_who_gives_instances_back_too_often_is_told_when_to_do_so_again(mesh: Any) -> None:
    mesh.policy.decision = OPENCLAW
    await call(mesh, "CreateInstance")
    mesh.instances.trouble = RetinueError(Reason.QUOTA_EXCEEDED, "Too often.", retry_after_s=400.0)
    error = await refused(mesh, "DeleteInstance")
    assert (error.reason, error.code, error.retry_after_s) == (
        *("QUOTA_EXCEEDED", grpc.StatusCode.RESOURCE_EXHAUSTED),
        400,
    )
    assert list(mesh.instances.held) == ["ten_a"]


@pytest.mark.parametrize(("said", "told"), [(7.0, 7), (None, instances.ASK_AGAIN_S)])
async def test_that_none_is_free_is_told_without_the_adapters_words(mesh: Any, said: Any, told: int) -> None:
    mesh.policy.decision = OPENCLAW
    mesh.instances.trouble = RetinueError(Reason.RUNTIME_UNAVAILABLE, "host-7 is full of ten_other", retry_after_s=said)
    error = await refused(mesh, "CreateInstance")
    assert (error.reason, error.retry_after_s) == ("RUNTIME_UNAVAILABLE", told)
    assert "host-7" not in error.message
    assert error.message.startswith("No instance is free")


async def test_other_troubles_are_told_as_they_are(mesh: Any) -> None:
    mesh.policy.trouble = RetinueError(Reason.POLICY_DENIED, "Not now.", rule="no")
    assert (await refused(mesh, "CreateInstance")).metadata == {"rule": "no"}
    mesh.policy.trouble, mesh.policy.decision = None, OPENCLAW
    mesh.instances.trouble = RetinueError.unavailable("postgres")
    assert (await refused(mesh, "CreateInstance")).reason == "DEPENDENCY_UNAVAILABLE"


@pytest.mark.parametrize("runtime", ["openclaw", "light"])
async def test_asking_keeps_no_run_from_finding_out_whether_the_runtime_works(mesh: Any, runtime: str) -> None:
    mesh.policy.decision = {"runtime": runtime, "isolation": "shared", "probes": True}
    if runtime == "openclaw":
        assert (await call(mesh, "CreateInstance")).instance.isolation == "shared"
    else:
        assert (await refused(mesh, "CreateInstance")).reason == "RUNTIME_UNAVAILABLE"
    (asked,), (outcome,) = mesh.policy.requests, mesh.policy.outcomes
    assert (outcome.tenant_id, outcome.runtime, outcome.run_id, outcome.result) == (
        *("ten_a", runtime),
        asked.run_id,
        "abandoned",
    )


async def test_a_probe_that_cannot_be_given_back_holds_nobody_up(mesh: Any) -> None:
    mesh.policy.decision = {**OPENCLAW, "probes": True}
    mesh.policy.reporting_trouble = RetinueError.unavailable("redis")
    assert (await call(mesh, "CreateInstance")).instance.state == "pending"
    assert mesh.policy.outcomes == []


async def test_a_chat_url_is_made_of_what_envoy_says_alone(mesh: Any) -> None:
    said = (("x-retinue-authority", "chat.example:8443"), ("x-forwarded-proto", "https"))
    assert (await call(mesh, "GetChatUrl", *said)).url == "wss://chat.example:8443/v1/ws"
    assert (await refused(mesh, "GetChatUrl")).metadata == {"field": "Host"}


@pytest.mark.parametrize("contact", ["a b", "..", "a:wait", "e\u0301", "x" * 129])
async def test_a_name_that_no_frame_could_use_is_refused(mesh: Any, contact: str) -> None:
    metadata = mesh.metadata(("x-retinue-authority", "a"))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await mesh.edge_instances.GetChatUrl(edge.GetChatUrlRequest(contact=contact), metadata=metadata)
    assert Refusal(raised.value).metadata == {"field": "contact"}
    for good in ("", "ada@example", "你好"):
        answer = await mesh.edge_instances.GetChatUrl(edge.GetChatUrlRequest(contact=good), metadata=metadata)
        assert answer.url == "ws://a/v1/ws"
