"""An operator asks why a run got its runtime, and what other rules would have given it."""

TENANT = "e2e-decisions"
OPENCLAW_FOR_ALL = '[[prefer]]\nruntime = "openclaw"\n'


async def test_an_operator_learns_why_a_run_got_its_runtime_and_what_other_rules_would_do(
    mesh, client_of, contact, tmp_path
):
    async with client_of(TENANT) as client:
        sent = await client.post(f"/v1/contacts/{contact}/messages", json={"text": "#tokens=2"})
        run_id = sent.json()["run"]["run_id"]
        await client.post(f"/v1/runs/{run_id}:wait", json={})
        found = (await client.get(f"/v1/runs/{run_id}/decision")).json()
    assert (found["runtime"], found["snapshot"]["version"], found["snapshot"]["runtimes_on"]) == ("light", 1, ["light"])
    told = mesh.command("policy", "explain", "--run", run_id, "--tenant", TENANT).stdout
    assert all(text in told for text in ("chat_prefers_openclaw", "openclaw_is_off", "runtimes_on", run_id))
    rules = tmp_path / "runtimes.toml"
    rules.write_text(OPENCLAW_FOR_ALL)
    replayed = mesh.command("policy", "replay", "--rules", str(rules), "--since", "1h", "--tenant", TENANT).stdout
    # OpenClaw is off here, so that what is preferred falls back as it did.
    assert replayed == "1 decision: 1 the same, 0 would differ.\n"
    rules.write_text("[[prefer]]\n")
    refused = mesh.command("policy", "check", str(rules), check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "runtimes.toml: " in refused.stderr
