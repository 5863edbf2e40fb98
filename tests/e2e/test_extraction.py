"""What was said becomes facts by a task of the mesh's own, and the next run knows them."""

import json

import httpx
from whole_mesh import connect, running

FACT = "Ada rows on Sundays."


async def test_a_conversation_leads_to_a_fact_that_the_next_prompt_has_and_nobody_hears_of_it(model_url, eventually):
    """The model is made to say a line that calls a tool where it reads it: in the task that reads the conversation."""
    note = json.dumps({"facts": [{"text": FACT, "domain": "sport", "importance": 9}]})
    said = f"#echo=#tool=memory_note {note}"

    async def asked(word):
        async with httpx.AsyncClient(verify=False, trust_env=False) as model:
            recorded = (await model.get(model_url.removesuffix("/v1") + "/_requests")).json()
        return [one["body"] for one in recorded if word in str(one["body"]["messages"])]

    with running(model_url, "--set", "worker.memory_extract_every=2", "--set", "worker.task_slots=1") as mesh:
        async with connect(mesh, mesh.token()) as client:

            async def say(text):
                run = (await client.post("/v1/contacts/ada/messages", json={"text": text})).json()["run"]["run_id"]
                ended = (await client.post(f"/v1/runs/{run}:wait")).json()["run"]
                assert ended["state"] == "succeeded", ended

            async def facts():
                return (await client.get("/v1/contacts/ada/facts")).json()["facts"]

            await say(said)
            assert not await facts()
            await say("Anything else?")
            (fact,) = await eventually(facts, timeout_s=30)
            assert (fact["text"], fact["domain"], fact["importance"]) == (FACT, "sport", 9)
            task = (await client.get(f"/v1/runs/{fact['run_id']}")).json()["run"]
            assert (task["kind"], task["runtime"], task["contact"]) == ("memory.extract", "light", "ada")
            assert (await client.post(f"/v1/runs/{fact['run_id']}:wait")).json()["run"]["state"] == "succeeded"
            tools = {tool["function"]["name"] for tool in (await asked("do nothing but remember"))[0]["tools"]}
            assert tools == {"memory_note", "memory_search"}
            await say("And now?")
            (prompt,) = await asked("And now?")
            assert FACT in str([message for message in prompt["messages"] if message["role"] == "system"])
            listed = (await client.get("/v1/contacts/ada/messages")).json()["messages"]
            assert [message["role"] for message in listed] == ["user", "assistant"] * 3
        (page,) = mesh.state.glob("workspaces/*/memory/contacts/ada.md")
        assert page.read_text() == f"# What is remembered of ada\n\n## sport\n\n- {FACT} (note, 9)\n"
