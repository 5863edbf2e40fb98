"""Limits and profiles: what is asked for is held to the contract's maxima."""

import pytest
from google.protobuf.duration_pb2 import Duration
from retinue.sandbox.v1 import execution_pb2 as pb
from retinue_kit.errors import Reason, RetinueError
from retinue_sandbox import limits
from retinue_sandbox.ports import Isolation, Limits, Profile

MAXIMA = {
    "memory_size_bytes": 4 << 30,
    "process_count": 512,
    "output_size_bytes": 4 << 20,
    "file_size_bytes": 256 << 20,
    "open_file_count": 1024,
}


def test_what_is_not_set_is_the_default():
    assert limits.read(pb.Limits()) == Limits()
    assert limits.read(pb.Limits(wall_time=Duration())) == Limits()


def test_what_is_set_is_taken_up_to_the_maximum():
    found = limits.read(pb.Limits(wall_time=Duration(seconds=600), cpu_time=Duration(nanos=500_000_000), **MAXIMA))
    assert found == Limits(600, 0.5, 4 << 30, 512, 4 << 20, 256 << 20, 1024)


@pytest.mark.parametrize("name", MAXIMA)
def test_more_than_the_maximum_is_refused_by_name_bounded(name):
    with pytest.raises(RetinueError) as caught:
        limits.read(pb.Limits(**{name: MAXIMA[name] + 1}))
    assert caught.value.reason == Reason.FIELD_INVALID
    assert caught.value.metadata == {"field": f"limits.{name}"}


@pytest.mark.parametrize("name", ["wall_time", "cpu_time"])
@pytest.mark.parametrize("span", [Duration(seconds=601), Duration(seconds=600, nanos=1), Duration(seconds=-1)])
def test_a_span_that_is_too_long_or_negative_is_refused(name, span):
    with pytest.raises(RetinueError) as caught:
        limits.read(pb.Limits(**{name: span}))
    assert caught.value.metadata == {"field": f"limits.{name}"}


def test_a_profile_is_the_same_however_its_hosts_are_ordered():
    told = pb.Profile(min_isolation="gvisor", egress=["b.example:443", "a.example:80", "b.example:443"])
    assert limits.profile(told) == Profile(Isolation.GVISOR, ("a.example:80", "b.example:443"))
    assert limits.profile(pb.Profile()) == Profile()


@pytest.mark.parametrize("pair", ["example.com", ":443", "example.com:", "example.com:0", "example.com:65536", "a:٣"])
def test_a_host_without_a_port_is_refused(pair):
    with pytest.raises(RetinueError) as caught:
        limits.profile(pb.Profile(egress=[pair]))
    assert caught.value.metadata == {"field": "profile.egress"}
