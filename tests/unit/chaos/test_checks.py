"""Each check passes a history that keeps its promise and finds the one that breaks it."""

import copy

import pytest
from harness import checks
from harness.history import Answer, Contact, Effect, Event, History, Intent, Ledger, Run, Watch

TENANT, NAME = "anna", "friend"
MARK = checks.mark(TENANT, NAME)
ONE, TWO = f"{MARK} one step1", f"{MARK} two"


def ev(token, n, type_, run="r1", **data):
    return Event((token, n), type_, run, data)


def told():
    """Two runs, the first of which was lost in its second message and taken up again."""
    return [
        ev(1, 1, "user.message", text=ONE),
        ev(1, 2, "run.started", attempt=1),
        ev(1, 3, "assistant.delta", text=f"{MARK} one"),
        ev(1, 4, "assistant.delta", text=" step1"),
        ev(1, 5, "assistant.message", text=ONE),
        ev(1, 6, "assistant.delta", text=f"{MARK} t"),
        ev(2, 1, "run.resumed", attempt=2, rewind_to="1-5"),
        ev(2, 2, "assistant.delta", text=TWO),
        ev(2, 3, "assistant.message", text=TWO),
        ev(2, 4, "run.succeeded"),
        ev(3, 1, "user.message", "r2", text="hi"),
        ev(3, 2, "run.started", "r2", attempt=1),
        ev(3, 3, "assistant.delta", "r2", text="yo"),
        ev(3, 4, "assistant.message", "r2", text="yo"),
        ev(3, 5, "run.succeeded", "r2"),
        ev(4, 1, "task.finished", "r3"),
    ]


@pytest.fixture
def history():
    log = told()
    both = f"{ONE}\n\n{TWO}"
    runs = [
        Run("r1", "log_1", "chat", "succeeded", 1, 2, "k1", both, 10.0, 12.0),
        Run("r2", "log_1", "chat", "succeeded", 2, 1, "k2", "yo", 12.0, 13.0),
        Run("r3", "tsk_1", "tidy", "succeeded", 1, 1, "k3", "", 10.0, 11.0),
    ]
    said = [event for event in log if event.type in ("user.message", "assistant.message")]
    contact = Contact(
        TENANT, NAME, log, runs, [(e.run_id, e.data["text"]) for e in said], [(e.cursor, e.data["text"]) for e in said]
    )
    return History(
        1,
        intents=[
            Intent(TENANT, NAME, "k1", ONE, ["succeeded"], both, 1),
            Intent(TENANT, NAME, "k2", "hi", ["succeeded"], "yo", 2),
            Intent(TENANT, NAME, "k3", "", ["succeeded"], None, 0, "tidy"),
        ],
        answers=[
            Answer(TENANT, NAME, key, "acknowledged", 200, run)
            for key, run in (("k1", "r1"), ("k1", "r1"), ("k2", "r2"), ("k3", "r3"))
        ],
        watches=[Watch("w", TENANT, NAME, copy.deepcopy(log))],
        contacts=[contact],
        ledger=[
            Ledger("r1", "step", "step1", 1, 1),
            Ledger("r1", "step", "step2", 1, 1),
            Ledger("r1", "step", "step2", 2, 2),
        ],
    )


def broken_names(history):
    return {violation.partition(":")[0] for violation in checks.violations(history)}


def drop(events, cursor):
    events[:] = [event for event in events if event.cursor != cursor]


def everywhere(history):
    """Both the log and what was watched of it."""
    return [history.contacts[0].log, history.watches[0].events]


def test_a_history_that_keeps_every_promise_passes(history):
    assert checks.violations(history) == []


# ack_is_durable


def test_ack_is_durable_finds_a_run_that_is_gone(history):
    history.contacts[0].runs.pop(0)
    assert any("r1 (k1) was acknowledged and is gone" in v for v in checks.violations(history))


@pytest.mark.parametrize("state", ["queued", "running", "failed", "cancelled"])
def test_ack_is_durable_finds_a_run_that_did_not_end_as_it_may(history, state):
    history.contacts[0].runs[0].state = state
    assert "ack_is_durable" in broken_names(history)


