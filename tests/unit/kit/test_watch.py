"""One watcher of a stream, when the bus does not answer for a moment while entries are still heard."""

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


def tentative(n):
    return Entry(Cursor(1, n), Kind.TENTATIVE, None, "run_a", "assistant.delta", b"{}")


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
