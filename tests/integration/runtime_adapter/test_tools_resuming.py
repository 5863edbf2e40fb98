"""How a run with tools goes on after a death, wherever that fell: what was done is not done again."""

import json
from collections.abc import Callable
from typing import Any

from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue.runtime_adapter.v1.runtime_event_pb2 import RuntimeEvent
from retinue_kit.errors import Reason, RetinueError
from retinue_runtime_adapter.tools import ledger
from retinue_runtime_adapter.tools.ports import Call, Progress, Result, Scope
from tool_driver import CountingTool, Rules, Runtime

Make = Callable[..., Runtime]


async def test_one_effect_only_an_idempotent_call_is_made_again_where_its_service_was_away(runtime: Make) -> None:
    def once() -> Any:
        tries = 0

        async def away(*_: Any) -> Result:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise RetinueError.unavailable("sandbox")
            return Result(True, "there again")

        return away

    again, not_again = CountingTool("again", idempotent=True, do=once()), CountingTool("not_again", do=once())
    run = await runtime(again, not_again).drive("#tool=again {}\n#tool=not_again {}\n#say={results}")
    assert len(again.calls) == 2
    assert len(not_again.calls) == 1
    assert run.text.startswith("there again | ")
    assert "Whether it has done anything is not known." in run.text


async def test_one_effect_wherever_a_worker_dies(runtime: Make) -> None:
    """Each attempt is cut off before another event; what is made again is only what may be."""
    text = (
        '#say=First.\n#tool=once {"n": 1}\n#tool=often {"n": 2}\n#then\n#say=Then.\n#tool=once {"n": 3}\n'
        "#tool=asked {}\n#then\n#say=Done."
    )
    died = 0
    for death in range(40):
        once, often, asked = CountingTool("once"), CountingTool("often", idempotent=True), CountingTool("asked")
        made = runtime(once, often, asked, rules=Rules(asked="ask"))
        run = made.run(text)
        end = await run.drive(die_after=death)
        died += end == "died"
        approvals: list[pb.ApprovalDecision] = []
        for _ in range(4):
            if end == "finished":
                break
            if end == "approval_requested":
                call_id = run.of("approval_requested")[0].call_id
                approvals = [pb.ApprovalDecision(call_id=call_id, decision="allow_once")]
            end = await run.drive(approvals=approvals)
        assert end == "finished", death
        assert run.whole == ["First.", "Then.", "Done."], death
        assert all(count == 1 for tool in (once, asked) for count in tool.effects.values()), death
        finishes = {finish.call_id: finish for finish in run.finishes()}
        assert len(finishes) == len(run.finishes()) == 4, death
        assert set(finishes) == set(run.starts())
        unknown = [finish for finish in finishes.values() if finish.result == ledger.UNKNOWN]
        assert all(not finish.ok and finish.call_id not in often.effects for finish in unknown)
        if unknown:
            assert made.box.fenced, "the former attempt was shut out before the model was told"
    assert died > 12


async def test_a_call_of_an_attempt_that_is_gone_waits_until_that_is_shut_out(runtime: Make) -> None:
    tool = CountingTool()
    made = runtime(tool)
    run = made.run("#tool=count {}")
    assert await run.drive(die_after=1) == "died"
    made.box.error = RetinueError.unavailable("sandbox")
    assert await run.drive() == "failed"
    assert run.told[-1].failed.retryable
    made.box.error = RetinueError(Reason.SANDBOX_UNAVAILABLE, "There is no box.", check="namespaces")
    assert await run.drive() == "finished"
    assert ledger.UNKNOWN[:40] in run.text


async def test_a_run_that_comes_back_where_there_are_no_tools_any_more_ends_well(runtime: Make, light: Any) -> None:
    run = runtime(CountingTool(), rules=Rules(count="ask")).run("#tool=count {}")
    assert await run.drive() == "approval_requested"
    run._invoke = light().adapter.invoke
    assert await run.drive() == "finished"
    assert "There is no tool 'count'. There are: none." in run.text


async def test_a_state_of_a_newer_release_is_left_to_it(runtime: Make) -> None:
    made = runtime(CountingTool(), rules=Rules(count="ask"))
    run = made.run("#tool=count {}")
    await run.drive()
    state = json.loads(run.state)
    run.state = json.dumps({**state, "version": 2}).encode()
    assert await run.drive() == "failed"
    assert run.told[-1].failed.retryable


async def test_cards_said_before_tools_are_told_once(runtime: Make) -> None:
    run = runtime(CountingTool(), rules=Rules(count="ask")).run("#card\n#tool=count {}\n#then\n#say=x")
    assert await run.drive() == "approval_requested"
    call_id = run.of("approval_requested")[0].call_id
    await run.drive(approvals=[pb.ApprovalDecision(call_id=call_id, decision="deny")])
    cards = [event for event in run.recorded if event.HasField("card")]
    assert len(cards) == 2  # the offline model puts one into each of its two answers
    assert isinstance(cards[0], RuntimeEvent)


async def test_one_effect_a_request_that_comes_twice_makes_no_call_twice(runtime: Make) -> None:
    tool = CountingTool()
    made = runtime(tool)
    run = made.run("#tool=count {}", session_id="ses_a", run_id="run_a")
    assert await run.drive(die_after=1) == "died"
    assert list(tool.effects.values()) == [1], "it was made, and its end is not recorded"
    request = pb.InvokeRequest(
        tenant_id="ten_a", run_id="run_a", session_id="ses_a", runtime="light", attempt=1, fencing_token=1,
        text="#tool=count {}", tools=["count"], checkpoint=run.state,
    )  # fmt: skip
    events = [event async for batch in made.adapter.invoke(request) for event in batch]
    assert [event.tool_finished.result for event in events if event.HasField("tool_finished")] == [ledger.UNKNOWN]
    assert list(tool.effects.values()) == [1]


async def test_one_effect_a_call_that_may_be_made_again_is_not_made_behind_one_that_may_not(runtime: Make) -> None:
    repeated = 0
    for death in range(12):
        made: list[int] = []

        async def note(_scope: Scope, call: Call, _progress: Progress, into: list[int] = made) -> Result:
            into.append(call.arguments["n"])
            return Result(True, "done")

        often, once = CountingTool("often", idempotent=True, do=note), CountingTool("once", do=note)
        run = runtime(often, once).run('#tool=often {"n": 1}\n#tool=once {"n": 2}\n#tool=often {"n": 3}')
        if await run.drive(die_after=death) != "finished":
            assert await run.drive() == "finished", death
        assert made.count(2) <= 1, (death, made)
        assert 1 not in made[made.index(2) :] if 2 in made else True, (death, made)
        repeated += made.count(3) > 1
    assert repeated, "the last one is made again where nothing comes behind it"
