"""Signatures hold before verifiers that others wrote."""

import base64
import time

import pytest
from retinue_kit.errors import RetinueError
from retinue_router.domain import signing
from standardwebhooks import Webhook, WebhookVerificationError

BODY = '{"type":"run.succeeded","data":{"text":"Grüße, 世界"}}'.encode()


def test_standard_webhooks_own_verifier_accepts_what_is_signed():
    secret = signing.new_secret()
    headers = signing.standard_headers(secret, "dlv_1", int(time.time()), BODY)
    assert Webhook(secret).verify(BODY, headers)["type"] == "run.succeeded"


@pytest.mark.parametrize("changed", ["webhook-id", "webhook-timestamp", "body", "secret"])
def test_it_refuses_what_was_changed_on_the_way(changed):
    secret, now = signing.new_secret(), int(time.time())
    headers, body = signing.standard_headers(secret, "dlv_1", now, BODY), BODY
    if changed == "body":
        body += b" "
    elif changed == "secret":
        secret = signing.new_secret()
    else:
        headers[changed] = {"webhook-id": "dlv_2", "webhook-timestamp": str(now - 1)}[changed]
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body, headers)


def test_the_specifications_own_example_is_signed_the_same():
    headers = signing.standard_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_feishus_signature_is_that_of_another_implementation():
    """By `openssl dgst -sha256 -hmac` over nothing, with time, newline and secret as the key."""
    assert signing.feishu_sign("TESTSECRET", 1599360473) == "+crt6FYPu8ptnI2Q3BUPOCWwXWcwrMmFhMLJTIzvDmQ="


@pytest.mark.parametrize("size", [24, 32, 64])
def test_secrets_of_the_sizes_that_the_standard_knows_are_taken(size):
    signing.check_secret("whsec_" + base64.b64encode(b"x" * size).decode())


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "whsec_!!!",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        base64.b64encode(b"x" * 32).decode(),
    ],
)
def test_other_secrets_are_refused(secret):
    with pytest.raises(RetinueError, match="secret: must be whsec_"):
        signing.check_secret(secret)
