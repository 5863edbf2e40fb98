"""Checking bundles, and saying what a runtime makes of them."""

import asyncio

from retinue_kit import telemetry
from retinue_kit.errors import Reason, RetinueError

from retinue_portability.domain import rendering
from retinue_portability.domain.rendering import Given, Target
from retinue_portability.format import canonical, sealed
from retinue_portability.format.sealed import Sealed
from retinue_portability.format.signing import Signer


class Checking:
    """VerifyBundle and RenderBundle."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    async def verify(self, tenant_id: str, data: bytes) -> Sealed:
        """Open a bundle that a client has. Raises BUNDLE_INVALID, for another tenant's too: there is no such bundle."""
        with telemetry.span("portability.verify", bytes=len(data)):
            opened = await self._open(data)
            if opened.bundle.content.identity.tenant_id != tenant_id:
                raise canonical.invalid("identity", "is not one that can be taken here")
            return opened

    async def render(self, tenant_id: str, data: bytes, target: Target) -> tuple[Sealed, Given]:
        """Open a bundle and tell it to a runtime. Raises BUNDLE_INVALID, TENANT_MISMATCH."""
        with telemetry.span("portability.render", bytes=len(data), runtime=target.runtime):
            opened = await self._open(data)
            if opened.bundle.content.identity.tenant_id != tenant_id:
                raise RetinueError(Reason.TENANT_MISMATCH, "The bundle is another tenant's than the caller's.")
            return opened, await asyncio.to_thread(rendering.for_runtime, opened.bundle, target)

    async def _open(self, data: bytes) -> Sealed:
        return await asyncio.to_thread(sealed.open_sealed, data, self._signer)
