"""An operator starts the mesh with OpenClaw, and is told what chat runs on."""

import os
import subprocess
from pathlib import Path

import pytest
from retinue_local import openclaw
from whole_mesh import RETINUE, UP_TIMEOUT_S, connect, parse_sse, running

BOTH = "openclaw,light"
GATEWAY_TIMEOUT_S = 330
"""For a gateway to serve on a machine that is busy with other tests."""

GONE_TIMEOUT_S = 30
"""For a killed process of a GiB to be gone."""


def nodes(folder: Path) -> list[int]:
    """List the processes of Node that this OpenClaw was started with below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes()
            if os.fsencode(folder) in environ and "node" in os.readlink(process / "exe"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


async def chat(mesh, text):
    """Say something as somebody new; answers the runtime that took it, and its reply."""
    async with connect(mesh, mesh.token()) as client:
        path = f"/v1/contacts/{os.urandom(6).hex()}/messages:stream"
        response = await client.post(path, json={"text": text}, timeout=GATEWAY_TIMEOUT_S)
    frames = parse_sse(response.text)
    data = {frame["event"]: frame["data"]["data"] for frame in frames}
    return data["run.started"]["runtime"], data["assistant.message"]["text"]


@pytest.mark.timeout(600)
async def test_openclaw_takes_chat_and_no_process_of_it_outlives_its_adapter_or_the_mesh(
    model_url, openclaw_dir, eventually
):
    version = openclaw.release().version
    with running(model_url, RUNTIMES=BOTH, RETINUE_OPENCLAW_DIR=str(openclaw_dir)) as mesh:

        async def taken():
            return await chat(mesh, "#echo=hello") == ("openclaw", "hello")

        await eventually(taken, GATEWAY_TIMEOUT_S)
        assert f"\nruntime openclaw {version}" in mesh.command("status").stdout
        found = mesh.command("doctor").stdout
        assert f"  ok runtime openclaw {version}" in found
        assert "fail" not in found
        before = set(nodes(mesh.state))
        assert before
        mesh.kill("runtime-adapter")
        await eventually(lambda: not before & set(nodes(mesh.state)), GONE_TIMEOUT_S)
    assert nodes(mesh.state) == []


@pytest.fixture(scope="module")
def lacking(model_url, tmp_path_factory):
    """A mesh that has neither OpenClaw nor bubblewrap where they are said to be; answers it and that place."""
    named = tmp_path_factory.mktemp("lacking") / "nothing"
    more = ("--set", f"sandbox.bwrap_path={named}/bwrap")
    with running(model_url, *more, RUNTIMES=BOTH, RETINUE_OPENCLAW_DIR=str(named)) as mesh:
        yield mesh, str(named)


async def test_where_openclaw_cannot_be_had_light_serves_and_the_reason_is_told(lacking):
    mesh, named = lacking
    assert await chat(mesh, "#echo=hello") == ("light", "hello")
    why = f"RETINUE_OPENCLAW_DIR='{named}': {named}/node is missing: this is no whole OpenClaw."
    assert f"\nruntime openclaw is not on: {why}\n" in mesh.command("status").stdout
    found = mesh.command("doctor", check=False).stdout
    assert f"warn runtime openclaw is not on: {why}\n" in found
    assert "until then chat runs on light" in found


CALLS = """#tool=exec {"command": "touch made.txt"}
#tool=write {"path": "made.txt", "content": "x"}
#then
#say=I hear {results}"""


async def test_box_or_refuse_where_no_box_holds_tools_are_refused_in_words_and_doctor_names_it(lacking):
    mesh, named = lacking
    runtime, text = await chat(mesh, CALLS)
    assert (runtime, text.count("No box holds on this machine (bwrap)")) == ("light", 2), text
    async with connect(mesh, mesh.token()) as client:
        assert (await client.get("/v1/files/made.txt")).status_code == 404
        sent = {"content": b"x", "headers": {"content-type": "text/plain"}}
        assert (await client.post("/v1/files/mine.txt", **sent)).status_code == 200, "a person's files need no box"
    found = mesh.command("doctor", check=False)
    assert f"{named}/bwrap" in found.stdout, found.stdout
    assert "RETINUE_BWRAP_PATH" in found.stdout


def test_without_light_what_cannot_be_had_is_refused_in_one_line(tmp_path):
    environ = os.environ | {"RUNTIMES": "openclaw", "RETINUE_OPENCLAW_DIR": str(tmp_path / "nothing")}
    command = [*RETINUE, "up", "--port", "0", "--state-dir", str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=UP_TIMEOUT_S, env=environ)
    assert done.returncode == 2
    assert done.stderr.startswith("error: RUNTIMES='openclaw': ")
    assert done.stderr.endswith(" RUNTIMES=light does without.\n")
    assert done.stderr.count("\n") == 1
