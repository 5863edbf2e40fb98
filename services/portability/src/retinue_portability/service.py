"""The wire: bundles are bytes here, and what is known of them are messages of the contract."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from retinue.portability.v1 import bundle_pb2, loss_pb2, portability_service_pb2_grpc
from retinue.portability.v1 import portability_service_pb2 as pb
from retinue_kit.server import Serving

from retinue_portability.domain.losses import FieldFate
from retinue_portability.domain.rendering import Given, Target
from retinue_portability.format.parts import summary_part
from retinue_portability.format.sealed import Sealed
from retinue_portability.metrics import bundles
from retinue_portability.operations.building import Building
from retinue_portability.operations.checking import Checking
from retinue_portability.operations.importing import LOG, Importing
from retinue_portability.operations.ports import Session
from retinue_portability.operations.summing_up import SummingUp


class PortabilityServicer(portability_service_pb2_grpc.PortabilityServiceServicer):
    """Implements retinue.portability.v1.PortabilityService."""

    def __init__(self, building: Building, checking: Checking, importing: Importing, summing_up: SummingUp) -> None:
        self._building = building
        self._checking = checking
        self._importing = importing
        self._summing_up = summing_up

    async def BuildBundle(self, request: pb.BuildBundleRequest, context: Serving) -> pb.BuildBundleResponse:
        session = Session(request.tenant_id, request.contact, request.session_id, request.through_cursor)
        with _counted("build"):
            made = await self._building.build(session, request.token_budget, request.allow_open)
        return pb.BuildBundleResponse(bundle=made.data, facts=made.facts())

    async def VerifyBundle(self, request: pb.VerifyBundleRequest, context: Serving) -> pb.VerifyBundleResponse:
        with _counted("verify"):
            opened = await self._checking.verify(request.tenant_id, request.bundle)
        return pb.VerifyBundleResponse(facts=opened.facts())

    async def RenderBundle(self, request: pb.RenderBundleRequest, context: Serving) -> pb.RenderBundleResponse:
        target = _target(request.target)
        with _counted("render"):
            opened, given = await self._checking.render(request.tenant_id, request.bundle, target)
        return pb.RenderBundleResponse(context=_context(opened, given, target))

    async def CarryContext(self, request: pb.CarryContextRequest, context: Serving) -> pb.CarryContextResponse:
        session = Session(request.tenant_id, request.contact, request.session_id)
        target = _target(request.target)
        with _counted("carry"):
            made, given = await self._building.carry(session, request.run_id, request.token_budget, target)
        return pb.CarryContextResponse(facts=made.facts(), context=_context(made, given, target))

    async def ImportBundle(self, request: pb.ImportBundleRequest, context: Serving) -> pb.ImportBundleResponse:
        with _counted("import"):
            brought = await self._importing.bring(request.tenant_id, request.contact, request.bundle)
        losses = _report(LOG, brought.digest, brought.fates)
        return pb.ImportBundleResponse(session_id=brought.session_id, losses=losses)

    async def SummarizeSession(
        self, request: pb.SummarizeSessionRequest, context: Serving
    ) -> pb.SummarizeSessionResponse:
        session = Session(request.tenant_id, request.contact, request.session_id)
        made = await self._summing_up.sum_up(session, request.run_id, request.token_budget, request.model)
        return pb.SummarizeSessionResponse(summary=summary_part(made))


@contextmanager
def _counted(verb: str) -> Iterator[None]:
    outcome = "refused"
    try:
        yield
        outcome = "done"
    finally:
        bundles.labels(verb, outcome).inc()


def _target(target: pb.Target) -> Target:
    return Target(target.runtime, target.tools, max(0, target.window_tokens))


def _context(made: Sealed, given: Given, target: Target) -> bundle_pb2.GivenContext:
    messages = [bundle_pb2.GivenMessage(role=message.role, text=message.text) for message in given.messages]
    losses = _report(target.runtime, made.digest, given.fates)
    lasting = summary_part(given.lasting) if given.lasting.text else None
    return bundle_pb2.GivenContext(preface=given.preface, messages=messages, losses=losses, lasting=lasting)


def _report(runtime: str, digest: str, fates: Sequence[FieldFate]) -> loss_pb2.LossReport:
    fields = [
        loss_pb2.FieldFate(field=one.field, fate=one.fate, item_count=one.item_count, reason=one.reason)
        for one in fates
    ]
    return loss_pb2.LossReport(runtime=runtime, bundle_digest=digest, fields=fields)
