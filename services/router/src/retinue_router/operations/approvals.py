"""Approvals: what waits for a person's word, and the word."""

from retinue_kit.crashing import reach
from retinue_kit.errors import Reason, RetinueError

from retinue_router.crash_points import Point
from retinue_router.domain import pages
from retinue_router.doorbell import Doorbell
from retinue_router.store.approvals import ApprovalStore
from retinue_router.store.guard import Row

PAGE = "a"


class Approvals:
    """Approvals of tenants."""

    def __init__(self, store: ApprovalStore, doorbell: Doorbell) -> None:
        self._store = store
        self._doorbell = doorbell

    async def page(self, tenant_id: str, state: str, page_size: int, page_token: str) -> tuple[list[Row], str]:
        """List approvals, newest first; answers the page and the token of the next one."""
        before = pages.read_id(PAGE, page_token)
        rows, more = await self._store.page(tenant_id, state, before, pages.size_of(page_size))
        return rows, pages.write(PAGE, rows[-1]["approval_id"]) if more else ""

    async def decide(self, tenant_id: str, approval_id: str, decision: str, by: str) -> Row:
        """Answer an approval once; answers it as it is then.

        "allow_always" makes an allowance, and is "allow_once" where nothing can be allowed for good or the tenant has
        no room for more. Raises APPROVAL_NOT_FOUND, APPROVAL_CLOSED.
        """
        reach(Point.DECIDE_COMMITTING)
        answer = await self._store.decide(tenant_id, approval_id, decision, by)
        reach(Point.DECIDE_COMMITTED)
        row = await self._store.get(tenant_id, approval_id) if answer else None
        if answer is None or row is None:
            raise RetinueError(Reason.APPROVAL_NOT_FOUND, "There is no such approval.")
        if answer["outcome"] == "closed":
            raise RetinueError(Reason.APPROVAL_CLOSED, "The approval was answered before.", state=row["state"])
        if answer["ring"]:
            await self._doorbell.ring(tenant_id, answer["log_id"])
            reach(Point.DECIDE_RUNG)
        return row
