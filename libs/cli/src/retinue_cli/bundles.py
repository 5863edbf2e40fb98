"""Calls for bundles of one tenant's conversations."""

from typing import Any

from retinue.portability.v1 import portability_service_pb2 as portability
from retinue.portability.v1 import portability_service_pb2_grpc as portability_grpc

from retinue_cli.mesh import Mesh, call, call_until_told

TOKENS_MAX = 1_000_000
"""The most that may be asked for, by contract; portability cuts a bundle to what fits its bytes."""


class Bundles:
    """What a tenant takes along and brings back, by the mesh's own sockets."""

    def __init__(self, mesh: Mesh, tenant_id: str) -> None:
        channel: Any = mesh.channel("portability")
        self._stub: Any = portability_grpc.PortabilityServiceStub(channel)
        self._tenant_id = tenant_id

    def build(self, contact: str) -> bytes:
        """Build a bundle of a contact's current conversation, with as much of it as one may hold."""
        request = portability.BuildBundleRequest(
            tenant_id=self._tenant_id, contact=contact, token_budget=TOKENS_MAX, allow_open=True
        )
        answer: portability.BuildBundleResponse = call(self._stub.BuildBundle, request)
        return answer.bundle

    def bring(self, contact: str, bundle: bytes) -> portability.ImportBundleResponse:
        """Begin a conversation with a bundle, once however often it is asked."""
        request = portability.ImportBundleRequest(tenant_id=self._tenant_id, contact=contact, bundle=bundle)
        answer: portability.ImportBundleResponse = call_until_told(self._stub.ImportBundle, request)
        return answer
