"""What an operator says about runtimes: what it comes to, row by row, and what of it is refused."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from retinue_policy.domain.preferences import Preference, Rollout, Runs, RuntimeRules, Stage, names_of
from retinue_policy.domain.rules import decide
from retinue_policy.domain.snapshot import Load, Snapshot, Tenant
from retinue_policy.operations.rulebook import RUNTIMES, BadRulesError, Rulebook
from retinue_policy.rule_files import RuntimeFile, bundled
from retinue_policy.runtimes_toml import GLOBS_MAX, LIST_LENGTH_MAX, PREFERENCES_MAX, SIZE_MAX_BYTES, parse

CHAT = Snapshot(kind="chat", runtimes_on=("openclaw", "light"), tenant_id="ten_a", tenant=Tenant(plan="free"))
TASK = replace(CHAT, kind="extraction")
LATELY = {"session_runtime_age_s": 60.0}
LONG_AGO = {"session_runtime_age_s": 100_000.0}

LIGHT_CHATS = Preference(1, "light", Runs(kinds=names_of(["chat"])))
EVERYBODY = Rollout("new", "light", 100.0)
FULL = Load(slot_count=4, busy_count=4, waiting_count=33)


def rolled(stage=Stage.RUNNING, percent=100.0, runtime="light", **runs):
    """An operator who brings a runtime to conversations; chat goes to OpenClaw otherwise."""
    return RuntimeRules(rollouts=(Rollout("new", runtime, percent, stage, Runs(**runs)),))


@pytest.mark.parametrize(
    ("snapshot", "rules", "runtime", "fired"),
    [
        # Preferences of the operator
        (CHAT, RuntimeRules((LIGHT_CHATS,)), "light", ["chat_prefers_openclaw", "operator_prefers"]),
        (TASK, RuntimeRules((LIGHT_CHATS,)), "light", ["tasks_prefer_light"]),
        (
            CHAT,
            RuntimeRules((LIGHT_CHATS, Preference(2, "openclaw", Runs(plans=names_of(["free"]))))),
            "openclaw",
            ["chat_prefers_openclaw", "operator_prefers"],
        ),
        (
            TASK,
            RuntimeRules((Preference(1, "openclaw", Runs(names_of(["ten_*"]), kinds=names_of(["extr*"]))),)),
            "openclaw",
            ["tasks_prefer_light", "operator_prefers"],
        ),
        (
            CHAT,
            RuntimeRules((Preference(1, "light", Runs(names_of(["ten_b"]), names_of(["free"]))),)),
            "openclaw",
            ["chat_prefers_openclaw"],
        ),
        (
            replace(CHAT, tenant=Tenant(preferred_runtime="openclaw")),
            RuntimeRules((LIGHT_CHATS,)),
            "openclaw",
            ["chat_prefers_openclaw", "operator_prefers", "tenant_prefers"],
        ),
        (
            replace(CHAT, runtimes_on=("openclaw",)),
            RuntimeRules((LIGHT_CHATS,)),
            "openclaw",
            ["chat_prefers_openclaw", "operator_prefers", "light_is_off"],
        ),
        (
            replace(CHAT, requested_runtime="openclaw"),
            RuntimeRules((LIGHT_CHATS,)),
            "openclaw",
            ["chat_prefers_openclaw", "operator_prefers", "client_asks"],
        ),
        # The sticky window
        (
            replace(CHAT, session_runtime="light", session_runtime_age_s=899.0),
            RuntimeRules(sticky_window_s=10.0),
            "openclaw",
            ["chat_prefers_openclaw"],
        ),
        (
            replace(CHAT, session_runtime="light", session_runtime_age_s=901.0),
            RuntimeRules(sticky_window_s=1000.0),
            "light",
            ["chat_prefers_openclaw", "session_is_sticky"],
        ),
        # A rollout that goes on
        (CHAT, rolled(), "light", ["chat_prefers_openclaw", "rollout_new"]),
        (CHAT, rolled(percent=0.0), "openclaw", ["chat_prefers_openclaw"]),
        (CHAT, rolled(plans=names_of(["pro"])), "openclaw", ["chat_prefers_openclaw"]),
        (
            replace(CHAT, tenant=Tenant(preferred_runtime="openclaw")),
            rolled(),
            "light",
            ["chat_prefers_openclaw", "tenant_prefers", "rollout_new"],
        ),
        (
            CHAT,
            RuntimeRules(rollouts=(EVERYBODY, Rollout("newer", "openclaw", 100.0))),
            "openclaw",
            ["chat_prefers_openclaw", "rollout_newer"],
        ),
        (
            replace(CHAT, session_runtime="openclaw", **LATELY),
            rolled(),
            "openclaw",
            ["chat_prefers_openclaw", "rollout_new", "session_is_sticky"],
        ),
        (
            replace(CHAT, session_runtime="openclaw", **LONG_AGO),
            rolled(),
            "light",
            ["chat_prefers_openclaw", "rollout_new"],
        ),
        (
            replace(CHAT, failing={"light": 1.0}),
            rolled(),
            "openclaw",
            ["chat_prefers_openclaw", "rollout_new", "light_is_failing"],
        ),
        (
            replace(CHAT, session_runtime="openclaw", tool_transaction_open=True, **LONG_AGO),
            rolled(),
            "openclaw",
            ["chat_prefers_openclaw", "rollout_new", "tool_transaction_open"],
        ),
        # One that rests: who is on it stays, and nobody comes
        (CHAT, rolled(Stage.PAUSED), "openclaw", ["chat_prefers_openclaw"]),
        (
            replace(CHAT, session_runtime="openclaw", **LONG_AGO),
            rolled(Stage.PAUSED),
            "openclaw",
            ["chat_prefers_openclaw"],
        ),
        (
            replace(CHAT, session_runtime="light", **LONG_AGO),
            rolled(Stage.PAUSED),
            "light",
            ["chat_prefers_openclaw", "rollout_new_is_paused"],
        ),
        (
            replace(CHAT, session_runtime="light", **LONG_AGO),
            rolled(Stage.PAUSED, percent=0.0),
            "openclaw",
            ["chat_prefers_openclaw"],
        ),
        # One that was rolled back: nobody has it, and who is on it leaves, unless a tool call is open
        (CHAT, rolled(Stage.ROLLED_BACK), "openclaw", ["chat_prefers_openclaw"]),
        (
            replace(CHAT, session_runtime="light", **LATELY),
            rolled(Stage.ROLLED_BACK),
            "openclaw",
            ["chat_prefers_openclaw", "rollout_new_is_rolled_back"],
        ),
        (
            replace(CHAT, session_runtime="light", **LATELY),
            rolled(Stage.ROLLED_BACK, percent=0.0),
            "openclaw",
            ["chat_prefers_openclaw", "rollout_new_is_rolled_back"],
        ),
        (
            replace(CHAT, session_runtime="light", **LATELY),
            rolled(Stage.ROLLED_BACK, tenants=names_of(["ten_b"])),
            "light",
            ["chat_prefers_openclaw", "session_is_sticky"],
        ),
        (
            replace(CHAT, session_runtime="light", **LATELY),
            replace(rolled(Stage.ROLLED_BACK), preferences=(LIGHT_CHATS,)),
            "light",
            ["chat_prefers_openclaw", "operator_prefers", "session_is_sticky"],
        ),
        (
            replace(CHAT, session_runtime="light", tool_transaction_open=True, **LATELY),
            rolled(Stage.ROLLED_BACK),
            "light",
            ["chat_prefers_openclaw", "session_is_sticky", "tool_transaction_open"],
        ),
        # A runtime with no room and many that wait
        (
            replace(CHAT, load={"openclaw": FULL}),
            RuntimeRules(),
            "light",
            ["chat_prefers_openclaw", "openclaw_is_crowded"],
        ),
        (replace(CHAT, load={"openclaw": FULL, "light": FULL}), RuntimeRules(), "openclaw", ["chat_prefers_openclaw"]),
        (
            replace(CHAT, load={"openclaw": FULL}, away={"light": 1.0}),
            RuntimeRules(),
            "openclaw",
            ["chat_prefers_openclaw"],
        ),
        (replace(CHAT, load={"openclaw": Load(4, 3, 33)}), RuntimeRules(), "openclaw", ["chat_prefers_openclaw"]),
        (replace(CHAT, load={"openclaw": Load(4, 4, 32)}), RuntimeRules(), "openclaw", ["chat_prefers_openclaw"]),
        (replace(CHAT, load={"openclaw": Load(0, 99, 99)}), RuntimeRules(), "openclaw", ["chat_prefers_openclaw"]),
        (
            replace(CHAT, load={"openclaw": Load(4, 3, 1)}),
            RuntimeRules(busy_share_max=0.75, waiting_max=0),
            "light",
            ["chat_prefers_openclaw", "openclaw_is_crowded"],
        ),
        (
            replace(CHAT, session_runtime="openclaw", load={"openclaw": FULL}, **LATELY),
            RuntimeRules(),
            "light",
            ["chat_prefers_openclaw", "session_is_sticky", "openclaw_is_crowded"],
        ),
        (
            replace(CHAT, requested_runtime="openclaw", load={"openclaw": FULL}),
            RuntimeRules(),
            "openclaw",
            ["chat_prefers_openclaw", "client_asks"],
        ),
        (
            replace(CHAT, session_runtime="openclaw", tool_transaction_open=True, load={"openclaw": FULL}),
            RuntimeRules(),
            "openclaw",
            ["chat_prefers_openclaw", "tool_transaction_open"],
        ),
        # What an operator prefers is given a cell by plan, as what is usual is
        (
            replace(TASK, tenant=Tenant(plan="pro"), cell_plans=frozenset({"pro"})),
            RuntimeRules((Preference(1, "openclaw"),)),
            "openclaw",
            ["plan_gives_cell", "tasks_prefer_light", "operator_prefers"],
        ),
    ],
)
def test_what_the_operator_says_picks_the_runtime_and_gives_a_reason(snapshot, rules, runtime, fired):
    decision = decide(snapshot, rules)
    assert [each.rule for each in decision.rules] == fired
    assert decision.runtime == runtime
    assert not any("{" in each.reason or not each.reason.endswith(".") for each in decision.rules)


def test_a_rollout_reaches_about_its_share_of_tenants_and_whoever_is_in_stays_in_as_it_grows():
    tenants = [f"ten_{number:05}" for number in range(10_000)]
    before: set[str] = set()
    for percent in (0, 1, 5, 25, 50, 75, 99, 100):
        rollout = Rollout("new", "light", percent)
        now = {tenant for tenant in tenants if rollout.takes(tenant)}
        assert before <= now, "monotone"
        assert abs(len(now) - percent * 100) <= 150, percent
        before = now
    assert len(before) == len(tenants)
    others = {tenant for tenant in tenants if Rollout("other", "light", 50).takes(tenant)}
    half = {tenant for tenant in tenants if Rollout("new", "light", 50).takes(tenant)}
    assert 2_000 < len(others & half) < 3_000, "each rollout begins with tenants of its own"


@pytest.mark.parametrize(
    ("entries", "held", "not_held"),
    [
        ([], ["anything", ""], []),
        (["ten_a"], ["ten_a"], ["ten_ab", "", "TEN_A"]),
        (["ten_*"], ["ten_", "ten_a"], ["tan_a", ""]),
        (["*_a", "ten_b"], ["ten_a", "_a", "ten_b"], ["ten_ab"]),
        (["*n_*"], ["ten_a", "n_"], ["tan-a", "n"]),
        (["night*_sum", "x"], ["nightly_sum", "night_sum", "x"], ["nightly_sums"]),
        (["*"], ["", "x"], []),
    ],
)
def test_names_and_globs_hold_what_they_say(entries, held, not_held):
    names = names_of(entries)
    assert [name for name in (*held, *not_held) if names.hold(name)] == held


def test_the_bundled_rules_prefer_nothing_and_are_those_that_hold_without_a_file():
    assert parse(bundled("runtimes.toml")) == RuntimeRules()
    told = re.sub(r"^# (?=(\[\[|[a-z_]+ = ))", "", bundled("runtimes.toml"), flags=re.MULTILINE)
    rules = parse(told)
    assert (len(rules.preferences), len(rules.rollouts), rules.sticky_window_s) == (1, 1, 900.0), (
        "what it shows is true"
    )


def test_the_documents_example_can_be_followed():
    text = (Path(__file__).parents[3] / "docs/policy.md").read_text("utf-8")
    (example,) = re.findall(r"^```toml\n# runtimes\.toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rules = parse(example)
    assert [(each.number, each.runtime) for each in rules.preferences] == [(1, "light"), (2, "openclaw")]
    (rollout,) = rules.rollouts
    assert (rollout.name, rollout.percent, rollout.stage) == ("openclaw-for-free", 10.0, Stage.RUNNING)
    assert (rules.sticky_window_s, rules.waiting_max) == (600.0, 16)


ROLLOUT = '[[rollout]]\nname = "a"\nruntime = "light"\npercent = 5\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "key part"),
        ("sticky_window = 5", "sticky_window"),
        ("sticky_window_s = -1", "sticky_window_s"),
        ("sticky_window_s = nan", "sticky_window_s"),
        ("sticky_window_s = " + "9" * 5000, "digits"),
        ('[[prefer]]\nruntime = "hermes"', r"\$.prefer\[0\].runtime"),
        ("[[prefer]]", "runtime"),
        ('[[prefer]]\nruntime = "light"\nplans = ["fre"]', "prefer number 1: plans: 'fre' is none of free"),
        ('[[prefer]]\nruntime = "light"\ntenants = [""]', "tenants"),
        ('[[prefer]]\nruntime = "light"\nkind = ["chat"]', "kind"),
        (ROLLOUT + ROLLOUT, "two rollouts of the name 'a'"),
        (ROLLOUT.replace("5", "101"), "percent"),
        (ROLLOUT.replace("5", "nan"), "percent"),
        (ROLLOUT.replace('"a"', '"A b"'), "name"),
        (ROLLOUT.replace("percent = 5\n", ""), "percent"),
        (ROLLOUT + 'state = "stopped"', "state"),
        (ROLLOUT + 'plans = ["gold"]', "rollout a: plans: 'gold'"),
        ("[load]\nbusy_share_max = 2", "busy_share_max"),
        ("[load]\nwaiting_max = 1.5", "waiting_max"),
        ('[[prefer]]\nruntime = "light"\n' * (PREFERENCES_MAX + 1), "length"),
        (f'[[prefer]]\nruntime = "light"\ntenants = {["x"] * (LIST_LENGTH_MAX + 1)}', "length"),
        (f'[[prefer]]\nruntime = "light"\ntenants = {["x*x"] * (GLOBS_MAX + 1)}', f"more than {GLOBS_MAX}"),
        ("#" * (SIZE_MAX_BYTES + 1), f"more than {SIZE_MAX_BYTES} bytes"),
    ],
    ids=lambda text: text[:24],
)
def test_what_cannot_be_followed_is_refused_in_one_line_that_says_where(text, why):
    with pytest.raises(BadRulesError, match=f"(?i)^runtimes\\.toml: .*{why}") as caught:
        parse(text)
    assert "\n" not in str(caught.value)


async def test_newer_rules_hold_at_once_and_bad_or_missing_ones_leave_the_old_in_force(tmp_path: Path):
    book = Rulebook(RuntimeFile(tmp_path), RUNTIMES)
    usual = book.rules
    assert replace(usual, name="") == RuntimeRules(), "a folder that has none gets those of the program"
    file = tmp_path / "runtimes.toml"
    file.write_text(ROLLOUT)
    await book.look()
    first = book.rules
    assert first.rollouts[0].percent == 5
    assert first.name not in ("", usual.name)
    for break_it, why in (
        (lambda: file.write_text(ROLLOUT + ROLLOUT), "two rollouts"),
        (lambda: file.write_bytes(b"\xff"), "not UTF-8"),
        (file.unlink, "runtimes.toml is missing"),
    ):
        break_it()
        await book.look()
        assert book.rules is first, "what was rolled back stays so while its file is away"
        assert why in book.told
    file.write_text(ROLLOUT + 'state = "rolled_back"')
    await book.look()
    assert book.rules.rollouts[0].stage is Stage.ROLLED_BACK
    assert book.told == book.rules.name
