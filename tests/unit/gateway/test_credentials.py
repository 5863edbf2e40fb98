"""Who calls, and whether they may."""

from typing import Any

import pytest
from retinue.directory.v1.directory_service_pb2 import ListRevocationsResponse
from retinue_gateway.credentials import Credentials, check_scope, read_caller, scope_of
from retinue_kit.errors import Reason, RetinueError


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


class Nobody:
    """A directory that has revoked one token."""

    channel: Any = None

    def __init__(self) -> None:
        self.channel = self

    async def call(self, *_: object, **__: object) -> ListRevocationsResponse:
        return ListRevocationsResponse(jtis=["tok_revoked"])

    def unary_unary(self, *_: object, **__: object) -> None:
        return None


HEADERS = {
    "x-retinue-tenant": "ten_a",
    "x-retinue-principal": "usr_1",
    "x-retinue-scope": "chat x",
    "x-retinue-exp": "2000",
}


def test_a_caller_is_read_from_the_headers_of_a_verified_token() -> None:
    caller = read_caller({**HEADERS, "x-retinue-jti": "j"})
    assert (caller.tenant_id, caller.principal, caller.jti, caller.expire_time) == ("ten_a", "usr_1", "j", 2000)


def test_without_a_tenant_nobody_calls() -> None:
    with pytest.raises(RetinueError) as raised:
        read_caller({"x-retinue-principal": "usr_1"})
    assert raised.value.reason is Reason.CREDENTIAL_MISSING


@pytest.mark.parametrize(
    ("scopes", "may"), [("chat", True), ("admin", True), ("a chat b", True), ("", False), ("chats", False)]
)
def test_scopes_open_what_they_name_and_admin_everything(scopes: str, may: bool) -> None:
    caller = read_caller({**HEADERS, "x-retinue-scope": scopes})
    if may:
        check_scope(caller)
        return
    with pytest.raises(RetinueError) as raised:
        check_scope(caller)
    assert raised.value.metadata == {"scope": "chat"}


@pytest.mark.parametrize(
    ("method", "scope"),
    [
        ("EdgeService/SendMessage", "chat"),
        ("WebhookService/ListWebhooks", "admin"),
        ("DeadLetterService/DropDeadLetter", "admin"),
        ("InstanceService/ListInstances", "admin"),
        ("InstanceService/GetInstanceStatus", "chat"),
        ("InstanceService/CreateInstance", "chat"),
        ("InstanceService/DeleteInstance", "chat"),
        ("InstanceService/GetChatUrl", "chat"),
        ("ToolService/ExplainTools", "chat"),
        ("ToolService/DeleteAllowance", "chat"),
    ],
)
def test_what_serves_operators_needs_more_than_talking_does(method: str, scope: str) -> None:
    assert scope_of(f"/retinue.edge.v1.{method}") == scope


async def test_nobody_is_admitted_before_the_revoked_tokens_were_read() -> None:
    credentials = Credentials(Nobody(), Clock())  # type: ignore[arg-type]
    with pytest.raises(RetinueError) as raised:
        credentials.admit(HEADERS)
    assert raised.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    await credentials.refresh()
    assert credentials.admit(HEADERS).tenant_id == "ten_a"
    with pytest.raises(RetinueError) as raised:
        credentials.admit({**HEADERS, "x-retinue-jti": "tok_revoked"})
    assert raised.value.reason is Reason.CREDENTIAL_INVALID


async def test_a_token_counts_until_it_expires() -> None:
    clock = Clock()
    credentials = Credentials(Nobody(), clock)  # type: ignore[arg-type]
    await credentials.refresh()
    caller = credentials.admit(HEADERS)
    clock.time = 1999.9
    assert credentials.trouble(caller) is None
    clock.time = 2000.0
    trouble = credentials.trouble(caller)
    assert trouble is not None
    assert trouble.reason is Reason.CREDENTIAL_EXPIRED
    with pytest.raises(RetinueError):
        credentials.admit({**HEADERS, "x-retinue-exp": "soon"})


async def test_a_process_that_starts_asks_until_the_directory_answers() -> None:
    class Starting(Nobody):
        tries = 0

        async def call(self, *_: object, **__: object) -> ListRevocationsResponse:
            self.tries += 1
            if self.tries < 3:
                raise RetinueError.unavailable("directory", private="not there yet")
            return await super().call()

    directory: Any = Starting()
    credentials = Credentials(directory, Clock())
    await credentials.learn()
    assert directory.tries == 3
    assert credentials.admit(HEADERS).tenant_id == "ten_a"
