"""Bundles through the service: built from what the neighbours say, checked, told to runtimes, brought back."""

import pytest
from conversations import SESSION, began, bundle_of, chatter, compacted, ended, said, turn
from retinue.router.v1 import run_pb2
from retinue_kit.errors import Reason, RetinueError
from retinue_portability.clients import EVENTS_SIZE_MAX_BYTES
from retinue_portability.domain.content import Cursor, Identity
from retinue_portability.format import sealed

TARGET = {"runtime": "openclaw", "tools": True}
TALK = [*turn(1, "I live in Oslo", "Nice"), began(2), ended(2, "call Bob"), *turn(2, "read a.md", "It says: call Bob")]


async def refused(call):
    with pytest.raises(RetinueError) as caught:
        await call
    return caught.value


async def test_a_bundle_holds_what_log_memory_and_directory_say_and_is_the_same_each_time(mesh):
    mesh.router.events = TALK
    mesh.router.remember("ann", "Ann likes tea")
    mesh.router.remember("", "The office is closed on Mondays")
    made = await mesh.ask("BuildBundle")
    again = await mesh.ask("BuildBundle", session_id="")
    assert made.bundle == again.bundle
    found = sealed.open_sealed(made.bundle, mesh.signer).bundle
    held = found.content
    assert held.identity == Identity("ten_a", "agt_a", "ann", SESSION)
    assert [message.text for message in held.messages] == ["I live in Oslo", "Nice", "read a.md", "It says: call Bob"]
    assert {one.text for one in held.facts} == {"Ann likes tea", "The office is closed on Mondays"}
    assert [(call.tool, call.arguments_json, call.result) for call in held.calls] == [
        ("read_file", '{"path":"notes/a.md"}', "call Bob")
    ]
    assert held.profile.profile_json == '{"age":41,"city":"Oslo"}'
    assert (held.settings.persona, held.settings.model) == ("You are kind.", "fast")
    assert (str(found.through), found.token_budget) == ("2-9", 4000)
    verified = await mesh.ask("VerifyBundle", bundle=made.bundle)
    assert verified.facts == made.facts
    assert made.facts.token_count <= 4000


async def test_a_call_that_is_open_keeps_the_context_here_unless_it_may_be_left_out(mesh):
    mesh.router.events = [*TALK, said(3, text="again"), began(3)]
    error = await refused(mesh.ask("BuildBundle"))
    assert (error.reason, error.metadata) == (Reason.TOOL_TRANSACTION_OPEN, {"tool": "read_file"})
    assert len((await mesh.ask("BuildBundle", allow_open=True)).bundle) > 100
    error = await refused(mesh.ask("CarryContext", run_id="run_3", target=TARGET))
    assert error.reason is Reason.TOOL_TRANSACTION_OPEN
    mesh.router.events.append(ended(3))
    await mesh.ask("CarryContext", run_id="run_3", target=TARGET)


async def test_a_context_is_carried_without_what_the_run_has_said_but_with_what_it_summed_up(mesh):
    own = [said(4, text="and now?"), compacted(4, "Ann lives in Oslo.", Cursor(1, 9), run_id="run_4")]
    mesh.router.events = [*TALK, *own]
    carried = await mesh.ask("CarryContext", run_id="run_4", target=TARGET)
    assert [one.text for one in carried.context.messages] == ["read a.md", "It says: call Bob"]
    assert "Ann lives in Oslo." in carried.context.preface
    assert "call Bob" in carried.context.preface
    assert carried.context.losses.runtime == "openclaw"
    assert carried.context.losses.bundle_digest == carried.facts.digest
    assert not carried.context.HasField("lasting"), "the log knows it all"
    # Once the run is over, its words are part of the context.
    later = await mesh.ask("CarryContext", run_id="run_5", target=TARGET)
    assert later.context.messages[-1].text == "and now?"
    assert later.facts.digest != carried.facts.digest


async def test_a_small_window_bounds_what_is_carried(mesh):
    mesh.router.events = chatter(1, 300)
    small = await mesh.ask("CarryContext", run_id="run_x", target={**TARGET, "window_tokens": 1000})
    assert small.facts.token_count <= small.facts.manifest.token_budget == 500
    assert not small.context.HasField("lasting"), "a larger model is not to forget what a small one cannot read"


