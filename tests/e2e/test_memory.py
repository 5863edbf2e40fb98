"""What is remembered of a contact over the API stands before its next run's conversation, until it is forgotten."""

import httpx
import pytest
from refusals import assert_refused


@pytest.fixture
def prompt(mesh, stream):
    """Say something, and read what the model was given for it: all words of system messages."""

    async def ask(contact, text):
        assert (await stream(contact, text))[-1]["event"] == "run.succeeded"
        async with httpx.AsyncClient(verify=False, trust_env=False) as model:
            recorded = (await model.get(mesh.model.removesuffix("/v1") + "/_requests")).json()
        asked = next(one["body"]["messages"] for one in reversed(recorded) if text in str(one["body"]["messages"]))
        return "\n".join(str(message["content"]) for message in asked if message["role"] == "system")

    return ask


async def test_a_fact_is_known_to_the_next_run_and_gone_once_it_is_forgotten(client, prompt, contact):
    path = f"/v1/contacts/{contact}/facts"
    wish = f"Never calls {contact} before nine."
    assert wish not in await prompt(contact, f"one {contact}")
    made = await client.post(path, json={"text": wish, "domain": "work", "kind": "preference", "importance": 9})
    assert made.status_code == 200, made.text
    fact = made.json()["fact"]
    assert (fact["text"], fact["domain"], fact["kind"], fact["importance"]) == (wish, "work", "preference", 9)
    assert (fact["run_id"], bool(fact["create_time"])) == ("", True)
    again = await client.post(path, json={"text": wish})
    assert (again.json()["fact"]["fact_id"], again.json()["fact"]["importance"]) == (fact["fact_id"], 9)
    assert wish in await prompt(contact, f"two {contact}")
    assert wish not in await prompt(f"{contact}-b", f"three {contact}")
    assert (await client.delete(f"{path}/{fact['fact_id']}")).json() == {}
    assert_refused(await client.delete(f"{path}/{fact['fact_id']}"), 404, "FACT_NOT_FOUND")
    assert wish not in await prompt(contact, f"four {contact}")


async def test_facts_are_listed_by_importance_page_by_page_and_found_by_words_of_any_script(client, contact):
    path = f"/v1/contacts/{contact}/facts"
    texts = {"Plays the violin on Sundays.": 3, "她对花生过敏，不能吃花生酱。": 10, "Works at the harbour.": 7}
    for text, importance in texts.items():
        await client.post(path, json={"text": text, "importance": importance})
    ordered = sorted(texts, key=texts.get, reverse=True)
    page = (await client.get(path, params={"page_size": 2})).json()
    assert [fact["text"] for fact in page["facts"]] == ordered[:2]
    rest = (await client.get(path, params={"page_size": 2, "page_token": page["next_page_token"]})).json()
    assert ([fact["text"] for fact in rest["facts"]], rest["next_page_token"]) == (ordered[2:], "")
    for query, text in (("violin", ordered[2]), ("花生", ordered[0])):
        found = (await client.get(path, params={"query": query})).json()
        assert (found["facts"][0]["text"], found["next_page_token"]) == (text, "")
    assert_refused(await client.get(path, params={"page_token": "x"}), 400, "CURSOR_INVALID")
    for wrong, field in (({"text": ""}, "text"), ({"text": "x", "kind": "wish"}, "kind")):
        assert_refused(await client.post(path, json=wrong), 400, "FIELD_INVALID", field)


async def test_no_cross_tenant_nobody_else_lists_finds_or_forgets_a_fact(client, client_of, contact):
    path = f"/v1/contacts/{contact}/facts"
    fact = (await client.post(path, json={"text": "Likes marzipan."})).json()["fact"]["fact_id"]
    async with client_of("memory-other") as other:
        assert (await other.get(path)).json()["facts"] == []
        assert (await other.get(path, params={"query": "marzipan"})).json()["facts"] == []
        assert_refused(await other.delete(f"{path}/{fact}"), 404, "FACT_NOT_FOUND")
    assert_refused(await client.delete(f"/v1/contacts/{contact}-b/facts/{fact}"), 404, "FACT_NOT_FOUND")
    assert [found["fact_id"] for found in (await client.get(path)).json()["facts"]] == [fact]


async def test_an_operator_adds_finds_and_forgets(mesh, client, contact):
    tenant = ("--tenant", "e2e")
    added = mesh.command("memory", "add", contact, "Sings in a choir.", "--importance", "8", *tenant).stdout
    fact = added.split()[0]
    listed = (await client.get(f"/v1/contacts/{contact}/facts")).json()["facts"]
    assert [(one["fact_id"], one["text"], one["importance"]) for one in listed] == [(fact, "Sings in a choir.", 8)]
    found = mesh.command("memory", "search", contact, "choir", *tenant).stdout
    assert fact in found
    assert mesh.command("memory", "forget", contact, fact, *tenant).stdout == f"{fact} is forgotten.\n"
    assert fact not in mesh.command("memory", "list", contact, *tenant).stdout
