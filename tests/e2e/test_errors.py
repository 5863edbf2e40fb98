"""Bad input gets a clear answer: the right status, the reason, the field, a trace id, and nothing of our insides."""

import pytest
from refusals import TRACE_ID_LENGTH, assert_refused, assert_refused_as_openai

JSON = {"content-type": "application/json"}
TEXT_LENGTH_MAX = 100_000
NOBODYS_RUN = "run_" + "0" * 26


@pytest.fixture
def path(contact):
    return f"/v1/contacts/{contact}/messages"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'"text"',
        b"text=hello",
        b"<text/>",
        b'{"text":"x"} more',
        b'{"text":"a\xffb"}',
        b'{"text":"\\ud800"}',
    ],
)
@pytest.mark.parametrize("call", ["messages", "messages:stream"])
async def test_a_body_that_is_not_the_json_asked_for_is_refused(client, contact, body, call):
    answer = await client.post(f"/v1/contacts/{contact}/{call}", content=body, headers=JSON)
    assert_refused(answer, 400, "FIELD_INVALID")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"text": 5}, "text"),
        ({"text": {"a": 1}}, "text"),
        ({"text": True}, "text"),
        ({"text": "x", "on_busy": 7}, "on_busy"),
        ({"text": "x", "metadata": "x"}, "metadata"),
        ({"text": "x", "reasoning": "perhaps"}, "reasoning"),
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": None}, "text"),
        ({"text": "a\0b"}, "text"),
        ({"text": "x", "runtime": "nope"}, "runtime"),
        ({"text": "x", "on_busy": "nope"}, "on_busy"),
        ({"text": "x", "metadata": {str(n): n for n in range(65)}}, "metadata"),
    ],
)
async def test_a_field_that_is_missing_of_a_wrong_type_or_out_of_its_range_is_named(client, path, body, field):
    assert_refused(await client.post(path, json=body), 400, "FIELD_INVALID", field)


async def test_a_list_where_one_value_is_asked_for_is_refused(client, path):
    assert_refused(await client.post(path, json={"text": ["x"]}), 400, "FIELD_INVALID")


async def test_a_body_that_is_not_there_lacks_its_text(client, path):
    assert_refused(await client.post(path), 400, "FIELD_INVALID", "text")


@pytest.mark.parametrize("letter", ["x", "é", "你", "😀"])
async def test_a_text_of_exactly_the_longest_length_passes_and_one_character_more_does_not(client, path, letter):
    longest = ("#echo=ok " + letter * TEXT_LENGTH_MAX)[:TEXT_LENGTH_MAX]
    assert_refused(await client.post(path, json={"text": longest + letter}), 400, "FIELD_INVALID", "text")
    answer = await client.post(path, json={"text": longest})
    assert answer.status_code == 200, answer.text
    ended = (await client.post(f"/v1/runs/{answer.json()['run']['run_id']}:wait")).json()["run"]
    assert ended["state"] == "succeeded"
    said = (await client.get(path)).json()["messages"]
    assert [m["text"] for m in said if m["role"] == "user"] == [longest]


