"""What passes between the service and a box's agent, and how ends are judged."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retinue_sandbox.bwrap import child, framing, watching

texts = st.binary(max_size=40)


@given(texts, texts, st.dictionaries(texts, texts, max_size=5), st.lists(texts, max_size=5))
def test_parts_are_read_as_they_were_written(first, folder, environ, argv):
    data = framing.put_parts(first, folder, list(environ.items()), argv)
    assert framing.take_parts(memoryview(data)) == (first, folder, environ, argv)


@given(st.integers(0, 20), st.lists(st.binary(max_size=12), max_size=20))
def test_of_a_stream_the_first_and_the_last_half_are_kept_bounded(size, pieces):
    kept, sent = framing.Kept(size), b""
    for piece in pieces:
        sent += kept.take(piece)
        assert len(kept._tail) <= 2 * size
    rest, whole = kept.rest(), b"".join(pieces)
    assert len(sent) + kept.omitted + len(rest) == len(whole) == kept.total
    assert whole.startswith(sent)
    assert whole.endswith(rest)
    assert len(sent) <= size - size // 2
    assert len(rest) <= size // 2
    if len(whole) <= size:
        assert sent + rest == whole
    else:
        assert len(sent) + len(rest) == size


@pytest.mark.parametrize(
    ("status", "letter", "judged"),
    [
        (0, b"", (0, "exited")),
        (3 << 8, b"", (3, "exited")),
        (signal.SIGTERM, b"", (143, "signalled")),
        (signal.SIGXCPU, b"", (152, "cpu_time")),
        (signal.SIGXFSZ, b"", (153, "file_size")),
        (153 << 8, b"", (153, "file_size")),
        (1 << 8, b"m", (1, "memory")),
        (0, b"m", (0, "exited")),
        (1 << 8, b"?", (1, "exited")),
    ],
)
def test_a_status_says_which_limit_it_is_of(status, letter, judged):
    assert child.judge(int(status), letter) == judged


def process(pid, parent, group=0, session=0, cpu=0, waited=0, began=b"1"):
    fields = [b"S", parent, group or pid, session or pid, 0, 0, 0, 0, 0, 0, 0, cpu, 0, waited, 0, 0, 0, 1, 0, began]
    line = b" ".join(field if isinstance(field, bytes) else str(field).encode() for field in [*fields, 0, 10])
    return watching.Process(pid, b"%d (a) b ) " % pid + line)


def owned(*found, roots, marks=None):
    told = watching.owners({one.pid: one for one in found}, roots, (1,), lambda one: (marks or {}).get(one.pid, b""))
    return {one.pid: told[one.pid] for one in found if one.pid != 1}


def test_a_process_belongs_to_the_root_above_it_or_whose_group_it_is_in_or_whose_it_was():
    one, other = watching.Use(), watching.Use()
    other.known = {(31, b"1")}
    found = owned(
        process(1, 0),
        process(10, 1),
        process(11, 10),
        process(12, 11, group=12, session=12),
        process(20, 1),
        process(21, 1, group=20, session=20),
        process(31, 1),
        process(32, 31),
        process(40, 1),
        process(41, 40),
        roots={10: one, 20: other},
    )
    assert {pid for pid, use in found.items() if use is one} == {10, 11, 12}
    assert {pid for pid, use in found.items() if use is other} == {20, 21, 31, 32}
    assert {pid for pid, use in found.items() if use is None} == {40, 41}


def test_what_has_left_its_parents_is_known_by_its_mark():
    one, other = watching.Use(1), watching.Use(2)
    found = owned(
        process(1, 0), process(30, 1), process(31, 30), process(40, 1), roots={10: one, 20: other}, marks={30: b"2"}
    )
    assert found == {30: other, 31: other, 40: None}


def test_a_process_whose_number_came_again_is_nobodys():
    use = watching.Use()
    use.known = {(31, b"1")}
    assert owned(process(1, 0), process(31, 1, began=b"2"), roots={10: use}) == {31: None}


def test_time_of_processors_counts_what_is_gone_and_what_was_waited_for():
    use, second = watching.Use(), watching.TICKS
    use.look([process(10, 1, cpu=second), process(11, 10, cpu=2 * second)], [])
    assert use.cpu_s == 3
    use.look([process(10, 1, cpu=second)], [])
    assert use.cpu_s == 3
    use.look([process(10, 1, cpu=second, waited=9 * second)], [process(40, 1, cpu=second)])
    assert use.cpu_s == 10
    assert use.processes_peak == 2
