"""An agent with tools, through Envoy: it works in a box, asks before it deletes, and gets nowhere out of it."""

import asyncio
import json

from whole_mesh import parse_sse

STEP = "\n#then\n"


def tool(name, **arguments):
    """A line that has the model call a tool."""
    return f"#tool={name} {json.dumps(arguments)}"


async def told(client, contact, *steps):
    """Have a turn of several steps; answers the frames of its whole stream."""
    path = f"/v1/contacts/{contact}/messages:stream"
    response = await client.post(path, json={"text": STEP.join(steps), "runtime": "light"})
    assert response.status_code == 200, response.text
    return parse_sse(response.text)


async def begun(client, contact, *steps):
    """Begin a turn of several steps; answers its run."""
    body = {"text": STEP.join(steps), "runtime": "light"}
    posted = await client.post(f"/v1/contacts/{contact}/messages", json=body)
    return posted.json()["run"]["run_id"]


async def over(client, run):
    return (await client.post(f"/v1/runs/{run}:wait")).json()["run"]


def of_type(frames, kind):
    return [frame["data"]["data"] for frame in frames if frame["event"] == kind]


def results(frames):
    """What the tools answered, in the order of their calls."""
    began = [call["call_id"] for call in of_type(frames, "tool.started")]
    ended = {call["call_id"]: call for call in of_type(frames, "tool.finished")}
    assert len(began) == len(set(began)) == len(ended)
    return [(ended[call]["ok"], ended[call]["result"]) for call in began]


async def asked(client, run, eventually):
    """Wait until a run asks; answers the approval."""

    async def look():
        found = (await client.get("/v1/approvals", params={"state": "pending"})).json().get("approvals", [])
        return [one for one in found if one["run_id"] == run]

    return (await eventually(look))[0]


async def decide(client, question, decision):
    return await client.post(f"/v1/approvals/{question['approval_id']}:decide", json={"decision": decision})


async def test_an_agent_writes_a_file_runs_it_asks_before_it_deletes_is_denied_and_says_so(client, contact, eventually):
    name = f"{contact}.py"
    run = await begun(
        client,
        contact,
        tool("write", path=name, content="print(6 * 7)\n"),
        tool("exec", command=f"python3 {name}"),
        tool("delete", path=name),
        "#say=I was told: {results}",
    )
    question = await asked(client, run, eventually)
    assert (question["tool"], name in question["summary"]) == ("delete", True)
    assert (await decide(client, question, "deny")).status_code == 200
    assert (await decide(client, question, "allow_once")).status_code == 400, "nobody decides twice"
    ended = await over(client, run)
    assert ended["state"] == "succeeded"
    assert "42" in ended["output"]["text"]
    assert "denied" in ended["output"]["text"]
    kept = await client.get(f"/v1/files/{name}")
    assert (kept.status_code, kept.text) == (200, "print(6 * 7)\n")
    events = parse_sse((await client.get(f"/v1/runs/{run}/events")).text)
    order = [frame["event"] for frame in events if frame["event"].startswith(("tool.s", "tool.f", "approval."))]
    made = ["tool.started", "tool.finished"]
    assert order == [*made, *made, "approval.requested", "approval.decided", *made]


async def test_what_is_allowed_for_good_is_not_asked_again_until_that_is_taken_back(client, contact, eventually):
    name = f"{contact}.txt"
    steps = tool("write", path=name, content="x"), tool("delete", path=name)
    run = await begun(client, contact, *steps)
    await decide(client, await asked(client, run, eventually), "allow_always")
    assert (await over(client, run))["state"] == "succeeded"
    run = await begun(client, contact, *steps)
    assert (await over(client, run))["state"] == "succeeded", "without a question"
    assert (await client.get(f"/v1/files/{name}")).status_code == 404
    listed = (await client.get("/v1/allowances")).json()["allowances"]
    (mine,) = [one for one in listed if name in one["pattern"]]
    assert (await client.delete(f"/v1/allowances/{mine['allowance']}")).status_code == 200
    run = await begun(client, contact, *steps)
    await decide(client, await asked(client, run, eventually), "deny")
    assert (await over(client, run))["state"] == "succeeded"


