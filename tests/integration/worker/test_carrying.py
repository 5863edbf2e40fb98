"""A run that changes its runtime takes its context along, or does not begin; one that does not fit is summed up."""

import json

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from retinue.policy.v1 import policy_service_pb2 as policy_pb
from retinue.policy.v1 import policy_service_pb2_grpc as policy_grpc
from retinue.portability.v1 import bundle_pb2, loss_pb2
from retinue.portability.v1 import portability_service_pb2 as portability_pb
from retinue.portability.v1 import portability_service_pb2_grpc as portability_grpc
from retinue_kit.errors import Reason, RetinueError
from retinue_kit.server import Service
from retinue_router.worker import clients
from retinue_router.worker.given import RECORD

POLICY = policy_pb.DESCRIPTOR.services_by_name["PolicyService"].full_name
PORTABILITY = portability_pb.DESCRIPTOR.services_by_name["PortabilityService"].full_name
DIGEST = "ab" * 32
SOON_S = 0.05
LOSS = "tool_calls.arguments: approximate: They are told in words."
SUMMARY = {"summary": "They met.", "method": "model", "message_count": 2}


class Choosing(policy_grpc.PolicyServiceServicer):
    """A policy that chooses what a test says; a tool call that is open binds it, as it does the real one."""

    def __init__(self):
        self.runtime, self.attempts = "openclaw", 3
        self.away = False
        self.requests, self.reports = [], []

    async def Decide(self, request, context):
        if self.away:
            raise away("policy")
        self.requests.append(request)
        runtime = request.session_runtime if request.tool_transaction_open else self.runtime
        decision = policy_pb.Decision(runtime=runtime)
        decision.switches_runtime = request.session_runtime not in ("", runtime)
        decision.limits.attempt_count, decision.limits.concurrent_run_count = self.attempts, 64
        decision.limits.output_size_bytes, decision.limits.weight = 1 << 20, 1.0
        decision.limits.run_time.FromSeconds(60)
        decision.snapshot.update({"kind": "chat"})
        decision.abilities.add(runtime="light", tools=True, window_tokens=1000)
        return policy_pb.DecideResponse(decision=decision)

    async def ReportOutcomes(self, request, context):
        self.reports.extend(request.outcomes)
        return policy_pb.ReportOutcomesResponse()


class Carrying(portability_grpc.PortabilityServiceServicer):
    """Carries one and the same context, and sums everything up in one sentence; or fails as a test says."""

    def __init__(self):
        self.carried, self.summed = [], []
        self.trouble = None
        self.through = ""
        self.lasting = None

    async def CarryContext(self, request, context):
        self.carried.append(request)
        if self.trouble:
            raise self.trouble
        held = loss_pb2.FieldFate(field="messages.text", fate="held", item_count=2)
        told = loss_pb2.FieldFate(
            field="tool_calls.arguments", fate="approximate", item_count=1, reason="They are told in words."
        )
        given = bundle_pb2.GivenContext(
            preface="What is remembered: tea.",
            messages=[bundle_pb2.GivenMessage(role="user", text="carried")],
            losses=loss_pb2.LossReport(runtime=request.target.runtime, bundle_digest=DIGEST, fields=[held, told]),
            lasting=self.lasting,
        )
        return portability_pb.CarryContextResponse(facts=bundle_pb2.BundleFacts(digest=DIGEST), context=given)

    async def SummarizeSession(self, request, context):
        self.summed.append(request)
        if self.trouble:
            raise self.trouble
        summary = bundle_pb2.SummaryPart(
            text=SUMMARY["summary"], through_cursor=self.through, message_count=2, method="model"
        )
        return portability_pb.SummarizeSessionResponse(summary=summary)


@pytest.fixture
def choosing():
    return Choosing()


@pytest.fixture
def carrying():
    return Carrying()


@pytest.fixture
async def started(mesh, serve, choosing, carrying):
    """A worker between that policy and that portability."""
    policy = await serve([Service(policy_grpc.add_PolicyServiceServicer_to_server, choosing, POLICY)])
    portability = await serve(
        [Service(portability_grpc.add_PortabilityServiceServicer_to_server, carrying, PORTABILITY)]
    )
    mesh.adapter.script = fine
    await mesh.start_worker(policy_address=policy, portability_address=portability)