def test_ack_is_durable_finds_another_answer_than_the_one_asked_for(history):
    history.intents[1].answer = "no"
    assert broken_names(history) == {"ack_is_durable"}


def test_ack_is_durable_finds_an_end_that_is_not_in_the_log(history):
    for events in everywhere(history):
        drop(events, (3, 5))
    assert "ack_is_durable" in broken_names(history)


def test_a_run_may_fail_once_its_attempts_are_used_up_and_go_with_its_contact(history):
    run = history.contacts[0].runs[2]
    run.state, run.attempt = "failed", 3
    assert checks.violations(history) == []
    history.contacts[0].runs = []
    history.contacts[0].deleted = True
    assert "ack_is_durable" not in broken_names(history)


# same_key_same_answer


def test_same_key_same_answer_finds_two_runs_of_one_key(history):
    history.answers.append(Answer(TENANT, NAME, "k1", "acknowledged", 200, "r2"))
    assert "same_key_same_answer" in broken_names(history)


def test_same_key_same_answer_finds_a_second_run_that_nobody_was_told_of(history):
    history.contacts[0].runs.append(Run("r9", "tsk_2", "tidy", "succeeded", 1, 1, "k3", "", 1.0, 2.0))
    assert any("k3 is 2 runs" in v for v in checks.violations(history))


def test_same_key_same_answer_finds_a_run_that_nobody_asked_for(history):
    history.contacts[0].runs[1].key = "strange"
    assert any("nobody asked for it" in v for v in checks.violations(history))


def test_same_key_same_answer_finds_a_dead_letter_that_was_asked_anew_twice(history):
    runs = history.contacts[0].runs
    runs.append(Run("r8", "tsk_8", "tidy", "succeeded", 1, 1, None, "", 1.0, 2.0, "r0"))
    assert "same_key_same_answer" not in broken_names(history)
    runs.append(Run("r9", "tsk_9", "tidy", "succeeded", 1, 1, None, "", 1.0, 2.0, "r0"))
    assert "same_key_same_answer" in broken_names(history)


def test_same_key_same_answer_finds_a_message_that_was_said_twice(history):
    history.contacts[0].log.insert(2, ev(1, 2, "user.message", text=ONE))
    assert any("2 user.message" in v for v in checks.violations(history))


# session_order


def test_session_order_finds_a_start_before_the_predecessors_end(history):
    history.contacts[0].runs[1].start_time = 11.9
    assert broken_names(history) == {"session_order"}


def test_session_order_finds_runs_told_in_another_order_than_accepted(history):
    first, second, _ = history.contacts[0].runs
    first.position, second.position = 2, 1
    first.start_time, first.end_time, second.start_time, second.end_time = 20.0, 21.0, 10.0, 11.0
    assert broken_names(history) == {"session_order"}


def test_session_order_finds_messages_accepted_in_another_order_than_sent(history):
    first, second, _ = history.intents
    first.order, second.order = 2, 1
    assert broken_names(history) == {"session_order"}


# one_runner


def test_one_runner_finds_a_second_end(history):
    for events in everywhere(history):
        events.insert(10, ev(2, 5, "run.failed"))
    assert broken_names(history) == {"one_runner"}


def test_one_runner_finds_two_runs_at_once(history):
    for events in everywhere(history):
        drop(events, (2, 4))
        events.append(ev(5, 1, "run.succeeded"))
    assert broken_names(history) == {"one_runner"}


def test_one_runner_finds_a_task_told_twice_or_never(history):
    for events in everywhere(history):
        events.append(ev(5, 1, "task.finished", "r3"))
    assert broken_names(history) == {"one_runner"}
    for events in everywhere(history):
        del events[-2:]
    assert broken_names(history) == {"one_runner"}


# cursor_monotone


@pytest.mark.parametrize("cursor", [(1, 1), (2, 1), (2, 4), (4, 1)])
def test_cursor_monotone_finds_a_durable_event_that_a_watcher_missed(history, cursor):
    drop(history.watches[0].events, cursor)
    assert "cursor_monotone" in broken_names(history)


