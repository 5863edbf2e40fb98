"""An OpenClaw session goes on only where it was told exactly what was said."""

from hypothesis import given
from hypothesis import strategies as st
from retinue_runtime_adapter.openclaw import keys
from retinue_runtime_adapter.openclaw import sessions as module
from retinue_runtime_adapter.openclaw.sessions import Sessions

HELLO = [("user", "hello"), ("assistant", "hi")]


def made():
    return Sessions(keys.agent_id("ten_a"), "ten_a")


def test_the_first_run_opens_a_session_with_what_was_said_before_in_front():
    session = made().open("ses_1", "anna", HELLO)
    assert session.before == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]


def test_a_run_that_went_well_is_followed_in_the_same_session():
    book = made()
    first = book.open("ses_1", "anna", [])
    book.said("ses_1", first, HELLO)
    second = book.open("ses_1", "anna", HELLO)
    assert (second.key, second.before) == (first.key, [])


def test_a_run_that_did_not_go_well_leaves_a_session_that_nobody_uses():
    book = made()
    first = book.open("ses_1", "anna", [])
    second = book.open("ses_1", "anna", [("user", "hello")])
    assert second.key != first.key
    assert [message["content"] for message in second.before] == ["hello"]


def test_what_was_said_elsewhere_opens_a_new_session():
    book = made()
    first = book.open("ses_1", "anna", [])
    book.said("ses_1", first, HELLO)
    elsewhere = [*HELLO, ("user", "and"), ("assistant", "so")]
    second = book.open("ses_1", "anna", elsewhere)
    assert second.key != first.key
    book.said("ses_1", second, [("user", "x"), ("assistant", "y")])
    assert book.open("ses_1", "anna", [*elsewhere, ("user", "x"), ("assistant", "y")]).key == second.key


def test_a_window_of_the_latest_messages_is_enough_where_it_is_long():
    book = made()
    said = []
    session = book.open("ses_1", "anna", [])
    for number in range(module.WINDOW_MIN):
        lines = [("user", f"{number}?"), ("assistant", f"{number}!")]
        book.said("ses_1", session, lines)
        said += lines
        assert book.open("ses_1", "anna", said[-module.WINDOW_MIN :]).key == session.key
    assert book.open("ses_1", "anna", said[-4:]).key != session.key


def test_conversations_have_sessions_of_their_own_and_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr(module, "SESSIONS_MAX", 2)
    book = made()
    first = {}
    for name in ("a", "b", "c"):
        first[name] = book.open(f"ses_{name}", "anna", [])
        book.said(f"ses_{name}", first[name], HELLO)
    assert len({session.key for session in first.values()}) == 3
    assert book.open("ses_a", "anna", HELLO).key != first["a"].key
    assert book.open("ses_c", "anna", HELLO).key == first["c"].key


LINES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=5)), max_size=6)


@given(told=LINES, context=LINES)
def test_only_the_same_words_in_the_same_order_are_known(told, context):
    book = made()
    first = book.open("ses_1", "anna", [])
    book.said("ses_1", first, told)
    assert (book.open("ses_1", "anna", context).key == first.key) == (context == told)
