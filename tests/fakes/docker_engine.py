"""A Docker engine as far as the adapter uses one: the HTTP API on a Unix socket, versions 1.41 and later.

It knows the fields of that API and refuses others, as a typing error in one would pass unnoticed with a real engine.
Its containers are pretended; they begin once their standard input has told them their configuration.
"""

import asyncio
import json
import random
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pretend_instance import PretendInstance

CONFIG_FIELDS = {
    *{"Hostname", "Domainname", "User", "AttachStdin", "AttachStdout", "AttachStderr", "ExposedPorts", "Tty"},
    *{"OpenStdin", "StdinOnce", "Env", "Cmd", "Healthcheck", "Image", "Volumes", "WorkingDir", "Entrypoint"},
    *{"NetworkDisabled", "Labels", "StopSignal", "StopTimeout", "Shell", "HostConfig", "NetworkingConfig"},
}
HOST_FIELDS = {
    *{"Binds", "LogConfig", "NetworkMode", "PortBindings", "RestartPolicy", "AutoRemove", "CapAdd", "CapDrop", "Dns"},
    *{"CgroupnsMode", "ExtraHosts", "GroupAdd", "IpcMode", "OomScoreAdj", "PidMode", "Privileged", "ReadonlyRootfs"},
    *{"SecurityOpt", "Tmpfs", "UTSMode", "UsernsMode", "ShmSize", "Sysctls", "Runtime", "Memory", "NanoCpus"},
    *{"MemoryReservation", "MemorySwap", "PidsLimit", "Ulimits", "Mounts", "Init", "CpuShares"},
}
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
NETWORK_ADDRESS = "127.77.{}.{}"
"""What a container's address in a network is here; all of 127.0.0.0/8 can be listened at."""


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Container:
    """A container."""

    id: str
    name: str
    wanted: dict[str, Any]
    created: float
    status: str = "created"
    instance: PretendInstance = field(default_factory=PretendInstance)
    stdin: asyncio.Future[asyncio.StreamReader] = field(default_factory=asyncio.Future)
    told: "asyncio.Task[None] | None" = None
    address: str = ""
    port: int = 0
    listener: socket.socket | None = None

    @property
    def labels(self) -> dict[str, str]:
        return self.wanted.get("Labels", {})


