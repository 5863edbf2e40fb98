"""How the gateway is assembled: gRPC for Envoy's transcoder and gRPC callers, ASGI for the rest, in one loop."""

import os
from contextlib import AsyncExitStack
from functools import partial

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from retinue.edge.v1 import (
    context_service_pb2,
    context_service_pb2_grpc,
    dead_letter_service_pb2,
    dead_letter_service_pb2_grpc,
    edge_service_pb2,
    edge_service_pb2_grpc,
    file_service_pb2,
    file_service_pb2_grpc,
    instance_service_pb2,
    instance_service_pb2_grpc,
    schedule_service_pb2,
    schedule_service_pb2_grpc,
    tool_service_pb2,
    tool_service_pb2_grpc,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
)
from retinue_kit import process, streams
from retinue_kit.client import Peer
from retinue_kit.clock import SystemClock
from retinue_kit.loops import keep
from retinue_kit.server import Service
from retinue_kit.streams import Bus
from retinue_kit.watching import Subscriber

from retinue_gateway.asgi import App, SocketHandler
from retinue_gateway.collector import Collector
from retinue_gateway.config import Settings
from retinue_gateway.context import REQUEST_SIZE_MAX_BYTES as BUNDLE_REQUEST_SIZE_MAX_BYTES
from retinue_gateway.context import ContextServicer
from retinue_gateway.credentials import Credentials
from retinue_gateway.dead_letters import DeadLetterServicer
from retinue_gateway.documents import Documents, KeySet
from retinue_gateway.downloads import PREFIX, Downloads, Reader
from retinue_gateway.edge import Edge
from retinue_gateway.events import Attendance, Events, Tick
from retinue_gateway.files import REQUEST_SIZE_MAX_BYTES, FileServicer
from retinue_gateway.instances import InstanceServicer
from retinue_gateway.listener import Listener
from retinue_gateway.mcp import endpoint as mcp
from retinue_gateway.mcp.boxes import Boxes
from retinue_gateway.mcp.keeping import Keeping
from retinue_gateway.openai_api import OpenAi
from retinue_gateway.operations import Operations
from retinue_gateway.readiness import Readiness, healthz
from retinue_gateway.schedules import ScheduleServicer
from retinue_gateway.service import EdgeServicer
from retinue_gateway.tools import ToolServicer
from retinue_gateway.webhooks import WebhookServicer
from retinue_gateway.ws import Sockets

CONTEXTS = context_service_pb2.DESCRIPTOR.services_by_name["ContextService"].full_name
EDGE = edge_service_pb2.DESCRIPTOR.services_by_name["EdgeService"].full_name
DEAD_LETTERS = dead_letter_service_pb2.DESCRIPTOR.services_by_name["DeadLetterService"].full_name
FILES = file_service_pb2.DESCRIPTOR.services_by_name["FileService"].full_name
INSTANCES = instance_service_pb2.DESCRIPTOR.services_by_name["InstanceService"].full_name
SCHEDULES = schedule_service_pb2.DESCRIPTOR.services_by_name["ScheduleService"].full_name
TOOLS = tool_service_pb2.DESCRIPTOR.services_by_name["ToolService"].full_name
WEBHOOKS = webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"].full_name
TRACES = trace_service_pb2.DESCRIPTOR.services_by_name["TraceService"].full_name


