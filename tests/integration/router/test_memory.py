"""What is remembered of contacts: written once, found in any language, bounded, gone with its contact."""

import asyncio

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_router.domain.facts import FACTS_MAX

CAT = {"text": "Her cat is called Mochi.", "domain": "home", "kind": "profile", "importance": 7}


async def remember(router, *facts, contact="anna"):
    made = [fact if isinstance(fact, dict) else {"text": fact} for fact in facts]
    return list((await router.call("RememberFacts", contact=contact, facts=made)).facts)


async def texts(router, contact="anna", **fields):
    return [fact.text for fact in (await router.call("ListFacts", contact=contact, **fields)).facts]


async def found(router, query, contact="anna", **fields):
    return [one.fact.text for one in (await router.call("SearchFacts", contact=contact, query=query, **fields)).facts]


async def test_a_text_is_remembered_once_with_the_higher_importance(router):
    (first,) = await remember(router, CAT)
    assert (first.contact, first.domain, first.kind, first.importance) == ("anna", "home", "profile", 7)
    (again, plain) = await remember(router, {**CAT, "text": "her CAT  is called mochi.", "importance": 3}, "She rows.")
    assert (again.fact_id, again.importance, again.text) == (first.fact_id, 7, "Her cat is called Mochi.")
    assert (plain.domain, plain.kind, plain.importance) == ("general", "note", 5)
    (louder,) = await remember(router, {**CAT, "importance": 9})
    assert (louder.fact_id, louder.importance) == (first.fact_id, 9)
    assert await texts(router) == ["Her cat is called Mochi.", "She rows."]


async def test_the_same_text_from_many_at_once_is_one_fact(router):
    answers = await asyncio.gather(*(remember(router, CAT, "She rows.") for _ in range(8)))
    assert len({fact.fact_id for answer in answers for fact in answer}) == 2


async def test_facts_are_found_by_words_and_in_chinese_down_to_one_character(router):
    await remember(router, CAT, "She rows on Sundays.", "Buy bread.", "她的猫叫麻糬", "明天下午开会")
    await remember(router, "The office closes at six.", contact="")
    assert (await found(router, "what is the cat called?"))[0] == "Her cat is called Mochi."
    assert await found(router, "猫") == ["她的猫叫麻糬"]
    assert (await found(router, "她的猫叫什么名字"))[0] == "她的猫叫麻糬"
    assert await found(router, "office closes") == ["The office closes at six."]
    assert await found(router, "quantum chromodynamics") == []
    assert len(await found(router, "she her buy the", page_size=1)) == 1
    assert await found(router, "?!") == []


async def test_of_two_that_fit_alike_the_more_important_comes_first(router):
    await remember(
        router, {"text": "Likes tea, black.", "importance": 2}, {"text": "Likes tea, green.", "importance": 9}
    )
    assert await found(router, "likes tea") == ["Likes tea, green.", "Likes tea, black."]


async def test_no_cross_tenant_nor_cross_contact_facts_are_seen_found_or_forgotten(router):
    (mine,) = await remember(router, CAT)
    await remember(router, "Bob has a cat as well.", contact="bob")
    assert await found(router, "cat") == ["Her cat is called Mochi."]
    with pytest.raises(RetinueError) as caught:
        await router.call("ForgetFact", fact_id=mine.fact_id, contact="bob")
    assert caught.value.reason is Reason.FACT_NOT_FOUND
    router.tenant = "ten_b"
    assert await texts(router) == await found(router, "cat") == []
    with pytest.raises(RetinueError) as caught:
        await router.call("ForgetFact", fact_id=mine.fact_id)
    assert caught.value.reason is Reason.FACT_NOT_FOUND
    router.tenant = "ten_a"
    await router.call("ForgetFact", fact_id=mine.fact_id, contact="anna")
    assert await texts(router) == []


async def test_pages_go_through_all_by_importance(router):
    await remember(router, *({"text": f"fact {n}", "importance": 1 + n % 10} for n in range(25)))
    pages, listed, token = [], [], ""
    while True:
        answer = await router.call("ListFacts", contact="anna", page_size=10, page_token=token)
        pages.append(len(answer.facts))
        listed += [fact.importance for fact in answer.facts]
        token = answer.next_page_token
        if not token:
            break
    assert pages == [10, 10, 5]
    assert listed == sorted(listed, reverse=True)
    for wrong in ("f.", "f.11.x", "f.x", "c.3.fct_1"):
        with pytest.raises(RetinueError) as caught:
            await router.call("ListFacts", contact="anna", page_token=wrong)
        assert caught.value.reason is Reason.CURSOR_INVALID


async def test_bounded_a_contact_has_so_many_facts_and_a_batch_is_kept_whole_or_not_at_all(router):
    for start in range(0, FACTS_MAX - 10, 90):
        await remember(router, *(f"fact {n}" for n in range(start, min(start + 90, FACTS_MAX - 10))))
    answers = await asyncio.gather(
        *(remember(router, *(f"{who} {n}" for n in range(6))) for who in "ab"), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, RetinueError)]
    assert [error.reason for error in refused] == [Reason.QUOTA_EXCEEDED]
    assert (await remember(router, "fact 1"))[0].text == "fact 1"  # known already: it needs no room
    assert (await remember(router, "another contact's", contact="bob"))[0].contact == "bob"
    # What a run learns has room made for it, by the least important; what is known already takes none.
    await remember(router, {"text": "of no weight", "importance": 1})
    await remember(router, *({"text": f"last {n}", "importance": 6} for n in range(3)))
    run = (await router.submit()).run_id
    for text, count in (("fact 1", 0), ("learned", 1)):
        before = set(await texts(router, page_size=1000))
        assert len(before) == FACTS_MAX
        await router.call("RememberFacts", contact="anna", run_id=run, facts=[{"text": text, "importance": 9}])
        after = set(await texts(router, page_size=1000))
        assert len(before - after) == count
        assert text in after
        assert not [gone for gone in before - after if gone.startswith("last")]


async def test_facts_go_with_their_contact_and_the_tenants_own_stay(router):
    await router.submit(contact="anna")
    await remember(router, CAT)
    await remember(router, "The office closes at six.", contact="")
    await router.call("DeleteContact", contact="anna")
    assert await texts(router) == []
    assert await texts(router, contact="") == ["The office closes at six."]
