"""The wire: requests to operations, nouns to messages."""

from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf import timestamp_pb2
from retinue.directory.v1 import directory_service_pb2 as pb
from retinue.directory.v1 import directory_service_pb2_grpc
from retinue_kit.errors import RetinueError

from retinue_directory.domain.tenants import Settings, Tenant
from retinue_directory.operations import Directory

Context = grpc.aio.ServicerContext[Any, Any]


class DirectoryServicer(directory_service_pb2_grpc.DirectoryServiceServicer):
    """Implements retinue.directory.v1.DirectoryService."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def CreateTenant(self, request: pb.CreateTenantRequest, context: Context) -> pb.CreateTenantResponse:
        tenant = await self._directory.create_tenant(request.name, request.plan)
        return pb.CreateTenantResponse(tenant=_tenant(tenant))

    async def GetTenant(self, request: pb.GetTenantRequest, context: Context) -> pb.GetTenantResponse:
        tenant = await self._directory.get_tenant(request.tenant_id, request.name)
        return pb.GetTenantResponse(tenant=_tenant(tenant))

    async def UpdateTenant(self, request: pb.UpdateTenantRequest, context: Context) -> pb.UpdateTenantResponse:
        settings, agent = None, None
        if request.HasField("settings"):
            asked = request.settings
            settings = Settings(asked.concurrent_run_count, asked.preferred_runtime, asked.weight)
        if request.HasField("agent"):
            agent = (request.agent.name, request.agent.persona, request.agent.model)
        tenant = await self._directory.update_tenant(request.tenant_id, request.plan, settings, agent)
        return pb.UpdateTenantResponse(tenant=_tenant(tenant))

    async def ListTenants(self, request: pb.ListTenantsRequest, context: Context) -> pb.ListTenantsResponse:
        tenants, token = await self._directory.list_tenants(request.page_size, request.page_token)
        return pb.ListTenantsResponse(
            tenants=[_tenant(tenant, whole=False) for tenant in tenants], next_page_token=token
        )

    async def IssueToken(self, request: pb.IssueTokenRequest, context: Context) -> pb.IssueTokenResponse:
        ttl_s = request.ttl.ToMicroseconds() / 1e6 if request.HasField("ttl") else None
        token = await self._directory.issue_token(request.tenant_id, request.user, request.scopes, ttl_s)
        return pb.IssueTokenResponse(token=token.text, jti=token.jti, expire_time=_timestamp(token.expire_time))

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Context) -> pb.RevokeTokenResponse:
        try:
            expire_time = request.expire_time.ToDatetime(UTC) if request.HasField("expire_time") else None
        except (ValueError, OverflowError):
            raise RetinueError.field("expire_time", "must be between the years 1 and 9999.") from None
        await self._directory.revoke_token(request.jti, expire_time)
        return pb.RevokeTokenResponse()

    async def ListRevocations(self, request: pb.ListRevocationsRequest, context: Context) -> pb.ListRevocationsResponse:
        return pb.ListRevocationsResponse(jtis=await self._directory.list_revocations())

    async def GetKeySet(self, request: pb.GetKeySetRequest, context: Context) -> pb.GetKeySetResponse:
        return pb.GetKeySetResponse(jwks=await self._directory.key_set())

    async def RotateSigningKey(
        self, request: pb.RotateSigningKeyRequest, context: Context
    ) -> pb.RotateSigningKeyResponse:
        return pb.RotateSigningKeyResponse(kid=await self._directory.rotate_signing_key())


def _timestamp(value: datetime) -> timestamp_pb2.Timestamp:
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(value)
    return timestamp


def _tenant(tenant: Tenant, *, whole: bool = True) -> pb.Tenant:
    message = pb.Tenant(
        tenant_id=tenant.tenant_id, name=tenant.name, plan=tenant.plan, create_time=_timestamp(tenant.create_time)
    )
    if whole:
        settings = tenant.settings
        message.settings.concurrent_run_count = settings.concurrent_run_count
        message.settings.preferred_runtime = settings.preferred_runtime
        message.settings.weight = settings.weight
        if tenant.agent is not None:
            agent = tenant.agent
            message.agent.agent_id, message.agent.name = agent.agent_id, agent.name
            message.agent.persona, message.agent.model = agent.persona, agent.model
    return message
