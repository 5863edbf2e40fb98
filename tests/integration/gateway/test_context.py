"""Bundles, facts and decisions in the public API: the caller's own, of what may be one, and each failure as it is."""

import grpc
import pytest
import pytest_asyncio
from google.api.httpbody_pb2 import HttpBody
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from retinue.edge.v1 import context_service_pb2 as edge
from retinue.edge.v1 import context_service_pb2_grpc as edge_grpc
from retinue.portability.v1 import loss_pb2
from retinue.portability.v1 import portability_service_pb2 as bundles
from retinue.portability.v1 import portability_service_pb2_grpc as bundles_grpc
from retinue.router.v1 import memory_service_pb2 as memory
from retinue.router.v1 import memory_service_pb2_grpc as memory_grpc
from retinue.router.v1 import router_service_pb2 as router
from retinue.router.v1 import router_service_pb2_grpc as router_grpc
from retinue.router.v1 import run_pb2
from retinue_gateway import context
from retinue_gateway.operations import Operations
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Server, Service

NAME = "retinue.edge.v1.ContextService"
OTHER_MAX_BYTES = 1 << 20
SIZE_MAX_BYTES = context.BUNDLE_SIZE_MAX_BYTES
CALLER = (("x-retinue-tenant", "ten_a"), ("x-retinue-principal", "usr_1"), ("x-retinue-scope", "chat"))
INVALID = grpc.StatusCode.INVALID_ARGUMENT


class Fake:
    """Remembers what it was asked, and fails as a test wants."""

    def __init__(self):
        self.asked = []
        self.trouble = None

    def note(self, request):
        self.asked.append(request)
        if self.trouble:
            raise self.trouble


class FakePortability(Fake, bundles_grpc.PortabilityServiceServicer):
    async def BuildBundle(self, request, context):
        self.note(request)
        return bundles.BuildBundleResponse(bundle=b"x" * SIZE_MAX_BYTES)

    async def ImportBundle(self, request, context):
        self.note(request)
        fields = [
            loss_pb2.FieldFate(field="messages.text", fate="held", item_count=2),
            loss_pb2.FieldFate(field="settings.model", fate="lost", item_count=1, reason="It has its own."),
        ]
        return bundles.ImportBundleResponse(session_id="ses_1", losses=loss_pb2.LossReport(fields=fields))


class FakeRouter(Fake, memory_grpc.MemoryServiceServicer, router_grpc.RouterServiceServicer):
    decision = None

    async def RememberFacts(self, request, context):
        self.note(request)
        return memory.RememberFactsResponse(facts=[fact("fact_1", request.contact)])

    async def SearchFacts(self, request, context):
        self.note(request)
        found = [("fact_3", "ada"), ("fact_2", ""), ("fact_1", "ada")]
        return memory.SearchFactsResponse(facts=[memory.FoundFact(fact=fact(*one), score=0.5) for one in found])

    async def ListFacts(self, request, context):
        self.note(request)
        return memory.ListFactsResponse(facts=[fact("fact_1", request.contact)], next_page_token="t")

    async def ForgetFact(self, request, context):
        self.note(request)
        return memory.ForgetFactResponse()

    async def GetRun(self, request, context):
        self.note(request)
        run = run_pb2.Run(run_id=request.run_id)
        if self.decision is not None:
            run.decision.update(self.decision)
        return router.GetRunResponse(run=run)


def fact(fact_id, contact):
    made = memory.Fact(fact_id=fact_id, contact=contact, domain="work", kind="note", importance=7, text="Says no.")
    made.create_time.FromSeconds(1)
    return made


@pytest_asyncio.fixture
async def start(run_dir, serve, peer, fakes):
    """Answer a starter of gateways with nothing but contexts."""
    opened = []
    portability, kept = fakes
    services = [
        Service(memory_grpc.add_MemoryServiceServicer_to_server, kept, "retinue.router.v1.MemoryService"),
        Service(router_grpc.add_RouterServiceServicer_to_server, kept, "retinue.router.v1.RouterService"),
    ]
    add = bundles_grpc.add_PortabilityServiceServicer_to_server
    bundler = await serve([Service(add, portability, "retinue.portability.v1.PortabilityService")])
    neighbour = peer("router", await serve(services))

    async def go(with_portability=True):
        made = peer("portability", bundler) if with_portability else None
        servicer = context.ContextServicer(Operations(neighbour), made, neighbour)
        add = edge_grpc.add_ContextServiceServicer_to_server
        service = Service(add, servicer, NAME, context.REQUEST_SIZE_MAX_BYTES)
        server = Server(f"unix:{run_dir}/gateway.sock", [service], request_size_max_bytes=OTHER_MAX_BYTES)
        await server.start()
        channel = grpc.aio.insecure_channel(server.address, [("grpc.default_authority", "gateway")])
        opened.append((server, channel))
        return edge_grpc.ContextServiceStub(channel)

    yield go
    for server, channel in opened:
        await channel.close()
        await server.drain(0)


