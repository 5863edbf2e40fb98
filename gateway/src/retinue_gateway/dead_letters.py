"""Dead letters in the public API: each call is one of the router's."""

from retinue.edge.v1 import dead_letter_service_pb2 as edge
from retinue.edge.v1 import dead_letter_service_pb2_grpc as edge_grpc
from retinue.router.v1 import dead_letter_service_pb2 as router_wire
from retinue.router.v1 import dead_letter_service_pb2_grpc as router_grpc
from retinue_kit.client import Peer
from retinue_kit.crashing import reach

from retinue_gateway import encode, fields
from retinue_gateway.calls import Context, caller_of
from retinue_gateway.crash_points import Point

OPEN = "open"
ALL = "all"


def _shown(found: router_wire.DeadLetter) -> edge.DeadLetter:
    shown = edge.DeadLetter(
        run=encode.run(found.run), state=found.state, text=found.text, retry_run_id=found.retry_run_id
    )
    shown.dead_time.CopyFrom(found.dead_time)
    return shown


class DeadLetterServicer(edge_grpc.DeadLetterServiceServicer):
    """Serves retinue.edge.v1.DeadLetterService."""

    def __init__(self, router: Peer) -> None:
        self._router = router
        self._stub = router_grpc.DeadLetterServiceStub(router.channel)

    async def ListDeadLetters(
        self, request: edge.ListDeadLettersRequest, context: Context
    ) -> edge.ListDeadLettersResponse:
        fields.check_storable(request)
        if request.contact:
            fields.check_contact(request.contact)
        state = request.state or OPEN
        answer: router_wire.ListDeadLettersResponse = await self._router.call(
            self._stub.ListDeadLetters,
            router_wire.ListDeadLettersRequest(
                tenant_id=caller_of(context).tenant_id,
                state="" if state == ALL else state,
                contact=request.contact,
                page_size=request.page_size,
                page_token=request.page_token,
            ),
        )
        shown = [_shown(found) for found in answer.dead_letters]
        return edge.ListDeadLettersResponse(dead_letters=shown, next_page_token=answer.next_page_token)

    async def GetDeadLetter(self, request: edge.GetDeadLetterRequest, context: Context) -> edge.GetDeadLetterResponse:
        fields.check_storable(request)
        answer: router_wire.GetDeadLetterResponse = await self._router.call(
            self._stub.GetDeadLetter,
            router_wire.GetDeadLetterRequest(tenant_id=caller_of(context).tenant_id, run_id=request.run),
        )
        return edge.GetDeadLetterResponse(dead_letter=_shown(answer.dead_letter))

    async def RetryDeadLetter(
        self, request: edge.RetryDeadLetterRequest, context: Context
    ) -> edge.RetryDeadLetterResponse:
        fields.check_storable(request)
        caller = caller_of(context)
        answer: router_wire.RetryDeadLetterResponse = await self._router.call(
            self._stub.RetryDeadLetter,
            router_wire.RetryDeadLetterRequest(
                tenant_id=caller.tenant_id, run_id=request.run, principal=caller.principal
            ),
        )
        reach(Point.DEAD_LETTER_RETRIED)
        return edge.RetryDeadLetterResponse(run=encode.run(answer.run))

    async def DropDeadLetter(
        self, request: edge.DropDeadLetterRequest, context: Context
    ) -> edge.DropDeadLetterResponse:
        fields.check_storable(request)
        answer: router_wire.DropDeadLetterResponse = await self._router.call(
            self._stub.DropDeadLetter,
            router_wire.DropDeadLetterRequest(tenant_id=caller_of(context).tenant_id, run_id=request.run),
        )
        reach(Point.DEAD_LETTER_DROPPED)
        return edge.DropDeadLetterResponse(dead_letter=_shown(answer.dead_letter))
