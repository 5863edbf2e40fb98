"""Page tokens lead back to where they were made, and nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_kit.errors import Reason, RetinueError
from retinue_router.domain import pages
from retinue_router.operations import approvals, contacts, dead_letters, runs, schedules, webhooks


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_a_token_holds_the_last_item(last):
    assert pages.read("c", pages.write("c", last)) == last
    with pytest.raises(RetinueError):
        pages.read("r", pages.write("c", last))


@pytest.mark.parametrize("token", ["x", "r", "r.", ".run_1", "r.run", "r.RUN_1", "r.run_1'", "r.run_\0"])
def test_a_token_made_elsewhere_is_refused(token):
    with pytest.raises(RetinueError) as refused:
        pages.read_id("r", token)
    assert refused.value.reason == Reason.CURSOR_INVALID


def test_no_two_lists_share_their_tokens():
    kinds = [module.PAGE for module in (approvals, contacts, dead_letters, runs, schedules, webhooks)]
    kinds += [contacts.MESSAGES_PAGE, webhooks.DELIVERIES_PAGE]
    assert len(set(kinds)) == len(kinds)


def test_no_token_is_the_start():
    assert pages.read_id("r", "") == ""
    assert pages.size_of(0) == pages.PAGE_SIZE_DEFAULT
    assert pages.size_of(7) == 7
