"""Webhooks: made, switched, removed; what was sent to them, and sent once more."""

import asyncio
import hmac

from retinue_kit import ids
from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.sealing import Sealer, UnsealError

from retinue_router.crash_points import Point
from retinue_router.domain import addresses, pages, signing
from retinue_router.domain.webhooks import STANDARD, TEST_EVENT, WEBHOOKS_MAX, Asked, purpose
from retinue_router.names import Names
from retinue_router.store.guard import Row
from retinue_router.store.webhooks import WebhookStore

PAGE = "w"
DELIVERIES_PAGE = "v"

LOOK_UP_TIMEOUT_S = 3.0
"""A person waits; a name that takes longer than this would fail many deliveries, too."""


def _no_webhook() -> RetinueError:
    return RetinueError(Reason.WEBHOOK_NOT_FOUND, "There is no such webhook.")


def _secret_of(asked: Asked) -> str:
    """Answer the secret to sign with: what is given, or a new one where the kind needs one; "" for none."""
    if asked.kind == STANDARD:
        secret = asked.secret or signing.new_secret()
        signing.check_secret(secret)
        return secret
    if not all("!" <= sign <= "~" for sign in asked.secret):
        raise RetinueError.field("secret", "must hold visible ASCII characters only.")
    return asked.secret


