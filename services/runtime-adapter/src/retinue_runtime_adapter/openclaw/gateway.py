"""The connection to one gateway: requests, runs, and coming back after a loss.

A run is asked for by `agent` with our run's id as idempotency key. The first answer says `accepted`, and a second of
the same id brings the end; or `in_flight`, for a run that another request began: then the end is asked for once it has
settled; or it is the end already. Its events reach every connection, among those of everybody else, so that each is
compared with the run, the session and the agent that were asked for, and dropped unread where one differs.

Tools' own events go to the connection that began the run alone; after a reconnection `item` events tell of them.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import structlog
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason
from websockets.exceptions import ConnectionClosed, WebSocketException

from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.openclaw import protocol
from retinue_runtime_adapter.openclaw.connection import Connection, LostError, open_connection
from retinue_runtime_adapter.openclaw.follower import Follower
from retinue_runtime_adapter.openclaw.ports import Frame, Gateway, RunCall

RECONNECT_S = 20.0
"""Time from the loss of a connection until its runs are given up. A gateway that is only busy answers by then, and one
that began anew has forgotten them anyway."""

BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 1.0
"""Pause between two tries to connect, doubling."""

ASK_TIMEOUT_S = 30.0
"""Time for the first answer to a run; 20 ms where nothing else happens, seconds where many begin at once."""

HISTORY_TIMEOUT_S = 10.0
ABORT_TIMEOUT_S = 10.0

FINAL_TIMEOUT_S = 10.0
"""Time from a run's settling to its final frame: it takes 50 ms."""

FINAL_PAUSE_S = 0.05
"""Pause before the end of a joined run is asked for again."""

JOINS_MAX = 20
"""Times that one run is joined anew: a connection that breaks more often is of no use."""

TIME_SLACK_S = 30
"""What a gateway is given beyond a run's time, whose end is told by whoever asked: a run that nobody stops ends too."""

SILENT_TICKS = 2
"""Ticks that may be missing before a gateway is taken for lost."""

HISTORY_COUNT = 50
"""Rows of a session's transcript that are looked at after a reconnection: a run with more tool calls is rare."""

