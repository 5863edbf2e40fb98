"""The local store of spans: found by trace, cut in time, forgiving of torn lines."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Status, StatusCode
from retinue_kit import spans
from retinue_kit.spans import LocalSpanExporter, SpanFile, StoredSpan


def span(trace="a" * 32, start=1, **changes):
    fields = {"span": "b" * 16, "parent": "", "service": "router", "name": "claim", "end": start + 5}
    return StoredSpan(trace=trace, start=start, **(fields | changes))


def test_a_trace_is_gathered_from_all_processes_by_start(tmp_path):
    SpanFile(tmp_path / "router.jsonl").write([span(start=3), span(start=1, error="RUN_TIMEOUT")])
    SpanFile(tmp_path / "worker.jsonl").write([span(start=2, service="worker"), span(trace="c" * 32)])
    found = spans.read_trace(tmp_path, "a" * 32)
    assert [(one.start, one.service) for one in found] == [(1, "router"), (2, "worker"), (3, "router")]
    assert found[0].error == "RUN_TIMEOUT"


def test_a_torn_line_is_passed_over(tmp_path):
    SpanFile(tmp_path / "router.jsonl").write([span()])
    with (tmp_path / "router.jsonl").open("ab") as file:
        file.write(b'{"trace":"' + b"a" * 32 + b'","spa')
    assert len(spans.read_trace(tmp_path, "a" * 32)) == 1


def test_a_file_is_cut_and_its_predecessor_still_read(tmp_path, monkeypatch):
    monkeypatch.setattr(spans, "FILE_SIZE_MAX_BYTES", 1000)
    file = SpanFile(tmp_path / "router.jsonl")
    for start in range(20):
        file.write([span(start=start)])
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert max(sizes) <= 1000
    assert spans.read_trace(tmp_path, "a" * 32)[-1].start == 19


@pytest.fixture
def tracer(tmp_path):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(LocalSpanExporter(tmp_path / "router.jsonl", "router")))
    yield provider.get_tracer("test")
    provider.shutdown()


def test_opentelemetrys_spans_are_kept_with_parent_error_and_attributes(tracer, tmp_path):
    attributes = {"tenant.id": "ten_a", "n": 1}
    with (
        tracer.start_as_current_span("outer", attributes=attributes) as outer,
        tracer.start_as_current_span("inner") as inner,
    ):
        inner.set_status(Status(StatusCode.ERROR, "RUN_TIMEOUT"))
    trace = f"{outer.get_span_context().trace_id:032x}"
    first, second = spans.read_trace(tmp_path, trace)
    assert (first.name, first.parent, first.error, first.attributes) == ("outer", "", "", attributes)
    assert (second.name, second.parent, second.error) == ("inner", first.span, "RUN_TIMEOUT")


def test_a_folder_that_is_gone_costs_spans_and_nothing_else(tmp_path):
    provider = TracerProvider()
    exporter = LocalSpanExporter(tmp_path / "gone" / "router.jsonl", "router")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("test").start_span("one").end()
    provider.shutdown()