class Webhooks:
    """Webhooks of tenants."""

    def __init__(self, store: WebhookStore, sealer: Sealer | None, names: Names, *, private: bool) -> None:
        self._store = store
        self._sealer = sealer
        self._names = names
        self._private = private

    async def create(self, asked: Asked) -> tuple[Row, str]:
        """Make a webhook, or find the one that its key has made; answers it and its secret.

        Raises FIELD_INVALID, IDEMPOTENCY_KEY_REUSED, QUOTA_EXCEEDED, CAPABILITY_MISSING, and WEBHOOK_NOT_FOUND if what
        the key made was removed.
        """
        types = asked.check()
        if asked.idempotency_key:
            # First of all: what was made stays made, whatever has become of its host's name since.
            made = await self._store.made(asked)
            if made is not None:
                return await self._again(asked, made)
        target = addresses.read_url(asked.url, private=self._private)
        secret = _secret_of(asked)
        if not self._private and not addresses.is_address(target.host):
            await self._check_name(target)
        webhook_id = ids.new_id("whk")
        sealed = self._seal(secret, purpose(asked.tenant_id, webhook_id)) if secret else None
        reach(Point.WEBHOOK_COMMITTING)
        answer = await self._store.create(asked, webhook_id, target.host, types, sealed, WEBHOOKS_MAX)
        reach(Point.WEBHOOK_COMMITTED)
        if answer["outcome"] == "full":
            raise RetinueError(Reason.QUOTA_EXCEEDED, f"A tenant has {WEBHOOKS_MAX} webhooks at most; remove one.")
        if answer["outcome"] != "created":  # by another who asked the same meanwhile
            return await self._again(asked, answer)
        return await self.get(asked.tenant_id, webhook_id), secret

    async def _again(self, asked: Asked, made: Row) -> tuple[Row, str]:
        """Answer what a key has made before, if it was asked the same."""
        if made["outcome"] == "deleted":
            raise RetinueError(Reason.WEBHOOK_NOT_FOUND, "The webhook of this idempotency key was removed.")
        secret = self._open(made["secret"], purpose(asked.tenant_id, made["webhook_id"])) if made["secret"] else ""
        other = bool(asked.secret) and not hmac.compare_digest(asked.secret.encode(), secret.encode())
        if made["outcome"] != "replay" or other:
            raise RetinueError(
                Reason.IDEMPOTENCY_KEY_REUSED,
                "The idempotency key was used with another request.",
                webhook_id=made["webhook_id"],
            )
        return await self.get(asked.tenant_id, made["webhook_id"]), secret

    def _open(self, sealed: bytes, sealed_for: str) -> str:
        try:
            if self._sealer is None:
                raise UnsealError("there is no sealing key")
            return self._sealer.open(sealed, sealed_for).decode()
        except UnsealError as error:
            raise RetinueError(
                Reason.CAPABILITY_MISSING,
                "The webhook was made, but its secret cannot be read any more; remove it and make another.",
                private=str(error),
                capability="sealing",
            ) from None

    def _seal(self, secret: str, sealed_for: str) -> bytes:
        if self._sealer is None:
            raise RetinueError(
                Reason.CAPABILITY_MISSING,
                "This deployment keeps no secrets: it has no sealing key.",
                capability="sealing",
            )
        return self._sealer.seal(secret.encode(), sealed_for)

    async def _check_name(self, target: addresses.Target) -> None:
        # The courier looks again at each attempt: a name may lead elsewhere by then.
        try:
            async with asyncio.timeout(LOOK_UP_TIMEOUT_S):
                found = await self._names.addresses(target.host, target.port)
        except (OSError, UnicodeError, TimeoutError):
            raise RetinueError.field("url", "must name a host that can be looked up.") from None
        if not any(addresses.is_public(address) for address in found):
            raise addresses.not_public()

    async def get(self, tenant_id: str, webhook_id: str) -> Row:
        """Read a webhook. Raises WEBHOOK_NOT_FOUND."""
        row = await self._store.get(tenant_id, webhook_id)
        if row is None:
            raise _no_webhook()
        return row

    async def page(self, tenant_id: str, page_size: int, page_token: str) -> tuple[list[Row], str]:
        """List webhooks, newest first; answers the page and the token of the next one."""
        size = pages.size_of(page_size)
        rows = await self._store.page(tenant_id, pages.read_id(PAGE, page_token), size + 1)
        more = pages.write(PAGE, rows[size - 1]["webhook_id"]) if len(rows) > size else ""
        return rows[:size], more

    async def set_state(self, tenant_id: str, webhook_id: str, state: str) -> Row:
        """Switch a webhook on or off. Raises WEBHOOK_NOT_FOUND."""
        row = await self._store.set_state(tenant_id, webhook_id, state)
        reach(Point.WEBHOOK_SWITCHED)
        if row is None:
            raise _no_webhook()
        return row

    async def delete(self, tenant_id: str, webhook_id: str) -> None:
        """Remove a webhook. Raises WEBHOOK_NOT_FOUND."""
        removed = await self._store.delete(tenant_id, webhook_id)
        reach(Point.WEBHOOK_DELETED)
        if not removed:
            raise _no_webhook()

    async def test(self, tenant_id: str, webhook_id: str) -> Row:
        """Send an event that tells of nothing; answers its delivery. Raises WEBHOOK_NOT_FOUND."""
        row = await self._store.test(tenant_id, webhook_id, TEST_EVENT)
        reach(Point.DELIVERY_TESTED)
        if row is None:
            raise _no_webhook()
        return row

    async def deliveries(
        self, tenant_id: str, webhook_id: str, state: str, page_size: int, page_token: str
    ) -> tuple[list[Row], str]:
        """List deliveries, newest first; answers the page and the token of the next one. Raises WEBHOOK_NOT_FOUND."""
        before = pages.read_id(DELIVERIES_PAGE, page_token)
        await self.get(tenant_id, webhook_id)
        size = pages.size_of(page_size)
        rows = await self._store.deliveries(tenant_id, webhook_id, state, before, size + 1)
        more = pages.write(DELIVERIES_PAGE, rows[size - 1]["delivery_id"]) if len(rows) > size else ""
        return rows[:size], more

    async def retry(self, tenant_id: str, webhook_id: str, delivery_id: str) -> Row:
        """Have a delivery sent once more. Raises DELIVERY_NOT_FOUND."""
        row = await self._store.retry(tenant_id, webhook_id, delivery_id)
        reach(Point.DELIVERY_RETRIED)
        if row is None:
            raise RetinueError(Reason.DELIVERY_NOT_FOUND, "There is no such delivery.")
        return row