async def assemble(settings: Settings, stack: AsyncExitStack) -> Edge:
    """Connect, start the loops, build both servers."""
    clock = SystemClock()
    peers = {name: Peer(name, address) for name, address in _addresses(settings).items() if address}
    for peer in peers.values():
        stack.push_async_callback(peer.close)
    router, directory = peers["router"], peers["directory"]
    redis = streams.connect(settings.redis_url)
    blocking = streams.connect(settings.redis_url, blocking=True)
    stack.push_async_callback(redis.aclose)
    stack.push_async_callback(blocking.aclose)

    subscriber = await stack.enter_async_context(Subscriber(blocking, Bus(redis), Tick(router)))
    credentials = Credentials(directory, clock)
    attendance = Attendance(credentials, clock)
    events = Events(router, subscriber, attendance, clock)
    operations = Operations(router)
    collector = Collector(settings.trace_dir, os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""))
    stack.push_async_callback(collector.close)

    probes = {name: peer.check for name, peer in peers.items()}
    readiness = Readiness({**probes, "postgres": partial(router.check, "postgres"), "redis": redis.ping}, clock)
    documents, keys = Documents(), KeySet(directory, clock)
    runtimes = [name.strip() for name in settings.runtimes.split(",") if name.strip()]
    mounts: dict[str, SocketHandler] = {}
    reader = Reader(peers.get("sandbox"))
    mounts[PREFIX] = Downloads(reader, credentials).serve
    if "sandbox" in peers:
        boxes = Boxes(peers["policy"], peers["sandbox"], router)
        keeping = Keeping(boxes, router)
        endpoint = mcp.Endpoint(boxes, keeping, credentials, settings.mcp_hosts)
        await stack.enter_async_context(endpoint.running())
        mounts[mcp.PATH] = endpoint.serve
    openai = OpenAi(operations, events, credentials, runtimes)
    app = App(
        {
            ("GET", "/healthz"): healthz,
            ("GET", "/readyz"): readiness.readyz,
            ("GET", "/openapi.json"): documents.openapi,
            ("GET", "/docs"): documents.page,
            ("GET", "/.well-known/jwks.json"): keys.jwks,
            ("GET", "/v1/models"): openai.models,
            ("POST", "/v1/chat/completions"): openai.complete,
        },
        {"/v1/ws": Sockets(operations, events, credentials).serve},
        mounts,
    )
    stack.callback(keep("refresh-keys", credentials.refresh_for_ever).cancel)
    stack.callback(keep("look-for-readers", attendance.look_for_ever).cancel)
    stack.callback(keep("collect-traces", collector.work_for_ever).cancel)
    servicer = EdgeServicer(operations, events)
    services = [
        Service(edge_service_pb2_grpc.add_EdgeServiceServicer_to_server, servicer, EDGE),
        Service(
            context_service_pb2_grpc.add_ContextServiceServicer_to_server,
            ContextServicer(operations, peers.get("portability"), router),
            CONTEXTS,
            BUNDLE_REQUEST_SIZE_MAX_BYTES,
        ),
        Service(
            dead_letter_service_pb2_grpc.add_DeadLetterServiceServicer_to_server,
            DeadLetterServicer(router),
            DEAD_LETTERS,
        ),
        Service(
            file_service_pb2_grpc.add_FileServiceServicer_to_server,
            FileServicer(peers.get("sandbox"), settings.upload_content_types, reader),
            FILES,
            REQUEST_SIZE_MAX_BYTES,
        ),
        Service(
            instance_service_pb2_grpc.add_InstanceServiceServicer_to_server,
            InstanceServicer(peers["policy"], peers["runtime-adapter"]),
            INSTANCES,
        ),
        Service(schedule_service_pb2_grpc.add_ScheduleServiceServicer_to_server, ScheduleServicer(router), SCHEDULES),
        Service(tool_service_pb2_grpc.add_ToolServiceServicer_to_server, ToolServicer(peers["policy"], router), TOOLS),
        Service(webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server, WebhookServicer(router), WEBHOOKS),
        Service(trace_service_pb2_grpc.add_TraceServiceServicer_to_server, collector, TRACES),
    ]
    return Edge(settings.address, services, credentials, attendance, Listener(app, settings.asgi_socket))


def _addresses(settings: Settings) -> dict[str, str]:
    return {
        "router": settings.router_address,
        "directory": settings.directory_address,
        "policy": settings.policy_address,
        "runtime-adapter": settings.runtime_adapter_address,
        "portability": settings.portability_address,
        "sandbox": settings.sandbox_address,
    }


if __name__ == "__main__":
    process.main("gateway", Settings, assemble)