def test_cursor_monotone_finds_an_event_that_came_twice_or_late(history):
    events = history.watches[0].events
    events.insert(11, events[10])
    assert "cursor_monotone" in broken_names(history)
    del events[11]
    events[14], events[15] = events[15], events[14]
    assert "cursor_monotone" in broken_names(history)


def test_cursor_monotone_finds_an_event_that_was_never_recorded(history):
    history.watches[0].events.append(ev(9, 1, "run.cancelled", "r2"))
    assert any("which the log does not have" in v for v in checks.violations(history))


def test_cursor_monotone_finds_an_event_that_was_told_otherwise(history):
    history.watches[0].events[9] = ev(2, 4, "run.failed")
    assert any("which is another" in v for v in checks.violations(history))


def test_what_was_told_early_by_an_attempt_that_was_lost_is_no_fact(history):
    drop(history.contacts[0].log, (1, 2))
    assert checks.violations(history) == []
    drop(history.contacts[0].log, (3, 2))
    assert broken_names(history) == {"cursor_monotone"}


# deltas_make_the_text


@pytest.mark.parametrize("cursor", [(1, 3), (2, 2), (3, 3)])
def test_deltas_make_the_text_finds_a_delta_that_is_missing(history, cursor):
    drop(history.watches[0].events, cursor)
    assert broken_names(history) == {"deltas_make_the_text"}


def test_deltas_make_the_text_finds_what_was_not_rewound(history):
    history.watches[0].events[6].data = {"attempt": 2}
    history.contacts[0].log[6].data = {"attempt": 2}
    assert broken_names(history) == {"deltas_make_the_text"}


def test_last_deltas_may_be_lost_with_their_holder_but_not_others_and_not_without_a_gap(history):
    history.holder_lost = True
    drop(history.watches[0].events, (1, 4))
    assert checks.violations(history) == []
    drop(history.watches[0].events, (1, 3))
    assert checks.violations(history) == []
    history.watches[0].events[2:2] = [ev(1, 4, "assistant.delta", text=" step1")]
    assert broken_names(history) == {"deltas_make_the_text"}
    history.watches[0].events[2:3] = [ev(1, n, "assistant.delta", text="") for n in (3, 4)]
    assert broken_names(history) == {"deltas_make_the_text"}


def test_deltas_may_be_lost_with_the_bus_and_messages_not(history):
    history.bus_lost = True
    drop(history.watches[0].events, (2, 2))
    assert checks.violations(history) == []
    history.contacts[0].runs[0].output = ONE
    assert "deltas_make_the_text" in broken_names(history)


# no_cross_tenant


@pytest.mark.parametrize("strange", [checks.mark("bert", NAME), checks.mark(TENANT, "other")])
def test_no_cross_tenant_finds_what_was_meant_for_others(history, strange):
    for events in everywhere(history):
        events[10].data["text"] = strange
    assert "no_cross_tenant" in broken_names(history)
    assert any("was shown what was meant for" in v for v in checks.violations(history))


# goes_on_from_the_checkpoint


def test_goes_on_from_the_checkpoint_finds_a_recorded_step_that_was_done_again(history):
    history.ledger.append(Ledger("r1", "step", "step1", 2, 2))
    assert broken_names(history) == {"goes_on_from_the_checkpoint"}


def test_goes_on_from_the_checkpoint_finds_a_recorded_effect_that_was_done_again(history):
    for events in everywhere(history):
        events.insert(5, ev(1, 6, "tool.finished", call_id="c1"))
        events.pop(6)
    history.ledger.append(Ledger("r1", "effect", "c1", 1, 1))
    assert checks.violations(history) == []
    history.ledger.append(Ledger("r1", "effect", "c1", 2, 2))
    assert broken_names(history) == {"goes_on_from_the_checkpoint"}