class DockerEngine:
    """The engine; `socket` is where it listens. What a test may turn is below."""

    def __init__(self, path: Path) -> None:
        self.socket = path
        self.images = {"retinue/openclaw:test"}
        self.networks = {"instances"}
        self.version = "1.44"
        self.containers: dict[str, Container] = {}
        self.failing: dict[str, tuple[int, str]] = {}
        """Answers to force, by method and the path's last word: `{"POST start": (500, "no room")}`."""
        self.hanging: set[str] = set()
        """What is never answered, named in the same way."""
        self.asked: list[str] = []
        self.stubborn = False
        self.taking: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._serve, self.socket)

    async def stop(self) -> None:
        """End, with all containers and connections."""
        for container in list(self.containers.values()):
            await self._gone(container)
        if self._server is not None:
            self._server.close()
            self.socket.unlink(missing_ok=True)
        for task in list(self.taking):
            task.cancel()
        await asyncio.gather(*self.taking, return_exceptions=True)

    def instances(self) -> set[str]:
        """List the instances that there are."""
        return {container.labels.get("retinue.instance", "") for container in self.containers.values()}

    async def kill(self, instance_id: str) -> None:
        """Let a container's process die."""
        await self._end(next(c for c in self.containers.values() if c.labels["retinue.instance"] == instance_id))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.taking.add(task)
        with suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        self.taking.discard(task)
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a request and answer it; False once the connection is no longer one of requests."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        url = urlsplit(target)
        path = re.sub(r"^/v[\d.]+", "", unquote(url.path))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        deed = f"{method} {path.rsplit('/', 1)[-1] if path.count('/') > 1 else path[1:]}"
        self.asked.append(f"{method} {target}")
        status, value = 0, None
        try:
            if not re.match(r"/v1\.\d+/", url.path) and path != "/version":
                raise Refused(400, "the version is missing")
            if deed in self.hanging:
                await asyncio.Event().wait()
            if deed in self.failing:
                raise Refused(*self.failing[deed])
            if path.endswith("/attach"):
                await self._attach(path.split("/")[2], query, headers, reader, writer)
                return False
            status, value = await self._answer(method, path, query, json.loads(body) if body else {})
        except Refused as refused:
            status, value = refused.status, {"message": str(refused)}
        text = b"" if value is None else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\n"
        length = "" if status in (204, 304) else f"Content-Length: {len(text)}\r\n"
        writer.write(f"{head}{length}\r\n".encode() + text)
        await writer.drain()
        return True

    async def _answer(self, method: str, path: str, query: dict, body: dict) -> tuple[int, Any]:
        kind, _, rest = path[1:].partition("/")
        if kind == "version":
            return 200, {"ApiVersion": self.version, "MinAPIVersion": "1.24", "Version": "25.0.0"}
        if kind == "images":
            return self._known(self.images, rest.removesuffix("/json"), "No such image: {}")
        if kind == "networks":
            return self._known(self.networks, rest, "network {} not found")
        if rest == "json":
            return 200, self._list(query)
        if rest == "create":
            return 201, self._create(query["name"], body)
        name, _, deed = rest.partition("/")
        return await getattr(self, f"_{method.lower()}_{deed or 'container'}")(self._find(name), query)

    def _known(self, known: set[str], name: str, otherwise: str) -> tuple[int, Any]:
        if name not in known:
            raise Refused(404, otherwise.format(name))
        return 200, {"Id": name}

    def _find(self, name: str) -> Container:
        for container in self.containers.values():
            if name in (container.id, container.name):
                return container
        raise Refused(404, f"No such container: {name}")

    def _list(self, query: dict) -> list[dict]:
        filters = json.loads(query.get("filters", "{}"))
        assert set(filters) <= {"label", "status"}
        found = [
            {"Id": c.id, "Names": [f"/{c.name}"], "Created": int(c.created), "State": c.status, "Labels": c.labels}
            for c in sorted(self.containers.values(), key=lambda c: -c.created)
            if (query.get("all") == "true" or c.status == "running")
            and c.status in filters.get("status", [c.status])
            and all(
                name in c.labels and value in ("", c.labels[name])
                for name, _, value in (label.partition("=") for label in filters.get("label", ()))
            )
        ]
        return found[: int(query.get("limit", len(found)))]

    def _create(self, name: str, wanted: dict) -> dict:
        host = wanted.get("HostConfig", {})
        if unknown := (set(wanted) - CONFIG_FIELDS) | (set(host) - HOST_FIELDS):
            raise Refused(400, f"unknown fields {unknown}")
        if not NAME.fullmatch(name):
            raise Refused(400, f"Invalid container name ({name})")
        if wanted["Image"] not in self.images:
            raise Refused(404, f"No such image: {wanted['Image']}")
        if any(c.name == name for c in self.containers.values()):
            raise Refused(409, f'Conflict. The container name "/{name}" is already in use')
        made = Container(f"{random.getrandbits(256):064x}", name, wanted, time.time())
        made.instance.stubborn = self.stubborn
        self.containers[made.id] = made
        return {"Id": made.id, "Warnings": []}

    async def _attach(
        self, name: str, query: dict, headers: dict, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        container = self._find(name)
        assert (query["stream"], query["stdin"], headers["upgrade"]) == ("1", "1", "tcp")
        if not container.wanted.get("OpenStdin"):
            raise Refused(400, "stdin is not open")
        writer.write(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        container.stdin.set_result(reader)
        # With StdinOnce, an engine lets go of the connection when the container ends.
        while container.id in self.containers and not reader.at_eof():
            await asyncio.sleep(0.01)

    async def _post_start(self, container: Container, _query: dict) -> tuple[int, Any]:
        if container.status == "running":
            return 304, None
        container.status = "running"
        network = container.wanted["HostConfig"].get("NetworkMode", "bridge")
        if network == "bridge":
            container.address, port = "127.0.0.1", 0
        else:
            container.address = NETWORK_ADDRESS.format(random.randrange(1, 255), random.randrange(1, 255))
            port = self._inside(container)
        # The engine's own proxy has the port before anything in the container listens.
        container.listener = socket.create_server((container.address, port))
        container.port = container.listener.getsockname()[1]
        container.told = asyncio.create_task(self._tell(container))
        return 204, None

    def _inside(self, container: Container) -> int:
        return int(next(iter(container.wanted["ExposedPorts"])).removesuffix("/tcp"))

    async def _tell(self, container: Container) -> None:
        """Be entry.mjs: read a length and as many bytes."""
        reader = await container.stdin
        length = int(await reader.readuntil(b"\n"))
        assert container.listener is not None
        await container.instance.begin(await reader.readexactly(length), container.listener)

    async def _get_json(self, container: Container, _query: dict) -> tuple[int, Any]:
        network = container.wanted["HostConfig"].get("NetworkMode", "bridge")
        running = container.status == "running"
        ports: dict[str, Any] = {}
        if network == "bridge" and running:
            port = str(container.port)
            ports = {key: [{**value[0], "HostPort": port}] for key, value in self._bindings(container).items()}
        networks = {network: {"IPAddress": container.address if running else ""}}
        return 200, {
            "Id": container.id,
            "State": {"Status": container.status, "Running": running},
            "Config": {"Env": container.wanted.get("Env"), "Labels": container.labels},
            "NetworkSettings": {"Ports": ports, "Networks": networks},
        }

    def _bindings(self, container: Container) -> dict[str, list[dict]]:
        return container.wanted["HostConfig"].get("PortBindings", {})

    async def _get_stats(self, container: Container, query: dict) -> tuple[int, Any]:
        assert query == {"stream": "false", "one-shot": "true"}
        if container.status != "running":
            return 200, {"memory_stats": {}}
        return 200, {"memory_stats": {"usage": 900 << 20, "stats": {"inactive_file": 100 << 20}}}

    async def _post_stop(self, container: Container, query: dict) -> tuple[int, Any]:
        if container.status != "running":
            return 304, None
        if container.instance.stubborn:
            await asyncio.sleep(int(query["t"]))
        await self._end(container)
        return 204, None

    async def _delete_container(self, container: Container, query: dict) -> tuple[int, Any]:
        if container.status == "running" and query.get("force") != "true":
            raise Refused(409, "You cannot remove a running container")
        await self._gone(container)
        return 204, None

    async def _end(self, container: Container) -> None:
        """A container's process has ended."""
        container.status = "exited"
        await container.instance.end()
        if container.wanted["HostConfig"].get("AutoRemove"):
            await self._gone(container)

    async def _gone(self, container: Container) -> None:
        if container.told is not None:
            container.told.cancel()
            await asyncio.gather(container.told, return_exceptions=True)
        await container.instance.end()
        if container.listener is not None:
            container.listener.close()
        self.containers.pop(container.id, None)
