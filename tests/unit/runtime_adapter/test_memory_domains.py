"""Facts as models tell them, and as the contract of memory takes them."""

import pytest
from retinue.router.v1.memory_service_pb2 import NewFact, RememberFactsRequest
from retinue_kit.server import validate
from retinue_runtime_adapter.tools.builtin_memory import domain_of


@pytest.mark.parametrize("said", ["Work life", "İstanbul", "工作", "-a-", "x" * 200, "…", "a_b-c"])
def test_what_a_fact_is_about_is_written_as_the_contract_takes_it(said: str) -> None:
    validate(RememberFactsRequest(tenant_id="t", facts=[NewFact(text="x", domain=domain_of(said))]))