async def test_fields_that_nobody_knows_are_ignored(client, path):
    body = {"text": "#echo=x", "new": {"a": [1, None]}, "Text": "y"}
    answer = await client.post(path, json=body, params={"also": "here"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/nothing"),
        ("GET", "/v2/runs"),
        ("PATCH", "/v1/contacts/a"),
        ("POST", "/v1/contacts/a"),
        ("DELETE", "/v1/runs"),
        ("PUT", f"/v1/runs/{NOBODYS_RUN}"),
        ("GET", f"/v1/runs/{NOBODYS_RUN}:cancel"),
        ("POST", f"/v1/runs/{NOBODYS_RUN}:nothing"),
        ("POST", "/v1/contacts/a:wait"),
        ("GET", "/v1/tasks"),
        ("GET", "/v1/contacts/a/messages:stream"),
        ("POST", "/v1/ws"),
        ("GET", "/api"),
        ("GET", "/api/nothing"),
        ("POST", "/api/instance/status"),
        ("GET", "/api/instance/create"),
        ("POST", "/api/instance/delete"),
        ("DELETE", "/api/instance/chat-url"),
        ("DELETE", "/v1/instances"),
        ("POST", "/healthz"),
        ("GET", "/.well-known/jwks.json"),
        ("POST", "/retinue.router.v1.RouterService/GetRun"),
    ],
)
async def test_a_wrong_method_and_an_unknown_path_are_not_found(client, method, where):
    assert_refused(await client.request(method, where), 404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize("name", ["a", "A-b_c.d@e+f:g", "你好", "Zoë", "٣", "नमस्ते", "...", "x" * 128, "é" * 128])
async def test_a_contacts_name_may_be_of_any_script(client, name, contact):
    answer = await client.put(f"/v1/contacts/{name}", json={"display_name": contact})
    assert answer.status_code == 200, answer.text
    assert answer.json()["contact"] == name
    assert (await client.get(f"/v1/contacts/{name}")).json()["display_name"] == contact
    assert (await client.delete(f"/v1/contacts/{name}")).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["%20", "a%20b", "a%3Fb", "a%23", "a%25", "a%0Ab", "😀", "a%E2%80%8B", "x" * 129, "e%CC%81", "%FF", "a%80b"],
)
async def test_a_malformed_contacts_name_is_refused(client, name):
    for method, path, body in (
        ("GET", f"/v1/contacts/{name}", None),
        ("PUT", f"/v1/contacts/{name}", {}),
        ("POST", f"/v1/contacts/{name}/messages", {"text": "x"}),
        ("GET", f"/v1/contacts/{name}/events", None),
        ("POST", f"/v1/contacts/{name}:reset", {}),
    ):
        assert_refused(await client.request(method, path, json=body), 400, "FIELD_INVALID")
    body = {"model": "retinue", "messages": [{"role": "user", "content": "hi"}], "user": "a b"}
    assert_refused_as_openai(await client.post("/v1/chat/completions", json=body), 400, "invalid_request_error")


@pytest.mark.parametrize("verb", ["stream", "reset", "wait", "cancel", "decide"])
async def test_a_contacts_name_that_ends_in_a_call_is_refused(client, verb):
    answer = await client.put(f"/v1/contacts/a%3A{verb}", json={})
    assert_refused(answer, 400, "FIELD_INVALID", "contact")
    answer = await client.post(f"/v1/contacts/a:{verb}/messages", json={"text": "x"})
    assert_refused(answer, 400, "FIELD_INVALID", "contact")


async def test_dots_and_slashes_lead_nowhere(client):
    for name in ("..", "%2e%2e", "../contacts", "%2E%2E", "..;", "."):
        answer = await client.put(f"/v1/contacts/{name}", json={})
        assert answer.status_code in (400, 404), name
    for name in ("a%2Fb", "..%2F..%2Fetc", "a%5Cb"):
        assert_refused(await client.get(f"/v1/contacts/{name}"), 400, "FIELD_INVALID")
    answer = await client.get("/v1/contacts/a%00b")  # no path at all: refused before a trace begins
    assert answer.status_code == 400
    assert answer.json()["details"][0]["reason"] == "FIELD_INVALID"
    for name in ("..", "."):
        task = {"contact": name, "kind": "extraction"}
        assert_refused(await client.post("/v1/tasks", json=task), 400, "FIELD_INVALID", "contact")


