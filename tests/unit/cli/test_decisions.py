"""What `retinue policy replay` and `retinue policy explain --run` ask for, and show."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from retinue.policy.v1 import policy_service_pb2 as policy
from retinue.router.v1 import decision_service_pb2 as router
from retinue_cli.commands.policy import tell_decision
from retinue_cli.decisions import NOWHERE, RULES_SIZE_MAX_BYTES, Decisions, facts_of, line_of, read_rules
from retinue_cli.failures import CommandError

DAY_S = 86_400


class Mesh:
    """A router with pages of decisions, of which policy finds every second one different."""

    def __init__(self, pages, size=4):
        self.pages, self.size = pages, size
        self.listed, self.replayed = [], []

    def channel(self, _):
        return SimpleNamespace(unary_unary=lambda path, **_: getattr(self, f"_{path.rpartition('/')[2]}", None))

    def _ListDecisions(self, request, **_):
        asked = router.ListDecisionsRequest()
        asked.CopyFrom(request)
        self.listed.append(asked)
        page = int(request.page_token or 0)
        answer = router.ListDecisionsResponse(next_page_token=str(page + 1) if page + 1 < self.pages else "")
        for number in range(self.size):
            stored = answer.decisions.add(tenant_id="ten_a", run_id=f"run_{page}_{number}")
            stored.decision.update({"runtime": "light"})
        return answer

    def _ReplayDecisions(self, request, **_):
        self.replayed.append(request)
        differing = [
            policy.DecisionDifference(run_id=each.run_id, former_runtime=each.decision["runtime"], runtime="openclaw")
            for each in request.decisions[::2]
        ]
        same = len(request.decisions) - len(differing)
        return policy.ReplayDecisionsResponse(differences=differing, same_count=same)


def test_every_page_is_replayed_by_the_rules_and_summed_up():
    mesh = Mesh(pages=3)
    replayed = Decisions(mesh).replay("rules", DAY_S, "ten_a", 5)
    assert (replayed.count, replayed.same_count, replayed.differing_count) == (12, 6, 6)
    assert [each.run_id for each in replayed.differences] == [f"run_{n}_{m}" for n in range(3) for m in (0, 2)][:5]
    assert [asked.page_token for asked in mesh.listed] == ["", "1", "2"]
    assert {asked.tenant_id for asked in mesh.listed} == {"ten_a"}
    assert len({asked.since.ToNanoseconds() for asked in mesh.listed}) == 1, "one moment for all pages"
    assert {asked.rules_toml for asked in mesh.replayed} == {"rules"}
    assert list(replayed.told()) == [
        "12 decisions: 6 the same, 6 would differ.",
        "  6 light → openclaw",
        "Of those that would differ, 5 are shown: --count says how many.",
    ]
    assert replayed.plain()["changes"] == [{"from": "light", "to": "openclaw", "count": 6}]
    assert replayed.plain()["differences"][0]["former_rule"] == ""


def test_bounded_no_command_replays_for_ever():
    mesh = Mesh(pages=1_000_000)
    replayed = Decisions(mesh).replay("", DAY_S, "", 0, replayed_max=8)
    assert (replayed.count, replayed.stopped, len(replayed.differences)) == (8, True, 0)
    assert list(replayed.told())[-1].startswith("There are more: only the first 8 were replayed.")


def test_checking_rules_replays_nothing():
    mesh = Mesh(pages=1)
    Decisions(mesh).check("rules")
    assert (mesh.listed, [len(asked.decisions) for asked in mesh.replayed]) == ([], [0])


def test_a_difference_names_both_runtimes_both_rules_and_why():
    difference = policy.DecisionDifference(
        run_id="run_a", tenant_id="ten_a", former_runtime="openclaw", former_rule="chat_prefers_openclaw",
        rule="every_runtime_away", reason="No runtime can.",
    )  # fmt: skip
    told = ("run_a", "ten_a", "openclaw", NOWHERE, "every_runtime_away", "chat_prefers_openclaw", "No runtime can.")
    assert line_of(difference) == told
    difference.isolation = "cell → shared"
    assert line_of(difference)[-1] == "No runtime can. (cell → shared)"


def test_what_was_decided_on_is_told_without_what_does_not_apply():
    snapshot = {
        "version": 1.0,
        "session_runtime": "",
        "session_runtime_age_s": None,
        "tool_transaction_open": False,
        "runtimes_on": ["openclaw", "light"],
        "away": {},
        "failing": {"light": 1.25},
        "load": {"light": {"slots": 8.0, "busy": 2.0}},
    }
    assert list(facts_of(snapshot)) == [
        ("version", "1"),
        ("tool_transaction_open", "no"),
        ("runtimes_on", "openclaw, light"),
        ("failing", "light 1.25"),
        ("load", "light slots 8, busy 2"),
    ]


def test_a_runs_decision_is_told_with_its_bundle_and_what_that_lost(capsys):
    found = {
        "runtime": "light",
        "switches_runtime": True,
        "rules": [{"rule": "client_asks", "effect": "require", "reason": "The client asked for this runtime."}],
        "snapshot": {"kind": "chat"},
        "bundle": "ab12",
        "losses": [{"field": "tools.calls", "fate": "lost", "reason": "It keeps none."}],
    }
    tell_decision("run_a", found)
    told = capsys.readouterr().out
    for text in ("another than before", "client_asks", "The client asked", "chat", "ab12", "tools.calls", "It keeps"):
        assert text in told
    tell_decision("run_a", {"runtime": "light"})
    assert "before" not in capsys.readouterr().out


def test_a_file_that_is_no_rules_is_refused_in_one_line(tmp_path: Path):
    file = tmp_path / "runtimes.toml"
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        read_rules(file)
    file.write_bytes(b"\xff")
    with pytest.raises(CommandError, match="is not UTF-8"):
        read_rules(file)
    file.write_bytes(b"#" * RULES_SIZE_MAX_BYTES)
    assert len(read_rules(file)) == RULES_SIZE_MAX_BYTES
    file.write_bytes(b"#" * (RULES_SIZE_MAX_BYTES + 1))
    with pytest.raises(CommandError, match="more than"):
        read_rules(file)
