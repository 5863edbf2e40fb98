"""The OpenAPI document is what the contract makes of it."""

import json
from importlib import resources

import pytest
from retinue_gateway import openapi


@pytest.fixture(scope="module")
def committed() -> str:
    return resources.files("retinue_gateway").joinpath("openapi.json").read_text("utf-8")


def test_the_committed_document_is_the_one_that_the_contract_makes(committed: str) -> None:
    assert committed == openapi.build(), (
        "run: python -m retinue_gateway.openapi > gateway/src/retinue_gateway/openapi.json"
    )


def test_every_call_of_the_contract_is_in_it(committed: str) -> None:
    api = json.loads(committed)
    described = {operation["operationId"] for path in api["paths"].values() for operation in path.values()}
    assert {method.name for method in openapi.Contract().methods} <= described


def test_every_reference_leads_somewhere(committed: str) -> None:
    api = json.loads(committed)

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                place = api
                for name in value["$ref"].removeprefix("#/").split("/"):
                    place = place[name]
            for part in value.values():
                walk(part)
        elif isinstance(value, list):
            for part in value:
                walk(part)

    walk(api)


def test_limits_and_comments_are_in_it(committed: str) -> None:
    api = json.loads(committed)
    operation = api["paths"]["/v1/contacts/{contact}/messages"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["text"]
    assert (body["properties"]["text"]["minLength"], body["properties"]["text"]["maxLength"]) == (1, 100_000)
    assert "reject" in body["properties"]["on_busy"]["enum"]
    assert operation["parameters"][0]["schema"]["maxLength"] == 128
    assert "Idempotency-Key" in [parameter["name"] for parameter in operation["parameters"]]
    assert all(field["description"] for field in body["properties"].values())


def test_each_further_service_is_introduced_with_the_scope_that_it_needs(committed: str) -> None:
    about = {tag["name"]: tag["description"] for tag in json.loads(committed)["tags"]}
    assert set(about) == {"schedules", "webhooks", "dead-letters", "instance", "files", "tools", "context"}
    assert all("scope `admin`" in about[name] for name in ("webhooks", "dead-letters"))


def test_each_call_stands_in_the_section_of_its_service(committed: str) -> None:
    api = json.loads(committed)
    listed = {
        path for path, calls in api["paths"].items() if any(call["tags"] == ["instance"] for call in calls.values())
    }
    assert listed == {f"/api/instance/{name}" for name in ("status", "create", "delete", "chat-url")} | {
        "/v1/instances"
    }
    memory = api["components"]["schemas"]["InstanceReport"]["properties"]["memory_bytes"]
    assert (memory["type"], memory["format"]) == ("string", "int64")


def test_a_file_is_bytes_of_any_type_both_ways(committed: str) -> None:
    calls = json.loads(committed)["paths"]["/v1/files/{path}"]
    assert set(calls) == {"get", "post", "delete"}
    sent, read = calls["post"]["requestBody"]["content"], calls["get"]["responses"]["200"]["content"]
    assert sent == read == {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    assert [parameter["name"] for parameter in calls["post"]["parameters"]] == ["path"]


def test_a_bundle_is_bytes_of_its_own_type_both_ways_and_may_meet_a_busy_contact(committed: str) -> None:
    calls = json.loads(committed)["paths"]["/v1/contacts/{contact}/bundle"]
    sent, read = calls["post"]["requestBody"]["content"], calls["get"]["responses"]["200"]["content"]
    assert sent == read == {"application/x-retinue-bundle": {"schema": {"type": "string", "format": "binary"}}}
    assert [{"409", "413"} & set(calls[verb]["responses"]) for verb in ("get", "post")] == [set(), {"409", "413"}]
    assert {tuple(call["tags"]) for call in calls.values()} == {("context",)}


def test_every_answer_says_what_it_holds_since_the_page_shows_it(committed: str) -> None:
    api = json.loads(committed)
    operations = [operation for path in api["paths"].values() for operation in path.values()]
    answers = [answer for operation in operations for answer in operation["responses"].values()]
    answers += api["components"]["responses"].values()
    assert [
        kind for answer in answers for kind, held in answer.get("content", {}).items() if "schema" not in held
    ] == []
