"""What is remembered of tenants and their contacts."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg
import msgspec
from retinue_kit import postgres

from retinue_router.domain.facts import FACTS_MAX, Vector
from retinue_router.store.bounds import bounded, page_of
from retinue_router.store.guard import Row, guarding

_COLUMNS = "f.fact_id, f.contact, f.domain, f.kind, f.importance, f.text, f.digest, f.run_id, f.create_time"
LIST = (
    f"select {_COLUMNS} from facts f where f.tenant_id = $1 and f.contact = $2"  # noqa: S608
    " and ($3 = 0 or (f.importance, f.fact_id) < ($3, $4))"
    " order by f.importance desc, f.fact_id desc limit $5"
)
# Every fact of a contact is looked at: there are a thousand at most, and behind the wall an index on their parts would
# not be used, since its operator might tell what it compares.
SEARCH = (
    f"select {_COLUMNS}, fits_1(f.grams, $2, f.embedding_model = $3, f.embedding, $4) as weight from facts f"  # noqa: S608
    " where f.tenant_id = $1 and f.contact = any (array['', $5])"
)
_FORGET = (
    "delete from facts f where f.tenant_id = $1 and f.fact_id = $2 and ($3 = '' or f.contact = $3) returning f.contact"
)
_RUN = "select r.run_id from runs r where r.tenant_id = $1 and r.run_id = $2"
_REMEMBER = f"select {_COLUMNS} from remember_2($1, $2, $3, $4, $5) f"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Fresh:
    """A fact to be written; the id is used if its text is not remembered yet."""

    fact_id: str
    domain: str
    kind: str
    importance: int
    text: str
    digest: bytes
    grams: Sequence[int]
    vector: Vector


def _best() -> str:
    return (
        f"select q.*, q.weight * (0.9 + q.importance * 0.01) as score from ({SEARCH}) q"  # noqa: S608
        " where q.weight >= $6 order by score desc, q.fact_id desc limit $7"
    )


class FactStore:
    """Facts of tenants, behind the wall."""

    def __init__(self, pool: "asyncpg.Pool") -> None:
        self._pool = pool

    async def remember(self, tenant_id: str, contact: str, run_id: str, facts: Sequence[Fresh]) -> dict[bytes, Row]:
        """Write facts, or none if there is no room for all; answers them as they are kept, by digest."""
        rows = [
            {
                "fact_id": fact.fact_id,
                "domain": fact.domain,
                "kind": fact.kind,
                "importance": fact.importance,
                "text": fact.text,
                "digest": fact.digest.hex(),
                "grams": fact.grams,
                "model": fact.vector.model,
                "vector": fact.vector.written(),
            }
            for fact in facts
        ]
        with guarding():
            written = await self._pool.fetch(
                _REMEMBER, tenant_id, contact, run_id, msgspec.json.encode(rows).decode(), FACTS_MAX
            )
        return {row["digest"]: row for row in written}

    async def search(
        self, tenant_id: str, contact: str, grams: Sequence[int], vector: Vector, score_min: float, limit: int
    ) -> list[Row]:
        """Find facts of a contact and of its tenant, best first, each with its score."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                return list(
                    await connection.fetch(
                        _best(), tenant_id, list(grams), vector.model, vector.written(), contact, score_min, limit
                    )
                )

    async def page(
        self, tenant_id: str, contact: str, after: tuple[int, str] | None, limit: int
    ) -> tuple[list[Row], bool]:
        """List facts by importance and then the newest first, and whether there are more."""
        importance, fact_id = after or (0, "")
        query = bounded(LIST, "octet_length(p.text)", "importance desc, fact_id desc")
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                rows = await connection.fetch(query, tenant_id, contact, importance, fact_id, limit + 1)
        return page_of(rows, limit)

    async def most_important(self, tenant_id: str, contact: str, limit: int) -> list[Row]:
        """List so many facts, the most important and then the newest first."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                return list(await connection.fetch(LIST, tenant_id, contact, 0, "", limit))

    async def is_gone(self, tenant_id: str, run_id: str) -> bool:
        """Whether there is no such run any more."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                return await connection.fetchval(_RUN, tenant_id, run_id) is None

    async def forget(self, tenant_id: str, fact_id: str, contact: str) -> str | None:
        """Remove a fact, of this contact where one is named; answers whose it was, None if there is no such fact."""
        with guarding():
            async with postgres.as_tenant(self._pool, tenant_id) as connection:
                found: str | None = await connection.fetchval(_FORGET, tenant_id, fact_id, contact)
        return found