async def test_box_or_refuse_hostile_calls_of_each_kind_end_with_their_own_words_and_the_session_lives_on(
    client, contact
):
    calls = {
        "files": tool("read", path="../../../etc/passwd"),
        "escape": tool("exec", command="cat /etc/shadow; ls /root /home; echo x > /usr/bin/x"),
        "processes": tool("exec", command="ls -d /proc/[0-9]* | wc -l"),
        "kernel": tool("python", code="import os; os.setuid(0)"),
        "network": tool("python", code="import socket; socket.create_connection(('10.0.0.1', 80), 2)"),
        "time": tool("exec", command="sleep 60", timeout_s=1),
        "memory": tool("python", code="bytearray(1 << 40)"),
        "shared memory": tool("python", code="open('/dev/shm/x', 'wb').write(bytes(17 << 20))"),
        "disk": tool("exec", command="truncate -s 1T large"),
        # It wishes for less than it is given, so that the end comes soon.
        "processor": tool("exec", command="ulimit -S -t 1; while :; do :; done"),
        "crowd": tool("exec", command="for n in $(seq 100); do sleep 60 & done; wait"),
        "output": tool("exec", command="head -c 300000 /dev/zero | tr '\\0' x"),
        "still": tool("exec", command="echo still here"),
    }
    frames = await told(client, contact, *calls.values())
    assert frames[-1]["event"] == "run.succeeded", frames[-1]["data"]
    found = dict(zip(calls, results(frames), strict=True))
    assert [name for name in calls if found[name][0]] == ["processes", "output", "still"], found
    assert "root:" not in found["files"][1] + found["escape"][1]
    assert int(found["processes"][1].split()[0]) < 20, "nothing of this machine is seen"
    assert "longer than 1 s" in found["time"][1]
    assert "bytes of memory" in found["memory"][1]
    assert "no more space" in found["shared memory"][1]
    assert "wrote a file of more than" in found["disk"][1]
    assert "of a processor" in found["processor"][1]
    assert "more than 64 processes" in found["crowd"][1]
    assert len(found["output"][1]) < 100_000
    assert "still here" in found["still"][1]


async def test_no_cross_tenant_two_tenants_see_each_others_files_by_no_path(client, client_of, contact):
    secret = f"only for {contact}"
    put = await client.post(f"/v1/files/{contact}.txt", content=secret, headers={"content-type": "text/plain"})
    assert put.status_code == 200, put.text
    mine = await told(client, contact, tool("read", path=f"{contact}.txt"))
    assert secret in results(mine)[0][1]
    async with client_of("stranger") as other:
        assert (await other.get(f"/v1/files/{contact}.txt")).status_code == 404
        assert contact not in (await other.get("/v1/files", params={"recursive": "true"})).text
        paths = [f"{contact}.txt", f"/workspace/{contact}.txt", f"../{contact}.txt", f"../../*/files/{contact}.txt"]
        tries = [tool("read", path=path) for path in paths]
        tries.append(
            tool(
                "exec",
                command=f"ln -s ../../ up; cat up/*/files/{contact}.txt; "
                f"find / -path /usr -prune -o -name {contact}.txt -print; true",
            )
        )
        tries.append(tool("read", path=f"up/{contact}.txt"))
        frames = await told(other, contact, *tries)
        assert frames[-1]["event"] == "run.succeeded", frames[-1]["data"]
        # The last find looks through all that there is but for programs, and finds nothing.
        assert secret not in json.dumps(of_type(frames, "tool.finished") + of_type(frames, "tool.output"))
        assert [ok for ok, _ in results(frames)] == [False] * 4 + [True, False], results(frames)[4]


async def test_output_is_told_while_a_command_runs_and_a_cancelled_run_kills_it(client, contact, eventually):
    mark = f"alive-{contact}"
    run = await begun(
        client,
        contact,
        tool("exec", command=f"echo {mark}; while sleep 0.2; do date +%s%N > {mark}; done", timeout_s=60),
    )
    async with client.stream("GET", f"/v1/runs/{run}/events") as stream, asyncio.timeout(30):
        async for line in stream.aiter_lines():
            if mark in line and "tool.output" in line:
                break
    await client.post(f"/v1/runs/{run}:cancel")
    assert (await over(client, run))["state"] == "cancelled"
    seen = []

    async def at_rest():
        seen.append((await client.get(f"/v1/files/{mark}")).text)
        await asyncio.sleep(0.5)  # several times as long as it took between two writes
        return len(seen) > 1 and seen[-1] == seen[-2]

    await eventually(at_rest)
