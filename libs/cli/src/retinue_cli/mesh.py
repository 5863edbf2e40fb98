"""Calls into the mesh by its unix sockets, for whoever may read the state folder: no token needed."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_status import rpc_status
from retinue.directory.v1 import directory_service_pb2 as directory
from retinue.directory.v1 import directory_service_pb2_grpc as directory_grpc
from retinue.policy.v1 import policy_service_pb2 as policy
from retinue.policy.v1 import policy_service_pb2_grpc as policy_grpc
from retinue.router.v1 import dead_letter_service_pb2 as dead_letters
from retinue.router.v1 import dead_letter_service_pb2_grpc as dead_letters_grpc
from retinue.router.v1 import load_pb2, run_pb2
from retinue.router.v1 import router_service_pb2 as router
from retinue.router.v1 import router_service_pb2_grpc as router_grpc
from retinue.router.v1 import schedule_service_pb2 as schedules
from retinue.router.v1 import schedule_service_pb2_grpc as schedules_grpc
from retinue.router.v1 import webhook_service_pb2 as webhooks
from retinue.router.v1 import webhook_service_pb2_grpc as webhooks_grpc
from retinue.runtime_adapter.v1 import instance_service_pb2 as instances
from retinue.runtime_adapter.v1 import instance_service_pb2_grpc as instances_grpc

from retinue_cli.failures import CommandError
from retinue_cli.state import State
from retinue_cli.tokens import claims

R = TypeVar("R")

PAGE_SIZE = 200
"""The most that one call answers with, by contract."""

ASKED = ("directory", "policy", "portability", "router", "runtime-adapter", "sandbox")
"""The services that are called."""

OPERATOR = "operator"
"""Who asks, where the command does: whoever may read the state folder."""

CALL_TIMEOUT_S = 10.0
"""A person waits; the mesh itself answers in milliseconds, or says that something is away."""

CALL_TRIES_MAX = 3
"""How often what may be repeated is asked where there is no answer: a service that is restarted is back by then."""


class NotFoundError(CommandError):
    """What was named is not there."""


class UntoldError(CommandError):
    """There was no answer; what was asked may have been done."""


KINDS = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAVAILABLE: UntoldError,
    grpc.StatusCode.DEADLINE_EXCEEDED: UntoldError,
}


class Mesh:
    """A running mesh. Use it with `with`."""

    def __init__(self, state: State) -> None:
        state.require()
        self._channels = {name: self._connect(state.paths.address(name), name) for name in ASKED}
        # The stubs are typed for asyncio alone; a command makes one call after another.
        directory_channel: Any = self._channels["directory"]
        router_channel: Any = self._channels["router"]
        self._directory: Any = directory_grpc.DirectoryServiceStub(directory_channel)
        self._router: Any = router_grpc.RouterServiceStub(router_channel)
        self._dead_letters: Any = dead_letters_grpc.DeadLetterServiceStub(router_channel)
        self._webhooks: Any = webhooks_grpc.WebhookServiceStub(router_channel)
        self._schedules: Any = schedules_grpc.ScheduleServiceStub(router_channel)
        policy_channel: Any = self._channels["policy"]
        self._policy: Any = policy_grpc.PolicyServiceStub(policy_channel)
        adapter_channel: Any = self._channels["runtime-adapter"]
        self._instances: Any = instances_grpc.InstanceServiceStub(adapter_channel)

    @staticmethod
    def _connect(address: str, name: str) -> grpc.Channel:
        return grpc.insecure_channel(address, options=[("grpc.default_authority", name), ("grpc.enable_http_proxy", 0)])

    def channel(self, name: str) -> grpc.Channel:
        """Find the channel to a service, for calls that are not made here."""
        return self._channels[name]

    def __enter__(self) -> "Mesh":
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()

    def make_tenant(self, name: str) -> directory.Tenant:
        """Find a tenant by name, or make it."""
        answer: directory.CreateTenantResponse = call(
            self._directory.CreateTenant, directory.CreateTenantRequest(name=name)
        )
        return answer.tenant

    def read_tenant(self, name: str) -> directory.Tenant:
        """Find a tenant that must be there, by name."""
        answer: directory.GetTenantResponse = call(self._directory.GetTenant, directory.GetTenantRequest(name=name))
        return answer.tenant

    def name_of(self, tenant_id: str) -> str:
        """Find a tenant's name by its id; the id itself if the tenant is not known any more."""
        try:
            answer: directory.GetTenantResponse = call(
                self._directory.GetTenant, directory.GetTenantRequest(tenant_id=tenant_id)
            )
        except NotFoundError:
            return tenant_id
        return answer.tenant.name

    def tenant_of(self, name: str, token: str) -> str:
        """Find a tenant by its name, else by a token of it. CommandError if neither is given."""
        if name:
            return self.read_tenant(name).tenant_id
        if token:
            return str(claims(token).get("tenant", ""))
        raise CommandError("Whose is it? Say --tenant NAME.")

    def update_tenant(self, tenant_id: str, plan: str, settings: directory.TenantSettings) -> directory.Tenant:
        """Change a tenant's plan, if one is given, and its settings, whole."""
        request = directory.UpdateTenantRequest(tenant_id=tenant_id, plan=plan, settings=settings)
        answer: directory.UpdateTenantResponse = call(self._directory.UpdateTenant, request)
        return answer.tenant

    def tenants(self) -> list[directory.Tenant]:
        """List all tenants by name."""
        found: list[directory.Tenant] = []
        request = directory.ListTenantsRequest(page_size=200)
        while True:
            answer: directory.ListTenantsResponse = call(self._directory.ListTenants, request)
            found.extend(answer.tenants)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def issue(self, tenant_id: str, user: str, scopes: list[str], ttl_s: int | None) -> str:
        """Have a token signed; the directory's own defaults where user, scopes or time are not given."""
        request = directory.IssueTokenRequest(tenant_id=tenant_id, user=user, scopes=scopes)
        if ttl_s:
            request.ttl.CopyFrom(Duration(seconds=ttl_s))
        answer: directory.IssueTokenResponse = call(self._directory.IssueToken, request)
        return answer.token

    def revoke(self, jti: str, expires: int | None) -> None:
        """Have a token refused from now on; `expires` in seconds since the epoch, if it is known."""
        request = directory.RevokeTokenRequest(jti=jti)
        if expires:
            request.expire_time.CopyFrom(Timestamp(seconds=expires))
        call(self._directory.RevokeToken, request)

    def run(self, tenant_id: str, run_id: str) -> run_pb2.Run:
        """Read a run."""
        answer: router.GetRunResponse = call(
            self._router.GetRun, router.GetRunRequest(tenant_id=tenant_id, run_id=run_id)
        )
        return answer.run

    def runs(self, tenant_id: str, contact: str, state: str, count: int) -> list[run_pb2.Run]:
        """List the newest runs, so many at most; of one contact and in one state where given."""
        number = run_pb2.RunState.Value(f"RUN_STATE_{state.upper()}") if state else run_pb2.RUN_STATE_UNSPECIFIED
        request = router.ListRunsRequest(tenant_id=tenant_id, contact=contact, state=number)
        found: list[run_pb2.Run] = []
        while len(found) < count:
            request.page_size = min(PAGE_SIZE, count - len(found))
            answer: router.ListRunsResponse = call(self._router.ListRuns, request)
            found.extend(answer.runs)
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        return found

    def count_dead_letters(self) -> dict[str, int]:
        """Count the open dead letters of each tenant that has any; those with most come first."""
        answer: dead_letters.CountDeadLettersResponse = call(
            self._dead_letters.CountDeadLetters, dead_letters.CountDeadLettersRequest()
        )
        return {count.tenant_id: count.open_count for count in answer.counts}

    def open_dead_letters(self, tenant_id: str, count: int) -> list[dead_letters.DeadLetter]:
        """List the newest open dead letters of a tenant, so many at most."""
        request = dead_letters.ListDeadLettersRequest(
            tenant_id=tenant_id, state="open", page_size=min(PAGE_SIZE, count)
        )
        answer: dead_letters.ListDeadLettersResponse = call(self._dead_letters.ListDeadLetters, request)
        return list(answer.dead_letters)

    def dead_letter(self, tenant_id: str, run_id: str) -> dead_letters.DeadLetter | None:
        """Read a dead letter with what was asked; None if the run was not set aside."""
        request = dead_letters.GetDeadLetterRequest(tenant_id=tenant_id, run_id=run_id)
        try:
            answer: dead_letters.GetDeadLetterResponse = call(self._dead_letters.GetDeadLetter, request)
        except NotFoundError:
            return None
        return answer.dead_letter

    def retry(self, tenant_id: str, run_id: str) -> run_pb2.Run:
        """Have a dead letter asked anew; answers the run in its place."""
        request = dead_letters.RetryDeadLetterRequest(tenant_id=tenant_id, run_id=run_id, principal=OPERATOR)
        answer: dead_letters.RetryDeadLetterResponse = call(self._dead_letters.RetryDeadLetter, request)
        return answer.run

    def drop(self, tenant_id: str, run_id: str) -> None:
        """Take a dead letter off the list."""
        call(self._dead_letters.DropDeadLetter, dead_letters.DropDeadLetterRequest(tenant_id=tenant_id, run_id=run_id))

    def load(self) -> load_pb2.GetLoadResponse:
        """Ask how much waits, over all tenants."""
        answer: load_pb2.GetLoadResponse = call(self._router.GetLoad, load_pb2.GetLoadRequest())
        return answer

    def breakers(self) -> policy.ListBreakersResponse:
        """List the breakers that are not closed."""
        answer: policy.ListBreakersResponse = call(self._policy.ListBreakers, policy.ListBreakersRequest())
        return answer

    def instances(self) -> list[instances.Instance]:
        """List the instances of runtimes, oldest first."""
        answer: instances.ListInstancesResponse = call(self._instances.ListInstances, instances.ListInstancesRequest())
        return list(answer.instances)

    def create_webhook(
        self, tenant_id: str, url: str, kind: str, event_types: list[str], secret: str
    ) -> tuple[webhooks.Webhook, str]:
        """Make a webhook, once however often it is asked; answers it and the secret that it signs with."""
        request = webhooks.CreateWebhookRequest(
            tenant_id=tenant_id, url=url, kind=kind, event_types=event_types, secret=secret, idempotency_key=new_key()
        )
        answer: webhooks.CreateWebhookResponse = call_until_told(self._webhooks.CreateWebhook, request)
        return answer.webhook, answer.secret

    def webhook(self, tenant_id: str, webhook_id: str) -> webhooks.Webhook:
        """Read a webhook."""
        request = webhooks.GetWebhookRequest(tenant_id=tenant_id, webhook_id=webhook_id)
        answer: webhooks.GetWebhookResponse = call(self._webhooks.GetWebhook, request)
        return answer.webhook

    def list_webhooks(self, tenant_id: str) -> list[webhooks.Webhook]:
        """List a tenant's webhooks, newest first: fewer than a page holds."""
        request = webhooks.ListWebhooksRequest(tenant_id=tenant_id, page_size=PAGE_SIZE)
        answer: webhooks.ListWebhooksResponse = call(self._webhooks.ListWebhooks, request)
        return list(answer.webhooks)

    def set_webhook_state(self, tenant_id: str, webhook_id: str, state: str) -> None:
        """Switch a webhook on ("active") or off."""
        request = webhooks.SetWebhookStateRequest(tenant_id=tenant_id, webhook_id=webhook_id, state=state)
        call(self._webhooks.SetWebhookState, request)

    def delete_webhook(self, tenant_id: str, webhook_id: str) -> None:
        """Remove a webhook."""
        request = webhooks.DeleteWebhookRequest(tenant_id=tenant_id, webhook_id=webhook_id)
        call(self._webhooks.DeleteWebhook, request)

    def test_webhook(self, tenant_id: str, webhook_id: str) -> webhooks.Delivery:
        """Have an event sent that tells of nothing."""
        request = webhooks.TestWebhookRequest(tenant_id=tenant_id, webhook_id=webhook_id)
        answer: webhooks.TestWebhookResponse = call(self._webhooks.TestWebhook, request)
        return answer.delivery

    def deliveries(self, tenant_id: str, webhook_id: str, state: str, count: int) -> list[webhooks.Delivery]:
        """List the newest deliveries of a webhook, so many at most, in one state where given."""
        request = webhooks.ListDeliveriesRequest(
            tenant_id=tenant_id, webhook_id=webhook_id, state=state, page_size=min(PAGE_SIZE, count)
        )
        answer: webhooks.ListDeliveriesResponse = call(self._webhooks.ListDeliveries, request)
        return list(answer.deliveries)

    def retry_delivery(self, tenant_id: str, webhook_id: str, delivery_id: str) -> None:
        """Have a delivery sent once more."""
        request = webhooks.RetryDeliveryRequest(tenant_id=tenant_id, webhook_id=webhook_id, delivery_id=delivery_id)
        call(self._webhooks.RetryDelivery, request)

    def list_schedules(self, tenant_id: str, contact: str) -> list[schedules.Schedule]:
        """List all schedules of a tenant, newest first; one contact's where given."""
        found: list[schedules.Schedule] = []
        request = schedules.ListSchedulesRequest(tenant_id=tenant_id, contact=contact, page_size=PAGE_SIZE)
        while True:
            answer: schedules.ListSchedulesResponse = call(self._schedules.ListSchedules, request)
            found.extend(answer.schedules)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    def create_schedule(
        self, tenant_id: str, contact: str, kind: str, asked: dict[str, Any], cron: str, time_zone: str
    ) -> schedules.Schedule:
        """Have a task come again, by one schedule however often it is asked."""
        request = schedules.CreateScheduleRequest(
            tenant_id=tenant_id, principal=OPERATOR, contact=contact, kind=kind, cron=cron, time_zone=time_zone,
            idempotency_key=new_key(),
        )  # fmt: skip
        request.input.update(asked)
        answer: schedules.CreateScheduleResponse = call_until_told(self._schedules.CreateSchedule, request)
        return answer.schedule

    def schedule(self, tenant_id: str, schedule_id: str) -> schedules.Schedule:
        """Read a schedule."""
        request = schedules.GetScheduleRequest(tenant_id=tenant_id, schedule_id=schedule_id)
        answer: schedules.GetScheduleResponse = call(self._schedules.GetSchedule, request)
        return answer.schedule

    def pause_schedule(self, tenant_id: str, schedule_id: str) -> schedules.Schedule:
        """Let a schedule rest."""
        request = schedules.PauseScheduleRequest(tenant_id=tenant_id, schedule_id=schedule_id)
        answer: schedules.PauseScheduleResponse = call(self._schedules.PauseSchedule, request)
        return answer.schedule

    def resume_schedule(self, tenant_id: str, schedule_id: str) -> schedules.Schedule:
        """Let a schedule go on."""
        request = schedules.ResumeScheduleRequest(tenant_id=tenant_id, schedule_id=schedule_id)
        answer: schedules.ResumeScheduleResponse = call(self._schedules.ResumeSchedule, request)
        return answer.schedule

    def delete_schedule(self, tenant_id: str, schedule_id: str) -> None:
        """Remove a schedule."""
        request = schedules.DeleteScheduleRequest(tenant_id=tenant_id, schedule_id=schedule_id)
        call(self._schedules.DeleteSchedule, request)


def new_key() -> str:
    """Make an idempotency key, for one intent."""
    return str(uuid.uuid4())


def call_until_told(method: Callable[..., R], request: object) -> R:
    """Make a call that has an idempotency key; one that gets no answer is repeated, since it may have been heard."""
    for _ in range(CALL_TRIES_MAX - 1):
        with suppress(UntoldError):
            return call(method, request)
    return call(method, request)


def call(method: Callable[..., R], request: object) -> R:
    """Make a call; whatever it ends with other than an answer becomes a CommandError of one line."""
    try:
        return method(request, timeout=CALL_TIMEOUT_S, wait_for_ready=False)
    except grpc.RpcError as error:
        raise KINDS.get(error.code(), CommandError)(sentence(error)) from None


def sentence(error: Any) -> str:
    """Say what a failed call was refused with."""
    status = rpc_status.from_call(error)
    if status is not None and status.message:
        return str(status.message)
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return "The mesh does not answer on its socket: retinue status says what runs."
    return f"The mesh refused: {error.details() or error.code().name}."
