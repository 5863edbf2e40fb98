"""A bundle told to a runtime and to a log, and what is said about every field of it."""

from collections import Counter
from dataclasses import replace

import pytest
from conversations import began, bundle_of, chatter, composed, content, ended, everything, fact, message, turn
from google.protobuf.descriptor import FieldDescriptor
from retinue.portability.v1 import bundle_pb2 as pb
from retinue_kit.tokens import estimate
from retinue_portability.domain import losses, rendering
from retinue_portability.domain.content import Attachment, Bundle, Cursor, Profile, Summary, ToolCall
from retinue_portability.domain.losses import APPROXIMATE, HELD, LOST
from retinue_portability.domain.rendering import Target
from retinue_portability.format import parts

OPENCLAW = Target("openclaw", tools=True)


def declared():
    """Every field that the contract declares of a part; where a part is a list, those of its items."""
    for name, descriptor in pb.DESCRIPTOR.message_types_by_name.items():
        if name.endswith("Part") and name != "Part":
            part = "".join(f"_{c.lower()}" if c.isupper() else c for c in name.removesuffix("Part")).lstrip("_")
            fields = descriptor.fields
            if len(fields) == 1 and fields[0].type == FieldDescriptor.TYPE_MESSAGE:
                fields = fields[0].message_type.fields
            yield from (f"{part}.{field.name.removesuffix('_json')}" for field in fields)


def fates(given):
    return {fate.field: fate for fate in given.fates}


def test_nothing_is_silently_lost_every_declared_field_has_a_fate_wherever_it_goes():
    names = list(declared())
    assert sorted({name.partition(".")[0] for name in names}) == sorted(parts.NAMES)
    bundle = everything().bundle
    for told in (
        rendering.for_runtime(bundle, OPENCLAW).fates,
        rendering.for_runtime(bundle, Target("light")).fates,
        rendering.for_log(bundle, "bob").fates,
    ):
        assert sorted(fate.field for fate in told) == sorted(names)
        assert {fate.fate for fate in told} <= {HELD, APPROXIMATE, LOST}
        assert all(bool(fate.reason) == (fate.fate != HELD) for fate in told)
        assert all(fate.item_count or fate.fate == HELD for fate in told)


def test_what_is_held_is_in_what_the_runtime_is_given_word_for_word():
    bundle = everything().bundle
    given = rendering.for_runtime(bundle, OPENCLAW)
    found = fates(given)
    assert [(one.role, one.text) for one in given.messages] == [(m.role, m.text) for m in bundle.content.messages]
    for field, words in (
        ("profile.display_name", ["Ann"]),
        ("profile.profile", ['{"age":41,"city":"Oslo"}']),
        ("facts.text", ["Ann likes tea", "Ann has a cat called Mochi"]),
        ("attachments.path", ["notes/a.md"]),
    ):
        assert found[field].fate == HELD
        assert [word for word in words if word not in given.preface] == []
    assert "Ann is planning a party." in given.preface
    assert found["summary.text"].reason == "2 older messages: in a model's words."
    assert 'read_file {"path":"notes/a.md"}: call Bob' in given.preface
    assert found["tool_calls.result"].fate == APPROXIMATE
    assert found["messages.text"].reason == "1 secrets were taken out of the part."


def test_nothing_to_tell_makes_no_preface_and_no_losses():
    given = rendering.for_runtime(composed(turn(1, "hi", "hello"), name=""), OPENCLAW)
    told = [fate.field for fate in given.fates if fate.fate != HELD]
    assert given.preface == "They come by web.".join((rendering.RECORD + "\n\n", ""))
    assert told == ["messages.message_id", "messages.run_id", "messages.cursor"]
    assert rendering.for_runtime(Bundle(content(), Cursor(0, 0), 100), OPENCLAW).preface == ""


def test_a_runtime_without_tools_is_told_so():
    found = fates(rendering.for_runtime(everything().bundle, Target("light")))
    assert found["tool_calls.arguments"].reason == "Told in words: the runtime calls no tools."
    assert found["attachments.path"].fate == APPROXIMATE


def test_bounded_a_small_window_is_given_what_fits_and_the_report_says_what_became_of_the_rest():
    events = [*chatter(1, 100), *turn(101, "My cat is called Mochi", "Noted"), *chatter(102, 120)]
    bundle = composed(events, facts=[fact(at, f"{at} " + "f" * 200) for at in range(60)])
    small = rendering.for_runtime(bundle, Target("light", tools=True, window_tokens=2000))
    whole = rendering.for_runtime(bundle, OPENCLAW)
    assert len(whole.messages) == 442 > len(small.messages) > 10
    tokens = estimate(small.preface) + sum(estimate(one.text) for one in small.messages)
    assert tokens <= 2000 * rendering.WINDOW_SHARE + 100
    assert small.messages[-1] == whole.messages[-1]
    assert small.messages[0].role == "user"
    found = fates(small)
    assert "older messages: by sentences picked by rule." in found["summary.text"].reason
    assert found["facts.text"].fate == APPROXIMATE
    assert "had no room" in found["facts.text"].reason


