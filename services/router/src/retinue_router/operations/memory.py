"""Memory: facts of a tenant and of its contacts, remembered, found again and forgotten."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog
from retinue_kit import ids
from retinue_kit.errors import Reason, RetinueError

from retinue_router.domain import facts, pages
from retinue_router.domain.contacts import check_name
from retinue_router.domain.facts import Vector
from retinue_router.memory_projection import MemoryProjector
from retinue_router.store.facts import FactStore, Fresh
from retinue_router.store.guard import Row

PAGE = "f"

SCORE_MIN = 0.15
"""What fits a query less is not an answer to it: a third of a word in common, of two words."""

FOUND_DEFAULT = 10

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Embedder(Protocol):
    """Turns texts into vectors of one model."""

    async def embed(self, tenant_id: str, texts: Sequence[str]) -> list[Vector]:
        """One for each text, in order. Raises RetinueError."""
        ...


class LexicalEmbedder:
    """Without a model: texts that share parts of words are near one another."""

    async def embed(self, tenant_id: str, texts: Sequence[str]) -> list[Vector]:
        """One for each text, in order."""
        return await asyncio.to_thread(_lexical, texts)


class Memory:
    """What is remembered of tenants and their contacts."""

    def __init__(self, store: FactStore, embedder: Embedder, projector: MemoryProjector) -> None:
        self._store = store
        self._embedder = embedder
        self._projector = projector

    async def remember(self, tenant_id: str, contact: str, run_id: str, wanted: Sequence[Fresh]) -> list[Row]:
        """Remember facts in one transaction; answers each as it is kept.

        Raises QUOTA_EXCEEDED, and RUN_NOT_FOUND where the run was deleted with its contact.
        """
        if contact:
            check_name(contact)
        kept = await self._store.remember(tenant_id, contact, run_id, wanted)
        if not kept and run_id and await self._store.is_gone(tenant_id, run_id):
            raise RetinueError(Reason.RUN_NOT_FOUND, "There is no such run.")
        if not kept:
            raise RetinueError(
                Reason.QUOTA_EXCEEDED,
                f"No more than {facts.FACTS_MAX} facts are remembered of one contact; forget some first.",
            )
        self._projector.project(tenant_id, contact)
        return [kept[fact.digest] for fact in wanted]

    async def fresh(self, tenant_id: str, wanted: Sequence[tuple[str, str, int, str]]) -> list[Fresh]:
        """Make facts to be remembered of domain, kind, importance and text; vectors as well as can be had now."""
        texts = [" ".join(text.split()) for _, _, _, text in wanted]
        vectors = await self._vectors(tenant_id, texts)
        # A hundred long facts are half a second's work, beside the loop.
        return await asyncio.to_thread(_fresh, wanted, texts, vectors)

    async def search(self, tenant_id: str, contact: str, query: str, limit: int) -> list[Row]:
        """Find facts of a contact and of its tenant, best first."""
        wanted = facts.grams(query, facts.QUERY_GRAMS_MAX)
        if not wanted:
            return []
        (vector,) = await self._vectors(tenant_id, [query])
        return await self._store.search(tenant_id, contact, wanted, vector, SCORE_MIN, limit or FOUND_DEFAULT)

    async def _vectors(self, tenant_id: str, texts: Sequence[str]) -> list[Vector]:
        try:
            return await self._embedder.embed(tenant_id, texts)
        except RetinueError as error:
            # Words are enough to remember and to find; what was kept so is not compared with a model's vectors.
            log.info("no vectors from a model", reason=str(error.reason), detail=error.private or error.message)
            return await asyncio.to_thread(_lexical, texts)

    async def page(self, tenant_id: str, contact: str, page_size: int, page_token: str) -> tuple[list[Row], str]:
        """List facts by importance; answers the page and the token of the next one. Raises CURSOR_INVALID."""
        last = pages.read(PAGE, page_token)
        after = None
        if last:
            importance, _, fact_id = last.partition(".")
            if importance not in {str(number) for number in range(1, 11)} or not fact_id:
                raise pages.invalid()
            after = int(importance), fact_id
        rows, more = await self._store.page(tenant_id, contact, after, pages.size_of(page_size))
        return rows, pages.write(PAGE, f"{rows[-1]['importance']}.{rows[-1]['fact_id']}") if more else ""

    async def forget(self, tenant_id: str, fact_id: str, contact: str) -> None:
        """Forget a fact. Raises FACT_NOT_FOUND."""
        whose = await self._store.forget(tenant_id, fact_id, contact)
        if whose is None:
            raise RetinueError(Reason.FACT_NOT_FOUND, "There is no such fact.")
        self._projector.project(tenant_id, whose)


def _fresh(wanted: Sequence[tuple[str, str, int, str]], texts: Sequence[str], vectors: Sequence[Vector]) -> list[Fresh]:
    return [
        Fresh(
            ids.new_id(facts.FACT),
            domain or facts.DOMAIN_DEFAULT,
            kind or facts.KIND_DEFAULT,
            importance or facts.IMPORTANCE_DEFAULT,
            text,
            facts.digest(text),
            facts.grams(text),
            vector,
        )
        for (domain, kind, importance, _), text, vector in zip(wanted, texts, vectors, strict=True)
    ]


def _lexical(texts: Sequence[str]) -> list[Vector]:
    return [facts.lexical(text) for text in texts]
