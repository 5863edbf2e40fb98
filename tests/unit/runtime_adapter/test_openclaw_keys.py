"""Names by which a gateway knows tenants and conversations: one for each, and none with a meaning of its own."""

import re
import unicodedata
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from retinue_kit.ids import new_id
from retinue_runtime_adapter.openclaw import keys

CONTACTS = st.text(max_size=128)
IDS = st.text(min_size=1, max_size=64) | st.from_regex(r"(ten|ses|tenx|ten-)_[0-9a-zA-Z.]{0,30}", fullmatch=True)
GENERATIONS = st.integers(0, keys.GENERATION_MAX)
TRICKS = (
    "", "task", "main", "global", "unknown", "thread", "run", "..", "../..", ".", ":", "a:b", "::", "c-a", "~", "~~",
    "~3a", "anna", "Anna", "ANNA", " anna", "anna ", "anna\n", "an na", "é", "e\u0301", "É", "ß", "ss", "ı", "İ", "i",
    "\u212a", "k", "\x00", "\u202e", "😀", "subagent:x", "signal:group:Ab", "matrix:channel:!Ab", "incognito-x",
    "agent:main:main", "a" * 48, "a" * 49, "a" * 128, "é" * 128, "é" * 127, "+49 151 23", "anna@example.org", "g0",
)  # fmt: skip
"""Contacts that a gateway could take for another's, or for something else."""

WORDS = {
    "main", "global", "unknown", "thread", "run", "cron", "subagent", "acp", "group", "channel", "dm", "signal",
    "matrix", "dashboard", "internal-session-effects", "topic", "heartbeat", "hook", "node", "default",
}  # fmt: skip
"""Segments that OpenClaw gives a meaning to."""


def key_of(tenant_id: str, contact: str, session_id: str, generation: int = 0) -> str:
    return keys.session_key(keys.agent_id(tenant_id), tenant_id, contact, session_id, generation)


def folded_as_the_gateway_does(key: str) -> str:
    """OpenClaw trims and folds, and keeps the case of signal's groups and matrix' rooms."""
    assert not re.search(r"(^|:)signal:group:", key, re.IGNORECASE)
    assert not re.match(r"(?:(?:agent:[^:]*:)+:*)?matrix:(?:channel|group):", key, re.IGNORECASE)
    return key.strip().lower()


@given(IDS)
@example("ten_01kapz8w9v3n4c5d6e7f8g9h0j")
@example("__proto__")
@example("main")
def test_an_agent_id_is_what_openclaw_takes_as_it_is(tenant_id: str) -> None:
    found = keys.agent_id(tenant_id)
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", found)
    assert len(found) <= keys.AGENT_ID_LENGTH_MAX
    assert found == keys.agent_id(tenant_id)
    assert found not in WORDS
    assert not found.startswith("-")
    assert not found.endswith("-")


@given(IDS, IDS)
@example("ten_a", "ten_A")
@example("ten_a", "ten-a")
@example("ten_a", "a")
@example("ten_a", "ten_a\n")
@example("ten_a", "tenx_a")
def test_two_tenants_never_share_an_agent(one: str, other: str) -> None:
    assert (keys.agent_id(one) == keys.agent_id(other)) is (one == other)


def test_an_id_of_this_system_can_be_read_in_its_agent_s() -> None:
    tenant_id = new_id("ten")
    assert keys.agent_id(tenant_id) == tenant_id.replace("_", "-")


@given(IDS, CONTACTS, IDS, GENERATIONS)
def test_a_session_key_is_bounded_and_stays_as_it_is_in_a_gateway(
    tenant_id: str, contact: str, session_id: str, generation: int
) -> None:
    key = key_of(tenant_id, contact, session_id, generation)
    assert key == key_of(tenant_id, contact, session_id, generation)
    assert len(key) <= keys.SESSION_KEY_LENGTH_MAX
    assert re.fullmatch(r"[a-z0-9_~:-]+", key)
    assert folded_as_the_gateway_does(key) == key
    assert ".." not in key
    assert "/" not in key
    assert "::" not in key


