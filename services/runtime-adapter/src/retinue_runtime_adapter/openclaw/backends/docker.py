"""Instances as containers of a Docker engine, on a host of its own or with Compose; over the engine's socket.

An instance is made, attached to, started and told its configuration through standard input, so that the engine, which
shows everything else of a container, never knows its token. It removes itself when it ends.
"""

import asyncio
import json
import re
import time
from typing import Any
from urllib.parse import quote

import aiohttp
from retinue_kit.errors import RetinueError

from retinue_runtime_adapter.config import Settings
from retinue_runtime_adapter.openclaw.backends import contained
from retinue_runtime_adapter.openclaw.backends.api import Answer, Api
from retinue_runtime_adapter.openclaw.backends.contained import unavailable
from retinue_runtime_adapter.openclaw.ports import InstanceSpec, Process

VERSION_LEAST = (1, 41)
"""The oldest version of the engine's API that has all that is asked for here."""

VERSION_KNOWN = (1, 52)
"""The newest one that this was written for; a newer engine is asked in its words."""

HEAD_SIZE_MAX_BYTES = 16 * 1024
"""Bytes of the head of the answer to an attachment."""

LOG_SIZE = "1m"
"""Most of a container's log: entry.mjs says a few lines."""

GATEWAY_HOST = "host.docker.internal"
"""The name by which a container finds the host it runs on."""

MIB = 1024 * 1024

ENGINE = "The Docker engine"