@pytest.fixture
def fakes():
    return FakePortability(), FakeRouter()


@pytest_asyncio.fixture
async def edge_stub(start):
    return await start()


def bring(stub, data=b"x", kind="application/x-retinue-bundle", contact="ada"):
    body = HttpBody(content_type=kind, data=data)
    return stub.ImportBundle(edge.ImportBundleRequest(contact=contact, body=body), metadata=CALLER, timeout=20)


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(raised.value).details[0].Unpack(info)
    return raised.value.code(), info.reason, dict(info.metadata)


async def test_a_bundle_is_handed_out_whole_to_keep_under_its_contacts_name(edge_stub, fakes):
    call = edge_stub.ExportBundle(edge.ExportBundleRequest(contact="é@x"), metadata=CALLER, timeout=20)
    body = await call
    assert (body.content_type, len(body.data)) == (context.CONTENT_TYPE, SIZE_MAX_BYTES)
    headers = dict(await call.initial_metadata())
    assert headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%A9%40x.bundle"
    assert headers["x-content-type-options"] == "nosniff"
    (asked,) = fakes[0].asked
    assert (asked.tenant_id, asked.contact, asked.session_id, asked.allow_open) == ("ten_a", "é@x", "", True)
    assert asked.token_budget == context.TOKENS_MAX  # all that fits, where nobody asks for less
    call = edge_stub.ExportBundle(edge.ExportBundleRequest(contact="a@b:1", token_budget=300), metadata=CALLER)
    assert dict(await call.initial_metadata())["content-disposition"] == 'attachment; filename="a@b:1.bundle"'
    await call
    assert fakes[0].asked[-1].token_budget == 300


async def test_what_is_brought_goes_to_the_callers_tenant_and_only_losses_are_told(edge_stub, fakes):
    answer = await bring(edge_stub, data=b"b" * SIZE_MAX_BYTES)
    assert answer.session_id == "ses_1"
    assert [(loss.field, loss.fate, loss.reason) for loss in answer.losses] == [
        ("settings.model", "lost", "It has its own.")
    ]
    (asked,) = fakes[0].asked
    assert (asked.tenant_id, asked.contact, len(asked.bundle)) == ("ten_a", "ada", SIZE_MAX_BYTES)
    no_one = edge_stub.ImportBundle(edge.ImportBundleRequest(contact="ada"), timeout=20)
    assert (await refused(no_one))[:2] == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")


async def test_bounded_what_cannot_be_a_bundle_reaches_nobody(edge_stub, fakes):
    for kind in ("application/json", "multipart/form-data; boundary=x", "application/x-retinue-bundles"):
        assert await refused(bring(edge_stub, kind=kind)) == (INVALID, "FIELD_INVALID", {"field": "content-type"})
    large = await refused(bring(edge_stub, data=b"x" * (SIZE_MAX_BYTES + 1)))
    assert large[:2] == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BODY_TOO_LARGE")
    for contact in ("..", "e\u0301", "a:reset"):
        assert (await refused(bring(edge_stub, contact=contact)))[1:] == ("FIELD_INVALID", {"field": "contact"})
    assert fakes[0].asked == []
    for kind in ("", "application/octet-stream", "Application/X-Retinue-Bundle; v=1"):
        await bring(edge_stub, kind=kind)
    assert len(fakes[0].asked) == 3


async def test_what_portability_refuses_is_told_with_the_part(edge_stub, fakes):
    for reason, told in (("BUNDLE_INVALID", {"part": "messages"}), ("SESSION_BUSY", {})):
        fakes[0].trouble = RetinueError(Reason(reason), "No.", **told)
        assert (await refused(bring(edge_stub)))[1:] == (reason, told)


async def test_without_portability_there_are_facts_and_no_bundles(start):
    stub = await start(with_portability=False)
    missing = ("CAPABILITY_MISSING", {"capability": "portability"})
    assert (await refused(bring(stub)))[1:] == missing
    asked = edge.ExportBundleRequest(contact="ada")
    assert (await refused(stub.ExportBundle(asked, metadata=CALLER)))[1:] == missing
    assert (await stub.ListFacts(edge.ListFactsRequest(contact="ada"), metadata=CALLER)).facts


