"""Webhooks in the public API: each call is one of the router's, whose messages have the same fields by design."""

from retinue.edge.v1 import webhook_pb2
from retinue.edge.v1 import webhook_service_pb2 as edge
from retinue.edge.v1 import webhook_service_pb2_grpc as edge_grpc
from retinue.router.v1 import webhook_service_pb2 as router_wire
from retinue.router.v1 import webhook_service_pb2_grpc as router_grpc
from retinue_kit.client import Peer
from retinue_kit.crashing import reach

from retinue_gateway import fields
from retinue_gateway.calls import Context, caller_of, key_of
from retinue_gateway.crash_points import Point


def _webhook(found: router_wire.Webhook) -> webhook_pb2.Webhook:
    return webhook_pb2.Webhook.FromString(found.SerializeToString())


def _delivery(found: router_wire.Delivery) -> webhook_pb2.Delivery:
    return webhook_pb2.Delivery.FromString(found.SerializeToString())


class WebhookServicer(edge_grpc.WebhookServiceServicer):
    """Serves retinue.edge.v1.WebhookService."""

    def __init__(self, router: Peer) -> None:
        self._router = router
        self._stub = router_grpc.WebhookServiceStub(router.channel)

    async def CreateWebhook(self, request: edge.CreateWebhookRequest, context: Context) -> edge.CreateWebhookResponse:
        fields.check_storable(request)
        answer: router_wire.CreateWebhookResponse = await self._router.call(
            self._stub.CreateWebhook,
            router_wire.CreateWebhookRequest(
                tenant_id=caller_of(context).tenant_id,
                url=request.url,
                kind=request.kind,
                event_types=request.event_types,
                secret=request.secret,
                idempotency_key=key_of(context),
            ),
        )
        reach(Point.WEBHOOK_CHANGED)
        return edge.CreateWebhookResponse(webhook=_webhook(answer.webhook), secret=answer.secret)

    async def GetWebhook(self, request: edge.GetWebhookRequest, context: Context) -> edge.GetWebhookResponse:
        fields.check_storable(request)
        answer: router_wire.GetWebhookResponse = await self._router.call(
            self._stub.GetWebhook,
            router_wire.GetWebhookRequest(tenant_id=caller_of(context).tenant_id, webhook_id=request.webhook),
        )
        return edge.GetWebhookResponse(webhook=_webhook(answer.webhook))

    async def ListWebhooks(self, request: edge.ListWebhooksRequest, context: Context) -> edge.ListWebhooksResponse:
        fields.check_storable(request)
        answer: router_wire.ListWebhooksResponse = await self._router.call(
            self._stub.ListWebhooks,
            router_wire.ListWebhooksRequest(
                tenant_id=caller_of(context).tenant_id, page_size=request.page_size, page_token=request.page_token
            ),
        )
        shown = [_webhook(found) for found in answer.webhooks]
        return edge.ListWebhooksResponse(webhooks=shown, next_page_token=answer.next_page_token)

    async def SetWebhookState(
        self, request: edge.SetWebhookStateRequest, context: Context
    ) -> edge.SetWebhookStateResponse:
        fields.check_storable(request)
        answer: router_wire.SetWebhookStateResponse = await self._router.call(
            self._stub.SetWebhookState,
            router_wire.SetWebhookStateRequest(
                tenant_id=caller_of(context).tenant_id, webhook_id=request.webhook, state=request.state
            ),
        )
        reach(Point.WEBHOOK_CHANGED)
        return edge.SetWebhookStateResponse(webhook=_webhook(answer.webhook))

    async def DeleteWebhook(self, request: edge.DeleteWebhookRequest, context: Context) -> edge.DeleteWebhookResponse:
        fields.check_storable(request)
        await self._router.call(
            self._stub.DeleteWebhook,
            router_wire.DeleteWebhookRequest(tenant_id=caller_of(context).tenant_id, webhook_id=request.webhook),
        )
        reach(Point.WEBHOOK_CHANGED)
        return edge.DeleteWebhookResponse()

    async def TestWebhook(self, request: edge.TestWebhookRequest, context: Context) -> edge.TestWebhookResponse:
        fields.check_storable(request)
        answer: router_wire.TestWebhookResponse = await self._router.call(
            self._stub.TestWebhook,
            router_wire.TestWebhookRequest(tenant_id=caller_of(context).tenant_id, webhook_id=request.webhook),
        )
        reach(Point.WEBHOOK_CHANGED)
        return edge.TestWebhookResponse(delivery=_delivery(answer.delivery))

    async def ListDeliveries(
        self, request: edge.ListDeliveriesRequest, context: Context
    ) -> edge.ListDeliveriesResponse:
        fields.check_storable(request)
        answer: router_wire.ListDeliveriesResponse = await self._router.call(
            self._stub.ListDeliveries,
            router_wire.ListDeliveriesRequest(
                tenant_id=caller_of(context).tenant_id,
                webhook_id=request.webhook,
                state=request.state,
                page_size=request.page_size,
                page_token=request.page_token,
            ),
        )
        shown = [_delivery(found) for found in answer.deliveries]
        return edge.ListDeliveriesResponse(deliveries=shown, next_page_token=answer.next_page_token)

    async def RetryDelivery(self, request: edge.RetryDeliveryRequest, context: Context) -> edge.RetryDeliveryResponse:
        fields.check_storable(request)
        answer: router_wire.RetryDeliveryResponse = await self._router.call(
            self._stub.RetryDelivery,
            router_wire.RetryDeliveryRequest(
                tenant_id=caller_of(context).tenant_id, webhook_id=request.webhook, delivery_id=request.delivery
            ),
        )
        reach(Point.WEBHOOK_CHANGED)
        return edge.RetryDeliveryResponse(delivery=_delivery(answer.delivery))
