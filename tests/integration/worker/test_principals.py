"""In whose name a run calls others: whoever asked for it, and nobody who came before in the same log."""

from retinue_kit import tenancy


async def test_a_run_calls_in_the_name_of_whoever_asked_for_it(mesh, when_over):
    heard = []

    async def script(request):
        identity = tenancy.current()
        heard.append((request.text, identity.tenant_id, identity.principal))
        yield {"message_completed": {"text": "so be it"}}
        yield {"finished": {}}

    mesh.adapter.script = script
    runs = [
        await mesh.submit(text, principal=principal, ring=False)
        for text, principal in (("a", "usr_1"), ("b", "usr_2"), ("c", ""))
    ]
    await mesh.ring.push("ten_a", "log_ada")
    await mesh.start_worker()
    for run in runs:
        assert (await when_over(run))["state"] == "succeeded"
    assert heard == [("a", "ten_a", "usr_1"), ("b", "ten_a", "usr_2"), ("c", "ten_a", "")]
