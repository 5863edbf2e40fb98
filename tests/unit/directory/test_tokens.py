"""What a token claims, its bounds, and how long keys and revocations are kept."""

from datetime import UTC, datetime, timedelta

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_directory import signing
from retinue_directory.domain import tokens
from retinue_kit.errors import Reason, RetinueError

NOW = datetime(2026, 11, 21, 9, 0, 0, 500_000, tzinfo=UTC)


def claims(**changes):
    given_claims = {"tenant_id": "ten_a", "user_id": "usr_a", "scopes": (), "now": NOW, "ttl_s": 60.0, "jti": "tok_a"}
    return tokens.claims(**(given_claims | changes))


def test_a_token_claims_exactly_this():
    issued = int(NOW.timestamp())
    assert claims(scopes=["chat", "admin", "chat"]) == {
        "iss": "retinue",
        "aud": "retinue",
        "sub": "usr_a",
        "tenant": "ten_a",
        "scope": "chat admin",
        "iat": issued,
        "exp": issued + 60,
        "jti": "tok_a",
    }


def test_without_scopes_a_token_may_chat():
    assert claims()["scope"] == "chat"


@pytest.mark.parametrize("ttl_s", [0.001, 1.0, tokens.DEFAULT_TTL_S, tokens.TTL_MAX_S])
def test_a_time_to_live_within_bounds_is_granted(ttl_s):
    made = claims(ttl_s=ttl_s)
    assert made["exp"] - made["iat"] >= 1
    assert ttl_s <= made["exp"] - made["iat"] < ttl_s + 1


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, tokens.TTL_MAX_S + 0.001, float("inf"), float("nan")])
def test_a_time_to_live_out_of_bounds_is_refused(ttl_s):
    with pytest.raises(RetinueError) as caught:
        claims(ttl_s=ttl_s)
    assert caught.value.reason is Reason.FIELD_INVALID
    assert caught.value.metadata == {"field": "ttl"}


@pytest.mark.parametrize(("text", "name"), [("", "owner"), ("  ", "owner"), (" ann ", "ann"), ("李雷", "李雷")])
def test_a_user_has_a_name(text, name):
    assert tokens.user_name(text, "owner") == name


@pytest.mark.parametrize("text", ["a\x00b", "a\nb", "x" * 129])
def test_a_name_that_cannot_be_shown_is_refused(text):
    with pytest.raises(RetinueError) as caught:
        tokens.user_name(text, "owner")
    assert caught.value.metadata == {"field": "user"}


@given(st.floats(0.001, tokens.TTL_MAX_S), st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1)))
def test_a_retired_key_is_known_for_as_long_as_anything_it_signed_lives(ttl_s, retired):
    retired = retired.replace(tzinfo=UTC)
    expiry = datetime.fromtimestamp(claims(now=retired, ttl_s=ttl_s)["exp"], UTC)
    assert retired >= tokens.retired_since(expiry), "still kept at the moment its last token expires"


def test_a_revocation_is_remembered_until_the_token_expires_and_no_longer_than_one_can_live():
    soon = NOW + timedelta(days=1)
    longest = NOW + timedelta(seconds=tokens.TTL_MAX_S) + tokens.KEY_MARGIN
    assert tokens.revoked_until(soon, NOW) == soon
    assert tokens.revoked_until(None, NOW) == longest
    assert tokens.revoked_until(NOW + timedelta(days=4000), NOW) == longest


def test_a_signed_token_is_verified_by_the_public_half_alone():
    keys = [signing.new_key(NOW) for _ in range(2)]
    public = signing.key_set(keys)
    assert '"d"' not in public, "a key set holds no private member"
    for key in keys:
        text = signing.sign(key, {"sub": "usr_a"})
        header = jwt.get_unverified_header(text)
        assert (header["alg"], header["kid"]) == ("ES256", key.kid)
        found = jwt.PyJWKSet.from_json(public)[key.kid]
        assert jwt.decode(text, found, algorithms=["ES256"]) == {"sub": "usr_a"}
        other = next(k for k in keys if k is not key)
        with pytest.raises(jwt.InvalidSignatureError):
            jwt.decode(text, jwt.PyJWKSet.from_json(public)[other.kid], algorithms=["ES256"])
