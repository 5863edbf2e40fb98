"""retinue instances: the processes of runtimes that run as processes of their own."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue_cli.durations import short
from retinue_cli.state import DEFAULT_STATE_DIR, State, StateDir
from retinue_cli.tables import print_json, print_table

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from retinue.runtime_adapter.v1.instance_service_pb2 import Instance

TENANTS_SHOWN_MAX = 3
"""Tenants named in a line of the table; the others are counted. JSON holds them all."""

MIB = 1024 * 1024
COLUMNS = ("instance", "isolation", "state", "memory", "tenants", "running/waiting", "age", "idle", "detail")


def instances(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines for people.")] = False,
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> int:
    """List the instances of runtimes, oldest first: state, memory, whom they serve, how busy they are."""
    from retinue_cli.mesh import Mesh

    with Mesh(State(state_dir)) as mesh:
        found = mesh.instances()
        if as_json:
            print_json([plain(instance) for instance in found])
        else:
            now = datetime.now(UTC)
            print_table(COLUMNS, [line(instance, mesh.name_of, now) for instance in found])
    return 0


def plain(instance: "Instance") -> dict[str, Any]:
    """Make an object for programs: every field, counts and bytes as numbers; an instant that is not set is left out."""
    from google.protobuf.json_format import MessageToDict

    written = MessageToDict(instance, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return {**written, "memory_bytes": instance.memory_bytes}


def line(instance: "Instance", name_of: Callable[[str], str], now: datetime) -> tuple[str, ...]:
    """Lay an instance out as a line of the table; `name_of` finds a tenant's name by its id."""
    idle = ""
    if instance.HasField("use_time") and not instance.running_count:
        idle = _since(instance.use_time, now)
    return (
        instance.instance_id,
        instance.isolation,
        instance.state,
        f"{instance.memory_bytes // MIB} MiB" if instance.memory_bytes else "",
        _tenants(instance, name_of),
        f"{instance.running_count}/{instance.waiting_count}",
        _since(instance.create_time, now) if instance.HasField("create_time") else "",
        idle,
        instance.detail,
    )


def _tenants(instance: "Instance", name_of: Callable[[str], str]) -> str:
    shown = [name_of(tenant_id) for tenant_id in instance.tenant_ids[:TENANTS_SHOWN_MAX]]
    more = instance.tenant_count - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _since(instant: "Timestamp", now: datetime) -> str:
    return short((now - instant.ToDatetime(UTC)).total_seconds())
