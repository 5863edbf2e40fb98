"""Requests are checked against the contract's limits at a bounded price."""

import pytest
from retinue.edge.v1 import edge_service_pb2
from retinue_kit.errors import RetinueError
from retinue_kit.server import STRUCT_VALUES_MAX, validate


@pytest.mark.parametrize(
    "nest", [lambda values: {"a": values}, lambda values: {"a": [{"b": [values[:2], values[2:]]}]}]
)
def test_bounded_a_struct_of_very_many_values_is_refused(nest):
    request = edge_service_pb2.SendMessageRequest(contact="ada", text="hi")
    request.metadata.update(nest([1] * (STRUCT_VALUES_MAX - 5)))
    validate(request)
    request.metadata.update(nest([1] * (STRUCT_VALUES_MAX + 1)))
    with pytest.raises(RetinueError, match="values") as refused:
        validate(request)
    assert refused.value.metadata["field"] == "metadata"
