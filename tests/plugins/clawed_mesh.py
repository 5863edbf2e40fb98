"""Talking to a mesh on real OpenClaw gateways, and looking at those."""

import json
import time

import psutil
from whole_mesh import parse_sse

ENDS_TIMEOUT_S = 180
"""For a run of some seconds that is begun a second time on another gateway."""


async def told(client, contact, text, **more):
    """Send a message; answers the frames of its whole stream."""
    response = await client.post(f"/v1/contacts/{contact}/messages:stream", json={"text": text, **more})
    assert response.status_code == 200, response.text
    return parse_sse(response.text)


async def end_of(client, run):
    """Wait until a run is over; answers it."""
    until = time.monotonic() + ENDS_TIMEOUT_S
    while True:
        found = (await client.post(f"/v1/runs/{run}:wait", params={"timeout_s": 60})).json()["run"]
        if found["state"] in ("succeeded", "failed", "cancelled") or time.monotonic() > until:
            return found


def said(frames):
    return [frame["data"]["data"]["text"] for frame in frames if frame["event"] == "assistant.message"]


def runtime_of(frames):
    return next(frame["data"]["data"]["runtime"] for frame in frames if frame["event"] == "run.started")


def gateways(mesh):
    """The gateways' processes, by instance."""
    adapter = psutil.Process(int(mesh.processes()["runtime-adapter"]["pid"]))
    found = {}
    for process in adapter.children(recursive=True):
        instance = process.environ().get("OPENCLAW_STATE_DIR", "").rpartition("/")[2]
        if instance:
            found.setdefault(instance, process)
    return found


def instances(mesh):
    return {one["instance_id"]: one for one in json.loads(mesh.command("instances", "--json").stdout)}


def serving(mesh):
    return sum(one["isolation"] == "shared" and one["state"] == "ready" for one in instances(mesh).values())