@pytest.mark.parametrize(("asked", "window", "room"), [(24_000, 0, 24_000), (24_000, 8000, 4000), (1000, 8000, 1000)])
def test_a_budget_leaves_room_in_the_window(asked, window, room):
    assert rendering.budget_for(asked, Target("light", window_tokens=window)) == room


def test_what_was_missing_before_is_told_of_its_own_part_alone():
    bundle = replace(everything().bundle, taken=Counter({
        ("messages", "cut_in_the_middle"): 2, ("facts", "over_budget"): 3, ("tool_calls", "never_ended"): 1,
        ("messages", "over_size"): 7, ("settings", "api_key"): 1,
    }))  # fmt: skip
    found = fates(rendering.for_runtime(bundle, OPENCLAW))
    assert "2 cut to fit." in found["messages.text"].reason
    assert "cut" not in found["messages.role"].reason
    assert "7 of the oldest were not read" in found["messages.role"].reason
    assert found["facts.text"].reason == "3 had no room."
    assert "1 had no end" in found["tool_calls.tool"].reason
    assert found["settings.persona"].reason == "1 secrets were taken out of the part."
    assert found["profile.display_name"].fate == HELD


def test_facts_and_results_of_several_lines_are_told_on_one():
    call = ToolCall("c", "run", "{}", False, "a\nb", "r", Cursor(1, 2))
    bundle = Bundle(content(facts=(fact(1, "one\ntwo"),), calls=(call,)), Cursor(1, 2), 100)
    given = rendering.for_runtime(bundle, OPENCLAW)
    assert "- one two" in given.preface
    assert "- run {}: failed: a b" in given.preface
    assert fates(given)["facts.text"].reason == "Told on one line each."


def test_a_log_is_given_calls_and_files_in_words_behind_the_summary():
    brought = rendering.for_log(everything().bundle, "ann")
    assert brought.summary.startswith("Ann is planning a party.\n\nWhat tools were called")
    assert brought.summary.endswith("- notes/a.md")
    found = fates(brought)
    assert found["summary.text"].fate == APPROXIMATE
    assert found["identity.contact"].fate == HELD
    assert found["messages.message_id"].fate == LOST
    assert fates(rendering.for_log(everything().bundle, "bob"))["identity.contact"].fate == LOST
    assert found["settings.persona"].line() == "settings.persona: lost: The tenant's own settings hold."


def test_bounded_a_log_takes_no_more_of_a_summary_than_it_may():
    files = tuple(Attachment(f"{at:03}" + "p" * 900, "") for at in range(250))
    bundle = Bundle(content(attachments=files, summary=Summary("s" * 9000, None, 3, "extract")), Cursor(1, 1), 10)
    brought = rendering.for_log(bundle, "ann")
    assert len(brought.summary) == rendering.SUMMARY_LENGTH_MAX
    assert "Its end is cut off." in fates(brought)["summary.text"].reason


def test_lost_facts_are_reported_where_there_were_any():
    told = rendering.for_log(everything().bundle, "ann").fates
    assert {fate.fate for fate in rendering.facts_lost(told, "Full.") if fate.field.startswith("facts.")} == {LOST}
    none = rendering.for_log(composed(turn(1, "a", "b")), "ann").fates
    assert rendering.facts_lost(none, "Full.") == none


def test_items_are_counted_by_part():
    made = content(messages=(message(1, "a"),), facts=(fact(1, "b"), fact(2, "c")), profile=Profile("Ann"))
    counts = losses.item_counts(made)
    assert (counts["messages"], counts["facts"], counts["profile"], counts["settings"]) == (1, 2, 1, 0)


def test_fifty_facts_told_long_ago_are_in_what_a_small_runtime_is_given():
    names = ("Ada", "Bo", "Cem", "Dag", "Eva")
    told = [f"My friend number {n} is called {names[n % 5]}{n}" for n in range(50)]
    events = []
    for at, one in enumerate(told):
        events += [*turn(at * 10 + 1, one, "Noted, thank you"), *chatter(at * 10 + 2, 9)]
    events += [began(501), ended(501, "r" * 5000)]
    given = rendering.for_runtime(composed(events, budget=6000), replace(OPENCLAW, window_tokens=12_000))
    words = given.preface + " ".join(one.text for one in given.messages)
    assert sum(one in words for one in told) >= 49
    assert len(given.messages) < 900


def test_no_secret_is_left_in_any_part():
    secret = "sk-abcdefghijklmnopqrstuvwxyz"
    events = [
        *turn(1, f"my key is {secret}", "noted"),
        began(2, arguments={"path": f"{secret}.txt", "deep": [{secret: secret}]}), ended(2, secret),
        *turn(2, "so?", secret),
    ]  # fmt: skip
    facts, profile = [fact(1, secret)], {"key": secret}
    made = bundle_of(events, facts=facts, profile=profile, name=secret, persona=f"Use {secret}.")
    small = bundle_of(events, facts=facts, profile=profile, persona=secret, budget=30)
    assert secret.encode() not in made.data
    assert secret.encode() not in small.data
    assert {one.part for one in made.manifest.redactions} == {
        "messages", "facts", "profile", "tool_calls", "attachments", "settings",
    }  # fmt: skip
