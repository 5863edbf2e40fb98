"""One watcher of a stream, when the bus does not answer for a moment, or forgets, while entries are still heard."""

import asyncio
from datetime import UTC, datetime

from retinue_kit.errors import RetinueError
from retinue_kit.streams import Cursor, Entry, Kind
from retinue_kit.watch import Watch


class Stumbling:
    """A bus that holds all that was told, and does not answer the first reads after a stumble."""

    def __init__(self):
        self.told = []
        self.silent = 0

    async def read(self, _key, after, _count):
        if self.silent:
            self.silent -= 1
            raise RetinueError.unavailable("redis")
        return [entry for entry in self.told if entry.cursor > after]


async def nothing(_after):
    return (), False


def tentative(n, time=""):
    json = f'{{"time":"{time}"}}'.encode() if time else b"{}"
    return Entry(Cursor(1, n), Kind.TENTATIVE, None, "run_a", "assistant.delta", json)


async def test_cursor_monotone_an_entry_before_which_something_is_missing_waits_until_the_bus_can_be_read():
    bus = Stumbling()
    watch = Watch(bus, "log", Cursor(1, 0), nothing, ask_log=False)
    bus.told = [tentative(1)]
    assert [entry.cursor.n for entry in await watch.next()] == [1]

    # It hears the fourth, not the second and third, and the bus does not answer when it looks for them.
    bus.told += [tentative(2), tentative(3), tentative(4)]
    bus.silent = 3
    watch.put(bus.told[-1])
    seen = []
    while len(seen) < 3:
        seen += [entry.cursor.n for entry in await watch.next()]
    assert seen == [2, 3, 4]


async def test_cursor_monotone_what_the_bus_forgot_is_waited_for_where_more_was_heard():
    """The second was told before this watcher heard anything, and is not recorded: its holder tells it again."""
    bus = Stumbling()
    watch = Watch(bus, "log", Cursor(1, 1), nothing, ask_log=False)
    now = datetime.now(UTC).isoformat()
    watch.put(tentative(3, now))
    following = asyncio.create_task(watch.next())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not following.done()

    bus.told = [tentative(2, now), tentative(4, now)]
    for entry in bus.told:
        watch.put(entry)
    seen = await following
    while len(seen) < 2:
        seen += await watch.next()
    assert [entry.cursor.n for entry in seen] == [2, 4]


async def test_what_the_bus_forgot_long_ago_holds_nothing_up():
    watch = Watch(Stumbling(), "log", Cursor(1, 1), nothing, ask_log=False)
    watch.put(tentative(3, "2026-01-01T00:00:00Z"))
    assert [entry.cursor.n for entry in await watch.next()] == [3]