async def test_no_more_messages_are_carried_than_a_later_run_is_given_and_what_is_before_is_summed_up(mesh):
    mesh.router.events = [*turn(1, "My cat is called Mochi.", "Noted."), *chatter(2, 149)]
    whole = await mesh.ask("BuildBundle", token_budget=1_000_000)
    assert next(part.item_count for part in whole.facts.manifest.parts if part.name == "messages") == 300
    carried = await mesh.ask("CarryContext", run_id="run_x", token_budget=1_000_000, target=TARGET)
    assert len(carried.context.messages) == 200
    lasting = carried.context.lasting
    assert (lasting.method, lasting.message_count) == ("extract", 100)
    assert "My cat is called Mochi." in lasting.text
    assert lasting.text in carried.context.preface


async def test_what_a_bundle_holds_is_told_to_a_runtime_later(mesh):
    mesh.router.events = TALK
    bundle = (await mesh.ask("BuildBundle")).bundle
    given = (await mesh.ask("RenderBundle", bundle=bundle, target=TARGET)).context
    carried = (await mesh.ask("CarryContext", run_id="run_9", target=TARGET)).context
    assert (given.preface, given.messages) == (carried.preface, carried.messages)


async def test_no_cross_tenant_a_bundle_of_another_tenant_is_none(mesh):
    mesh.router.events = TALK
    bundle = (await mesh.ask("BuildBundle")).bundle
    for method in ("VerifyBundle", "ImportBundle"):
        error = await refused(mesh.ask(method, tenant_id="ten_b", bundle=bundle))
        assert (error.reason, error.metadata) == (Reason.BUNDLE_INVALID, {"part": "identity"})
    error = await refused(mesh.ask("RenderBundle", tenant_id="ten_b", bundle=bundle, target=TARGET))
    assert error.reason is Reason.TENANT_MISMATCH
    assert not mesh.router.imports


async def test_a_bundle_that_another_deployment_has_signed_or_somebody_has_changed_is_refused(mesh):
    error = await refused(mesh.ask("ImportBundle", bundle=bundle_of(TALK).data))
    assert (error.reason, error.metadata) == (Reason.BUNDLE_INVALID, {"part": "signature"})
    mesh.router.events = TALK
    bundle = bytearray((await mesh.ask("BuildBundle")).bundle)
    bundle[bundle.index(b"Oslo")] ^= 1
    error = await refused(mesh.ask("VerifyBundle", bundle=bytes(bundle)))
    assert error.metadata == {"part": "messages"}


async def test_a_bundle_is_brought_back_as_a_conversation_with_its_facts(mesh):
    mesh.router.events = [compacted(1, "Ann plans a party.", Cursor(0, 9)), *TALK[2:]]
    mesh.router.remember("ann", *(f"fact {n}" for n in range(130)))
    mesh.router.remember("", "The office is closed on Mondays")
    bundle = (await mesh.ask("BuildBundle")).bundle
    brought = await mesh.ask("ImportBundle", contact="bob", bundle=bundle)
    assert brought.session_id == "ses_new"
    (asked,) = mesh.router.imports
    assert [(one.role, one.text) for one in asked.messages] == [
        ("user", "read a.md"),
        ("assistant", "It says: call Bob"),
    ]
    assert asked.summary.startswith("Ann plans a party.\n\nWhat tools were called")
    assert (asked.summary_message_count, asked.display_name, asked.channel) == (2, "Ann", "web")
    assert dict(asked.profile) == {"city": "Oslo", "age": 41}
    lost = [f"{one.field}: {one.fate}: {one.reason}" for one in brought.losses.fields if one.fate != "held"]
    assert list(asked.losses) == lost
    assert asked.digest == brought.losses.bundle_digest
    sizes = [len(request.facts) for request in mesh.router.remembered]
    assert sizes == [100, 30]
    assert {request.contact for request in mesh.router.remembered} == {"bob"}
    again = await mesh.ask("ImportBundle", contact="bob", bundle=bundle)
    assert again == brought