def test_goes_on_from_the_checkpoint_finds_a_step_done_twice_in_one_attempt(history):
    history.ledger.append(Ledger("r1", "step", "step2", 2, 2))
    assert broken_names(history) == {"goes_on_from_the_checkpoint"}


# one_effect

CALL = f"{checks.BEGUN_AT_A_PAUSE}1"


@pytest.fixture
def called(history):
    """A call that began under the second token, was made, and whose end is recorded."""
    for events in everywhere(history):
        events[7:9] = [ev(2, 2, "tool.started", call_id=CALL), ev(2, 3, "tool.finished", call_id=CALL, ok=True)]
        events[9:9] = [ev(2, 4, "assistant.delta", text=TWO), ev(2, 5, "assistant.message", text=TWO)]
        events[11] = ev(2, 6, "run.succeeded")
    for place, event in enumerate(e for e in history.contacts[0].log if e.type.endswith(".message")):
        history.contacts[0].thread[place] = (event.cursor, event.data["text"])
    history.ledger.append(Ledger("r1", "call", CALL, 2, 2))
    assert checks.violations(history) == []
    return history


def test_one_effect_finds_a_call_that_was_made_twice(called):
    called.ledger.insert(0, Ledger("r1", "call", CALL, 1, 1))
    assert any(f"{CALL} was made 2 times" in v for v in checks.violations(called))


def test_one_effect_finds_a_call_that_was_made_before_it_had_begun(called):
    called.ledger[-1].token = 3
    assert any("under token 3, where it has not begun" in v for v in checks.violations(called))


def test_one_effect_finds_a_call_that_is_recorded_and_was_never_made(called):
    called.ledger.pop()
    assert broken_names(called) == {"one_effect"}
    for events in everywhere(called):
        events[8].data["ok"] = False  # nobody knows
    assert checks.violations(called) == []


def test_one_effect_lets_a_call_be_made_again_that_may_be(called):
    for events in everywhere(called):
        events[5:5] = [ev(1, 6, "tool.started", call_id=CALL)]
        events[6] = ev(1, 7, "assistant.delta", text=f"{MARK} t")
    called.ledger[-1:] = [Ledger("r1", "repeat", CALL, token, token) for token in (1, 2)]
    assert "one_effect" not in broken_names(called)


def test_one_effect_finds_a_command_that_ran_twice_or_is_recorded_and_did_not_run(called):
    called.effects = [Effect("r1", 1)]
    assert checks.violations(called) == []
    for count in (0, 2):
        called.effects = [Effect("r1", count)]
        assert broken_names(called) == {"one_effect"}


# files_follow_the_log


def test_files_follow_the_log_finds_a_conversation_that_lacks_a_message(history):
    history.contacts[0].messages.pop()
    assert broken_names(history) == {"files_follow_the_log"}


def test_what_was_rolled_back_is_logged_and_not_listed(history):
    run = history.contacts[0].runs[1]
    run.state, run.output = "cancelled", None
    history.intents[1].ends = ["cancelled"]
    for events in everywhere(history):
        events[14] = ev(3, 5, "run.cancelled", "r2", by="anna", rewind_to="3-1")
    assert broken_names(history) == {"files_follow_the_log"}
    history.contacts[0].messages.pop()
    assert checks.violations(history) == []


def test_files_follow_the_log_finds_a_line_written_twice_and_forgives_one_not_written_yet(history):
    thread = history.contacts[0].thread
    thread.pop()
    assert checks.violations(history) == []
    thread.append(thread[-1])
    assert broken_names(history) == {"files_follow_the_log"}


# only_retryable_errors


def test_only_retryable_errors_finds_errors_and_what_was_repeated_in_vain(history):
    history.errors.append("POST /v1/x: 500")
    assert broken_names(history) == {"only_retryable_errors"}
    history.errors.clear()
    history.answers = [answer for answer in history.answers if answer.key != "k2"]
    assert broken_names(history) == {"only_retryable_errors"}


def test_each_check_is_named_by_a_test():
    names = {check.__name__ for check in checks.CHECKS}
    tested = {name for name in names for test in globals() if test.startswith(f"test_{name}")}
    assert tested == names
