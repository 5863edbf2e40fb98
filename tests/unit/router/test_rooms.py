"""How often a tenant's queue is counted, and when a caller who is refused should come back."""

from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from retinue_kit.errors import Reason, RetinueError
from retinue_router.domain.load import Bounds, Load, QueueLoad, retry_after_s
from retinue_router.domain.queues import QueueClass
from retinue_router.operations.load import Loads
from retinue_router.operations.rooms import ACCEPTING_MAX, NO_ROOM, TENANTS_MAX, Rooms
from retinue_router.store.runs import Room

BOUNDS = Bounds(tenant_waiting=800, waiting=8000, tenant_later=100)
LATER = datetime(2030, 1, 1, tzinfo=UTC)


class Still:
    """A clock that stands."""

    def monotonic(self):
        return 0.0

    def now(self):
        return 0.0


@pytest.fixture
def loads():
    return Loads(None, BOUNDS)


@pytest.fixture
def rooms(loads):
    return Rooms(None, loads, Still())


def uncounted(rooms, tenant="a"):
    """Runs that are accepted without counting, until one is counted."""
    count = 0
    while rooms.ask(tenant).room is None:
        count += 1
    return count


def test_a_tenant_that_is_not_known_is_counted(rooms):
    assert rooms.ask("a").room == Room(800, 100)


@pytest.mark.parametrize(("queued", "skipped"), [(0, 100), (400, 50), (792, 1), (793, 0), (800, 0), (900, 0)])
def test_the_nearer_the_bound_the_more_often_a_queue_is_counted(rooms, queued, skipped):
    rooms.hear("a", None, queued)
    assert uncounted(rooms) == skipped
    assert uncounted(rooms) == 0, "until somebody has counted"


def test_bounded_however_often_a_queue_is_counted_one_router_does_not_fill_it_above_its_bound(rooms):
    queued, counts = 0, 0
    while queued < 800:
        if rooms.ask("a").room is not None:
            counts += 1
            rooms.hear("a", None, queued)
        queued += 1
    assert rooms.ask("a").room is not None, "the next one is refused"
    assert counts < 80


def test_what_begins_later_is_always_counted_and_tells_nothing_about_what_waits(rooms):
    rooms.hear("a", LATER, 0)
    assert rooms.ask("a").room is not None
    rooms.hear("a", None, 0)
    assert rooms.ask("a", LATER).room is not None


def test_tenants_do_not_share_their_room(rooms):
    rooms.hear("a", None, 0)
    assert rooms.ask("b").room is not None


def test_bounded_as_many_tenants_are_remembered_as_asked_last(rooms):
    rooms.hear("first", None, 0)
    for number in range(TENANTS_MAX):
        rooms.ask(f"ten_{number}")
    assert rooms.ask("first").room is not None


@pytest.mark.parametrize(
    "load",
    [Load({QueueClass.CHAT: QueueLoad(7000), QueueClass.TASK: QueueLoad(1000)}), Load(whole=False)],
    ids=["bound", "more than can be counted"],
)
def test_where_the_whole_queue_is_full_nobody_has_room(rooms, loads, load):
    rooms.hear("a", None, 0)
    loads.last = load
    place = rooms.ask("a")
    assert (place.room, place.whole_full) == (NO_ROOM, True)


@pytest.mark.parametrize(
    ("waiting", "ended", "window_s", "wait_s"),
    [(5000, 999, 10.0, 5.0), (5000, 99, 10.0, 50.0), (100, 999, 10.0, 1.0), (5000, 0, 10.0, 60.0), (10, 0, 1.0, 1.0)],
    ids=["100/s", "10/s", "at least a second", "at most a minute", "nothing seen yet"],
)
def test_a_caller_is_asked_to_come_back_when_a_tenth_has_drained(waiting, ended, window_s, wait_s):
    assert retry_after_s(waiting, ended, window_s) == pytest.approx(wait_s)


def test_bounded_so_many_runs_are_accepted_at_the_same_time(rooms):
    with ExitStack() as under_way:
        for _ in range(ACCEPTING_MAX):
            under_way.enter_context(rooms.accepting())
        with pytest.raises(RetinueError) as refusal, rooms.accepting():
            pytest.fail("one too many")
        assert refusal.value.reason is Reason.QUEUE_FULL
        assert refusal.value.retry_after_s >= 1
    with rooms.accepting():
        pass