async def test_an_import_that_is_refused_leaves_nothing_and_a_full_memory_is_a_loss(mesh):
    mesh.router.events = TALK
    mesh.router.remember("ann", "Ann likes tea")
    bundle = (await mesh.ask("BuildBundle")).bundle
    mesh.router.busy = True
    assert (await refused(mesh.ask("ImportBundle", bundle=bundle))).reason is Reason.SESSION_BUSY
    assert not mesh.router.remembered
    mesh.router.busy, mesh.router.full = False, True
    brought = await mesh.ask("ImportBundle", bundle=bundle)
    fates = {one.field: (one.fate, one.reason) for one in brought.losses.fields}
    assert fates["facts.text"] == ("lost", "The memory has no room for them.")


async def test_events_that_make_no_sense_are_passed_over_and_told_of(mesh):
    mesh.router.events = TALK
    mesh.router.stray = [
        run_pb2.Event(cursor="9-1", type="user.message", json=b"{"),
        run_pb2.Event(cursor="x", json=b"{}"),
    ]
    made = await mesh.ask("BuildBundle")
    missing = [(one.part, one.rule, one.count) for one in made.facts.manifest.redactions]
    assert missing == [("messages", "unreadable", 2)]


async def test_bounded_of_a_log_that_is_too_long_the_newest_is_read_and_the_rest_told_of(mesh):
    size = EVENTS_SIZE_MAX_BYTES // 20
    mesh.router.events = [said(at, text=f"{at} " + "w" * size) for at in range(1, 26)]
    made = await mesh.ask("BuildBundle")
    missing = {(one.part, one.rule): one.count for one in made.facts.manifest.redactions}
    assert missing["messages", "over_size"] == 6
    # What was passed over is part of a summary that was recorded.
    mesh.router.events.insert(10, compacted(10, "All so far.", Cursor(10, 1)))
    made = await mesh.ask("BuildBundle")
    assert "over_size" not in {one.rule for one in made.facts.manifest.redactions}


async def test_a_contact_that_is_not_there_and_a_router_that_is_away_are_told_apart(mesh):
    assert (await refused(mesh.ask("BuildBundle", contact="eve"))).reason is Reason.CONTACT_NOT_FOUND
    assert (await refused(mesh.ask("BuildBundle", token_budget=-1))).reason is Reason.FIELD_INVALID


async def test_the_older_half_is_summed_up_by_a_model_and_by_rule_where_none_answers(mesh):
    mesh.router.events = [*turn(1, "My cat is called Mochi", "Noted"), *chatter(2, 100)]
    by_model = (await mesh.ask("SummarizeSession", token_budget=2000, model="fast")).summary
    assert by_model.method == "model"
    assert by_model.text.endswith("were said.")
    read = [one.text for request in mesh.model.asked for one in request.messages]
    assert len(read) == by_model.message_count
    assert read[0] == "My cat is called Mochi"
    assert (mesh.model.asked[0].model, mesh.model.asked[0].token_count) == ("fast", 500)
    mesh.model.fails_from = 0
    by_rule = (await mesh.ask("SummarizeSession", token_budget=2000)).summary
    assert by_rule.method == "extract"
    assert "User: My cat is called Mochi" in by_rule.text
    assert (by_rule.through_cursor, by_rule.message_count) == (by_model.through_cursor, by_model.message_count)


async def test_a_model_that_fails_in_the_middle_keeps_what_it_has_read_and_what_was_before(mesh):
    mesh.router.events = [
        compacted(1, "Before.", Cursor(0, 1), count=4),
        *chatter(2, 60),
        *turn(70, "My code is 4821", "k"),
    ]
    mesh.router.events += chatter(71, 60)
    mesh.model.fails_from = 1
    made = (await mesh.ask("SummarizeSession", token_budget=800)).summary
    assert [request.former_summary for request in mesh.model.asked][:1] == ["Before."]
    assert made.method == "mixed"
    assert "were said." in made.text
    assert "4821" in made.text
    assert made.message_count > 4 + len(mesh.model.asked[0].messages)


async def test_what_a_run_says_itself_is_not_summed_up_and_nothing_left_to_sum_up_is_an_overflow(mesh):
    mesh.router.events = [compacted(1, "Before.", Cursor(0, 1)), said(2, text="long " * 2000)]
    error = await refused(mesh.ask("SummarizeSession", run_id="run_2"))
    assert error.reason is Reason.MODEL_CONTEXT_OVERFLOW