def away(name):
    return RetinueError(Reason.DEPENDENCY_UNAVAILABLE, "Not there.", retry_after_s=SOON_S, dependency=name)


def said(text):
    return [{"text_delta": {"text": text}}, {"message_completed": {"text": text}}]


async def fine(request):
    for event in said(f"re: {request.text}"):
        yield event
    yield {"finished": {}}


def failure(reason="MODEL_UNAVAILABLE", *, retryable=True):
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="retinue"))
    return {"failed": {"error": {"code": 14, "message": "No.", "details": [packed]}, "retryable": retryable}}


OVERFLOW = failure("MODEL_CONTEXT_OVERFLOW", retryable=False)


def playing(*scenes, then=fine):
    """A runtime that plays one scene after another, whatever it is asked."""
    left = list(scenes)

    async def script(request):
        if left:
            for event in left.pop(0):
                if callable(event):
                    event()
                else:
                    yield event
            return
        async for event in then(request):
            yield event

    return script


async def events(mesh, type_):
    rows = await mesh.admin.fetch(
        "select data, run_id, token, n from router.events where type = $1 order by token, n", type_
    )
    return [(json.loads(row["data"]), row["run_id"], f"{row['token']}-{row['n']}") for row in rows]


async def switches(mesh):
    return [(data["from"], data["to"]) for data, _, _ in await events(mesh, "runtime.switched")]


@pytest.fixture
def spoken(mesh, choosing, when_over):
    """Have a message answered on a runtime; answers its row."""

    async def spoken(text, runtime):
        choosing.runtime = runtime
        return await when_over(await mesh.submit(text))

    return spoken


async def test_a_switch_is_told_once_and_recorded_with_what_is_lost_and_the_runtime_is_given_what_was_carried(
    mesh, started, choosing, carrying, spoken
):
    await spoken("hello", "openclaw")
    row = await spoken("again", "light")
    (asked,) = carrying.carried
    assert (asked.run_id, asked.session_id, asked.contact) == (row["run_id"], row["session_id"], "ada")
    assert (asked.target.runtime, asked.target.tools, asked.target.window_tokens) == ("light", True, 1000)
    given = mesh.adapter.requests[-1]
    assert given.preface == "What is remembered: tea."
    assert [(line.role, line.text) for line in given.context] == [("user", "carried")]
    ((data, run, _),) = await events(mesh, "runtime.switched")
    assert (data, run) == ({"from": "openclaw", "to": "light", "bundle": DIGEST, "losses": [LOSS]}, row["run_id"])
    types = await mesh.types()
    assert types[-5:] == ["user.message", "run.started", "runtime.switched", "assistant.message", "run.succeeded"]
    told = [entry.type for entry in await mesh.told()]
    assert told.count("runtime.switched") == 1
    kept = json.loads(row["decision"])
    assert (kept["bundle"], kept["losses"], kept["snapshot"]) == (DIGEST, [LOSS], {"kind": "chat"})
    # On the runtime that it has now nothing is carried, and the claim's own history is given.
    row = await spoken("and again", "light")
    assert len(carrying.carried) == 1
    assert [line.text for line in mesh.adapter.requests[-1].context] == ["hello", "re: hello", "again", "re: again"]
    assert not json.loads(row["decision"]).get("bundle")


async def test_what_a_bundle_summed_up_is_known_to_the_runs_that_follow(mesh, started, carrying, spoken):
    for text in ("one", "two"):
        await spoken(text, "openclaw")
    ((_, _, through),) = [one for one in await events(mesh, "assistant.message") if one[0]["text"] == "re: one"]
    carrying.lasting = bundle_pb2.SummaryPart(
        text="One was said.", through_cursor=str(through), message_count=2, method="extract"
    )
    await spoken("three", "light")
    assert len(await events(mesh, "context.compacted")) == 1
    await spoken("four", "light")
    given = mesh.adapter.requests[-1]
    assert given.preface == f"{RECORD}\n\nWhat was said before, summed up:\nOne was said."
    assert [line.text for line in given.context] == ["two", "re: two", "three", "re: three"]


