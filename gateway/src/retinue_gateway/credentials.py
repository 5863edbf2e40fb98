"""Who calls, and whether they still may: read from what Envoy took out of a verified token."""

import asyncio
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog
from retinue.directory.v1 import directory_service_pb2, directory_service_pb2_grpc
from retinue_kit import tenancy
from retinue_kit.client import Peer
from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError

JTI_KEY = "x-retinue-jti"
EXPIRE_KEY = "x-retinue-exp"

REFRESH_S = 2.0
"""How often revoked tokens are asked for: with one missed answer, a revocation takes effect within 5 s."""

LEARN_TIMEOUT_S = 2.0
LEARN_PAUSE_S = 0.05
"""How long, and how often, a process that starts asks for them: the directory may be starting beside it."""

SCOPE_CHAT = "chat"
SCOPE_ADMIN = "admin"
"""Counts for everything."""

_OPERATORS_METHODS = (
    "/retinue.edge.v1.DeadLetterService/",
    "/retinue.edge.v1.WebhookService/",
    "/retinue.edge.v1.InstanceService/ListInstances",
)
"""What their names begin with: whole services, or one method."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """Someone with a verified token."""

    identity: tenancy.Identity
    jti: str
    expire_time: float
    """Seconds since the epoch; infinity if the token does not say."""

    @property
    def tenant_id(self) -> str:
        return self.identity.tenant_id

    @property
    def principal(self) -> str:
        return self.identity.principal


def read_caller(metadata: Mapping[str, str]) -> Caller:
    """Read who calls. Raises RetinueError(CREDENTIAL_MISSING or CREDENTIAL_INVALID)."""
    identity = tenancy.from_metadata(metadata)
    if not identity.tenant_id:
        raise RetinueError(Reason.CREDENTIAL_MISSING, "A bearer token is needed.")
    try:
        expire_time = float(metadata.get(EXPIRE_KEY) or math.inf)
    except ValueError:
        raise RetinueError(Reason.CREDENTIAL_INVALID, "The token is not valid.") from None
    return Caller(identity, metadata.get(JTI_KEY, ""), expire_time)


def check_scope(caller: Caller, scope: str = SCOPE_CHAT) -> None:
    """Raise RetinueError(SCOPE_MISSING) unless the token has a scope, or the one that counts for everything."""
    if not caller.identity.scopes & {scope, SCOPE_ADMIN}:
        raise RetinueError(Reason.SCOPE_MISSING, f"The token lacks the scope {scope}.", scope=scope)


def scope_of(method: str) -> str:
    """Name the scope that a method of the public API asks for: what serves operators needs more than talking does."""
    return SCOPE_ADMIN if method.startswith(_OPERATORS_METHODS) else SCOPE_CHAT


class Credentials:
    """Knows revoked tokens; what was known last holds while the directory is away."""

    def __init__(self, directory: Peer, clock: Clock) -> None:
        self._directory = directory
        self._stub = directory_service_pb2_grpc.DirectoryServiceStub(directory.channel)
        self._clock = clock
        self._revoked: frozenset[str] | None = None

    def admit(self, metadata: Mapping[str, str]) -> Caller:
        """Read who calls and check that they may. Raises RetinueError(CREDENTIAL_… or SCOPE_MISSING)."""
        caller = read_caller(metadata)
        trouble = self.trouble(caller)
        if trouble is not None:
            raise trouble
        check_scope(caller)
        return caller

    def trouble(self, caller: Caller) -> RetinueError | None:
        """Say why a token counts no longer; None if it does."""
        if self._revoked is None:  # just started, and the directory is away: nobody knows whom to refuse
            return RetinueError.unavailable("directory", private="the revoked tokens were never read")
        if caller.jti in self._revoked:
            return RetinueError(Reason.CREDENTIAL_INVALID, "The token was revoked.")
        if caller.expire_time <= self._clock.now():
            return RetinueError(Reason.CREDENTIAL_EXPIRED, "The token has expired.")
        return None

    async def refresh(self) -> None:
        """Ask for the revoked tokens; keeps what it knows if nobody answers."""
        request = directory_service_pb2.ListRevocationsRequest()
        try:
            answer = await self._directory.call(self._stub.ListRevocations, request, timeout_s=REFRESH_S)
        except RetinueError as error:
            log.warning("revocations not read", detail=error.private)
        else:
            self._revoked = frozenset(answer.jtis)

    async def learn(self) -> None:
        """Ask until the revoked tokens are known, for a while; until then nobody is admitted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEARN_TIMEOUT_S):
                await self.refresh()
                while self._revoked is None:
                    await asyncio.sleep(LEARN_PAUSE_S)
                    await self.refresh()

    async def refresh_for_ever(self) -> None:
        """Keep the revoked tokens fresh."""
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_S)