STREAMS = ("assistant", "tool", "item", "lifecycle", "usage")
"""Streams of events that mean something to us; `thinking` is heard at the model's endpoint, whole."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class WebSocketGateway(Gateway):
    """Speaks to the gateway at `address` (`host:port`)."""

    def __init__(self, address: str, token: str, clock: Clock) -> None:
        self._address = address
        self._token = token
        self._clock = clock
        self._connection: Connection | None = None
        self._changed = asyncio.Event()
        self._followers: dict[str, list[Follower]] = {}
        self._task: asyncio.Task[None] | None = None
        self._trouble: Trouble | None = None
        self.version = ""
        """The gateway's own version, once it is connected."""
        self.dropped: Counter[str] = Counter()
        """Frames that were not for us, by event, and `senseless` ones."""

    # --- the connection ---

    @property
    def is_lost(self) -> bool:
        """Whether there will be no connection any more: whatever runs in the gateway, it is of no use."""
        return self._trouble is not None

    async def start(self, timeout_s: float) -> None:
        """Connect, waiting for a gateway that starts. Raises Trouble, with a line for operators."""
        if self._task is None:
            self._task = asyncio.create_task(self._keep(timeout_s), name="openclaw-gateway")
        await self._ready()

    async def close(self) -> None:
        self._trouble = self._trouble or protocol.lost("The connection to OpenClaw is closed.")
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._wake()

    async def _keep(self, timeout_s: float) -> None:
        """Connect, read, and connect again until the gateway stays away. Owns the connection and its reader."""
        boot_id = ""
        try:
            while self._trouble is None:
                connection = await self._connect(timeout_s)
                try:
                    if boot_id and connection.hello.boot_id != boot_id:
                        raise protocol.lost("OpenClaw began anew and has forgotten its runs.")
                    boot_id, self.version = connection.hello.boot_id, connection.hello.version
                    self._connection = connection
                    self._wake()
                    await self._read(connection)
                finally:
                    self._connection = None
                    connection.let_go()
                    self._wake()
                    await connection.socket.close()
                timeout_s = RECONNECT_S
                log.warning("gateway lost, connecting again", address=self._address)
        except Trouble as trouble:
            self._trouble = trouble
            log.error("gateway given up", address=self._address, why=str(trouble))
        except Exception:
            self._trouble = protocol.lost()
            log.exception("the connection to a gateway broke", address=self._address)
        finally:
            self._trouble = self._trouble or protocol.lost()
            self._wake()

    async def _connect(self, timeout_s: float) -> Connection:
        """Connect within the time. Raises Trouble."""
        end, pause_s = self._clock.monotonic() + timeout_s, BACKOFF_MIN_S
        while True:
            wait_s = pause_s
            try:
                return await open_connection(self._address, self._token)
            except protocol.Starting as starting:
                wait_s = starting.retry_after_s
            except (OSError, WebSocketException, TimeoutError, ValueError):
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
            if self._clock.monotonic() + wait_s > end:
                raise protocol.lost("OpenClaw cannot be reached.")
            await asyncio.sleep(wait_s)

    async def _read(self, connection: Connection) -> None:
        """Read frames until the connection ends or falls silent."""
        silence_s = SILENT_TICKS * connection.hello.tick_interval_s
        with suppress(ConnectionClosed, TimeoutError):
            while True:
                async with asyncio.timeout(silence_s):
                    data = await connection.socket.recv()
                try:
                    self._dispatch(connection, protocol.decode(data))
                except ValueError:
                    self.dropped["senseless"] += 1
                    log.warning("a gateway's frame makes no sense", address=self._address, size=len(data))

    async def _ready(self) -> Connection:
        """Wait for the connection. Raises Trouble once there will be none."""
        while self._connection is None:  # each turn waits for a change, and the last change is trouble
            if self._trouble is not None:
                raise Trouble(self._trouble.reason, str(self._trouble), retry_after_s=self._trouble.error.retry_after_s)
            if self._task is None:
                raise protocol.lost("The connection to OpenClaw was not started.")
            self._changed.clear()
            await self._changed.wait()
        return self._connection

    def _wake(self) -> None:
        self._changed.set()
        for followers in self._followers.values():
            for follower in followers:
                follower.woken.set()

    # --- frames ---

    def _dispatch(self, connection: Connection, frame: protocol.Incoming) -> None:
        if frame.type == "res":
            self._answer(connection, frame)
        elif frame.type == "event" and frame.event == "agent":
            self._event(frame)
        else:
            self.dropped[frame.event or frame.type] += 1

    def _answer(self, connection: Connection, frame: protocol.Incoming) -> None:
        waiting = connection.pending.get(frame.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(frame)
            return
        follower = connection.finals.pop(frame.id, None)
        if follower is not None:
            follower.put(Frame("final", protocol.read_end(frame)))
        else:
            self.dropped["late"] += 1

    def _event(self, frame: protocol.Incoming) -> None:
        head = protocol.head(frame.payload)
        followers = [one for one in self._followers.get(head.run_id, ()) if one.matches(head)]
        if not followers:
            self.dropped["agent"] += 1
            return
        payload = protocol.body(frame.payload)
        if payload.get("stream") not in STREAMS or not isinstance(payload.get("data"), dict):
            self.dropped["agent"] += 1
            return
        for follower in followers:
            follower.put(Frame("event", payload))

    # --- requests ---

    async def request(
        self, method: str, params: dict[str, Any], *, timeout_s: float, traceparent: str = ""
    ) -> dict[str, Any]:
        end = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(end):
                connection = await self._ready()
                answer = await connection.ask(method, params, timeout_s=timeout_s, traceparent=traceparent)
        except LostError:
            raise protocol.lost() from None
        except TimeoutError:
            raise protocol.lost("OpenClaw did not answer in time.") from None
        if not answer.ok:
            refused = protocol.of_refusal(answer.error or protocol.Fault())
            log.warning("gateway refused a request", method=method, code=refused.code)
            raise refused
        try:
            return protocol.body(answer.payload)
        except ValueError:
            raise protocol.lost("OpenClaw's answer makes no sense.") from None

    async def abort(self, session_key: str, run_id: str) -> bool:
        params = {"sessionKey": session_key, "runId": run_id}
        return (await self.request("chat.abort", params, timeout_s=ABORT_TIMEOUT_S)).get("aborted") is True

    # --- runs ---

    async def run(self, call: RunCall) -> AsyncGenerator[Frame, None]:
        follower = Follower(call)
        connection: Connection | None = None
        self._followers.setdefault(call.run_id, []).append(follower)
        try:
            while True:  # ends with the final frame, by trouble, or with its reader
                if follower.frames:
                    frame = follower.frames.popleft()
                    yield frame
                    if frame.kind == "final":
                        return
                elif follower.is_overflown:
                    raise Trouble(Reason.RUNTIME_UNAVAILABLE, "The run was not read as fast as it was told.")
                elif connection is None or connection is not self._connection:
                    connection = await self._join(follower)
                elif follower.has_settled:
                    await self._await_final(follower, connection)
                else:
                    await follower.woken.wait()
                if not follower.frames:
                    follower.woken.clear()
        finally:
            followers = self._followers[call.run_id]
            followers.remove(follower)
            if not followers:
                del self._followers[call.run_id]
            if connection is not None:
                connection.forget(follower)

    async def _join(self, follower: Follower) -> Connection:
        """Ask for the run on the present connection, and answer that. Raises Trouble."""
        follower.join_count += 1
        if follower.join_count > JOINS_MAX:
            raise protocol.lost("The connection to OpenClaw is lost again and again.")
        connection = await self._ready()
        has_begun = follower.has_begun
        with suppress(LostError):
            status = await self._ask(follower, connection)
            follower.has_begun = True
            if status == "accepted" and has_begun:
                await connection.ask("chat.abort", _abort_params(follower.call), timeout_s=ABORT_TIMEOUT_S)
                raise protocol.lost("OpenClaw has forgotten the run.")
            follower.is_joined = status != "accepted"
            if status == "in_flight":
                await self._tell_rejoined(follower, connection)
        return connection

    async def _ask(self, follower: Follower, connection: Connection) -> str:
        """Ask `agent`; its end, where it is over, becomes a frame. Raises LostError, Trouble."""
        call = follower.call
        answer = await connection.ask(
            "agent", _params(call), timeout_s=ASK_TIMEOUT_S, traceparent=call.traceparent, follower=follower
        )
        body = protocol.read_end(answer)
        status = str(body.get("status") or "")
        if not answer.ok and body.get("runId") != call.run_id:
            connection.forget(follower)
            refused = protocol.of_refusal(answer.error or protocol.Fault())
            log.warning("gateway refused a run", run_id=call.run_id, code=refused.code)
            raise refused
        if status != "accepted":
            connection.forget(follower)
        if status not in ("accepted", "in_flight"):
            follower.put(Frame("final", body))
        return status

    async def _tell_rejoined(self, follower: Follower, connection: Connection) -> None:
        """Tell what the run has come to meanwhile. Raises LostError, Trouble."""
        params = {"sessionKey": follower.call.session_key, "limit": HISTORY_COUNT}
        answer = await connection.ask("chat.history", params, timeout_s=HISTORY_TIMEOUT_S)
        try:
            history = protocol.body(answer.payload)
        except ValueError:
            history = {}
        found = history.get("inFlightRun")
        if not isinstance(found, dict) or found.get("runId") != follower.call.run_id:
            found = {}
            follower.has_settled = True  # it ended just now, and its last event may have gone by
        follower.put(Frame("rejoined", found))

    async def _await_final(self, follower: Follower, connection: Connection) -> None:
        """Wait for the end of a run that has settled; ask for it where it will not come by itself. Raises Trouble."""
        try:
            async with asyncio.timeout(FINAL_TIMEOUT_S):
                if not follower.is_joined:
                    await follower.woken.wait()
                    return
                while not follower.frames:  # within the time
                    await self._ask(follower, connection)
                    if not follower.frames:
                        await asyncio.sleep(FINAL_PAUSE_S)
        except LostError:
            return
        except TimeoutError:
            if follower.is_joined:
                raise protocol.lost("OpenClaw does not tell the end of the run.") from None
            follower.is_joined = True


def _params(call: RunCall) -> dict[str, Any]:
    params: dict[str, Any] = {
        "message": call.text,
        "agentId": call.agent_id,
        "sessionKey": call.session_key,
        "idempotencyKey": call.run_id,
        "deliver": False,
        "timeout": math.ceil(call.time_s) + TIME_SLACK_S,
    }
    if call.system:
        params["extraSystemPrompt"] = call.system
    return params


def _abort_params(call: RunCall) -> dict[str, Any]:
    return {"sessionKey": call.session_key, "runId": call.run_id}
