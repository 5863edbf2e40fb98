"""What an agent knows of a contact, in the public API: to take along, to bring back, to read, to write and to forget.

Portability makes bundles and takes them; the router keeps facts, and what was decided for a run. A client that holds a
bundle has all that was said: browsers are told to keep it, and to run nothing of it.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from google.api import httpbody_pb2
from google.protobuf import json_format, struct_pb2
from retinue.edge.v1 import context_service_pb2 as edge
from retinue.edge.v1 import context_service_pb2_grpc as edge_grpc
from retinue.portability.v1 import portability_service_pb2 as bundles
from retinue.portability.v1 import portability_service_pb2_grpc as bundles_grpc
from retinue.router.v1 import memory_service_pb2 as memory
from retinue.router.v1 import memory_service_pb2_grpc as memory_grpc
from retinue_kit.client import Peer
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_gateway import fields
from retinue_gateway.calls import Context, caller_of
from retinue_gateway.crash_points import Point
from retinue_gateway.downloads import BYTES, HEADERS
from retinue_gateway.operations import Operations

BUNDLE_SIZE_MAX_BYTES = 3 << 20
"""Of a bundle, by portability's contract."""

REQUEST_SIZE_MAX_BYTES = BUNDLE_SIZE_MAX_BYTES + (64 << 10)
"""Of a bundle as a message: with its contact and its content type."""

TOKENS_MAX = 1_000_000
"""The most that may be asked for, by contract; portability cuts a bundle to what fits its bytes."""

CONTENT_TYPE = "application/x-retinue-bundle"

BUNDLE_TIMEOUT_S = 30.0
"""A whole conversation is read or written, and signatures are made: seconds, where it is long."""

FOUND_MAX = 50
"""The most that the router's search answers with, by contract."""

HELD = "held"
"""The fate of a field that is as it was, of which nothing need be told."""


class ContextServicer(edge_grpc.ContextServiceServicer):
    """Serves retinue.edge.v1.ContextService. Without portability there are no bundles."""

    def __init__(self, operations: Operations, portability: Peer | None, router: Peer) -> None:
        self._operations = operations
        self._portability = portability
        self._bundles = bundles_grpc.PortabilityServiceStub(portability.channel) if portability else None
        self._router = router
        self._memory = memory_grpc.MemoryServiceStub(router.channel)

    async def ExportBundle(self, request: edge.ExportBundleRequest, context: Context) -> httpbody_pb2.HttpBody:
        asked = bundles.BuildBundleRequest(
            tenant_id=_tenant_of(request.contact, context),
            contact=request.contact,
            token_budget=request.token_budget or TOKENS_MAX,
            allow_open=True,  # a person takes along what there is; nothing goes on from it here
        )
        answer: bundles.BuildBundleResponse = await self._call("BuildBundle", asked)
        headers = {**HEADERS, "content-disposition": f"attachment; {_file_name(request.contact)}"}
        await context.send_initial_metadata(tuple(headers.items()))
        return httpbody_pb2.HttpBody(content_type=CONTENT_TYPE, data=answer.bundle)

    async def ImportBundle(self, request: edge.ImportBundleRequest, context: Context) -> edge.ImportBundleResponse:
        tenant_id = _tenant_of(request.contact, context)
        _check_body(request.body)
        asked = bundles.ImportBundleRequest(tenant_id=tenant_id, contact=request.contact, bundle=request.body.data)
        answer: bundles.ImportBundleResponse = await self._call("ImportBundle", asked)
        reach(Point.BUNDLE_IMPORTED)
        losses = [
            edge.FieldLoss(field=one.field, fate=one.fate, reason=one.reason)
            for one in answer.losses.fields
            if one.fate != HELD
        ]
        return edge.ImportBundleResponse(session_id=answer.session_id, losses=losses)

    async def GetRunDecision(
        self, request: edge.GetRunDecisionRequest, context: Context
    ) -> edge.GetRunDecisionResponse:
        fields.check_storable(request)
        found = await self._operations.find_run(request.run, caller_of(context))
        decision = found.decision if found.HasField("decision") else struct_pb2.Struct()
        return decision_shown(decision)

    async def ListFacts(self, request: edge.ListFactsRequest, context: Context) -> edge.ListFactsResponse:
        fields.check_storable(request)
        tenant_id = _tenant_of(request.contact, context)
        if request.query:
            if request.page_token:
                text = "page_token: what fits a query comes on one page"
                raise RetinueError(Reason.CURSOR_INVALID, text, field="page_token")
            return await self._search(tenant_id, request)
        asked = memory.ListFactsRequest(
            tenant_id=tenant_id,
            contact=request.contact,
            page_size=request.page_size,
            page_token=request.page_token,
        )
        answer: memory.ListFactsResponse = await self._router.call(self._memory.ListFacts, asked)
        return edge.ListFactsResponse(facts=map(_fact, answer.facts), next_page_token=answer.next_page_token)

    async def _search(self, tenant_id: str, request: edge.ListFactsRequest) -> edge.ListFactsResponse:
        asked = memory.SearchFactsRequest(
            tenant_id=tenant_id, contact=request.contact, query=request.query, page_size=FOUND_MAX
        )
        answer: memory.SearchFactsResponse = await self._router.call(self._memory.SearchFacts, asked)
        # What holds for the whole tenant is found as well; it is not this contact's, to be listed or forgotten here.
        own = [_fact(found.fact) for found in answer.facts if found.fact.contact == request.contact]
        return edge.ListFactsResponse(facts=own[: request.page_size or FOUND_MAX])

    async def RememberFact(self, request: edge.RememberFactRequest, context: Context) -> edge.RememberFactResponse:
        fields.check_storable(request)
        tenant_id = _tenant_of(request.contact, context)
        if not request.text.strip():
            raise RetinueError.field("text", "must say something.")
        fact = memory.NewFact(
            domain=request.domain, kind=request.kind, importance=request.importance, text=request.text
        )
        asked = memory.RememberFactsRequest(tenant_id=tenant_id, contact=request.contact, facts=[fact])
        answer: memory.RememberFactsResponse = await self._router.call(self._memory.RememberFacts, asked)
        reach(Point.FACT_CHANGED)
        return edge.RememberFactResponse(fact=_fact(answer.facts[0]))

    async def ForgetFact(self, request: edge.ForgetFactRequest, context: Context) -> edge.ForgetFactResponse:
        fields.check_storable(request)
        tenant_id = _tenant_of(request.contact, context)
        asked = memory.ForgetFactRequest(tenant_id=tenant_id, contact=request.contact, fact_id=request.fact)
        await self._router.call(self._memory.ForgetFact, asked)
        reach(Point.FACT_CHANGED)
        return edge.ForgetFactResponse()

    async def _call(self, method: str, request: object) -> Any:
        if self._portability is None:
            text = "No bundles are made in this deployment."
            raise RetinueError(Reason.CAPABILITY_MISSING, text, capability="portability")
        return await self._portability.call(getattr(self._bundles, method), request, timeout_s=BUNDLE_TIMEOUT_S)


