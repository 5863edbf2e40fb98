"""What the light runtime sends to a model, and what it makes of a good answer."""

from typing import Any

from google.protobuf.struct_pb2 import Struct
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from retinue.runtime_adapter.v1.runtime_adapter_service_pb2 import ContextMessage
from retinue_kit import ids, telemetry


async def test_the_persona_comes_first_and_the_text_last(light: Any, offline_model: Any) -> None:
    text = f"#tokens=1 {ids.new_id('say')}"
    context = [ContextMessage(role="user", text="a"), ContextMessage(role="assistant", text="b")]
    await light().text(text, persona="You are kind.", context=context)
    body = offline_model.requests_of(text)[0]["body"]
    assert body["messages"] == [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": text},
    ]
    assert body["stream_options"] == {"include_usage": True}


async def test_known_parameters_are_passed_on_and_others_are_not(light: Any, offline_model: Any) -> None:
    parameters = Struct()
    parameters.update({"temperature": 0.5, "max_tokens": 20, "stop": ["a", "b"], "seed": 7, "tools": [], "top_p": "x"})
    text = f"#tokens=1 {ids.new_id('say')}"
    await light().text(text, parameters=parameters)
    body = offline_model.requests_of(text)[0]["body"]
    assert body["max_tokens"] == 20
    assert (body["temperature"], body["stop"], body["seed"]) == (0.5, ["a", "b"], 7)
    assert "tools" not in body
    assert "top_p" not in body


async def test_a_key_is_sent_only_if_there_is_one(light: Any, offline_model: Any) -> None:
    for keys, sent in (("", False), ("abc", True)):
        text = f"#tokens=1 {ids.new_id('say')}"
        await light(model_api_key=keys).text(text)
        assert ("Authorization" in offline_model.requests_of(text)[0]["headers"]) is sent


async def test_usage_is_estimated_where_the_model_does_not_count(light: Any) -> None:
    events = await light().invoke("#tokens=8 #no_usage", persona="p" * 100)
    usage = events[-1].finished.usage
    assert usage.output_tokens == 6  # 23 characters
    assert usage.input_tokens == 30  # 119 characters


async def test_reasoning_of_its_own_field_is_told_apart(light: Any) -> None:
    events = await light().invoke("#reasoning=two words #tokens=2", reasoning=True)
    assert "".join(event.reasoning_delta.text for event in events) == "two words"
    assert "".join(event.text_delta.text for event in events) == "t0 t1"


async def test_the_models_connection_is_kept_for_the_next_call(light: Any) -> None:
    runtime = light()
    for _ in range(5):
        await runtime.text("#tokens=3")
    connector = runtime.adapter._http.connector
    assert sum(len(kept) for kept in connector._conns.values()) == 1


async def test_a_model_call_is_a_span_whose_id_the_model_is_told(light: Any, offline_model: Any) -> None:
    provider = telemetry.set_up("test", {})
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    text = f"#tokens=4 {ids.new_id('say')}"
    with telemetry.span("agent_processing", traceparent=f"00-{1:032x}-{2:016x}-01"):
        await light().text(text)
        await light().failure("#status=401")
    good, bad = [span for span in exporter.get_finished_spans() if span.name == "model_call"]
    assert good.attributes is not None
    assert bad.attributes is not None
    assert good.attributes["model.name"] == "offline"
    assert good.attributes["http.response.status_code"] == 200
    assert good.attributes["model.output_tokens"] == 4
    assert bad.attributes["http.response.status_code"] == 401
    assert bad.status.description == "MODEL_AUTH"
    assert text not in str(good.to_json())
    context = good.get_span_context()
    assert context is not None
    sent = offline_model.requests_of(text)[0]["traceparent"]
    assert sent == f"00-{1:032x}-{context.span_id:016x}-01"
    provider.shutdown()
