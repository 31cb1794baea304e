import json
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.errors import FormatError, RequestError
from xetserve.origin.faults import (
    Faults,
    FlipByte,
    InjectedReset,
    Latency,
    Misbehaviour,
    StatusBurst,
    SwapChunk,
    make_swapped_record,
    overwrite,
    parse_faults,
)
from xetserve.xet.compression import Scheme
from xetserve.xet.xorb import iter_records, pack_chunk

NAME = "ab" * 32
CONTENT = bytes(range(200))

FULL = Faults(
    url_lifetime=1.5,
    token_lifetime=20.0,
    data_403_first=1,
    v2_status=501,
    v2_one_entry_per_range=True,
    untrimmed_terms=True,
    wrong_term_length=-3,
    multipart_off=True,
    short_body_first=2,
    reset_first=3,
    stall_first=4,
    stall_seconds=0.5,
    bandwidth=1e6,
    data_ignore_range=True,
    flip_byte=FlipByte(7, NAME, 2),
    swap_chunk=SwapChunk(2),
    data_status_burst=StatusBurst(503, 2, 9),
    cas_status_burst=StatusBurst(500, 1),
    hub_status_burst=StatusBurst(429, 1),
    latency=Latency(hub=0.1, data=0.2),
)


def test_every_fault_is_read() -> None:
    value = {
        "url_lifetime": 1.5,
        "token_lifetime": 20,
        "data_403_first": 1,
        "v2_status": 501,
        "v2_one_entry_per_range": True,
        "untrimmed_terms": True,
        "wrong_term_length": -3,
        "multipart_off": True,
        "short_body_first": 2,
        "reset_first": 3,
        "stall_first": 4,
        "stall_seconds": 0.5,
        "bandwidth": 1e6,
        "data_ignore_range": True,
        "flip_byte": {"offset": 7, "xorb": NAME, "first": 2},
        "swap_chunk": {"chunk": 2, "xorb": None},
        "data_status_burst": {"status": 503, "count": 2, "retry_after": 9},
        "cas_status_burst": {"status": 500, "count": 1},
        "hub_status_burst": {"status": 429, "count": 1},
        "latency": {"hub": 0.1, "data": 0.2},
    }
    assert set(value) == {field.name for field in fields(Faults)}
    assert parse_faults(json.dumps(value).encode()) == FULL


@pytest.mark.parametrize("body", [b"", b"{}", b'{"flip_byte": null}'])
def test_nothing_named_is_nothing_wrong(body: bytes) -> None:
    assert parse_faults(body) == Faults()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param({"typo": 1}, "faults has no 'typo'", id="unknown fault"),
        pytest.param({"latency": {"typo": 1}}, "latency has no 'typo'", id="unknown kind"),
        pytest.param({"flip_byte": {}}, "flip_byte needs offset", id="missing field"),
        pytest.param({"flip_byte": {"offset": 1, "xorb": "x"}}, "xorb hash", id="bad hash"),
        pytest.param({"flip_byte": 3}, "must be an object", id="not an object"),
        pytest.param({"reset_first": True}, "wrong type", id="bool for a number"),
        pytest.param({"reset_first": 1.5}, "wrong type", id="fraction of an occasion"),
        pytest.param({"reset_first": "1"}, "wrong type", id="text for a number"),
        pytest.param({"reset_first": None}, "wrong type", id="null for a number"),
        pytest.param({"multipart_off": 1}, "wrong type", id="number for a switch"),
        pytest.param({"reset_first": -1}, "not negative", id="negative count"),
        pytest.param({"stall_seconds": float("nan")}, "not JSON", id="not a number"),
        pytest.param({"bandwidth": float("inf")}, "not JSON", id="infinite"),
        pytest.param({"v2_status": 500}, "404 or 501", id="other status for v2"),
        pytest.param([], "must be an object", id="a list"),
    ],
)
def test_a_strange_fault_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as raised:
        parse_faults(json.dumps(value).encode())
    assert raised.value.status == 400


@given(st.binary(max_size=40))
def test_random_bytes_give_faults_or_a_request_error(body: bytes) -> None:
    with suppress(RequestError):
        parse_faults(body)


def test_the_first_n_are_struck_and_the_rest_are_not() -> None:
    misbehaviour = Misbehaviour(Faults(reset_first=2))
    assert [misbehaviour.strikes("reset_first") for _ in range(4)] == [True, True, False, False]
    assert not misbehaviour.strikes("stall_first")