def _file_name(contact: str) -> str:
    """Name the file; in the plain form wherever it can be, which every client understands."""
    name = f"{contact}.bundle"
    return f'filename="{name}"' if name.isascii() else f"filename*=UTF-8''{quote(name, safe='')}"


DEPLOYMENTS_OWN = frozenset({"load", "failing", "away", "cell_plans"})
"""Parts of a snapshot that tell how the whole deployment does; an operator reads them from the stored decision."""


def decision_shown(decision: struct_pb2.Struct) -> edge.GetRunDecisionResponse:
    """Show a decision as it is stored with a run. Raises RetinueError(DECISION_NOT_FOUND) where none is.

    What was stored by another release may lack fields, or have more.
    """
    found = json_format.MessageToDict(decision)
    if not found.get("runtime"):
        raise RetinueError(Reason.DECISION_NOT_FOUND, "Nothing was decided for this run yet.")
    return edge.GetRunDecisionResponse(
        runtime=found["runtime"],
        model=found.get("model", ""),
        switches_runtime=found.get("switches_runtime", False),
        rules=[_rule(rule) for rule in found.get("rules", [])],
        snapshot=_own(found.get("snapshot") or {}),
        bundle=found.get("bundle", ""),
        losses=[_loss(line) for line in found.get("losses", [])],
    )


def _own(snapshot: Mapping[str, object]) -> struct_pb2.Struct | None:
    """What a decision was made on, but for what concerns others than the caller's tenant."""
    kept = {name: value for name, value in snapshot.items() if name not in DEPLOYMENTS_OWN}
    return json_format.ParseDict(kept, struct_pb2.Struct()) if kept else None


def _rule(found: Mapping[str, str]) -> edge.DecisionRule:
    return edge.DecisionRule(rule=found.get("rule", ""), effect=found.get("effect", ""), reason=found.get("reason", ""))


def _loss(line: str) -> edge.FieldLoss:
    """Read what the worker has written: "part.field: fate: why"."""
    field, _, rest = line.partition(": ")
    fate, _, reason = rest.partition(": ")
    return edge.FieldLoss(field=field, fate=fate, reason=reason)


def _fact(found: memory.Fact) -> edge.Fact:
    return edge.Fact(
        fact_id=found.fact_id,
        domain=found.domain,
        kind=found.kind,
        importance=found.importance,
        text=found.text,
        run_id=found.run_id,
        create_time=found.create_time if found.HasField("create_time") else None,
    )


def _check_body(body: httpbody_pb2.HttpBody) -> None:
    """Raise RetinueError(FIELD_INVALID or BODY_TOO_LARGE) for what cannot be a bundle."""
    kind = body.content_type.partition(";")[0].strip().lower() or BYTES
    if kind not in (CONTENT_TYPE, BYTES):
        text = f"must be {CONTENT_TYPE} or {BYTES}; the body is the bundle and nothing else."
        raise RetinueError.field("content-type", text)
    if len(body.data) > BUNDLE_SIZE_MAX_BYTES:
        raise RetinueError(Reason.BODY_TOO_LARGE, f"A bundle has {BUNDLE_SIZE_MAX_BYTES >> 20} MiB at most.")


def _tenant_of(contact: str, context: Context) -> str:
    """Read whose contact it is, from the token alone. Raises RetinueError(FIELD_INVALID) for what names no contact."""
    fields.check_contact(contact)
    return caller_of(context).tenant_id
