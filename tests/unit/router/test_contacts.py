"""Names of contacts, and the log and folder that each leads to."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import RetinueError
from retinue_router.domain.contacts import check_name, log_id_of
from retinue_router.domain.workspace import contact_folder

LETTERS = st.characters(categories=["L", "N", "M"], include_characters="-_.@+:")
NAMES = st.text(LETTERS, min_size=1, max_size=128).map(lambda name: unicodedata.normalize("NFC", name)[:128])
ANY = st.text(max_size=140)


def accepted(name):
    try:
        check_name(name)
    except RetinueError as error:
        return error.metadata != {"field": "contact"}
    return True


@given(ANY, ANY, ANY, ANY)
def test_each_pair_of_tenant_and_name_has_a_log_of_its_own(tenant, name, other_tenant, other_name):
    log = log_id_of(tenant, name)
    assert re.fullmatch("log_[0-9a-z]{26}", log)
    assert log == log_id_of(tenant, name)
    assert (log == log_id_of(other_tenant, other_name)) == ((tenant, name) == (other_tenant, other_name))


@given(st.text(min_size=1, max_size=20), st.integers(1, 19))
def test_pairs_whose_joint_text_is_the_same_are_kept_apart(text, cut):
    for sign in ("", ":", "..", "/"):
        joined = text[:cut] + sign + text[cut:]
        logs = {log_id_of(joined[:i], joined[i:]) for i in range(len(joined) + 1)}
        assert len(logs) == len(joined) + 1


@pytest.mark.parametrize(
    "name",
    [
        "anna",
        "Anna.B-c_d@example.org",
        "+49123",
        "张伟",
        "हिन्दी",
        "a:b",
        "reset",
        "a:resets",
        "reset:a",
        "...",
        "x" * 128,
    ],
)
def test_names_of_any_script_are_taken(name):
    assert accepted(name)


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "a/b", "a b", "a\0", "a\n", "A\u030a", "a:reset", "a:b:stream", ":wait", "a:cancel", "a:decide",
        "👋", "a~b", "a%2Fb", "x" * 129, "a\u202eb",
    ],
)  # fmt: skip
def test_names_that_lead_astray_are_refused(name):
    assert not accepted(name)


@given(NAMES)
def test_a_name_that_is_taken_is_a_safe_folder(name):
    if accepted(name):
        folder = contact_folder(name)
        assert 1 <= len(folder.encode()) <= 255
        assert folder not in (".", "..")
        assert not set(folder) & set("/\0")


@given(NAMES, NAMES)
def test_two_names_never_share_a_folder(name, other):
    assert (contact_folder(name) == contact_folder(other)) == (name == other)
    long = (name * 128)[:120] + "名" * 60
    assert contact_folder(long + "a") != contact_folder(long + "b")
    assert contact_folder(contact_folder(long)) == contact_folder(long)  # only a name with a tilde could meet it
    assert not accepted(contact_folder(long))
