"""Which runs that failed are set aside for an operator: every reason is judged, once."""

import pytest
from retinue_kit.errors import Reason
from retinue_router.domain.failures import KEPT, SET_ASIDE, is_set_aside


def test_every_reason_is_judged_once_and_says_why():
    assert set(SET_ASIDE) | set(KEPT) == set(Reason)
    assert not set(SET_ASIDE) & set(KEPT)
    assert all(why.endswith(".") for why in [*SET_ASIDE.values(), *KEPT.values()])


@pytest.mark.parametrize(
    ("reason", "aside"),
    [
        (Reason.ATTEMPTS_EXHAUSTED, True),
        (Reason.INTERNAL, True),
        (Reason.MODEL_AUTH, True),
        (Reason.MODEL_UNAVAILABLE, True),
        (None, True),
        (Reason.FIELD_INVALID, False),
        (Reason.MODEL_CONTEXT_OVERFLOW, False),
        (Reason.OUTPUT_TOO_LARGE, False),
        (Reason.TOOL_TRANSACTION_OPEN, False),
        (Reason.RUN_TIMEOUT, False),
    ],
)
def test_what_is_not_the_runs_own_doing_is_set_aside(reason, aside):
    assert is_set_aside(reason) is aside
