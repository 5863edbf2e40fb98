"""What stands between tools and the machine: as the sandbox of a mesh has found it, or, without a mesh, by a try."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import grpc
from retinue.sandbox.v1.sandbox_service_pb2 import DescribeRequest, DescribeResponse
from retinue.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub

from retinue_cli.failures import CommandError
from retinue_cli.mesh import call
from retinue_cli.state import State

TRY_TIMEOUT_S = 40.0
"""The self-test gives up after twenty seconds; it takes one."""

MODULE = "retinue_sandbox.bwrap"
SAID_MAX_LENGTH = 300


class Look(NamedTuple):
    """One look of a self-test."""

    name: str
    ok: bool
    detail: str
    remedy: str
    required: bool


class Boxes(NamedTuple):
    """Whether tools can run, and what was looked at."""

    what: str
    available: bool
    looks: list[Look]


def of_mesh(state: State) -> Boxes:
    """Ask the sandbox. Raises CommandError if it does not answer."""
    options = [("grpc.default_authority", "sandbox"), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(state.paths.address("sandbox"), options=options) as channel:
        untyped: Any = channel  # the stubs are typed for asyncio alone
        stub: Any = SandboxServiceStub(untyped)
        answer: DescribeResponse = call(stub.Describe, DescribeRequest())
    what = f"{answer.backend} ({answer.isolation}), {answer.session_count} open" if answer.isolation else answer.backend
    looks = [Look(one.name, one.ok, one.detail, one.remedy, one.required) for one in answer.checks]
    return Boxes(what, answer.available, looks)


def tried(environ: Mapping[str, str]) -> Boxes:
    """Try boxes out, in a process of its own. Raises CommandError if not even that works."""
    command = [sys.executable, "-m", MODULE]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TRY_TIMEOUT_S, env=dict(environ))
        looks = [Look(**one) for one in json.loads(ran.stdout)]
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(str(error)) from None
    except ValueError:
        said = ran.stderr.strip().splitlines() or ["it says nothing"]
        raise CommandError(said[-1][:SAID_MAX_LENGTH]) from None
    return Boxes("bwrap", all(look.ok for look in looks if look.required), looks)
