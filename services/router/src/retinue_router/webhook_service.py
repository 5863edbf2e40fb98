"""Webhooks on the wire."""

from retinue.router.v1 import webhook_service_pb2 as wire
from retinue.router.v1 import webhook_service_pb2_grpc as wire_grpc
from retinue_kit.server import Serving

from retinue_router import encoding
from retinue_router.domain.webhooks import STANDARD, Asked
from retinue_router.operations.webhooks import Webhooks


class WebhookServicer(wire_grpc.WebhookServiceServicer):
    """Webhooks and their deliveries."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    async def CreateWebhook(self, request: wire.CreateWebhookRequest, context: Serving) -> wire.CreateWebhookResponse:
        asked = Asked(
            tenant_id=request.tenant_id,
            url=request.url,
            kind=request.kind or STANDARD,
            event_types=request.event_types,
            secret=request.secret,
            idempotency_key=request.idempotency_key,
        )
        row, secret = await self._webhooks.create(asked)
        return wire.CreateWebhookResponse(webhook=encoding.webhook(row), secret=secret)

    async def GetWebhook(self, request: wire.GetWebhookRequest, context: Serving) -> wire.GetWebhookResponse:
        row = await self._webhooks.get(request.tenant_id, request.webhook_id)
        return wire.GetWebhookResponse(webhook=encoding.webhook(row))

    async def ListWebhooks(self, request: wire.ListWebhooksRequest, context: Serving) -> wire.ListWebhooksResponse:
        rows, more = await self._webhooks.page(request.tenant_id, request.page_size, request.page_token)
        return wire.ListWebhooksResponse(webhooks=[encoding.webhook(row) for row in rows], next_page_token=more)

    async def SetWebhookState(
        self, request: wire.SetWebhookStateRequest, context: Serving
    ) -> wire.SetWebhookStateResponse:
        row = await self._webhooks.set_state(request.tenant_id, request.webhook_id, request.state)
        return wire.SetWebhookStateResponse(webhook=encoding.webhook(row))

    async def DeleteWebhook(self, request: wire.DeleteWebhookRequest, context: Serving) -> wire.DeleteWebhookResponse:
        await self._webhooks.delete(request.tenant_id, request.webhook_id)
        return wire.DeleteWebhookResponse()

    async def TestWebhook(self, request: wire.TestWebhookRequest, context: Serving) -> wire.TestWebhookResponse:
        row = await self._webhooks.test(request.tenant_id, request.webhook_id)
        return wire.TestWebhookResponse(delivery=encoding.delivery(row))

    async def ListDeliveries(
        self, request: wire.ListDeliveriesRequest, context: Serving
    ) -> wire.ListDeliveriesResponse:
        rows, more = await self._webhooks.deliveries(
            request.tenant_id, request.webhook_id, request.state, request.page_size, request.page_token
        )
        return wire.ListDeliveriesResponse(deliveries=[encoding.delivery(row) for row in rows], next_page_token=more)

    async def RetryDelivery(self, request: wire.RetryDeliveryRequest, context: Serving) -> wire.RetryDeliveryResponse:
        row = await self._webhooks.retry(request.tenant_id, request.webhook_id, request.delivery_id)
        return wire.RetryDeliveryResponse(delivery=encoding.delivery(row))
