"""What is sent: Standard Webhooks' form, and a card for a custom bot of Feishu."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from retinue_router.courier.outbox import Delivery
from retinue_router.domain import signing
from retinue_router.domain.events import instant
from retinue_router.domain.webhooks import TEST_EVENT

SUMMARY_MAX_CHARS = 1000
"""Of a text shown in a card: Feishu takes 20 KB in all, and a card is read at a glance."""

CONTENT_TYPE = {"content-type": "application/json; charset=utf-8"}

_CARDS = {
    "run.succeeded": ("Run succeeded", "green"),
    "run.failed": ("Run failed", "red"),
    "run.cancelled": ("Run cancelled", "grey"),
    "run.resumed": ("Run resumed", "orange"),
    "task.finished": ("Task finished", "blue"),
    "user.message": ("Message", "blue"),
    "assistant.message": ("Answer", "blue"),
    "approval.requested": ("An approval is needed", "orange"),
    "approval.decided": ("An approval was decided", "blue"),
    "tool.started": ("Tool started", "grey"),
    "tool.finished": ("Tool finished", "grey"),
    TEST_EVENT: ("This webhook works", "green"),
}
_encoder = msgspec.json.Encoder()


def standard(delivery: Delivery, secret: str, timestamp: int) -> tuple[dict[str, str], bytes]:
    """Write a delivery by Standard Webhooks: headers and body. The body is the same at each attempt."""
    time = instant(delivery.event_time)
    event: dict[str, object] = {}
    if delivery.event_type != TEST_EVENT:
        event = {
            "contact": delivery.contact,
            "cursor": f"{delivery.token}-{delivery.n}",
            "type": delivery.event_type,
            "session_id": delivery.session_id,
            "run_id": delivery.run_id,
            "time": time,
            "data": _data(delivery),
        }
    body = _encoder.encode({"type": delivery.event_type, "timestamp": time, "data": event})
    return {**CONTENT_TYPE, **signing.standard_headers(secret, delivery.delivery_id, timestamp, body)}, body


def _data(delivery: Delivery) -> dict[str, Any] | None:
    return None if delivery.data is None else msgspec.json.decode(delivery.data, type=dict[str, Any])


def feishu(delivery: Delivery, secret: str, timestamp: int) -> tuple[dict[str, str], bytes]:
    """Write a delivery as a card: headers and body. Signed where the bot has a secret."""
    message: dict[str, object] = {"msg_type": "interactive", "card": card(delivery)}
    if secret:
        message = {"timestamp": str(timestamp), "sign": signing.feishu_sign(secret, timestamp), **message}
    return dict(CONTENT_TYPE), _encoder.encode(message)


def card(delivery: Delivery) -> dict[str, object]:
    """Lay a delivery out. Every text is plain, so that what people write can neither format nor mention anybody."""
    data = _data(delivery) or {}
    title, colour = _CARDS.get(delivery.event_type, (delivery.event_type, "blue"))
    state = str(data.get("state") or data.get("decision") or "")
    facts = [("Contact", delivery.contact), ("State", state), ("Kind", str(data.get("kind") or ""))]
    fields = [{"is_short": True, "text": _plain(f"{name}: {fact}")} for name, fact in facts if fact]
    summary = _summary(data)
    time = delivery.event_time.astimezone(UTC)
    elements: list[dict[str, object]] = []
    if fields:
        elements.append({"tag": "div", "fields": fields})
    if summary:
        elements.append({"tag": "div", "text": _plain(summary)})
    note = " · ".join(part for part in (delivery.run_id, datetime.strftime(time, "%Y-%m-%d %H:%M:%S UTC")) if part)
    elements.append({"tag": "note", "elements": [_plain(note)]})
    return {
        "config": {"wide_screen_mode": True},
        "header": {"title": _plain(title), "template": colour},
        "elements": elements,
    }


def _summary(data: dict[str, Any]) -> str:
    error = data.get("error")
    found = data.get("text") or data.get("summary") or (error.get("message") if isinstance(error, dict) else "")
    text = str(found or "")
    return text if len(text) <= SUMMARY_MAX_CHARS else text[: SUMMARY_MAX_CHARS - 1] + "…"


def _plain(text: str) -> dict[str, str]:
    return {"tag": "plain_text", "content": text}
