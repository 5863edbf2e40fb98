"""Portability between neighbours that a test tells what to say."""

from types import SimpleNamespace

import pytest
from conversations import CONTACT, SESSION, SIGNER, TENANT
from portability_neighbours import Directory, Model, Router, services
from retinue.portability.v1 import portability_service_pb2 as pb
from retinue.portability.v1 import portability_service_pb2_grpc
from retinue_portability.__main__ import assemble
from retinue_portability.config import Settings
from retinue_portability.format.signing import Signer, new_key


@pytest.fixture
async def mesh(assembled, run_dir, peer, serve):
    """The service on a socket with its neighbours; `ask("BuildBundle", field=…)` makes a call for the one session."""
    router, model = Router(), Model()
    address = await serve(services(router, Directory(), model))
    key = run_dir / "key"
    key.write_bytes(new_key())
    settings = Settings(f"unix:{run_dir}/portability.sock", address, address, key, address, bundle_token_budget=4000)
    made = peer("portability", await assembled(assemble, settings))
    stub = portability_service_pb2_grpc.PortabilityServiceStub(made.channel)

    async def ask(method, **fields):
        request = getattr(pb, f"{method}Request")
        known = {"tenant_id": TENANT, "contact": CONTACT, "session_id": SESSION}
        given = {name: value for name, value in known.items() if name in request.DESCRIPTOR.fields_by_name}
        return await made.call(getattr(stub, method), request(**{**given, **fields}), timeout_s=30)

    signer = Signer.load(key)
    assert signer.key_id != SIGNER.key_id
    return SimpleNamespace(ask=ask, router=router, model=model, peer=made, signer=signer, run_dir=run_dir)