@given(IDS, CONTACTS, IDS)
@pytest.mark.parametrize("trick", TRICKS)
def test_no_segment_of_a_session_key_has_a_meaning_of_its_own(
    trick: str, tenant_id: str, contact: str, session_id: str
) -> None:
    for key in (key_of(tenant_id, trick, session_id), key_of(trick, contact, trick), key_of(tenant_id, contact, trick)):
        parts = key.split(":")
        assert parts[0] == "agent"
        assert parts[2] == "retinue"
        assert parts[4] == "direct"
        assert len(parts) == 8
        assert not WORDS.intersection(parts)
        assert not any(part.startswith("incognito-") for part in parts)


@given(st.tuples(IDS, CONTACTS, IDS, GENERATIONS), st.tuples(IDS, CONTACTS, IDS, GENERATIONS))
def test_two_conversations_never_share_a_session_key(
    one: tuple[str, str, str, int], other: tuple[str, str, str, int]
) -> None:
    assert (key_of(*one) == key_of(*other)) is (one == other)


def test_contacts_that_look_alike_have_keys_of_their_own() -> None:
    for one, other in combinations(TRICKS, 2):
        assert key_of("ten_a", one, "ses_a") != key_of("ten_a", other, "ses_a"), (one, other)
    assert unicodedata.normalize("NFC", "e\u0301") == "é"


@given(CONTACTS, CONTACTS)
def test_a_contact_cannot_speak_for_another_tenant_or_session(contact: str, other: str) -> None:
    ours = {key_of("ten_a", contact, "ses_a"), key_of("ten_a", other, "ses_a")}
    theirs = {key_of(tenant, who, "ses_a") for tenant in ("ten_b", "TEN_A") for who in (contact, other)}
    assert not ours & theirs
    assert key_of("ten_a", contact, "ses_b") not in ours


@given(IDS, IDS, CONTACTS, IDS, GENERATIONS)
def test_a_key_belongs_to_its_agent_alone(
    tenant_id: str, other_id: str, contact: str, session_id: str, generation: int
) -> None:
    agent, other = keys.agent_id(tenant_id), keys.agent_id(other_id)
    for key in (keys.session_key(agent, tenant_id, contact, session_id, generation), keys.warm_key(agent)):
        assert keys.belongs(key, agent)
        assert keys.belongs(key, other) is (other == agent)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "main",
        "global",
        "agent:ten-a:main",
        "agent:ten-a:retinue:ten-a:direct:c-anna:ses-a:g0:thread:1",
        "agent:ten-a:retinue:ten-a:direct:c-anna:ses-a:g00",
        "agent:ten-a:retinue:ten-a:direct:c-anna:ses-a",
        "agent:ten-a:retinue:ten-a:direct:c-Anna:ses-a:g0",
        "agent:ten-a:retinue:ten-a:direct:c-a..b:ses-a:g0",
        "agent:ten-a:retinue:ten-a:direct:c-anna:ses-a:g0\n",
        " agent:ten-a:retinue:ten-a:direct:c-anna:ses-a:g0",
        "agent:ten-a:subagent:x",
        "agent:ten-a:retinue:warm-up:x",
    ],
)
def test_a_key_that_this_system_never_makes_belongs_to_nobody(key: str) -> None:
    assert not keys.belongs(key, "ten-a")


def test_a_warm_up_is_no_conversation() -> None:
    agent = keys.agent_id("ten_a")
    warm = keys.warm_key(agent)
    assert warm == "agent:ten-a:retinue:warm-up"
    assert all(key_of("ten_a", contact, "ses_a") != warm for contact in TRICKS)


@pytest.mark.parametrize("agent", ["", "main", "ten_a", "Ten-a", "ten-", "ten-a:b", "ten-a\n", "tenx-a"])
def test_an_agent_that_this_module_never_named_is_refused(agent: str) -> None:
    with pytest.raises(ValueError, match="no agent id"):
        keys.session_key(agent, "ten_a", "anna", "ses_a", 0)
    with pytest.raises(ValueError, match="no agent id"):
        keys.warm_key(agent)
    assert not keys.belongs(f"agent:{agent}:retinue:warm-up", agent)


@pytest.mark.parametrize("generation", [-1, keys.GENERATION_MAX + 1])
def test_a_generation_has_bounds(generation: int) -> None:
    with pytest.raises(ValueError, match="generation"):
        keys.session_key("ten-a", "ten_a", "anna", "ses_a", generation)