async def test_no_cross_tenant_facts_are_the_callers_and_the_contacts(edge_stub, fakes):
    new = edge.RememberFactRequest(contact="ada", text="Says no.", domain="work", kind="event", importance=7)
    kept = (await edge_stub.RememberFact(new, metadata=CALLER)).fact
    shown = (kept.fact_id, kept.domain, kept.kind, kept.importance, kept.text)
    assert shown == ("fact_1", "work", "note", 7, "Says no.")
    assert kept.create_time.seconds == 1
    (asked,) = fakes[1].asked
    assert (asked.tenant_id, asked.contact, asked.run_id, len(asked.facts)) == ("ten_a", "ada", "", 1)
    assert (asked.facts[0].kind, asked.facts[0].importance) == ("event", 7)
    listed = await edge_stub.ListFacts(edge.ListFactsRequest(contact="ada", page_token="p"), metadata=CALLER)
    assert (listed.facts[0].fact_id, listed.next_page_token) == ("fact_1", "t")
    assert (fakes[1].asked[-1].tenant_id, fakes[1].asked[-1].page_token) == ("ten_a", "p")
    await edge_stub.ForgetFact(edge.ForgetFactRequest(contact="ada", fact="fact_1"), metadata=CALLER)
    gone = fakes[1].asked[-1]
    assert (gone.tenant_id, gone.contact, gone.fact_id) == ("ten_a", "ada", "fact_1")
    for text in (" \n", "a\0"):
        blank = edge_stub.RememberFact(edge.RememberFactRequest(contact="ada", text=text), metadata=CALLER)
        assert await refused(blank) == (INVALID, "FIELD_INVALID", {"field": "text"})


async def test_a_query_finds_the_contacts_own_facts_on_one_page(edge_stub):
    async def ids(**more):
        asked = edge.ListFactsRequest(contact="ada", query="no", **more)
        found = await edge_stub.ListFacts(asked, metadata=CALLER)
        assert found.next_page_token == ""
        return [one.fact_id for one in found.facts]

    assert await ids() == ["fact_3", "fact_1"]  # the one between concerns the tenant, and is not the contact's
    assert await ids(page_size=1) == ["fact_3"]
    assert await ids(page_size=200) == ["fact_3", "fact_1"]
    with_token = edge.ListFactsRequest(contact="ada", query="no", page_token="t")
    assert (await refused(edge_stub.ListFacts(with_token, metadata=CALLER)))[:2] == (INVALID, "CURSOR_INVALID")


async def test_a_decision_is_shown_as_it_is_stored(edge_stub, fakes):
    def ask():
        return edge_stub.GetRunDecision(edge.GetRunDecisionRequest(run="run_1"), metadata=CALLER, timeout=20)

    for nothing in (None, {}):
        fakes[1].decision = nothing
        assert (await refused(ask()))[:2] == (grpc.StatusCode.NOT_FOUND, "DECISION_NOT_FOUND")
    assert fakes[1].asked[-1].tenant_id == "ten_a"
    fakes[1].decision = {
        "runtime": "light",
        "model": "m",
        "isolation": "shared",
        "switches_runtime": True,
        "rules": [{"rule": "health", "effect": "fall_back", "reason": "It is down: since 3 s."}],
        "snapshot": {"open_calls": 0, "healths": [{"runtime": "light", "ok": True}]},
        "bundle": "ab" * 32,
        "losses": ["messages.message_id: approximate: Ids stay: in the log.", "settings.model: lost: "],
    }
    shown = await ask()
    assert (shown.runtime, shown.model, shown.switches_runtime, shown.bundle) == ("light", "m", True, "ab" * 32)
    assert [(r.rule, r.effect, r.reason) for r in shown.rules] == [("health", "fall_back", "It is down: since 3 s.")]
    assert dict(shown.snapshot["healths"][0]) == {"runtime": "light", "ok": True}
    assert [(loss.field, loss.fate, loss.reason) for loss in shown.losses] == [
        ("messages.message_id", "approximate", "Ids stay: in the log."),
        ("settings.model", "lost", ""),
    ]
    fakes[1].decision = {"runtime": "openclaw", "unknown": 1}  # as an older release has stored it, or a newer one
    shown = await ask()
    assert (shown.runtime, shown.switches_runtime, len(shown.rules)) == ("openclaw", False, 0)
    assert not shown.HasField("snapshot")
