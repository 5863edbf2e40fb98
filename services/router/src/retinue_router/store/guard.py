"""Errors of the database as typed ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import asyncpg
from retinue_kit import postgres
from retinue_kit.errors import Reason, RetinueError

Row = Mapping[str, Any]
"""A row by the names of its columns; jsonb as text."""


@contextmanager
def guarding() -> Iterator[None]:
    """Turn every error of the driver into a RetinueError."""
    try:
        with postgres.translating():
            yield
    except (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError) as error:
        raise RetinueError.field("request", "must not hold the character U+0000") from error
    except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError) as error:
        raise RetinueError.unavailable("postgres", private=f"lost a race: {error}") from error
    except asyncpg.PostgresError as error:
        private = f"{type(error).__name__}: {error}"
        raise RetinueError(Reason.INTERNAL, "Something went wrong inside.", private=private) from error


async def require_read_committed(pool: "asyncpg.Pool") -> None:
    """Refuse a database that is set to another isolation: the functions look again in later statements of theirs."""
    with guarding():
        level = await pool.fetchval("show default_transaction_isolation")
    if level != "read committed":
        raise RetinueError(Reason.INTERNAL, f"The database's default isolation must be read committed, not {level}.")
