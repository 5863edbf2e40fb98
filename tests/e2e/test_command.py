"""An operator uses the `retinue` command."""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

RETINUE = [sys.executable, "-m", "retinue_cli"]
NAMES = {"postgres", "redis", "directory", "policy", "portability", "sandbox", "runtime-adapter", "router", "gateway"}
DAY_S = 86400


def run(*arguments, **more):
    """Run the command as from a shell that has no settings of this project."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RETINUE_", "OPENAI_", "RUNTIMES"))}
    environ = clean | {"RUNTIMES": "light"} | more.pop("environ", {})
    return subprocess.run([*RETINUE, *arguments], capture_output=True, text=True, timeout=60, env=environ, **more)


def claims(token):
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


def refused_in_one_line(done, code, *words):
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    return True


def test_a_token_is_printed_alone_and_says_what_was_asked_for(mesh):
    plain = mesh.command("token", "--tenant", "cli-tokens").stdout
    assert plain.count("\n") == 1
    assert claims(plain)["scope"] == "chat"
    more = mesh.command("token", "--tenant", "cli-tokens", "--user", "ada", "--scope", "chat", "--scope", "admin ops")
    wide = claims(more.stdout)
    assert set(wide["scope"].split()) == {"chat", "admin", "ops"}
    assert wide["tenant"] == claims(plain)["tenant"]
    assert wide["sub"] != claims(plain)["sub"]
    short = claims(mesh.command("token", "--tenant", "cli-tokens", "--ttl", "1d").stdout)
    assert short["exp"] - short["iat"] == DAY_S


async def test_a_revoked_token_is_refused_within_five_seconds(mesh, client_of, eventually):
    token = mesh.token("cli-revoked")
    async with client_of("cli-revoked") as client:
        assert (await client.get("/v1/contacts")).status_code == 200
        mesh.command("revoke", token)

        async def refused():
            return (await client.get("/v1/contacts")).status_code == 401

        await eventually(refused, timeout_s=5)


def test_status_lists_every_process(mesh):
    found = json.loads(mesh.command("status", "--json").stdout)
    assert all(set(process) == {"name", "pid", "address", "health", "restarts"} for process in found)
    assert {process["name"] for process in found} >= NAMES | {"envoy", "worker-1"}
    assert {process["health"] for process in found} == {"serving"}
    shown = mesh.command("status").stdout
    assert "worker-1" in shown
    assert "\nruntime light (offline model at " in shown


def test_chat_answers_each_line_of_a_pipe(mesh, contact):
    options = ["--state-dir", str(mesh.state), "--contact", contact]
    done = run("chat", *options, input="#echo=one\n\n#recall\n/new\n#tokens=2\n/quit\n#echo=never\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["one", "#echo=one", "t0 t1"]


def test_chat_says_what_a_failed_run_failed_with(mesh, contact):
    done = run("chat", "--state-dir", str(mesh.state), "--contact", contact, input="#status=401\n#echo=on\n")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "on"
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("name", ["a/b c", "", "a\\b", "a b"])
def test_chat_refuses_what_is_no_contacts_name_in_one_line(mesh, name):
    done = run("chat", "--state-dir", str(mesh.state), "--contact", name, input="hello\n")
    assert done.returncode != 0
    assert "contact" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_trace_draws_a_run_through_every_part(mesh, stream, contact, eventually):
    # Any tenant's run can be drawn by the operator; the kept token's tenant is another one.
    run_id = (await stream(contact, "#tokens=3"))[-1]["data"]["run_id"]

    def drawn():
        picture = mesh.command("trace", run_id, "--tenant", "e2e").stdout
        parts = ("envoy", "gateway", "router", "worker", "policy", "runtime-adapter", "model_call", "finish")
        assert [part for part in parts if part not in picture] == []
        return picture

    lines = (await eventually(drawn)).splitlines()
    assert all("█" in line and line.endswith(" ms") for line in lines[1:])
    by_id = mesh.command("trace", lines[0].split()[1]).stdout
    assert len(by_id.splitlines()) == len(lines)
    assert refused_in_one_line(mesh.command("trace", run_id, check=False), 1, "no such run")


def test_tenants_can_be_seen_and_set(mesh):
    mesh.token("cli-plans")
    assert "cli-plans" in mesh.command("tenants").stdout
    changed = mesh.command("tenant", "cli-plans", "--plan", "team", "--concurrent-runs", "3").stdout
    assert "plan team" in changed
    assert "runs at once: 3" in mesh.command("tenant", "cli-plans").stdout
    assert refused_in_one_line(mesh.command("tenant", "cli-nobody", check=False), 1, "tenant")


def test_doctor_finds_a_running_mesh_well(mesh):
    found = mesh.command("doctor").stdout
    assert "fail" not in found
    assert "router: serving" in found
    assert "runtime light (offline model at " in found


def test_what_cannot_start_says_so_in_one_line(mesh):
    with tempfile.TemporaryDirectory(prefix="rt-cli-") as folder:
        for more in ([], ["--detach"]):
            taken = run("up", "--port", str(mesh.port), "--state-dir", folder, *more)
            assert refused_in_one_line(taken, 2, str(mesh.port))
            twice = run("up", "--port", "0", "--state-dir", str(mesh.state), *more)
            assert refused_in_one_line(twice, 2, str(mesh.state))
        wrong = run("up", "--state-dir", folder, environ={"RETINUE_MODEL_BASE_URL": "http://127.0.0.1:9"})
        assert refused_in_one_line(wrong, 2, "RETINUE_MODEL_BASE_URL", "/v1")
        unknown = run("up", "--state-dir", folder, environ={"RUNTIMES": "abacus"})
        assert refused_in_one_line(unknown, 2, "RUNTIMES", "abacus")
        assert refused_in_one_line(run("up", "--port", "http", "--state-dir", folder), 2, "--port")


def test_commands_without_a_mesh_say_how_to_get_one():
    with tempfile.TemporaryDirectory(prefix="rt-cli-") as folder:
        assert refused_in_one_line(run("token", "--tenant", "t", "--state-dir", folder), 1, "retinue up")
        assert refused_in_one_line(run("status", "--state-dir", folder), 1, folder)
        none = run("status", "--json", "--state-dir", folder)
        assert (none.returncode, json.loads(none.stdout)) == (1, [])
        assert run("down", "--state-dir", folder).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_shows_a_streamed_answer_and_leaves_nothing_behind(number):
    with tempfile.TemporaryDirectory(prefix="rt-cli-") as folder:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("RETINUE_", "OPENAI_", "RUNTIMES"))}
        clean["RUNTIMES"] = "light"
        argv = [*RETINUE, "up", "--port", "0", "--state-dir", folder]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if "Ctrl-C" in line:
                    break
            pids = [p["pid"] for p in json.loads(run("status", "--json", "--state-dir", folder).stdout)]
            process.send_signal(number)
            said.extend(process.stdout)
            assert process.wait(30) == 0
        text = "".join(said)
        assert "You said: Hello!" in text
        assert "Chat runs on light; OpenClaw is left out.\n" in text
        with open(f"{folder}/token") as kept:
            assert f"token: {kept.read().strip()}\n" in text
        assert pids
        end = time.monotonic() + 5
        while any(is_alive(pid) for pid in pids):
            assert time.monotonic() < end
        assert json.loads(run("status", "--json", "--state-dir", folder).stdout) == []


def is_alive(pid):
    """Say whether a process still does anything; one that nobody has buried yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
