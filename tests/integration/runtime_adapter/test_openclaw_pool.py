"""A pool with the real OpenClaw: a gateway that is there before its tenants, and again after it was killed."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from retinue_kit.clock import SystemClock
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.ids import new_id
from retinue_runtime_adapter.config import Settings, read_models
from retinue_runtime_adapter.domain.troubles import Trouble
from retinue_runtime_adapter.light.endpoint import session
from retinue_runtime_adapter.openclaw import assembly, keys, seats
from retinue_runtime_adapter.openclaw.backends.process import ProcessBackend
from retinue_runtime_adapter.openclaw.gateway import WebSocketGateway
from retinue_runtime_adapter.openclaw.instance import START_TIMEOUT_S
from retinue_runtime_adapter.openclaw.model_proxy import WARM_ANSWER, LoopbackModelProxy
from retinue_runtime_adapter.openclaw.pool import InstancePool
from retinue_runtime_adapter.openclaw.ports import Isolation, RunCall
from retinue_runtime_adapter.openclaw.proxy import credentials

Eventually = Callable[..., Awaitable[Any]]

TRIES_MAX = 5
"""A gateway that has another agent's first turn under way may say that it cannot begin one."""

CLAIM_MAX_S = 5.0
"""Time for a tenant to be given what is warm already: hundredths of a second, unless a machine is busy."""


class Served:
    """A pool of one shared gateway, or of one cell, and what is behind it."""

    def __init__(self, openclaw_dir: Path, folder: Path, model_url: str) -> None:
        self.state = folder / "instances"
        self.settings = Settings(
            address="",
            model_base_url=model_url,
            openclaw_dir=str(openclaw_dir),
            openclaw_state_dir=str(self.state),
        )
        self.clock = SystemClock()

    async def begin(self, stack: AsyncExitStack) -> None:
        models = read_models(self.settings)
        http = session(self.settings)
        stack.push_async_callback(http.close)
        self.proxy = LoopbackModelProxy(self.settings, models, http, self.clock)
        await self.proxy.start()
        stack.push_async_callback(self.proxy.close)
        self.pool = InstancePool(
            self.settings,
            ProcessBackend(self.settings),
            self.proxy,
            assembly.SamePolicies(self.settings, None),
            self.clock,
            connect=lambda address, token: WebSocketGateway(address, token, self.clock),
            version="",
        )
        stack.push_async_callback(self.pool.close)
        await self.pool.start()

    async def turn(self, tenant_id: str) -> tuple[str, str, float]:
        """Have a turn; answers the instance, the agent, and how long the place took."""
        for _ in range(TRIES_MAX):
            answer, found = await self._try(tenant_id)
            if "UNAVAILABLE" not in answer:
                break
        assert WARM_ANSWER in answer
        return found

    async def _try(self, tenant_id: str) -> tuple[str, tuple[str, str, float]]:
        begun = time.monotonic()
        async with self.pool.place(tenant_id, Isolation.SHARED, wait_s=START_TIMEOUT_S) as place:
            took_s = time.monotonic() - begun
            key = keys.session_key(place.agent_id, tenant_id, "anna", "ses_1", 0)
            call = RunCall(new_id("run"), place.agent_id, key, "Hello?", "", time_s=60)
            with self.proxy.warm(place.instance_id, tenant_id):
                frames = [frame async for frame in place.gateway.run(call)]
        assert frames[-1].kind == "final"
        return str(frames[-1].body), (place.instance_id, place.agent_id, took_s)

    async def say(self, tenant_id: str, text: str, begun: asyncio.Event) -> dict[str, Any]:
        """Have the model say something; answers the run's end. `begun` is set at its first words."""
        async with self.pool.place(tenant_id, Isolation.SHARED, wait_s=START_TIMEOUT_S) as place:
            key = keys.session_key(place.agent_id, tenant_id, "anna", "ses_2", 0)
            call = RunCall(new_id("run"), place.agent_id, key, text, "", time_s=60)
            asked = {"model": "", "parameters": {}, "on_reasoning": None, "trace_id": ""}
            scope = self.proxy.run(instance_id=place.instance_id, tenant_id=tenant_id, run_id=call.run_id, **asked)
            with scope:
                async for frame in place.gateway.run(call):
                    if frame.kind == "event" and frame.body["stream"] == "assistant":
                        begun.set()
                    last = frame
        return dict(last.body)

    def pid(self, instance_id: str) -> int:
        """The gateway's process."""
        found = self.pool._fleet.get(instance_id)
        assert found is not None
        assert found.process is not None
        pid: int = found.process.detail["pid"]
        return pid


