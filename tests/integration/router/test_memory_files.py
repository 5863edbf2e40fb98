"""What is remembered stands in the workspace as Markdown after each change, and goes with its contact."""

import pytest
from retinue_kit.errors import Reason, RetinueError


@pytest.fixture
def page(router, eventually):
    """Wait until a file of the tenant's memory says what is wanted; None: until there is none."""

    async def wait(name, wanted):
        file = router.workspaces / "ten_a" / "memory" / name
        await eventually(lambda: (file.read_text() if file.exists() else None) == wanted)
        return file

    return wait


IMPORTANCE = {"Has a cat.": 9, "Rows.": 8, "Sings.": 7}


async def remember(router, *texts, contact="anna", **fields):
    facts = [{"text": text, "domain": "home", "importance": IMPORTANCE.get(text, 5)} for text in texts]
    return list((await router.call("RememberFacts", contact=contact, facts=facts, **fields)).facts)


def written(*texts, of=" of anna"):
    lines = [f"- {text} (note, {IMPORTANCE.get(text, 5)})\n" for text in texts]
    return f"# What is remembered{of}\n\n## home\n\n{''.join(lines)}"


async def test_the_file_says_what_is_remembered_after_each_change_and_goes_with_the_last_fact(router, page):
    _, second = await remember(router, "Has a cat.", "Rows.")
    file = await page("contacts/anna.md", written("Has a cat.", "Rows."))
    file.unlink()
    await remember(router, "Sings.")
    await page("contacts/anna.md", written("Has a cat.", "Rows.", "Sings."))
    await router.call("ForgetFact", fact_id=second.fact_id)
    await page("contacts/anna.md", written("Has a cat.", "Sings."))
    await remember(router, "The office closes at six.", contact="")
    await page("tenant.md", written("The office closes at six.", of=""))
    for fact in (await router.call("ListFacts", contact="anna")).facts:
        await router.call("ForgetFact", fact_id=fact.fact_id, contact="anna")
    await page("contacts/anna.md", None)
    assert sorted(path.name for path in file.parent.parent.rglob("*")) == ["contacts", "tenant.md"]


async def test_the_file_goes_with_its_contact_and_others_stay(router, page):
    long = "猫" * 128
    for contact in ("anna", "bob", long):
        await router.submit(contact=contact)
        await remember(router, "Rows.", contact=contact)
    file = await page("contacts/anna.md", written("Rows."))
    await page("contacts/bob.md", written("Rows.", of=" of bob"))
    for contact in ("anna", long):
        await router.call("DeleteContact", contact=contact)
    await page("contacts/anna.md", None)
    assert [path.name for path in file.parent.iterdir()] == ["bob.md"]


async def test_no_zombie_a_run_that_was_deleted_with_its_contact_remembers_nothing(router):
    run = (await router.submit(contact="anna")).run_id
    assert [fact.run_id for fact in await remember(router, "Rows.", run_id=run)] == [run]
    await router.call("DeleteContact", contact="anna")
    with pytest.raises(RetinueError) as caught:
        await remember(router, "Sings.", run_id=run)
    assert caught.value.reason is Reason.RUN_NOT_FOUND
    assert not (await router.call("ListFacts", contact="anna")).facts