async def test_without_a_bundle_there_is_no_switch_and_the_run_waits_for_one(
    mesh, started, choosing, carrying, spoken, monkeypatch, when_over, eventually
):
    await spoken("hello", "openclaw")
    monkeypatch.setattr(clients, "PATIENCE_S", 0.0)
    choosing.runtime, carrying.trouble = "light", away("bundles")
    run = await mesh.submit("again")

    async def put_back():
        return (await mesh.run(run))["put_back_s"] > 0

    await eventually(put_back)
    assert len(mesh.adapter.requests) == 1, "it was not begun"
    assert await switches(mesh) == []
    carrying.trouble = None
    row = await when_over(run)
    assert (row["state"], row["attempt"], await switches(mesh)) == ("succeeded", 1, [("openclaw", "light")])
    assert not [one for one in choosing.reports if one.reason], "the runtime is not to blame"


async def test_a_context_that_cannot_be_carried_fails_the_run_and_blames_no_runtime(
    mesh, started, choosing, carrying, spoken
):
    await spoken("hello", "openclaw")
    carrying.trouble = RetinueError(Reason.TOOL_TRANSACTION_OPEN, "A call is open.")
    row = await spoken("again", "light")
    assert (row["state"], len(mesh.adapter.requests)) == ("failed", 1)
    assert json.loads(row["error"])["details"][0]["reason"] == "TOOL_TRANSACTION_OPEN"
    assert await switches(mesh) == []
    assert {one.runtime for one in choosing.reports} <= {"openclaw"}


async def test_an_attempt_that_is_taken_up_after_a_switch_is_no_second_one_and_keeps_what_is_known_of_it(
    mesh, started, carrying, spoken
):
    await spoken("hello", "openclaw")
    mesh.adapter.script = playing(
        [*said("one"), {"checkpoint": {"state": b"1"}}, {"text_delta": {"text": "tw"}}, failure()],
        [*said("one"), *said("two"), {"finished": {}}],
    )
    row = await spoken("again", "light")
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 2, "one\n\ntwo")
    assert await switches(mesh) == [("openclaw", "light")]
    assert len(carrying.carried) == 1
    kept = json.loads(row["decision"])
    assert (kept["switches_runtime"], kept["bundle"], kept["losses"]) == (True, DIGEST, [LOSS])
    assert mesh.adapter.requests[-1].checkpoint == b"1"


async def test_a_first_message_that_fails_on_one_runtime_shows_that_another_took_it(
    mesh, started, choosing, carrying, spoken
):
    def fail_over():
        choosing.runtime = "light"

    mesh.adapter.script = playing([fail_over, failure()], [failure()])
    row = await spoken("hello", "openclaw")
    assert (row["state"], row["attempt"]) == ("succeeded", 3)
    assert [request.runtime for request in mesh.adapter.requests] == ["openclaw", "light", "light"]
    # What the second attempt told was rolled back with it; the third tells it, and carries the context again.
    assert await switches(mesh) == [("openclaw", "light")]
    assert len(carrying.carried) == 2


async def test_a_runtime_that_takes_a_run_up_in_the_middle_is_given_no_state_of_another_and_heard_whole(
    mesh, started, choosing, spoken
):
    def fail_over():
        choosing.runtime = "light"

    mesh.adapter.script = playing(
        [
            *said("let me see"),
            {"checkpoint": {"state": b"its own"}},
            {"text_delta": {"text": "tw"}},
            fail_over,
            failure(),
        ]
    )
    row = await spoken("x", "openclaw")
    assert (row["state"], row["output"]) == ("succeeded", "let me see\n\nre: x")
    assert (mesh.adapter.requests[-1].runtime, mesh.adapter.requests[-1].checkpoint) == ("light", b"")
    assert await switches(mesh) == [("openclaw", "light")]


