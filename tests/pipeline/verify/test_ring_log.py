"""A ring in shared memory: what is read was written, whole and in order, whatever else happens to
the memory.
"""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.pipeline.verify.ring_log import HEADER_SIZE, RingReader, RingWriter, ring_size

CAPACITY = 256

records = st.binary(max_size=90)


def make_memory(capacity: int = CAPACITY) -> memoryview:
    return memoryview(bytearray(ring_size(capacity)))


def read(reader: RingReader) -> list[bytes]:
    return [bytes(record.data) for record in reader.read()]


def test_what_is_written_is_read_by_all() -> None:
    memory = make_memory()
    writer, readers = RingWriter(memory), [RingReader(memory) for _ in range(2)]
    for data in (b"one", b"", b"three" * 10):
        assert writer.append(data)
    assert read(readers[0]) == [b"one", b"", b"three" * 10]
    assert read(readers[0]) == []
    assert writer.append(b"four")
    assert read(readers[0]) == [b"four"]
    assert read(readers[1]) == [b"one", b"", b"three" * 10, b"four"]
    assert [reader.num_lost for reader in readers] == [0, 0]


def test_who_comes_too_late_knows_and_goes_on() -> None:
    memory = make_memory()
    writer, reader = RingWriter(memory), RingReader(memory)
    for number in range(20):
        assert writer.append(b"%d" % number * 10)
    assert read(reader) == [b"%d" % number * 10 for number in range(14, 20)]
    assert reader.num_lost == 1
    assert writer.append(b"next")
    assert read(reader) == [b"next"]
    assert reader.num_lost == 1


def test_a_record_that_is_too_large_is_left_out() -> None:
    memory = make_memory()
    writer, reader = RingWriter(memory), RingReader(memory)
    assert writer.append(b"before")
    assert not writer.append(bytes(CAPACITY - 15))
    assert read(reader) == [b"before"]
    assert writer.append(bytes(CAPACITY - 16))
    assert read(reader) == [bytes(CAPACITY - 16)]


def test_what_was_overwritten_is_not_found() -> None:
    memory = make_memory()
    writer, reader = RingWriter(memory), RingReader(memory)
    writer.append(b"x" * 40)
    (record,) = reader.read()
    found = reader.find(record.position)
    assert found is not None
    assert bytes(found.data) == b"x" * 40
    assert reader.find(record.position + 8) is None
    assert reader.find(1 << 40) is None
    for _ in range(5):
        writer.append(b"y" * 40)
    assert reader.find(record.position) is None


@given(st.lists(st.tuples(st.integers(0, 3), records), max_size=60))
def test_readers_at_any_pace(steps: list[tuple[int, bytes]]) -> None:
    """Whoever reads gets what came since, in order; only the oldest may be missing, and then it is
    known.
    """
    memory = make_memory()
    writer, readers = RingWriter(memory), [RingReader(memory) for _ in range(3)]
    missed: list[list[bytes]] = [[], [], []]
    for who, data in steps:
        if who == 3:
            assert writer.append(data)
            for backlog in missed:
                backlog.append(data)
            continue
        lost = readers[who].num_lost
        came = read(readers[who])
        backlog = missed[who]
        assert came == backlog[len(backlog) - len(came) :]
        assert (readers[who].num_lost > lost) == (len(came) < len(backlog))
        assert bool(came) == bool(backlog)  # one record always fits
        backlog.clear()


@given(st.lists(records, min_size=1, max_size=30), st.lists(records, min_size=1, max_size=5))
def test_a_successor_goes_on_behind_what_was_written(first: list[bytes], then: list[bytes]) -> None:
    memory = make_memory()
    reader = RingReader(memory)
    writer = RingWriter(memory)
    for data in first:
        writer.append(data)
    came = read(reader)
    assert came == first[len(first) - len(came) :]
    heir = RingWriter(memory)
    for data in then:
        heir.append(data)
        assert read(reader) == [data]


@given(st.lists(records, max_size=20), records, st.randoms(use_true_random=False))
def test_a_record_that_is_half_written_is_none(
    before: list[bytes], data: bytes, source: random.Random
) -> None:
    """A writer that dies, or is seen at work, leaves any part of what it wrote between tail and
    head.
    """
    memory = make_memory()
    writer = RingWriter(memory)
    for each in before:
        writer.append(each)
    late, in_time = RingReader(memory), RingReader(memory)
    kept = read(in_time)
    old = bytes(memory)
    writer.append(data)
    new = bytes(memory)
    for at in range(8, len(memory)):
        if at < HEADER_SIZE or source.random() < 0.5:
            memory[at] = old[at]
    came = read(late)
    assert came == kept[len(kept) - len(came) :]
    assert read(in_time) == []
    # Its successor writes over that.
    heir = RingWriter(memory)
    heir.append(b"heir")
    assert read(in_time) == [b"heir"]
    assert new[:8] == bytes(memory[:8]) or before


@given(st.lists(records, min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_a_record_that_is_seen_late_comes_later(before: list[bytes], source: random.Random) -> None:
    """Of another core's writes the head may be seen before the record is."""
    memory = make_memory()
    writer, reader = RingWriter(memory), RingReader(memory)
    for each in before[:-1]:
        writer.append(each)
    read(reader)
    old = bytes(memory)
    writer.append(before[-1])
    new = bytes(memory)
    for at in range(HEADER_SIZE, len(memory)):
        if source.random() < 0.5:
            memory[at] = old[at]
    if memory[HEADER_SIZE:] == new[HEADER_SIZE:]:
        return
    came = read(reader)  # the zeros that fill it up may be all that is missing
    memory[HEADER_SIZE:] = new[HEADER_SIZE:]
    assert [*came, *read(reader)] == [before[-1]]


@given(st.lists(records, max_size=20), st.data())
def test_whatever_is_in_the_memory_only_records_are_read(
    written: list[bytes], data: st.DataObject
) -> None:
    memory = make_memory()
    writer, reader = RingWriter(memory), RingReader(memory)
    for each in written:
        writer.append(each)
    at = data.draw(st.integers(0, len(memory) - 1))
    memory[at] ^= data.draw(st.integers(1, 255))
    for _ in range(3):
        assert set(read(reader)) <= set(written)
    assert set(read(RingReader(memory))) <= set(written)
    # It is good for new records again, for those who look twice.
    heir = RingWriter(memory)
    heir.append(b"heir")


@given(st.binary(min_size=ring_size(64), max_size=ring_size(64)))
def test_noise_is_read_as_nothing(noise: bytes) -> None:
    memory = memoryview(bytearray(noise))
    reader = RingReader(memory)
    assert read(reader) == []
    assert read(reader) == []
    assert reader.find(0) is None
    RingWriter(memory).append(b"x" * 8)


def test_who_meets_what_will_never_be_a_record_goes_around_it() -> None:
    memory = make_memory()
    writer, reader = RingWriter(memory), RingReader(memory)
    writer.append(b"one")
    memory[HEADER_SIZE + 17] ^= 1
    assert read(reader) == []
    assert reader.num_lost == 0  # it may only be seen too early
    assert read(reader) == []
    assert reader.num_lost == 1
    writer.append(b"two")
    assert read(reader) == [b"two"]


@pytest.mark.parametrize("size", [HEADER_SIZE, HEADER_SIZE + 8])
def test_a_ring_without_room_takes_nothing(size: int) -> None:
    memory = memoryview(bytearray(size))
    assert not RingWriter(memory).append(b"")
    assert read(RingReader(memory)) == []
