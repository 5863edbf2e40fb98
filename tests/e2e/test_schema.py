"""Requests made up from the served OpenAPI document: none is answered by a server's error, each as documented."""

from pathlib import Path

import hypothesis
import pytest
import requests
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

EXAMPLES = 30
"""Requests made up at random for each operation, beside those that try each bound of each field."""

TIMEOUT_S = 20
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
"""Left out: that a wrong method is 405 (here it is 404), and that a schema tells all that is refused."""

DOCUMENT = Path(__file__).parents[2] / "gateway/src/retinue_gateway/openapi.json"
schemathesis.serializer.alias("application/x-retinue-bundle", "application/octet-stream")
schema = schemathesis.openapi.from_path(DOCUMENT)
schema.config.seed = 1
schema.config.generation.update(with_security_parameters=False)
settings = hypothesis.settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture(scope="module")
def target(mesh):
    """Where requests go, and as whom: a tenant of their own, so that nobody stumbles over what they leave."""
    headers = {"authorization": f"Bearer {mesh.token('schema')}"}
    return {"base_url": mesh.url, "headers": headers}


async def test_the_document_served_is_the_one_tried(client):
    assert (await client.get("/openapi.json")).text == DOCUMENT.read_text()


@schema.exclude(operation_id="WatchContact").parametrize()
@settings
def test_each_request_is_answered_as_documented(case, target):
    case.call_and_validate(checks=CHECKS, timeout=TIMEOUT_S, **target)


@schema.include(operation_id="WatchContact").parametrize()
@settings
def test_each_request_for_an_endless_stream_begins_as_documented(case, target):
    asked = case.as_transport_kwargs(**target)
    with requests.request(**asked, stream=True, timeout=TIMEOUT_S) as response:
        kind = "text/event-stream" if response.status_code == 200 else "application/json"
        assert response.headers["content-type"] == kind
        assert response.status_code in (200, 400, 404), response.text
