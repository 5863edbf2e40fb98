"""The verbs of the directory."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Protocol

from retinue_kit.clock import Clock
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.ids import new_id

from retinue_directory.domain import tokens
from retinue_directory.domain.tenants import DEFAULT_PLAN, DEFAULT_USER, Agent, Settings, Tenant
from retinue_directory.domain.tokens import SigningKey, Token

DEFAULT_PAGE_SIZE = 50

REVOCATIONS_MAX = 100_000
"""Revoked tokens that are remembered at once; at 30 bytes an id the list still fits one gRPC message. More is a leak of
a key rather than of tokens, and answered by rotation."""

JTI_PREFIX = "tok_"


class Store(Protocol):
    """Where the directory is kept. Raises RetinueErrors only."""

    async def add_tenant(self, tenant: Tenant) -> bool:
        """Add a tenant with its agent; False if its name is taken."""
        ...

    async def tenant_id(self, name: str) -> str:
        """Look an id up by name; empty if there is none."""
        ...

    async def tenant(self, tenant_id: str) -> Tenant | None:
        """Read a tenant with its agent."""
        ...

    async def update_tenant(self, tenant_id: str, plan: str, settings: Settings | None) -> None:
        """Change what is given."""
        ...

    async def update_agent(self, tenant_id: str, agent: Agent) -> None:
        """Replace a tenant's agent."""
        ...

    async def tenants(self, after: str, count: int) -> Sequence[Tenant]:
        """Read tenants by name, without their agents."""
        ...

    async def user_id(self, tenant_id: str, name: str, new_user_id: str, now: datetime) -> str:
        """Look a user up by name, made under the new id if missing; TENANT_NOT_FOUND if there is no such tenant."""
        ...

    async def signing_key(self) -> SigningKey | None:
        """Read the key that signs."""
        ...

    async def add_signing_key(self, key: SigningKey, *, replace: bool) -> None:
        """Add a key that signs and retire the one before; without `replace`, only if none signs."""
        ...

    async def keys(self, retired_since: datetime) -> Sequence[SigningKey]:
        """Read the key that signs and those retired since then, newest first; older ones are forgotten."""
        ...

    async def revoke(self, jti: str, expire_time: datetime, now: datetime, count_max: int) -> bool:
        """Remember a revoked token; False if no more than `count_max` can be remembered."""
        ...

    async def revoked(self, now: datetime, count_max: int) -> Sequence[str]:
        """Read revoked tokens that have not expired, newest first; expired ones are forgotten."""
        ...


class Signer(Protocol):
    """Makes and uses keys."""

    def new_key(self, now: datetime) -> SigningKey:
        """Make a key."""
        ...

    def sign(self, key: SigningKey, claims: Mapping[str, str | int]) -> str:
        """Sign claims."""
        ...

    def key_set(self, keys: Iterable[SigningKey]) -> str:
        """Show the public halves as JSON."""
        ...


