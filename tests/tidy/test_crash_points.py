"""Each crash point that a service declares lies somewhere in that service, and each name is used once."""

import re
from collections import Counter

from harness import points

REACHED = re.compile(r"\breach\(\s*Point\.([A-Z_0-9]+)\s*\)")
BY_EVENT = re.compile(r"\breach\(EVENT_POINTS\.get\(")


def source_of(name):
    folder = points.modules()[name].parent
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.py")))


def test_every_declared_point_is_reached_somewhere_and_by_its_own_service():
    assert points.modules()
    for name, path in points.modules().items():
        source = source_of(name)
        enumeration = points.enumeration(name, path)
        reached = set(REACHED.findall(source))
        by_event = {point.name for point in enumeration if ".event." in point} if BY_EVENT.search(source) else set()
        assert {point.name for point in enumeration} == reached | by_event, name


def test_no_two_points_share_a_name():
    assert [name for name, count in Counter(points.declared()).items() if count > 1] == []
