"""One trace tells a message's way through every part of the mesh, and never what was said."""

import os

import pytest
from retinue_kit.spans import read_trace

PARTS = {"envoy", "gateway", "router", "worker", "policy", "runtime-adapter"}
WORK = {"process_message", "route_decision", "agent_processing"}


@pytest.fixture
def gather(mesh, eventually):
    """Wait until the spans of a trace are all there: whoever is named as a parent, and every part."""

    async def wait(trace_id, parts=PARTS):
        def whole():
            spans = read_trace(mesh.state / "traces", trace_id)
            known = {span.span for span in spans}
            missing = [span.name for span in spans if span.parent and span.parent not in known]
            return parts <= {span.service for span in spans} and len(missing) <= 1 and spans

        return await eventually(whole)

    return wait


async def test_a_messages_trace_is_one_tree_through_every_part(client, contact, gather):
    response = await client.post(f"/v1/contacts/{contact}/messages:stream", json={"text": "#tokens=7"})
    spans = await gather(response.headers["x-trace-id"])
    by_id = {span.span: span for span in spans}
    assert [span.service for span in spans if not span.parent] == ["envoy"]
    assert all(span.parent in by_id for span in spans if span.parent)
    assert all(span.start <= span.end for span in spans)
    named = {span.name: span for span in spans}
    assert named.keys() >= WORK

    def above(span):
        while span.parent:
            span = by_id[span.parent]
            yield span

    assert "SubmitRun" in by_id[named["process_message"].parent].name, "the queue is crossed"
    assert by_id[named["route_decision"].parent].name == "process_message"
    assert by_id[named["agent_processing"].parent].name == "process_message"
    assert named["route_decision"].attributes["selected_agent"] == "light"
    assert named["agent_processing"].attributes["response.length"] == len(" ".join(f"t{n}" for n in range(7)))
    for service, parent in (("policy", "route_decision"), ("runtime-adapter", "agent_processing")):
        span = next(span for span in spans if span.service == service)
        assert parent in [one.name for one in above(span)]
    assert [span.service for span in above(named["process_message"])][-1] == "envoy"
    assert len({span.attributes.get("tenant.id") for span in spans if "tenant.id" in span.attributes}) == 1
    assert len(spans) < 30, "no span for each token"


async def test_the_command_draws_a_runs_waterfall(mesh, client, contact, gather):
    response = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=3"})
    run = response.json()["run"]["run_id"]
    await client.post(f"/v1/runs/{run}:wait")
    spans = await gather(response.headers["x-trace-id"])
    drawn = mesh.command("trace", run, "--tenant", "e2e").stdout
    assert response.headers["x-trace-id"] in drawn
    for name in WORK:
        assert name in drawn
    for service in PARTS:
        assert service in drawn
    assert mesh.command("trace", response.headers["x-trace-id"]).stdout.count("\n") >= len(spans)
    unknown = mesh.command("trace", "run_" + "0" * 26, "--tenant", "e2e", check=False)
    assert unknown.returncode == 1
    assert "Traceback" not in unknown.stderr


async def test_a_callers_trace_goes_on_inside(client, contact, gather):
    trace_id, span_id = os.urandom(16).hex(), os.urandom(8).hex()
    headers = {"traceparent": f"00-{trace_id}-{span_id}-01"}
    response = await client.post(f"/v1/contacts/{contact}/messages:stream", json={"text": "#tokens=3"}, headers=headers)
    assert response.headers["x-trace-id"] == trace_id
    spans = await gather(trace_id)
    assert [span.service for span in spans if span.parent == span_id] == ["envoy"]


async def test_a_trace_that_its_caller_does_not_record_is_not_recorded_here(mesh, client, contact, gather):
    trace_id = os.urandom(16).hex()
    headers = {"traceparent": f"00-{trace_id}-{os.urandom(8).hex()}-00"}
    path = f"/v1/contacts/{contact}/messages:stream"
    assert "event: run.succeeded" in (await client.post(path, json={"text": "#tokens=3"}, headers=headers)).text
    later = await client.post(path, json={"text": "#tokens=3"})
    await gather(later.headers["x-trace-id"])
    assert read_trace(mesh.state / "traces", trace_id) == []


async def test_a_malformed_traceparent_does_no_harm(client, contact):
    for value in ("x", "00-0-0-00", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-" + "g" * 32):
        answer = await client.get(f"/v1/contacts/{contact}", headers={"traceparent": value})
        assert answer.status_code == 404
        assert len(answer.headers["x-trace-id"]) == 32


async def test_a_failed_run_is_marked_in_its_trace(client, contact, gather):
    response = await client.post(f"/v1/contacts/{contact}/messages:stream", json={"text": "#status=401"})
    spans = await gather(response.headers["x-trace-id"])
    assert any(span.error for span in spans if span.service == "runtime-adapter")
    failed = {span.name for span in spans if span.error and span.service == "worker"}
    assert "process_message" in failed


async def test_neither_spans_nor_logs_hold_names_texts_keys_or_tokens(mesh, client, gather):
    mark = f"mark{os.urandom(6).hex()}"
    token = mesh.token()
    headers = {"idempotency-key": f"key-{mark}", "user-agent": "test"}
    said = [
        await client.post(f"/v1/contacts/{mark}/messages:stream", json={"text": f"#echo={mark}"}, headers=headers),
        await client.post(f"/v1/contacts/{mark}/messages:stream", json={"text": f"#status=401 {mark}"}),
        await client.post(f"/v1/contacts/{mark}/messages", json={"text": mark, "on_busy": mark}),
        await client.get(f"/v1/contacts/{mark}x/messages?access_token={token}"),
        await client.get(f"/v1/runs?contact={mark}"),
        await client.put(f"/v1/contacts/{mark}", json={"profile": {"a": mark}}),
        await client.post(
            "/v1/chat/completions", json={"model": mark, "messages": [{"role": "user", "content": mark}]}
        ),
    ]
    async with client.stream("GET", f"/v1/contacts/{mark}/events?access_token={token}", headers={"authorization": ""}):
        pass
    assert (await client.delete(f"/v1/contacts/{mark}")).status_code == 200
    await gather(said[0].headers["x-trace-id"])
    for folder in ("traces", "logs"):
        for file in (mesh.state / folder).iterdir():
            kept = file.read_text(errors="replace")
            assert mark not in kept, file
            assert token not in kept, file
            assert token.rpartition(".")[2] not in kept, file


async def test_health_and_documents_leave_no_trace(mesh, client, contact, gather):
    for path in ("/healthz", "/readyz", "/openapi.json"):
        answer = await client.get(path)
        assert not read_trace(mesh.state / "traces", answer.headers.get("x-trace-id", "none"))
    last = await client.get(f"/v1/contacts/{contact}")
    spans = await gather(last.headers["x-trace-id"], {"envoy", "gateway", "router"})
    assert {span.service for span in spans} == {"envoy", "gateway", "router"}