class Directory:
    """Who exists, and what tokens say of them."""

    def __init__(self, store: Store, signer: Signer, clock: Clock) -> None:
        self._store = store
        self._signer = signer
        self._clock = clock

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now(), UTC)

    async def create_tenant(self, name: str, plan: str) -> Tenant:
        """Make a tenant of this name, or answer the one that is there, as it is."""
        found = await self._store.tenant_id(name)
        if not found:
            agent = Agent(new_id("agt"))
            tenant = Tenant(new_id("ten"), name, plan or DEFAULT_PLAN, self._now(), agent=agent)
            if await self._store.add_tenant(tenant):
                return tenant
            found = await self._store.tenant_id(name)
        return await self.get_tenant(found, "")

    async def get_tenant(self, tenant_id: str, name: str) -> Tenant:
        """Read a tenant by its id or, without one, by its name. Raises TENANT_NOT_FOUND."""
        if not tenant_id and not name:
            raise RetinueError.field("tenant_id", "must be set, or name.")
        tenant_id = tenant_id or await self._store.tenant_id(name)
        tenant = await self._store.tenant(tenant_id) if tenant_id else None
        if tenant is None:
            raise RetinueError(Reason.TENANT_NOT_FOUND, "There is no such tenant.")
        return tenant

    async def update_tenant(
        self, tenant_id: str, plan: str, settings: Settings | None, agent: tuple[str, str, str] | None
    ) -> Tenant:
        """Change what is given; `agent` is its name, persona and model, of which empty ones stay."""
        before = await self.get_tenant(tenant_id, "")
        if plan or settings is not None:
            await self._store.update_tenant(tenant_id, plan, settings)
        if agent is not None and before.agent is not None:
            await self._store.update_agent(tenant_id, before.agent.changed(*agent))
        return await self.get_tenant(tenant_id, "")

    async def list_tenants(self, page_size: int, page_token: str) -> tuple[Sequence[Tenant], str]:
        """Read a page of tenants by name, and the token of the next. Raises CURSOR_INVALID."""
        size = page_size or DEFAULT_PAGE_SIZE
        found = await self._store.tenants(_decode(page_token), size + 1)
        page = found[:size]
        return page, _encode(page[-1].name) if len(found) > size else ""

    async def issue_token(self, tenant_id: str, user: str, scopes: Sequence[str], ttl_s: float | None) -> Token:
        """Sign a token for a user, who is made if missing. Raises TENANT_NOT_FOUND, FIELD_INVALID."""
        now = self._now()
        name = tokens.user_name(user, DEFAULT_USER)
        user_id = await self._store.user_id(tenant_id, name, new_id("usr"), now)
        claims = tokens.claims(
            tenant_id=tenant_id,
            user_id=user_id,
            scopes=scopes,
            now=now,
            ttl_s=tokens.DEFAULT_TTL_S if ttl_s is None else ttl_s,
            jti=new_id(JTI_PREFIX.rstrip("_")),
        )
        text = self._signer.sign(await self._signing_key(), claims)
        return Token(text, str(claims["jti"]), datetime.fromtimestamp(int(claims["exp"]), UTC))

    async def revoke_token(self, jti: str, expire_time: datetime | None) -> None:
        """Have a token refused from now on. Raises FIELD_INVALID for what is no id of ours, QUOTA_EXCEEDED."""
        if not (jti.startswith(JTI_PREFIX) and jti.isascii() and jti.isprintable()):
            raise RetinueError.field("jti", "must be the id of a token.")
        now = self._now()
        if not await self._store.revoke(jti, tokens.revoked_until(expire_time, now), now, REVOCATIONS_MAX):
            raise RetinueError(
                Reason.QUOTA_EXCEEDED, f"{REVOCATIONS_MAX} tokens are revoked already; rotate the signing key instead."
            )

    async def list_revocations(self) -> Sequence[str]:
        """Read revoked tokens that have not expired, newest first."""
        return await self._store.revoked(self._now(), REVOCATIONS_MAX)

    async def key_set(self) -> str:
        """Show the public keys of all tokens that may be valid."""
        await self._signing_key()
        return self._signer.key_set(await self._store.keys(tokens.retired_since(self._now())))

    async def rotate_signing_key(self) -> str:
        """Have a new key sign from now on; answers its id."""
        key = self._signer.new_key(self._now())
        await self._store.add_signing_key(key, replace=True)
        return key.kid

    async def _signing_key(self) -> SigningKey:
        """Read the key that signs; the first to ask makes it."""
        key = await self._store.signing_key()
        if key is None:
            await self._store.add_signing_key(self._signer.new_key(self._now()), replace=False)
            key = await self._store.signing_key()
        assert key is not None, "a key was added, and keys are replaced but never removed while they sign"
        return key


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _decode(page_token: str) -> str:
    try:
        return base64.b64decode(page_token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise RetinueError(Reason.CURSOR_INVALID, "page_token is not one that was given out.") from None