@pytest.mark.parametrize("where", ["/v1/contacts", "/v1/runs", "/v1/approvals", "/v1/contacts/{contact}/messages"])
async def test_pages_have_bounds_and_tokens_are_our_own(client, where, contact):
    await client.put(f"/v1/contacts/{contact}", json={})
    where = where.format(contact=contact)
    for size in ("0", "201", "-1", "x", "1.5", "99999999999"):
        assert_refused(await client.get(where, params={"page_size": size}), 400, "FIELD_INVALID", "page_size")
    for size in (1, 200):
        assert (await client.get(where, params={"page_size": size})).status_code == 200
    assert_refused(await client.get(where, params={"page_token": "mine"}), 400, "CURSOR_INVALID", "page_token")
    assert_refused(await client.get(where, params={"page_token": "x" * 300}), 400, "FIELD_INVALID", "page_token")
    assert_refused(await client.get(f"{where}?page_token=%FF"), 400, "FIELD_INVALID")


async def test_times_to_wait_states_cursors_and_keys_have_bounds(client, path, contact):
    for time in ("-1", "61", "x", "1.5"):
        answer = await client.post(f"/v1/runs/{NOBODYS_RUN}:wait", params={"timeout_s": time})
        assert_refused(answer, 400, "FIELD_INVALID", "timeout_s")
    assert_refused(await client.post(f"/v1/runs/{NOBODYS_RUN}:wait?timeout_s=60"), 404, "RUN_NOT_FOUND")
    assert_refused(await client.get("/v1/runs?state=lost"), 400, "FIELD_INVALID", "state")
    for cursor in ("x", "1", "1-", "-1-1", "9" * 30 + "-1", "1-1-1"):
        for answer in (
            await client.get(f"/v1/contacts/{contact}/events", headers={"last-event-id": cursor}),
            await client.get(f"/v1/contacts/{contact}/events", params={"after": cursor}),
        ):
            assert_refused(answer, 400, "CURSOR_INVALID")
    for key in ("", "a b", "é".encode(), "x" * 256):
        answer = await client.post(path, json={"text": "x"}, headers={"idempotency-key": key})
        assert_refused(answer, 400, "FIELD_INVALID", "Idempotency-Key")
    answer = await client.post(path, json={"text": "#echo=x"}, headers={"idempotency-key": "~" + "x" * 190 + contact})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b'{"model":"retinue","messages":"x"}', 400, "messages"),
        (b'{"model":"retinue","messages":[]}', 400, "messages"),
        (b'{"model":"retinue","messages":[{"role":"user","content":"a\\u0000b"}]}', 400, "messages"),
        (b'{"model":"nobodys","messages":[{"role":"user","content":"x"}]}', 404, "model"),
    ],
)
async def test_openai_clients_hear_errors_in_their_own_shape(client, body, status, param):
    answer = await client.post("/v1/chat/completions", content=body, headers=JSON)
    assert assert_refused_as_openai(answer, status, "invalid_request_error")["param"] == param


async def test_openai_clients_are_told_of_a_wrong_method_and_a_large_body_in_their_shape(client):
    assert_refused_as_openai(await client.get("/v1/chat/completions"), 404, "invalid_request_error")
    body = {"model": "retinue", "messages": [{"role": "user", "content": "x" * 1_100_000}]}
    refused = await client.post("/v1/chat/completions", json=body)
    assert_refused_as_openai(refused, 413, "invalid_request_error")


async def test_every_answer_has_a_trace_id_of_its_own(client, contact, path):
    answers = [
        await client.get("/v1/contacts"),
        await client.put(f"/v1/contacts/{contact}", json={}),
        await client.post(path, json={"text": "#echo=x"}),
        await client.post(f"{path}:stream", json={"text": "#echo=x"}),
        await client.get("/v1/models"),
        await client.get("/v1/nothing"),
        await client.get("/api/instance/chat-url"),
        await client.get("/api/instance/status"),
        await client.get(f"/v1/runs/{NOBODYS_RUN}"),
        await client.delete(f"/v1/contacts/{contact}"),
    ]
    ids = {answer.headers["x-trace-id"] for answer in answers}
    assert len(ids) == len(answers)
    assert {len(one) for one in ids} == {TRACE_ID_LENGTH}