def test_a_burst_ends() -> None:
    misbehaviour = Misbehaviour(Faults(cas_status_burst=StatusBurst(429, 2, 7)))
    answers = [misbehaviour.make_burst_response("cas") for _ in range(3)]
    assert [answer.status if answer else None for answer in answers] == [429, 429, None]
    assert answers[0] is not None
    assert ("Retry-After", "7") in answers[0].headers
    assert misbehaviour.make_burst_response("hub") is None
    assert misbehaviour.make_burst_response("bridge") is None


async def body(*blocks: list[bytes]) -> AsyncGenerator[list[bytes], None]:
    for block in blocks:
        yield block


BLOCKS = ([CONTENT[:30], CONTENT[30:90]], [CONTENT[90:150]], [CONTENT[150:]])


async def collect(blocks: AsyncGenerator[list[bytes], None]) -> bytes:
    return b"".join([part async for block in blocks for part in block])


async def test_a_body_without_faults_is_itself() -> None:
    blocks = body(*BLOCKS)
    assert Misbehaviour().misbehave(blocks, len(CONTENT)) is blocks
    await blocks.aclose()


async def test_a_reset_comes_in_the_middle() -> None:
    blocks = Misbehaviour(Faults(reset_first=1)).misbehave(body(*BLOCKS), len(CONTENT))
    assert [await anext(blocks) for _ in range(3)] == [
        [CONTENT[:30]],
        [CONTENT[30:90]],
        [CONTENT[90:100]],
    ]
    with pytest.raises(InjectedReset):
        await anext(blocks)


async def test_a_slow_body_is_complete_and_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("xetserve.origin.faults.asyncio.sleep", sleep)
    blocks = Misbehaviour(Faults(bandwidth=200)).misbehave(body(*BLOCKS), len(CONTENT))
    assert await collect(blocks) == CONTENT
    assert sum(waits) == pytest.approx(1.0)


async def test_a_stall_waits_once_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[float, int]] = []
    got = bytearray()

    async def sleep(seconds: float) -> None:
        waits.append((seconds, len(got)))

    monkeypatch.setattr("xetserve.origin.faults.asyncio.sleep", sleep)
    faults = Faults(stall_first=1, stall_seconds=30)
    async for block in Misbehaviour(faults).misbehave(body(*BLOCKS), len(CONTENT)):
        got += b"".join(block)
    assert (waits, bytes(got)) == ([(30, 100)], CONTENT)


async def test_latency_is_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("xetserve.origin.faults.asyncio.sleep", sleep)
    misbehaviour = Misbehaviour(Faults(latency=Latency(hub=1, data=3)))
    for kind in ("hub", "cas", "data", "bridge"):
        await misbehaviour.wait(kind)
    assert waits == [1, 3]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(0, 50),
    st.integers(0, 300),
    st.binary(min_size=1, max_size=80),
)
async def test_patches_may_lie_anywhere(
    sizes: list[int], start: int, offset: int, patch: bytes
) -> None:
    content = bytes(300)

    async def pieces() -> AsyncGenerator[bytes, None]:
        at = start
        for size in sizes:
            yield content[at : min(300, at + size)]
            at = min(300, at + size)

    end = min(300, start + sum(sizes))
    wanted = bytearray(content + bytes(400))
    wanted[offset : offset + len(patch)] = patch
    got = b"".join([piece async for piece in overwrite(pieces(), start, {offset: patch})])
    assert got == wanted[start:end]


@pytest.mark.parametrize(
    ("data", "scheme"),
    [
        pytest.param(bytes(range(256)) * 9, Scheme.NONE, id="raw"),
        pytest.param(b"some text " * 300, Scheme.LZ4, id="LZ4"),
        pytest.param(bytes(50_000), Scheme.LZ4, id="zeros"),
        pytest.param(b"\xa5" * 50_000, Scheme.LZ4, id="the filler itself"),
        pytest.param(bytes(range(200)) * 40, Scheme.BG4_LZ4, id="BG4"),
    ],
)
def test_a_swapped_record_is_well_formed_and_of_the_same_sizes(data: bytes, scheme: Scheme) -> None:
    record = pack_chunk(data, scheme)
    swapped = make_swapped_record(next(iter_records(record)))
    (found,) = iter_records(swapped)
    assert len(swapped) == len(record)
    decoded = bytes(found.decode())
    assert len(decoded) == len(data)
    assert decoded != data


def test_a_record_that_is_too_small_cannot_be_swapped() -> None:
    # Packed by hand into fewer bytes than any other content of that size needs.
    record = next(iter_records(pack_chunk(bytes(50_000), Scheme.LZ4)))
    small = record._replace(header=record.header._replace(packed_size=5), payload=record.payload)
    with pytest.raises(FormatError, match="cannot be swapped"):
        make_swapped_record(small)
