"""Trouble with the database is one error."""

import asyncpg
import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.postgres import translating


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
        asyncpg.AdminShutdownError("terminating connection due to administrator command"),
        asyncpg.DeadlockDetectedError("deadlock detected"),
        asyncpg.SerializationError("could not serialize access"),
        asyncpg.DiskFullError("could not extend file"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction"),
        asyncpg.IdleInTransactionSessionTimeoutError("terminating connection due to idle-in-transaction timeout"),
        asyncpg.TransactionTimeoutError("terminating connection due to transaction timeout"),
        ConnectionResetError(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_another_try_may_mend_is_told_as_unavailable(error):
    with pytest.raises(RetinueError) as told, translating():
        raise error
    assert told.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert str(error) not in told.value.message or not str(error)


def test_a_statement_that_is_wrong_is_not():
    with pytest.raises(asyncpg.UniqueViolationError), translating():
        raise asyncpg.UniqueViolationError("duplicate key")