async def test_a_run_stays_bound_to_its_open_tool_call_when_policy_was_away_for_an_attempt(
    mesh, started, choosing, carrying, monkeypatch, when_over, eventually
):
    def policy_leaves():
        monkeypatch.setattr(clients, "PATIENCE_S", 0.0)
        choosing.away, choosing.runtime = True, "light"

    call = {"call_id": "c1", "tool": "count"}
    mesh.adapter.script = playing(
        [{"tool_started": call}, policy_leaves, failure()],
        [{"tool_finished": {"call_id": "c1", "ok": True}}, {"finished": {}}],
    )
    run = await mesh.submit("x")

    async def put_back():
        return (await mesh.run(run))["put_back_s"] > 0

    await eventually(put_back)
    choosing.away = False
    row = await when_over(run)
    asked = [(request.session_runtime, request.tool_transaction_open) for request in choosing.requests]
    assert asked == [("", False), ("openclaw", True)]
    assert [request.runtime for request in mesh.adapter.requests] == ["openclaw", "openclaw"]
    assert (row["state"], carrying.carried, await switches(mesh)) == ("succeeded", [], [])


async def test_a_conversation_that_does_not_fit_is_summed_up_and_its_run_goes_on(mesh, started, carrying, spoken):
    await spoken("hello", "light")
    carrying.through = (await events(mesh, "assistant.message"))[-1][2]
    mesh.adapter.script = playing([OVERFLOW])
    row = await spoken("again", "light")
    assert (row["state"], row["attempt"], row["output"]) == ("succeeded", 2, "re: again")
    (asked,) = carrying.summed
    assert (asked.run_id, asked.session_id) == (row["run_id"], row["session_id"])
    assert asked.token_budget == 500, "half of what the model can read"
    ((data, run, _),) = await events(mesh, "context.compacted")
    assert (data, run) == ({**SUMMARY, "through": carrying.through}, row["run_id"])
    before, after = mesh.adapter.requests[-2:]
    assert ([line.text for line in before.context], before.preface) == (["hello", "re: hello"], "")
    assert (list(after.context), SUMMARY["summary"] in after.preface) == ([], True)
    types = await mesh.types()
    assert types[-6:] == [
        "user.message", "run.started", "context.compacted", "run.resumed", "assistant.message", "run.succeeded"
    ]  # fmt: skip
    # What was said stays where it was, and later runs begin behind the summary.
    assert [data["text"] for data, _, _ in await events(mesh, "user.message")] == ["hello", "again"]
    await spoken("more", "light")
    assert [line.text for line in mesh.adapter.requests[-1].context] == ["again", "re: again"]
    assert SUMMARY["summary"] in mesh.adapter.requests[-1].preface


async def test_bounded_a_run_that_never_fits_is_summed_up_no_more_often_than_it_has_attempts(
    mesh, started, choosing, carrying, spoken
):
    carrying.through = "0-0"
    mesh.adapter.script = playing(*[[OVERFLOW]] * 9)
    row = await spoken("x", "light")
    assert (row["state"], row["attempt"], len(mesh.adapter.requests), len(carrying.summed)) == ("failed", 3, 3, 2)
    assert json.loads(row["error"])["details"][0]["reason"] == "MODEL_CONTEXT_OVERFLOW"


@pytest.mark.parametrize(
    ("scene", "trouble", "calls"),
    [
        ([{"text_delta": {"text": "I"}}, OVERFLOW], None, 0),
        ([OVERFLOW], RetinueError(Reason.MODEL_CONTEXT_OVERFLOW, "There is nothing left to sum up."), 1),
    ],
    ids=["something was said", "nothing to sum up"],
)
async def test_a_run_that_does_not_fit_fails_as_it_is_where_it_cannot_begin_again(
    mesh, started, carrying, spoken, scene, trouble, calls
):
    carrying.trouble = trouble
    mesh.adapter.script = playing(scene)
    row = await spoken("x", "light")
    assert (row["state"], row["attempt"], len(carrying.summed)) == ("failed", 1, calls)
    assert json.loads(row["error"])["details"][0]["reason"] == "MODEL_CONTEXT_OVERFLOW"
    assert await events(mesh, "context.compacted") == []
