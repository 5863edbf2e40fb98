"""Receivers as they are: rude, false, or somebody's own network behind a name; and Feishu."""

import asyncio
import json
import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from posting import TENANT, FakeNames, asked
from receiving import Receiver
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.sealing import Sealer
from retinue_router.domain import signing
from retinue_router.operations.webhooks import Webhooks
from retinue_router.store.webhooks import WebhookStore

BOTS_SECRET = "bots-own"
FINE = b'{"code": 0, "msg": "success"}'


async def test_rude_receivers_are_tried_again_later(post, receiver):
    other, closed = Receiver(), Receiver()
    await other.start()
    await closed.start()
    await closed.stop()
    handlers = {
        "/reset": (receiver.reset, "the connection was cut"),
        "/moved": (receiver.answer(307, location=other.url()), "HTTP 307: redirects are not followed"),
        "/busy": (receiver.answer(503), "HTTP 503"),
    }

    async def rude(request):
        return await handlers[request.path][0](request)

    async def babble(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n" * 9)
        writer.close()

    receiver.answers = [rude]
    babbler = await asyncio.start_server(babble, "127.0.0.1", 0)
    expected = {receiver.url(path): result for path, (_, result) in handlers.items()}
    expected[closed.url()] = "no connection"
    expected[f"http://127.0.0.1:{babbler.sockets[0].getsockname()[1]}/"] = "its answer is not HTTP"
    urls = {(await post.make(url))[0]: url for url in expected}
    await post.happen()
    await post.round(timeout_s=30)
    rows = await post.rows()
    assert {urls[row["webhook_id"]]: row["last_result"] for row in rows} == expected
    assert {(row["state"], row["attempt"]) for row in rows} == {("pending", 1)}
    assert other.received == []
    babbler.close()
    await other.stop()


async def test_a_receiver_that_says_nothing_is_left_after_a_while(post, receiver):
    receiver.answers = [receiver.hang]
    await post.make(receiver.url())
    await post.happen()
    await post.round(timeout_s=0.3)
    row = await post.row()
    assert (row["state"], row["last_result"]) == ("pending", "no answer within 0.3 s")


def nobodys_certificate(folder):
    """A certificate that no authority stands behind."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *form) + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def test_nothing_is_told_to_a_server_that_cannot_prove_its_name(post, tmp_path):
    imposter = Receiver()
    await imposter.start(nobodys_certificate(tmp_path))
    await post.make(f"https://localhost:{imposter.port}/")
    await post.happen()
    await post.round(timeout_s=30)
    row = await post.row()
    assert (row["state"], row["last_result"], imposter.received) == ("pending", "its certificate is not trusted", [])
    await imposter.stop()


async def test_an_answer_without_end_is_not_read_to_its_end(post, receiver):
    receiver.answers = [receiver.pour]
    kinds = {(await post.make(receiver.url(), kind))[0]: kind for kind in ("standard", "feishu")}
    await post.happen()
    await post.round(timeout_s=30)
    states = {kinds[row["webhook_id"]]: row["state"] for row in await post.rows()}
    assert states == {"standard": "delivered", "feishu": "pending"}


async def test_an_address_is_looked_at_again_when_it_is_sent_to(post):
    found = {"loop.example": ["127.0.0.1"], "inner.example": ["169.254.169.254", "fd00::1"]}
    results = {
        "https://loop.example/": "its name leads to no public address",
        "https://inner.example/": "its name leads to no public address",
        "https://127.0.0.1/": "url: must lead to a public address.",
        "http://example.com/": "url: must begin with https://.",
    }
    urls = {(await post.make(url))[0]: url for url in results}
    await post.happen()
    await post.round(private=False, names=FakeNames(found))
    rows = await post.rows()
    assert {urls[row["webhook_id"]]: row["last_result"] for row in rows} == results
    assert {row["state"] for row in rows} == {"dead"}


async def test_a_connection_goes_to_the_address_that_was_looked_at(post, receiver):
    """The name is asked once: there is no second answer, which might lead elsewhere."""
    names = FakeNames({"rebound.example": ["127.0.0.1"]})
    await post.make(f"http://rebound.example:{receiver.port}/")
    await post.happen()
    await post.round(names=names)
    assert (await post.row())["state"] == "delivered"
    assert names.found == {}
    assert receiver.received[0].headers["host"] == f"rebound.example:{receiver.port}"


async def test_a_private_name_is_refused_when_a_webhook_is_made(post):
    for found, message in ((["10.0.0.1"], "public address"), (["93.184.216.34"], "")):
        strict = Webhooks(WebhookStore(post.core.pool), post.sealer, FakeNames({"example.com": found}), private=False)
        if message:
            with pytest.raises(RetinueError, match=message):
                await strict.create(asked("https://example.com/"))
        else:
            await strict.create(asked("https://example.com/"))


async def test_a_seventeenth_webhook_is_refused(post):
    for i in range(16):
        await post.make(f"http://example.com/{i}")
    with pytest.raises(RetinueError, match="16 webhooks at most") as caught:
        await post.make("http://example.com/16")
    assert caught.value.reason is Reason.QUOTA_EXCEEDED


async def test_secrets_are_sealed_and_a_lost_key_is_told(post, receiver, tmp_path):
    webhook, secret = await post.make(receiver.url())
    (row,) = await post.core.seen("select secret from router.webhooks")
    assert secret.encode() not in row["secret"]
    await post.happen()
    await post.round(sealer=Sealer({"other": b"x" * 32}))
    name = post.keys.read_text().split()[0]
    row = await post.row()
    assert row["state"] == "dead"
    assert (
        row["last_result"]
        == f"its secret cannot be read: it was sealed with the key {name}, which is not in the file of keys"
    )
    await post.webhooks.retry(TENANT, webhook, row["delivery_id"])
    await post.round()
    receiver.received[0].verified(secret)


async def test_without_a_key_no_webhook_with_a_secret_is_made(post, receiver):
    keyless = Webhooks(WebhookStore(post.core.pool), None, FakeNames({}), private=True)
    with pytest.raises(RetinueError, match="no sealing key") as caught:
        await keyless.create(asked(receiver.url()))
    assert caught.value.reason is Reason.CAPABILITY_MISSING
    assert (await keyless.create(asked(receiver.url(), "feishu")))[1] == ""


async def test_a_feishu_bot_gets_a_signed_card(post, receiver):
    receiver.answers = [receiver.answer(200, FINE)]
    await post.make(receiver.url("/open-apis/bot/v2/hook/x"), "feishu", ["user.message"], BOTS_SECRET)
    text = "<at id=all></at> **" + "長" * 3000
    await post.happen(text=text)
    before = time.time()
    await post.round()
    message = json.loads(receiver.received[0].body)
    assert abs(int(message["timestamp"]) - before) < 60
    assert message["sign"] == signing.feishu_sign(BOTS_SECRET, int(message["timestamp"]))
    assert message["msg_type"] == "interactive"
    shown = json.dumps(message["card"], ensure_ascii=False)
    assert "Contact: anna" in shown
    assert '"tag": "lark_md"' not in shown
    assert len(receiver.received[0].body) < 20_000
    assert (await post.row())["state"] == "delivered"


async def test_a_feishu_bot_without_a_secret_gets_no_signature(post, receiver):
    receiver.answers = [receiver.answer(200, b'{"code": 19021, "msg": "sign match fail"}')]
    await post.make(receiver.url(), "feishu")
    await post.happen()
    await post.round()
    assert "sign" not in json.loads(receiver.received[0].body)
    row = await post.row()
    assert (row["state"], row["last_result"]) == (
        "dead",
        "Feishu refuses the signature: is the secret the bot's? (19021)",
    )


async def test_neither_url_nor_secret_is_logged(post, receiver):
    _, secret = await post.make(receiver.url("/very-secret-path"))
    receiver.answers = [receiver.answer(500)]
    await post.happen()
    with structlog.testing.capture_logs() as lines:
        await post.round()
    said = str(lines)
    assert "attempt ended" in said
    assert "very-secret-path" not in said
    assert secret not in said
