"""What `retinue instances` shows of an instance."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from retinue.runtime_adapter.v1.instance_service_pb2 import Instance
from retinue_cli.commands.instances import COLUMNS, line, plain
from retinue_cli.durations import short

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def ago(**span: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(NOW - timedelta(**span))
    return stamp


def instance(**fields: Any) -> Instance:
    made: dict[str, Any] = {
        "instance_id": "ins_1",
        "runtime": "openclaw",
        "isolation": "shared",
        "state": "ready",
        "tenant_ids": ["ten_a"],
        "tenant_count": 1,
        "memory_bytes": 900 * 1024 * 1024,
        "create_time": ago(hours=2),
        "use_time": ago(seconds=30),
    }
    return Instance(**{**made, **fields})


def shown(found: Instance) -> dict[str, str]:
    return dict(zip(COLUMNS, line(found, str.upper, NOW), strict=True))


def test_a_line_tells_state_memory_tenants_load_and_age() -> None:
    told = ("ins_1", "shared", "ready", "900 MiB", "TEN_A", "0/5", "2h", "30s", "")
    assert shown(instance(running_count=0, waiting_count=5)) == dict(zip(COLUMNS, told, strict=True))


def test_what_is_busy_or_was_never_used_is_not_idle() -> None:
    assert shown(instance(running_count=1))["idle"] == ""
    fresh = instance(state="pending", memory_bytes=0, tenant_ids=[], tenant_count=0, use_time=None, detail="It starts.")
    assert (shown(fresh)["idle"], shown(fresh)["memory"], shown(fresh)["tenants"]) == ("", "", "")
    assert shown(fresh)["detail"] == "It starts."


def test_of_many_tenants_few_are_named_and_the_others_counted() -> None:
    found = instance(tenant_ids=[f"t{n}" for n in range(100)], tenant_count=250)
    assert shown(found)["tenants"] == "T0, T1, T2 and 247 more"
    asked: list[str] = []
    line(found, lambda tenant_id: asked.append(tenant_id) or "", NOW)
    assert len(asked) == 3


def test_programs_get_every_field_and_bytes_as_a_number() -> None:
    found = plain(instance(use_time=None))
    assert found["memory_bytes"] == 900 * 1024 * 1024
    assert (found["running_count"], found["detail"], found["tenant_ids"]) == (0, "", ["ten_a"])
    assert found["create_time"] == "2026-11-21T10:00:00Z"
    assert "use_time" not in found


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0.4, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3599, "59m"),
        (3600, "1h"),
        (86399, "23h"),
        (86400 * 9, "9d"),
    ],
)
def test_spans_are_told_in_their_largest_unit(seconds: float, text: str) -> None:
    assert short(seconds) == text
