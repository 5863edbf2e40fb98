"""Requests that HTTP allows and gRPC knows nothing of are answered, and what they say arrives as it was written."""

import pytest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("$x'^~", "1"),
        ("x-thing-bin", "!!!"),
        ("grpc-timeout", "abc"),
        ("grpc-timeout", "1n"),
        ("grpc-encoding", "nonsense"),
        ("grpc-previous-rpc-attempts", "x"),
    ],
)
async def test_headers_that_mean_something_to_grpc_alone_go_no_further(mesh, client, name, value):
    answer = await client.get("/v1/contacts/a", headers={**mesh.bearer(), name: value, "x-own": "kept"})
    assert answer.status_code == 200, answer.text
    assert mesh.edge.metadata.get(name) != value
    assert mesh.edge.metadata["x-own"] == "kept"


async def test_headers_and_paths_are_bounded_as_such(mesh, client):
    long = "a" * 14_000
    assert (await client.get("/v1/contacts/a", headers={**mesh.bearer(), "x-own": long})).status_code == 200
    assert (await client.get(f"/v1/contacts/a?x={long}", headers=mesh.bearer())).status_code == 200
    many = {f"x-own-{number}": "a" * 100 for number in range(80)}
    assert (await client.get("/v1/contacts/a", headers={**mesh.bearer(), **many})).status_code == 200
    answer = await client.get("/v1/contacts/a", headers={**mesh.bearer(), "x-own": 2 * long})
    assert answer.status_code == 431
    assert answer.json()["details"][0]["reason"] == "FIELD_INVALID"


async def test_what_is_escaped_in_a_query_stays_one_value(mesh, client):
    mesh.edge.release.set()
    token = mesh.token()
    for query in ("after=1-0%26x%3D2%2B3%2504", f"access_token={token}&after=1-0%26x%3D2%2B3%2504"):
        headers = {} if "access_token" in query else mesh.bearer()
        answer = await client.get(f"{mesh.url}/v1/contacts/a/events?{query}", headers=headers)
        assert answer.status_code == 200, answer.text
        assert mesh.edge.requests[-1].after == "1-0&x=2+3%04"


@pytest.mark.parametrize("junk", ["a=%05", "%0d%0ax-retinue-tenant:%20b=1", "%00", "=&&?", "%zz"])
async def test_junk_in_a_query_is_ignored(mesh, client, junk):
    mesh.edge.release.set()
    for path in ("/v1/contacts/a", "/v1/contacts/a/events", "/v1/models"):
        answer = await client.get(f"{mesh.url}{path}?{junk}", headers=mesh.bearer())
        assert answer.status_code == 200, answer.text
    assert mesh.edge.metadata["x-retinue-tenant"] == "ten_1"


@pytest.mark.parametrize("name", ["access_token", "access%5Ftoken"])
async def test_a_token_in_the_query_goes_no_further_however_it_is_written(mesh, client, name):
    mesh.edge.release.set()
    token = mesh.token()
    answer = await client.get(f"{mesh.url}/v1/contacts/a/events?x=%05&{name}={token}&after=1-0")
    assert answer.status_code == 200, answer.text
    assert mesh.edge.requests[-1].after == "1-0"
    assert not any(token in value for value in mesh.edge.metadata.values() if isinstance(value, str))
