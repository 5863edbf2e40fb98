"""The mesh's answers as the public contract says them."""

from google.protobuf.descriptor import Descriptor
from retinue.edge.v1 import approval_pb2, contact_pb2
from retinue.router.v1 import approval_pb2 as router_approval_pb2
from retinue.router.v1 import contact_pb2 as router_contact_pb2
from retinue.router.v1 import run_pb2
from retinue_gateway import encode


def shape(descriptor: Descriptor) -> dict[str, tuple[int, int]]:
    return {field.name: (field.number, field.type) for field in descriptor.fields}


def test_messages_that_are_shown_as_they_are_have_the_same_fields() -> None:
    for inner, shown in (
        (router_contact_pb2.Contact, contact_pb2.Contact),
        (router_approval_pb2.Approval, approval_pb2.Approval),
        (run_pb2.Message, contact_pb2.Message),
    ):
        assert shape(inner.DESCRIPTOR) == shape(shown.DESCRIPTOR)


def test_states_are_lower_case_words() -> None:
    words = ["queued", "running", "waiting", "succeeded", "failed", "cancelled"]
    for word in words:
        run = run_pb2.Run(state=encode.state_number(word))
        assert encode.run(run).state == word
        assert encode.is_over(run) == (word in ("succeeded", "failed", "cancelled"))
    assert encode.state_number("") == run_pb2.RUN_STATE_UNSPECIFIED


def test_what_is_not_set_is_left_out() -> None:
    queued = encode.to_json(encode.run(run_pb2.Run(run_id="run_a", state=run_pb2.RUN_STATE_QUEUED)))
    assert queued == {
        "run_id": "run_a",
        "contact": "",
        "session_id": "",
        "kind": "",
        "state": "queued",
        "runtime": "",
        "attempt_count": 0,
    }
    done = run_pb2.Run(state=run_pb2.RUN_STATE_SUCCEEDED, output_text="", usage=run_pb2.RunUsage(input_tokens=2))
    shown = encode.to_json(encode.run(done))
    assert shown["output"] == {"text": ""}
    assert shown["usage"] == {"input_tokens": 2, "output_tokens": 0, "model": ""}
