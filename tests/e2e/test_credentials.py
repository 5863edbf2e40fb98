"""Who is let in: tokens that are missing, forged, expired, too narrow or revoked are refused, each with its reason."""

import asyncio
import base64
import json
import time

import asyncpg
import jwt
import pytest
import websockets
from cryptography.hazmat.primitives.asymmetric import ec
from refusals import assert_refused, assert_refused_as_openai
from whole_mesh import connect

REVOKED_WITHIN_S = 5
CLOSED_FOR_CREDENTIAL = 4401
PATHS = ["/v1/contacts", "/v1/runs", f"/v1/runs/run_{'0' * 26}", "/v1/contacts/a/messages", "/v1/contacts/a/events"]


def encode(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def claims_of(token):
    return jwt.decode(token, options={"verify_signature": False})


def forgeries(token):
    """Tokens that say the right things and are not signed by us."""
    head, body, signature = token.split(".")
    claims, header = claims_of(token), jwt.get_unverified_header(token)
    own = ec.generate_private_key(ec.SECP256R1())
    return {
        "no token at all": "abc",
        "cut": f"{head}.{body}",
        "another signature": f"{head}.{body}.{signature[:-8]}{'A' * 8}",
        "other claims": f"{head}.{encode({**claims, 'tenant': 'ten_other'})}.{signature}",
        "alg none": f"{encode({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        "alg none, with key id": f"{encode({**header, 'alg': 'none'})}.{body}.{signature}",
        "own key": jwt.encode(claims, own, algorithm="ES256", headers={"kid": header["kid"]}),
        "unknown key": jwt.encode(claims, own, algorithm="ES256", headers={"kid": "mine"}),
        "public key as a secret": jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"kid": header["kid"]}),
    }


@pytest.fixture
def token(mesh):
    return mesh.token()


async def test_without_a_token_nothing_is_let_in_but_what_needs_none(client_of):
    async with client_of("") as stranger:
        for path in PATHS:
            assert_refused(await stranger.get(path), 401, "CREDENTIAL_MISSING")
        body = {"model": "retinue", "messages": [{"role": "user", "content": "hi"}]}
        refused = await stranger.post("/v1/chat/completions", json=body)
        assert_refused_as_openai(refused, 401, "authentication_error")
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
            assert (await stranger.get(path)).status_code == 200


async def test_a_forged_token_is_not_valid(mesh, token):
    for kind, forged in forgeries(token).items():
        async with connect(mesh, forged) as stranger:
            answer = await stranger.get("/v1/runs")
            assert answer.status_code == 401, kind
            assert_refused(answer, 401, "CREDENTIAL_INVALID")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 200),
        ({"iss": "elsewhere"}, 401),
        ({"aud": "elsewhere"}, 401),
        ({"tenant": None}, 401),
        ({"exp": None}, 401),
        ({"exp": 1_000_000_000}, 401),
        ({"nbf": 4_000_000_000}, 401),
    ],
)
async def test_our_own_signature_under_wrong_claims_is_not_enough(mesh, token, changes, status):
    connection = await asyncpg.connect(mesh.dsn())
    try:
        query = "select kid, private_key from directory.signing_keys where retire_time is null"
        kid, key = await connection.fetchrow(query)
    finally:
        await connection.close()
    claims = {name: value for name, value in {**claims_of(token), **changes}.items() if value is not None}
    signed = jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid})
    async with connect(mesh, signed) as someone:
        answer = await someone.get("/v1/runs")
        assert answer.status_code == status, answer.text
        if status != 200:
            assert answer.json()["details"][0]["reason"].startswith("CREDENTIAL_")


async def test_a_token_expires(mesh, eventually):
    async with connect(mesh, mesh.token("e2e", "--ttl", "2")) as brief:
        assert (await brief.get("/v1/runs")).status_code == 200

        async def refused():
            answer = await brief.get("/v1/runs")
            return answer.status_code == 401 and answer

        assert_refused(await eventually(refused), 401, "CREDENTIAL_EXPIRED")


async def test_a_token_without_the_scope_is_forbidden_everywhere_and_admin_is_not(mesh):
    billing = mesh.token("e2e", "--scope", "billing")
    async with connect(mesh, billing) as narrow:
        for path in PATHS:
            body = assert_refused(await narrow.get(path), 403, "SCOPE_MISSING")
            assert body["details"][0]["metadata"] == {"scope": "chat"}
        answer = await narrow.post("/v1/contacts/a/messages", json={"text": "x"})
        assert_refused(answer, 403, "SCOPE_MISSING")
        assert_refused_as_openai(await narrow.get("/v1/models"), 403, "permission_error")
    with pytest.raises((websockets.InvalidStatus, websockets.ConnectionClosed)):
        async with socket(mesh, billing) as refused:
            await refused.recv()
    async with connect(mesh, mesh.token("e2e", "--scope", "admin")) as admin:
        assert (await admin.get("/v1/runs")).status_code == 200


def socket(mesh, token):
    url = f"{mesh.url.replace('http', 'ws')}/v1/ws"
    return websockets.connect(url, additional_headers={"authorization": f"Bearer {token}"}, proxy=None)


async def last_words(response):
    return "".join([part async for part in response.aiter_text()])


async def test_a_revoked_token_is_refused_within_five_seconds_in_calls_streams_and_sockets(mesh, contact, eventually):
    revoked, kept = mesh.token("e2e", "--user", f"a-{contact}"), mesh.token("e2e", "--user", f"b-{contact}")
    async with connect(mesh, revoked) as client, connect(mesh, kept) as friend, socket(mesh, revoked) as ours:
        assert (await client.get("/v1/runs")).status_code == 200
        assert json.loads(await ours.recv())["type"] == "hello"
        path = f"/v1/contacts/{contact}/events"
        async with client.stream("GET", path) as response, friend.stream("GET", path) as lasting:
            listening = asyncio.create_task(last_words(response))
            await asyncio.to_thread(mesh.command, "revoke", revoked)
            began = time.monotonic()

            async def refused():
                answer = await client.get("/v1/runs")
                return answer.status_code == 401 and answer

            assert_refused(await eventually(refused, REVOKED_WITHIN_S), 401, "CREDENTIAL_INVALID")
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + REVOKED_WITHIN_S):
                told = await listening
                await ours.wait_closed()
            assert time.monotonic() - began < REVOKED_WITHIN_S
            assert ours.close_code == CLOSED_FOR_CREDENTIAL
            assert "event: error" in told
            assert '"CREDENTIAL_INVALID"' in told
            assert (await friend.get("/v1/runs")).status_code == 200
            assert not lasting.is_closed
            run = (await friend.post(f"/v1/contacts/{contact}/messages", json={"text": "#echo=x"})).json()["run"]
            async for line in lasting.aiter_lines():
                if line == "event: run.succeeded":
                    break
            assert (await friend.get(f"/v1/runs/{run['run_id']}")).json()["run"]["state"] == "succeeded"