@pytest.mark.timeout(600)
async def test_tenants_are_served_by_a_gateway_that_is_warm_and_by_its_successor_when_it_is_killed(
    openclaw_dir: Path, tmp_path: Path, model_url: str, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        served = Served(openclaw_dir, tmp_path, model_url)
        await served.begin(stack)
        assert served.pool.status() == (False, "starting the first gateway")
        await eventually(lambda: served.pool.status()[0], timeout_s=START_TIMEOUT_S)

        await eventually(lambda: "2 warm agents" in served.pool.instances()[0].detail, timeout_s=START_TIMEOUT_S)

        # Two agents are there before their tenants, a third is made for its own.
        found = {tenant_id: await served.turn(tenant_id) for tenant_id in ("ten_a", "ten_b", "ten_c")}
        assert found["ten_a"][2] < CLAIM_MAX_S
        assert len({agent_id for _, agent_id, _ in found.values()}) == 3
        (instance,) = served.pool.instances()
        assert list(instance.tenant_ids) == ["ten_a", "ten_b", "ten_c"]
        assert instance.state == "ready"
        await eventually(lambda: served.pool.instances()[0].memory_bytes > 200 * 1024 * 1024)
        again = await served.turn("ten_a")
        assert again[:2] == found["ten_a"][:2]

        # In the middle of a run its credential is replaced: the run goes on, and the next one comes with the other.
        monkeypatch.setattr(credentials, "OVERLAP_S", 0.0)
        former, begun = served.proxy.credential(instance.instance_id, "ten_a"), asyncio.Event()
        saying = asyncio.create_task(served.say("ten_a", "#tokens=150 #delay=100", begun))
        await begun.wait()
        with monkeypatch.context() as hurried:
            hurried.setattr(seats, "CREDENTIAL_AGE_MAX_S", 1.0)
            await eventually(lambda: served.proxy.credential(instance.instance_id, "ten_a") != former, timeout_s=30)
        assert not saying.done()
        assert "t0 t1" in str(await saying)
        assert "t149" in str(saying.result())
        assert "t0 t1 t2" in str(await served.say("ten_a", "#tokens=3", begun))
        assert served.pool.instances()[0].instance_id == instance.instance_id

        # An agent that is taken off leaves no file behind, and its tenant may come back.
        folder = served.state / instance.instance_id
        agent_id = found["ten_b"][1]
        assert (folder / "workspaces" / agent_id).exists()
        await served.pool.delete("ten_b")
        with pytest.raises(RetinueError) as refused:
            served.pool.instance_of("ten_b")
        assert refused.value.reason is Reason.INSTANCE_NOT_FOUND

        def leavings() -> list[Path]:
            # By os.walk, which bears that the gateway makes and removes folders meanwhile.
            found = [Path(where, name) for where, _, names in os.walk(folder) for name in names]
            files = [path for path in found if agent_id in str(path.relative_to(folder))]
            return [*files, *(path for path in found if ".Trash" in path.parts)]

        await eventually(lambda: not leavings(), timeout_s=90)
        await eventually(lambda: agent_id not in (folder / "openclaw.json").read_text(), timeout_s=90)

        # Killed in the middle of a run: the run hears of it, and another gateway is begun.
        async with served.pool.place("ten_a", Isolation.SHARED, wait_s=30) as place:
            os.kill(served.pid(place.instance_id), signal.SIGKILL)
            await eventually(lambda: served.pool.instances()[-1].state == "pending")
            assert served.pool.instances()[0].state == "error"
            with pytest.raises(Trouble) as lost:
                await place.gateway.request("health", {}, timeout_s=5)
        assert lost.value.reason is Reason.RUNTIME_UNAVAILABLE
        await eventually(lambda: not folder.exists())
        successor, _, _ = await served.turn("ten_a")
        assert successor != instance.instance_id
        assert served.pool.instances()[-1].state == "ready"
    assert list(served.state.iterdir()) == []
