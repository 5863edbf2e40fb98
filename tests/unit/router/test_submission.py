"""What is asked: what is refused, what the agent is told, and when two intents are the same."""

import dataclasses
import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import RetinueError
from retinue_router.domain.submission import Submission

NOW = datetime(2026, 2, 28, 12, tzinfo=UTC)
PLAIN = Submission(tenant_id="ten_a", contact="anna", text="hello", metadata={}, input={}, parameters={})
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
FACTS = st.dictionaries(st.text(), JSON, max_size=4)


def changed(**fields):
    return dataclasses.replace(PLAIN, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"contact": "berta"}, {"text": "hello "}, {"kind": "extract"}, {"runtime": "light"}, {"on_busy": "reject"},
        {"metadata": {"a": 1}}, {"reasoning": True}, {"context": [{"role": "user", "text": "x"}]}, {"input": {"a": 1}},
        {"parameters": {"a": 1}}, {"run_at": NOW},
    ],
)  # fmt: skip
def test_whatever_is_asked_differently_has_another_digest(fields):
    assert changed(**fields).digest() != PLAIN.digest()


def test_who_asks_under_which_key_does_not_matter():
    assert changed(principal="usr_2", idempotency_key="k").digest() == PLAIN.digest()


@given(FACTS)
def test_the_order_of_names_does_not_matter(facts):
    backwards = dict(reversed(facts.items()))
    assert changed(metadata=facts).digest() == changed(metadata=backwards).digest()


@given(FACTS, FACTS)
def test_equal_digests_mean_equal_facts(facts, other):
    same = json.dumps(facts, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (changed(metadata=facts).digest() == changed(metadata=other).digest()) == same
    if facts:
        assert changed(metadata=facts).digest() != changed(parameters=facts).digest()


def test_the_digest_is_the_same_in_every_release():
    written = b'{"contact":"anna","kind":"chat","text":"hello"}'
    assert PLAIN.digest() == hashlib.sha256(written).digest()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": "a\0"}, "text"),
        ({"contact": "a/b"}, "contact"),
        ({"idempotency_key": "a b"}, "idempotency_key"),
        ({"idempotency_key": "ä"}, "idempotency_key"),
        ({"idempotency_key": "a\n"}, "idempotency_key"),
        ({"run_at": NOW}, "run_at"),
        ({"kind": "extract", "run_at": NOW + timedelta(days=366, microseconds=1)}, "run_at"),
    ],
)
def test_what_cannot_be_executed_is_refused(fields, field):
    with pytest.raises(RetinueError) as refused:
        changed(**fields).check(NOW)
    assert refused.value.metadata["field"] == field


def test_a_task_needs_no_text():
    changed(kind="extract", text="", idempotency_key="!~").check(NOW)


@pytest.mark.parametrize("run_at", [datetime.min.replace(tzinfo=UTC), NOW, NOW + timedelta(days=366)])
def test_a_task_may_have_a_time_within_a_year_or_long_ago(run_at):
    changed(kind="extract", run_at=run_at).check(NOW)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": "hello", "input": {"text": "x"}}, "hello"),
        ({"text": "", "input": {"text": "find names"}}, "find names"),
        ({"text": "", "input": {"text": 1, "url": "ü"}}, 'extract\n{\n "text": 1,\n "url": "ü"\n}'),
        ({"text": "", "input": {}}, "extract\n{}"),
    ],
)
def test_a_task_tells_the_agent_its_text_or_its_input(fields, said):
    assert changed(kind="extract", **fields).said() == said
