"""Portability's neighbours on real gRPC: a router with one session, a directory, a model that sums up."""

import json

from conversations import AGENT, SESSION
from google.protobuf import struct_pb2
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue.router.v1 import context_service_pb2 as context_pb
from retinue.router.v1 import context_service_pb2_grpc as context_grpc
from retinue.router.v1 import memory_service_pb2 as memory_pb
from retinue.router.v1 import memory_service_pb2_grpc as memory_grpc
from retinue.router.v1 import run_pb2
from retinue.runtime_adapter.v1 import model_service_pb2 as model_pb
from retinue.runtime_adapter.v1 import model_service_pb2_grpc as model_grpc
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service

PART_EVENTS = 7
"""Events of one answer: few, so that there are several answers."""


def written(event):
    """An event as the router sends it."""
    data = {
        "user.message": {"message_id": event.message_id, "text": event.text},
        "assistant.message": {"message_id": event.message_id, "text": event.text},
        "tool.started": {"call_id": event.call_id, "tool": event.tool, "arguments": event.arguments},
        "tool.finished": {"call_id": event.call_id, "ok": event.ok, "result": event.result, "duration_ms": 3},
        "context.compacted": {
            "summary": event.summary, "through": str(event.through), "method": event.method,
            "message_count": event.message_count,
        },
    }[event.type]  # fmt: skip
    line = {"cursor": str(event.cursor), "type": event.type, "session_id": event.session_id, "run_id": event.run_id}
    return run_pb2.Event(**line, json=json.dumps({**line, "time": "2026-01-01T00:00:00.000Z", "data": data}).encode())


class Router(context_grpc.ContextServiceServicer, memory_grpc.MemoryServiceServicer):
    """One contact's session, and what is remembered."""

    def __init__(self):
        self.events = []
        self.stray = []
        self.profile = {"city": "Oslo", "age": 41}
        self.facts = {"ann": [], "": []}
        self.imports = []
        self.remembered = []
        self.busy = self.full = False

    async def ReadContext(self, request, context):
        if request.contact not in self.facts:
            raise RetinueError(Reason.CONTACT_NOT_FOUND, "There is no such contact.")
        profile = struct_pb2.Struct()
        profile.update(self.profile)
        last = str(self.events[-1].cursor) if self.events else "0-0"
        header = context_pb.ContextHeader(
            log_id="log_a", session_id=request.session_id or SESSION, display_name="Ann", channel="web",
            profile=profile, through_cursor=last,
        )  # fmt: skip
        events = [written(event) for event in self.events] + self.stray
        yield context_pb.ReadContextResponse(header=header)
        for start in range(0, len(events), PART_EVENTS):
            yield context_pb.ReadContextResponse(events=events[start : start + PART_EVENTS])

    async def ImportContext(self, request, context):
        if self.busy:
            raise RetinueError(Reason.SESSION_BUSY, "A run is active.")
        self.imports.append(request)
        replayed = request.digest in [former.digest for former in self.imports[:-1]]
        return context_pb.ImportContextResponse(session_id="ses_new", replayed=replayed)

    async def ListFacts(self, request, context):
        return memory_pb.ListFactsResponse(facts=self.facts.get(request.contact, []))

    async def RememberFacts(self, request, context):
        if self.full:
            raise RetinueError(Reason.QUOTA_EXCEEDED, "There is no room.")
        self.remembered.append(request)
        return memory_pb.RememberFactsResponse()

    def remember(self, contact, *texts):
        """Have facts remembered."""
        for number, text in enumerate(texts):
            name = f"fct_{contact}_{number:04}"
            self.facts[contact].append(memory_pb.Fact(fact_id=name, domain="d", kind="note", importance=5, text=text))


class Directory(directory_service_pb2_grpc.DirectoryServiceServicer):
    """Every tenant has the same agent."""

    async def GetTenant(self, request, context):
        agent = directory_service_pb2.Agent(agent_id=AGENT, persona="You are kind.", model="fast")
        tenant = directory_service_pb2.Tenant(tenant_id=request.tenant_id, agent=agent)
        return directory_service_pb2.GetTenantResponse(tenant=tenant)


class Model(model_grpc.ModelServiceServicer):
    """Sums up by saying how much it was given; fails from a call on, if told to."""

    def __init__(self):
        self.asked = []
        self.fails_from = 1000

    async def Summarize(self, request, context):
        self.asked.append(request)
        if len(self.asked) > self.fails_from:
            raise RetinueError(Reason.MODEL_UNAVAILABLE, "There is no model.")
        return model_pb.SummarizeResponse(text=f"{len(request.messages)} were said.", model="m")


def services(router, directory, model):
    """All of them, for one address."""
    context_name = context_pb.DESCRIPTOR.services_by_name["ContextService"].full_name
    memory_name = memory_pb.DESCRIPTOR.services_by_name["MemoryService"].full_name
    directory_name = directory_service_pb2.DESCRIPTOR.services_by_name["DirectoryService"].full_name
    model_name = model_pb.DESCRIPTOR.services_by_name["ModelService"].full_name
    return [
        Service(context_grpc.add_ContextServiceServicer_to_server, router, context_name),
        Service(memory_grpc.add_MemoryServiceServicer_to_server, router, memory_name),
        Service(directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server, directory, directory_name),
        Service(model_grpc.add_ModelServiceServicer_to_server, model, model_name),
    ]
