"""The courier's work: look for what is due, send it, record what became of it."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

import structlog
from retinue_kit import metrics
from retinue_kit.clock import Clock
from retinue_kit.crashing import reach
from retinue_kit.errors import RetinueError
from retinue_kit.sealing import Sealer, UnsealError

from retinue_router.courier import messages
from retinue_router.courier.outbox import LOOK_WEBHOOKS_MAX, Delivery, Outbox
from retinue_router.courier.sender import FailedError, Sender
from retinue_router.crash_points import Point
from retinue_router.domain import webhooks
from retinue_router.domain.outbox import Places, Waiting
from retinue_router.domain.webhooks import FEISHU, Outcome, Verdict

LOOK_S = 0.5
"""How often the outbox is looked at while nothing ends here; an event is on its way within this."""

RECORD_TRIES_MAX = 5
RECORD_PAUSE_S = 1.0
"""How an outcome is held on to while the database is away; if it is lost, the delivery is sent again."""

CLEAR_S = 15.0
PURGE_BATCHES_MAX = 50
"""How often ended deliveries are cleared away, and batches each time: more than comes in."""

ACTIVE = "active"
PENDING, DELIVERED, DEAD = "pending", "delivered", "dead"

log: structlog.stdlib.BoundLogger = structlog.get_logger()

deliveries = metrics.counter(
    "deliveries", "Attempts to deliver an event to a webhook, by what became of them.", ["result"]
)
"""Results: delivered, retry, dead, gone, and superseded, where another courier had taken the delivery meanwhile."""

deliveries_waiting = metrics.gauge("deliveries_waiting", "Deliveries that are pending, up to 10,000.")


class Dispatcher:
    """Sends deliveries of all tenants, several at once."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        sealer: Sealer,
        clock: Clock,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._sealer = sealer
        self._clock = clock
        self._chance = chance
        self._places = Places()
        self._freed = asyncio.Event()
        self._after = ""
        self._tasks: set[asyncio.Task[None]] = set()

    async def work_for_ever(self) -> None:
        """Look whenever there may be something to do."""
        while True:
            self._freed.clear()
            begun = 0
            try:
                begun = await self.look()
            except RetinueError as error:
                log.warning("not looked", detail=error.private)
            except Exception as error:  # nobody would look any more
                log.error("look broke", exc_info=error)
            if not begun:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S * random.uniform(0.8, 1.2)):  # noqa: S311
                        await self._freed.wait()

    async def look(self) -> int:
        """Begin what is due and has a place; answers how many."""
        if not self._places.free:
            return 0
        waiting = await self._outbox.look(self._after)
        self._after = waiting[-1].webhook_id if len(waiting) == LOOK_WEBHOOKS_MAX else ""
        random.shuffle(waiting)  # where places are short, it is not always the same who get them
        await self._close([one for one in waiting if one.state != ACTIVE])
        chosen = {one.webhook_id: one for one in self._places.take(w for w in waiting if w.state == ACTIVE)}
        if not chosen:
            return 0
        reach(Point.COURIER_CLAIMING)
        try:
            claimed = await self._outbox.claim(list(chosen))
        except BaseException:
            for one in chosen.values():
                self._places.give_back(one)
            raise
        reach(Point.COURIER_CLAIMED)
        for delivery in claimed:
            task = asyncio.create_task(self._deliver(delivery, chosen.pop(delivery.webhook_id)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for one in chosen.values():  # another courier was faster
            self._places.give_back(one)
        return len(claimed)

    async def _close(self, closed: list[Waiting]) -> None:
        """End what waits for webhooks that are not there to be sent to."""
        by_state = defaultdict(list)
        for one in closed:
            by_state[one.state].append(one.webhook_id)
        for state, found in by_state.items():
            await self._outbox.close(found, state)
            reach(Point.COURIER_CLOSED)

    async def _deliver(self, delivery: Delivery, place: Waiting) -> None:
        try:
            try:
                outcome = await self._attempt(delivery)
            except Exception as error:  # counts as an attempt: who meets it each time would be sent for ever
                log.error("attempt broke", delivery_id=delivery.delivery_id, exc_info=error)
                outcome = Outcome(Verdict.RETRY, "the courier met an error of its own")
            reach(Point.COURIER_SENT)
            await self._record(delivery, outcome)
        except Exception as error:  # one delivery's trouble is not the others'
            log.error("delivery broke", delivery_id=delivery.delivery_id, exc_info=error)
        finally:
            self._places.give_back(place)
            self._freed.set()

    async def _attempt(self, delivery: Delivery) -> Outcome:
        """Send once. The outcome's words hold nothing of the URL, the secret or the answer."""
        now = self._clock.now()
        try:
            secret = self._secret(delivery)
            is_feishu = delivery.kind == FEISHU
            write = messages.feishu if is_feishu else messages.standard
            headers, body = write(delivery, secret, int(now))
            reach(Point.COURIER_SENDING)
            answer = await self._sender.post(delivery.url, headers, body, read=is_feishu)
        except UnsealError as error:
            return Outcome(Verdict.DEAD, f"its secret cannot be read: {error}")
        except FailedError as error:
            return error.outcome
        rest_s = webhooks.retry_after_s(answer.retry_after, self._clock.now()) if answer.retry_after else 0.0
        if is_feishu:
            return webhooks.judge_feishu(answer.status, answer.body, rest_s)
        return webhooks.judge(answer.status, rest_s)

    def _secret(self, delivery: Delivery) -> str:
        if delivery.secret is None:
            return ""
        return self._sealer.open(delivery.secret, webhooks.purpose(delivery.tenant_id, delivery.webhook_id)).decode()

    async def _record(self, delivery: Delivery, outcome: Outcome) -> None:
        state, result, delay_s = DEAD, outcome.result, 0.0
        if outcome.verdict is Verdict.DELIVERED:
            state = DELIVERED
        elif outcome.verdict is Verdict.RETRY:
            found = webhooks.delay_s(delivery.attempt, outcome.rest_s, self._chance())
            if found is not None:
                state, delay_s = PENDING, found
        gone = outcome.verdict is Verdict.GONE
        reach(Point.COURIER_RECORDING)
        for tried in range(1, RECORD_TRIES_MAX + 1):
            try:
                ended = await self._outbox.end(delivery, state, result, delay_s, outcome.rest_s, gone=gone)
                break
            except RetinueError as error:
                if tried == RECORD_TRIES_MAX:
                    raise
                log.warning("outcome not recorded yet", detail=error.private)
                await asyncio.sleep(RECORD_PAUSE_S)
        reach(Point.COURIER_RECORDED)
        told = "gone" if gone else "retry" if state == PENDING else state
        deliveries.labels(told if ended else "superseded").inc()
        log.info(
            "attempt ended", tenant_id=delivery.tenant_id, webhook_id=delivery.webhook_id,
            delivery_id=delivery.delivery_id, attempt=delivery.attempt, state=told if ended else "superseded",
            result=result,
        )  # fmt: skip

    async def clear_for_ever(self) -> None:
        """Remove what ended long ago, and count what waits."""
        while True:
            try:
                deliveries_waiting.set(await self._outbox.count_waiting())
                for _ in range(PURGE_BATCHES_MAX):
                    more = await self._outbox.purge()
                    reach(Point.COURIER_PURGED)
                    if not more:
                        break
            except RetinueError as error:
                log.warning("not cleared away", detail=error.private)
            await asyncio.sleep(CLEAR_S * random.uniform(0.8, 1.2))  # noqa: S311

    async def drain(self, grace_s: float) -> None:
        """Wait for attempts under way; what is not over by then is sent again by another courier."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