def _version(answer: Answer) -> str:
    """Choose the API's version. Raises RUNTIME_UNAVAILABLE."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(answer.body.get("ApiVersion", "")))
    if answer.status != 200 or found is None:
        raise unavailable(f"{ENGINE} does not say which version of its API it speaks.", answer.message)
    newest = (int(found[1]), int(found[2]))
    if newest < VERSION_LEAST:
        raise unavailable(f"{ENGINE} speaks version {found[0]} of its API; at least 1.{VERSION_LEAST[1]} is needed.")
    major, minor = min(newest, VERSION_KNOWN)
    return f"/v{major}.{minor}"


class DockerBackend:
    """Begins and ends containers."""

    name = "docker"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._socket = settings.openclaw_docker_socket
        self._network = settings.openclaw_docker_network
        self._owner = contained.owner(settings, of_folder=True)
        self._instances: dict[str, Process] = {}
        self._api: Api | None = None
        self._version = ""

    async def prepare(self) -> None:
        """Find the engine and the image, and remove what former processes left.

        Raises RUNTIME_UNAVAILABLE, and may then be tried again.
        """
        contained.check(self._settings)
        if self._api is None:
            self._api = Api(ENGINE, "http://docker", aiohttp.UnixConnector(self._socket))
        self._version = ""
        self._version = _version(await self._api.call("GET", "/version"))
        image = self._settings.openclaw_image
        answer = await self._call("GET", f"/images/{quote(image, safe='/:@')}/json")
        if answer.status != 200:
            raise self._refused(answer, "image")
        if self._network:
            answer = await self._call("GET", f"/networks/{quote(self._network, safe='')}")
            if answer.status != 200:
                raise self._refused(answer, "network")
        await self._sweep()

    async def _call(self, method: str, path: str, **options: Any) -> Answer:
        if self._api is None:
            raise unavailable(f"{ENGINE} has not been asked yet.")
        return await self._api.call(method, self._version + path, **options)

    def _refused(self, answer: Answer, what: str) -> RetinueError:
        if answer.status in (401, 403):
            return unavailable(f"{ENGINE} does not allow this adapter to use it.", answer.message)
        if answer.status == 404 and what == "image":
            name = self._settings.openclaw_image
            return unavailable(f"{ENGINE} has no image {name}; build or pull it.", answer.message)
        if answer.status == 404 and what == "network":
            return unavailable(f"{ENGINE} has no network {self._network}.", answer.message)
        return unavailable(f"{ENGINE} could not {_DEEDS.get(what, what)}.", answer.message)

    async def _sweep(self) -> None:
        """Remove all of this owner's, which only a former process can have begun, and what of any owner has ended."""
        mine = {"label": [f"{contained.OWNER_LABEL}={self._owner}", contained.INSTANCE_LABEL]}
        ended = {"label": [contained.INSTANCE_LABEL], "status": ["created", "exited", "dead"]}
        known = {process.detail["id"] for process in self._instances.values()}
        before = time.time() - contained.ENDED_AGE_S
        found: list[str] = []
        for filters in (mine, ended):
            params = {"all": "true", "limit": str(contained.LISTED_MAX), "filters": json.dumps(filters)}
            answer = await self._call("GET", "/containers/json", params=params)
            if answer.status != 200:
                raise self._refused(answer, "list")
            found += [one["Id"] for one in answer.items if filters is mine or one.get("Created", before) < before]
        await contained.remove_all([one for one in dict.fromkeys(found) if one not in known], self._remove)

    def _wanted(self, spec: InstanceSpec) -> dict[str, Any]:
        """Describe the container. The engine's own seccomp and AppArmor profiles hold as well."""
        owned = f"uid={contained.USER},gid={contained.USER},mode=0700,nosuid,nodev,noexec"
        port = f"{contained.RELAY_PORT}/tcp"
        memory = contained.memory_mib(spec) * MIB
        host: dict[str, Any] = {
            "AutoRemove": True,
            "CapDrop": ["ALL"],
            "Init": True,  # process 1 reaps what the gateway's children leave behind
            "IpcMode": "private",
            "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG_SIZE, "max-file": "1"}},
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": int(self._settings.openclaw_cpu_count * 1e9),
            "PidsLimit": self._settings.openclaw_process_count_max,
            "Privileged": False,
            "ReadonlyRootfs": True,
            "RestartPolicy": {"Name": "no"},
            "SecurityOpt": ["no-new-privileges:true"],
            "Tmpfs": {
                contained.STATE_FOLDER: f"size={contained.STATE_MIB}m,{owned}",
                "/tmp": f"size={contained.SCRATCH_MIB}m,{owned}",  # noqa: S108 - inside the container
            },
        }
        if self._settings.openclaw_container_runtime:
            host["Runtime"] = self._settings.openclaw_container_runtime
        if self._network:
            host["NetworkMode"] = self._network
        else:
            host["PortBindings"] = {port: [{"HostIp": "127.0.0.1", "HostPort": ""}]}
            host["ExtraHosts"] = [f"{GATEWAY_HOST}:host-gateway"]
        return {
            "Image": self._settings.openclaw_image,
            "User": f"{contained.USER}:{contained.USER}",
            "Env": [f"{name}={value}" for name, value in contained.environment(spec, {}).items()],
            "Labels": contained.labels(spec.instance_id, self._owner),
            "AttachStdin": True,
            "OpenStdin": True,
            "StdinOnce": True,
            "Tty": False,
            "ExposedPorts": {port: {}},
            "StopSignal": "SIGTERM",
            "HostConfig": host,
        }

    async def begin(self, spec: InstanceSpec) -> Process:
        """Begin a container and answer where it is reached. Raises RUNTIME_UNAVAILABLE; then nothing is left."""
        name = contained.name_of(spec.instance_id)
        config, wanted = contained.configuration(spec), self._wanted(spec)
        try:
            answer = await self._call("POST", "/containers/create", params={"name": name}, body=wanted)
            if answer.status != 201:
                raise self._refused(answer, "image" if answer.status == 404 else "create")
            await self._start(name, config)
            address = await self._address(name)
        except BaseException:
            await self._discard(name)
            raise
        process = Process(spec.instance_id, address, {"id": answer.body["Id"], "name": name})
        self._instances[spec.instance_id] = process
        return process

    async def _discard(self, name: str) -> None:
        try:
            await self._remove(name)
        except RetinueError:
            return  # the engine is away: the next start removes it, and it ends itself without a configuration

    async def _start(self, name: str, config: bytes) -> None:
        """Start it, attached before it runs, so that no word is lost."""
        writer = await self._attach(name)
        try:
            answer = await self._call("POST", f"/containers/{name}/start")
            if answer.status not in (204, 304):
                raise self._refused(answer, "start")
            async with asyncio.timeout(contained.CALL_TIMEOUT_S):
                writer.write(b"%d\n" % len(config) + config)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError) as error:
            raise unavailable(f"{ENGINE} did not take an instance's configuration.", repr(error)) from None
        finally:
            writer.close()

    async def _attach(self, name: str) -> asyncio.StreamWriter:
        """Take over a connection as the container's standard input."""
        path = f"{self._version}/containers/{name}/attach?stream=1&stdin=1"
        headers = {"Host": "docker", "Connection": "Upgrade", "Upgrade": "tcp", "Content-Length": "0"}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(contained.CALL_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._socket, limit=HEAD_SIZE_MAX_BYTES)
                writer.write("\r\n".join(lines).encode())
                line = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
            if line.split(b" ")[1:2] not in ([b"101"], [b"200"]):
                raise unavailable(f"{ENGINE} could not attach to an instance.", line.decode(errors="replace"))
        except BaseException as error:
            if writer is not None:
                writer.close()
            if isinstance(error, TimeoutError | OSError | EOFError | asyncio.LimitOverrunError):
                raise unavailable(f"{ENGINE} does not answer.", f"attach: {error!r}") from None
            raise
        return writer

    async def _address(self, name: str) -> str:
        """Where the container is reached: its address in the network, or the port published for it."""
        answer = await self._call("GET", f"/containers/{name}/json")
        if answer.status == 404:
            raise unavailable("The instance's container ended at once.")
        settings = answer.body.get("NetworkSettings", {}) if answer.status == 200 else {}
        if self._network:
            found = settings.get("Networks", {}).get(self._network, {})
            if address := found.get("IPAddress") or found.get("GlobalIPv6Address"):
                return contained.joined(address, contained.RELAY_PORT)
        for binding in settings.get("Ports", {}).get(f"{contained.RELAY_PORT}/tcp") or ():
            return contained.joined(binding["HostIp"], int(binding["HostPort"]))
        raise unavailable(f"{ENGINE} does not say where an instance is reached.", answer.message)

    async def is_alive(self, process: Process) -> bool:
        """Whether the container runs. Raises RUNTIME_UNAVAILABLE if the engine does not say."""
        answer = await self._call("GET", f"/containers/{process.detail['id']}/json")
        if answer.status not in (200, 404):
            raise self._refused(answer, "look")
        alive = answer.status == 200 and bool(answer.body.get("State", {}).get("Running"))
        if not alive:
            process.detail["end"] = "its container ended."
        return alive

    async def memory_bytes(self, process: Process) -> int:
        """Memory of the container, without what the kernel can take back; 0 if unknown."""
        try:
            params = {"stream": "false", "one-shot": "true"}
            answer = await self._call("GET", f"/containers/{process.detail['id']}/stats", params=params)
        except RetinueError:
            return 0
        found = answer.body.get("memory_stats") or {}
        numbers = found.get("stats") or {}
        inactive = numbers.get("inactive_file", numbers.get("total_inactive_file", 0))
        return max(0, found.get("usage", 0) - inactive) if answer.status == 200 else 0

    async def end(self, process: Process, grace_s: float) -> None:
        """Stop the container, by force after the grace, and wait until it is gone."""
        one = process.detail["id"]
        grace = contained.whole_seconds(grace_s)
        try:
            params = {"t": str(grace)}
            timeout_s = grace + contained.CALL_TIMEOUT_S
            await self._call("POST", f"/containers/{one}/stop", params=params, timeout_s=timeout_s)
        finally:
            await self._remove(one)
        self._instances.pop(process.instance_id, None)

    async def _remove(self, one: str) -> None:
        """Kill and remove a container, and wait until it is gone. Raises RUNTIME_UNAVAILABLE if it stays."""
        answer = await self._call("DELETE", f"/containers/{one}", params={"force": "true", "v": "true"})
        # 409 says that it is being removed already.
        if answer.status not in (204, 404, 409):
            raise self._refused(answer, "remove")
        end = time.monotonic() + contained.GONE_TIMEOUT_S
        while (await self._call("GET", f"/containers/{one}/json")).status != 404:
            if time.monotonic() > end:
                raise unavailable("The instance's container did not go away.")
            await asyncio.sleep(contained.POLL_S)

    def forget(self) -> list[Process]:
        """Answer the instances and leave them to the next process of this owner."""
        instances = list(self._instances.values())
        self._instances.clear()
        return instances

    async def close(self) -> None:
        """End every instance, and let go of the engine."""
        ends = (self.end(process, contained.CLOSE_GRACE_S) for process in self.forget())
        try:
            # What cannot be ended now ends itself, or is removed by the next process.
            await asyncio.gather(*ends, return_exceptions=True)
        finally:
            if self._api is not None:
                await self._api.close()
                self._api = None


_DEEDS = {
    "image": "make a container",
    "create": "make a container",
    "network": "find its network",
    "list": "list its containers",
    "start": "start a container",
    "look": "look at a container",
    "remove": "remove a container",
}
