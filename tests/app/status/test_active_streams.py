"""Streams in memory that others read."""

from xetserve.app.status.active_streams import (
    MAX_TEXT,
    NUM_PLACES,
    STREAMS_SIZE,
    Stage,
    StreamReader,
    StreamTable,
)


def make_buffer() -> memoryview:
    return memoryview(bytearray(STREAMS_SIZE))


def test_a_stream_is_seen_from_its_beginning_to_its_end() -> None:
    buffer = make_buffer()
    table, reader = StreamTable(buffer), StreamReader(buffer)
    stream = table.open({"file": "ä.bin", "repo": "o/n"}, 1000, 5.0)
    assert stream is not None
    stream.note(300, Stage.READING)
    (state,) = reader.read()
    assert state[1:] == (5.0, 300, 1000, Stage.READING, {"file": "ä.bin", "repo": "o/n"})
    assert reader.read_sent() == {state.number: 300}
    stream.close()
    assert list(reader.read()) == []
    assert reader.read_sent() == {}


def test_a_place_that_is_used_again_is_another_stream() -> None:
    buffer = make_buffer()
    table, reader = StreamTable(buffer), StreamReader(buffer)
    numbers = set()
    for _ in range(3):
        stream = table.open({}, None, 0.0)
        assert stream is not None
        (state,) = reader.read()
        assert state.size is None
        numbers.add(state.number)
        stream.close()
    assert len(numbers) == 3


def test_there_are_only_so_many_places() -> None:
    table = StreamTable()
    streams = [table.open({}, 1, 0.0) for _ in range(NUM_PLACES)]
    assert None not in streams
    assert table.open({}, 1, 0.0) is None
    assert streams[7] is not None
    streams[7].close()
    assert table.open({}, 1, 0.0) is not None


def test_a_long_name_is_known_by_its_end() -> None:
    buffer = make_buffer()
    StreamTable(buffer).open({"file": "\U0001f600" * 5000 + ".bin", "repo": '"' * 500}, 1, 0.0)
    (state,) = StreamReader(buffer).read()
    assert state.text["file"].endswith("\U0001f600.bin")
    assert {len(value) for value in state.text.values()} == {MAX_TEXT}


def test_who_takes_a_place_has_no_streams_yet() -> None:
    buffer = make_buffer()
    StreamTable(buffer).open({"file": "a"}, 1, 0.0)
    StreamTable(buffer)
    assert list(StreamReader(buffer).read()) == []


def test_a_text_that_is_being_written_is_left_out() -> None:
    buffer = make_buffer()
    table = StreamTable(buffer)
    assert table.open({"file": "a"}, 1, 0.0) is not None
    table._texts[0][:1] = b"x"
    assert list(StreamReader(buffer).read()) == []
