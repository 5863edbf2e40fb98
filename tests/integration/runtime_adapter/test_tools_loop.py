"""The light runtime with tools: model, calls, model, driven as a worker does it, with a real offline model."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from retinue.runtime_adapter.v1 import runtime_adapter_service_pb2 as pb
from retinue_kit import ids
from retinue_kit.errors import Code, Reason, RetinueError
from retinue_runtime_adapter.light.state import STEPS_MAX
from retinue_runtime_adapter.tools.ports import RESULT_LENGTH_MAX, Call, Progress, Result, Said, Scope
from tool_driver import CountingTool, Driver, Rules, Runtime

WAIT_S = 10.0


Make = Callable[..., Runtime]


def kinds(run: Driver) -> list[str | None]:
    return [event.WhichOneof("event") for event in run.told]


async def test_a_model_calls_a_tool_and_answers_with_its_result(runtime: Make) -> None:
    tool = CountingTool()
    run = await runtime(tool).drive('#tool=count {"n": 7}\n#say=It says: {results}')
    assert run.ends == ["finished"]
    assert run.whole == ["It says: count did 7"]
    assert kinds(run)[:3] == ["paused", "checkpoint", "tool_finished"]
    assert run.of("paused")[0].starting[0].arguments["n"] == 7
    assert list(tool.effects.values()) == [1]
    usage = run.told[-1].finished.usage
    assert usage.input_tokens > 0
    assert usage.model == "offline"


async def test_steps_follow_one_another_and_what_is_said_before_tools_is_a_message(runtime: Make) -> None:
    one, two = CountingTool("one"), CountingTool("two")
    text = '#say=I look.\n#tool=one {"n": 1}\n#tool=two {"n": 2}\n#then\n#tool=one {"n": 3}\n#then\n#say=So: {results}'
    run = await runtime(one, two).drive(text)
    assert run.whole == ["I look.", "So: one did 1 | two did 2 | one did 3"]
    assert [call.arguments["n"] for call in one.calls] == [1, 3]
    assert len(set(run.starts())) == 3
    assert [finish.ok for finish in run.finishes()] == [True, True, True]
    assert "".join(delta.text for delta in run.of("text_delta")) == "".join(run.whole)


async def test_usage_is_the_sum_of_the_attempts_model_calls(runtime: Make) -> None:
    run = await runtime(CountingTool()).drive("#tool=count {}\n#say=a b c")
    plain = await runtime().drive("#echo=a b c")
    assert run.told[-1].finished.usage.output_tokens > plain.told[-1].finished.usage.output_tokens


async def test_a_chat_without_tools_offers_none_and_asks_nobody(runtime: Make, offline_model: Any) -> None:
    made, text = runtime(CountingTool()), f"#tokens=1 {ids.new_id('say')}"
    await made.drive(text, tools=[])
    assert "tools" not in offline_model.requests_of(text)[0]["body"]
    assert made.rules.asked == []


async def test_the_conversation_holds_calls_and_results_as_openai_writes_them(
    runtime: Make, offline_model: Any
) -> None:
    mark = ids.new_id("say")
    await runtime(CountingTool()).drive(f'#say={mark}\n#tool=count {{"n": 1}}')
    body = next(r["body"] for r in offline_model.requests()[::-1] if mark in str(r["body"]["messages"]))
    assert body["tools"][0]["function"]["name"] == "count"
    user, assistant, result = body["messages"]
    assert (user["role"], assistant["content"], result["content"]) == ("user", mark, "count did 1")
    assert assistant["tool_calls"][0]["function"] == {"name": "count", "arguments": '{"n":1}'}
    assert assistant["tool_calls"][0]["id"] == result["tool_call_id"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("#tool=count {bad", "not valid JSON"),
        ('#tool=count {"n": "x"}', "n: must be integer"),
        ('#tool=count {"what": 1}', "what: there is no such argument. There are: n, text"),
        ("#tool=nothing {}", "There is no tool 'nothing'. There are: count."),
        ('#tool=count "[1]"', "must be a JSON object"),
    ],
)
async def test_a_call_that_makes_no_sense_is_not_made_and_the_model_is_told_why(
    runtime: Make, line: str, said: str
) -> None:
    tool = CountingTool()
    run = await runtime(tool).drive(line)
    assert run.ends == ["finished"]
    assert said in run.text
    assert not tool.calls
    assert [(finish.ok, said in finish.result) for finish in run.finishes()] == [(False, True)]


async def test_harmless_slips_are_mended(runtime: Make) -> None:
    tool = CountingTool()
    await runtime(tool).drive('#tool=count {"n": "3", "text": null}')
    assert tool.calls[0].arguments == {"n": 3}


async def test_bounded_a_model_that_only_calls_tools_has_to_answer_after_so_many_steps(
    runtime: Make, offline_model: Any
) -> None:
    tool, mark = CountingTool(), ids.new_id("say")
    steps = "\n#then\n".join(f'#tool=count {{"n": {n}}}' for n in range(STEPS_MAX + 5))
    run = await runtime(tool).drive(f"{mark}\n{steps}")
    assert run.ends == ["finished"]
    assert len(tool.calls) == STEPS_MAX
    bodies = [r["body"] for r in offline_model.requests() if mark in str(r["body"]["messages"][0])]
    assert bodies[-1]["tool_choice"] == "none"
    assert all("tool_choice" not in body for body in bodies[:-1])


async def test_bounded_a_result_keeps_its_first_and_last_half(runtime: Make) -> None:
    async def long(*_: Any) -> Result:
        return Result(True, "a" * RESULT_LENGTH_MAX + "z" * RESULT_LENGTH_MAX)

    run = await runtime(CountingTool(do=long)).drive("#tool=count {}\n#say=done")
    found = run.finishes()[0].result
    assert len(found) <= RESULT_LENGTH_MAX
    assert found[0] + found[-1] == "az"
    assert "characters left out" in found


async def test_output_is_told_while_a_tool_is_at_work(runtime: Make, eventually: Any) -> None:
    heard = asyncio.Event()

    async def work(_scope: Scope, _call: Call, progress: Progress) -> Result:
        progress(Said("stdout", "half "))
        await asyncio.wait_for(heard.wait(), WAIT_S)
        progress(Said("stderr", "way\0"))
        return Result(True, "done")

    run = runtime(CountingTool(do=work)).run("#tool=count {}\n#say=x")
    driving = asyncio.create_task(run.drive())
    await eventually(lambda: run.of("tool_output"))
    heard.set()
    assert await driving == "finished"
    assert [(output.stream, output.text) for output in run.of("tool_output")] == [
        ("stdout", "half "),
        ("stderr", "way"),
    ]


async def test_calls_run_side_by_side_only_where_each_is_declared_safe(runtime: Make) -> None:
    inside, most = 0, 0
    both = asyncio.Barrier(2)

    async def meet(*_: Any) -> Result:
        async with asyncio.timeout(WAIT_S):
            await both.wait()
        return Result(True, "met")

    async def alone(*_: Any) -> Result:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for _ in range(5):
            await asyncio.sleep(0)
        inside -= 1
        return Result(True, "alone")

    text = "#tool={0} {{}}\n#tool={1} {{}}\n#say={{results}}"
    safe, unsafe = CountingTool("safe", parallel=True, do=meet), CountingTool("unsafe", do=alone)
    run = await runtime(safe, unsafe).drive(text.format("safe", "safe"))
    assert run.text == "met | met"
    both = asyncio.Barrier(1)
    run = await runtime(CountingTool("safe", parallel=True, do=alone), unsafe).drive(text.format("safe", "unsafe"))
    assert run.text == "alone | alone"
    assert most == 1


async def test_a_policy_that_denies_is_told_to_the_model_and_the_tool_is_not_called(runtime: Make) -> None:
    tool = CountingTool()
    made = runtime(tool, rules=Rules(count="deny"))
    run = await made.drive("#tool=count {}")
    assert "not allowed: count is denyed here." in run.text
    assert not tool.calls
    assert not run.finishes()[0].ok


@pytest.mark.parametrize("error", [RetinueError.unavailable("policy"), RetinueError(Reason.TENANT_NOT_FOUND, "No.")])
async def test_without_an_answer_from_policy_no_call_is_made(runtime: Make, error: RetinueError) -> None:
    tool = CountingTool()
    run = await runtime(tool, rules=Rules(count=error)).drive("#tool=count {}")
    assert "could not be found out" in run.text
    assert not tool.calls


async def test_policy_is_told_who_calls_from_the_request_alone(runtime: Make) -> None:
    made = runtime(CountingTool())
    allowance = pb.Allowance(tool="count", pattern="count:*")
    await made.drive(
        '#tool=count {"n": 1}', agent_id="agt_1", contact="ann", kind="reminder", allowances=[allowance],
        box=pb.ToolBox(min_isolation="gvisor", egress=["a:1"]),
    )  # fmt: skip
    scope, call, approved = made.rules.asked[0]
    assert (scope.tenant_id, scope.agent_id, scope.contact, scope.kind) == ("ten_a", "agt_1", "ann", "reminder")
    assert (scope.allowed, scope.min_isolation, scope.egress) == ((("count", "count:*"),), "gvisor", ("a:1",))
    assert (scope.fencing_token, scope.model, approved) == (1, "environment/offline", False)
    assert call.arguments == {"n": 1}


@pytest.mark.parametrize(
    ("decision", "made", "said"),
    [("allow_once", 1, "count did 5"), ("allow_always", 1, "count did 5"), ("deny", 0, "has denied it"),
     ("expired", 0, "did not answer in time")],
)  # fmt: skip
async def test_a_call_that_a_person_is_asked_about_parks_the_run(
    runtime: Make, decision: str, made: int, said: str
) -> None:
    tool, free = CountingTool(), CountingTool("free")
    one = runtime(tool, free, rules=Rules(count="ask"))
    run = one.run('#say=May I?\n#tool=count {"n": 5}\n#tool=free {}\n#then\n#say={results}')
    assert await run.drive() == "approval_requested"
    asked = run.of("approval_requested")[0]
    assert (asked.tool, asked.pattern, asked.expire_s) == ("count", "count:*", 30)
    assert free.calls, "what can be done without asking is done first"
    assert not tool.calls
    answer = pb.ApprovalDecision(approval_id="apr_1", call_id=asked.call_id, decision=decision)
    assert await run.drive(approvals=[answer], same_attempt=True) == "finished"
    assert said in run.text
    assert run.whole[0] == "May I?"
    assert [call.approval_id for call in tool.calls] == ["apr_1"] * made
    assert list(free.effects.values()) == [1]


async def test_several_questions_are_asked_one_after_the_other(runtime: Make) -> None:
    tool = CountingTool()
    run = runtime(tool, rules=Rules(count="ask")).run('#tool=count {"n": 1}\n#tool=count {"n": 2}\n#say={results}')
    approvals: list[pb.ApprovalDecision] = []
    for decision in ("deny", "allow_once"):
        assert await run.drive(approvals=approvals) == "approval_requested"
        call_id = run.of("approval_requested")[0].call_id
        assert call_id not in [approval.call_id for approval in approvals]
        approvals.append(pb.ApprovalDecision(call_id=call_id, decision=decision))
    assert await run.drive(approvals=approvals) == "finished"
    assert run.text.endswith("has denied it. | count did 2")


async def _never(*_: Any) -> Result:
    await asyncio.Event().wait()
    return Result(True, "")


@pytest.mark.parametrize("parallel", [True, False])
async def test_an_abort_stops_every_call_that_is_under_way(runtime: Make, eventually: Any, parallel: bool) -> None:
    tool = CountingTool(do=_never, parallel=parallel)
    made = runtime(tool)
    run = made.run("#tool=count {}\n#tool=count {}", run_id="run_a")
    driving = asyncio.create_task(run.drive())
    await eventually(lambda: len(tool.calls) == (2 if parallel else 1))
    assert made.adapter.abort("ten_a", "run_a")
    assert await driving == "failed"
    assert run.told[-1].failed.error.code == Code.CANCELLED
    assert tool.cancelled == len(tool.calls)
    assert [finish.ok for finish in run.finishes()] == [False, False]


async def test_a_call_is_stopped_when_the_runs_time_is_over(runtime: Make) -> None:
    run = runtime(CountingTool(do=_never)).run("#tool=count {}")
    request_time = {"run_time": {"nanos": 300_000_000}}
    assert await run.drive(**request_time) == "failed"
    assert "time for the run is over" in run.told[-1].failed.error.message
    assert not run.finishes()[0].ok


async def test_leaving_the_stream_stops_the_call(runtime: Make, eventually: Any) -> None:
    tool = CountingTool(do=_never)
    driving = asyncio.create_task(runtime(tool).drive("#tool=count {}"))
    await eventually(lambda: tool.calls)
    driving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driving
    assert tool.cancelled == 1


async def test_no_stale_write_a_tool_that_is_overtaken_ends_the_attempt_without_a_record(runtime: Make) -> None:
    async def stale(*_: Any) -> Result:
        raise RetinueError(Reason.STALE_FENCING_TOKEN, "Another attempt of this session has begun since.")

    run = runtime(CountingTool(do=stale, parallel=True)).run("#tool=count {}")
    with pytest.raises(RetinueError) as refused:
        await run.drive()
    assert refused.value.reason is Reason.STALE_FENCING_TOKEN
    assert run.finishes() == []


async def test_a_tool_that_fails_or_breaks_is_told_to_the_model(runtime: Make) -> None:
    async def fail(*_: Any) -> Result:
        raise RetinueError(Reason.FILE_NOT_FOUND, "There is no such file.", private="secret")

    async def break_(*_: Any) -> Result:
        raise ZeroDivisionError("secret")

    one, two = CountingTool("one", do=fail), CountingTool("two", do=break_)
    run = await runtime(one, two).drive("#tool=one {}\n#tool=two {}")
    assert "There is no such file." in run.text
    assert "The tool broke" in run.text
    assert "secret" not in str(run.recorded)
