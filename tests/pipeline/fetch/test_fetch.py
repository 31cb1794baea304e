"""One fetch and its leases: what is asked of the source, what arrives, and what is given back.

The source answers every request as the test says. A chunk here is 1000 bytes, stored as it is, so a
record has 1008.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from tests.fakes import FakeXorb
from tests.waiting import until
from xetserve.base.request_id import REQUEST_ID
from xetserve.errors import (
    FormatError,
    IntegrityError,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UrlExpired,
)
from xetserve.metrics.catalogue import EXPIRED_URLS, FETCH_WAITS, UPSTREAM_RETRIES
from xetserve.pipeline.fetch import fetch as fetch_module
from xetserve.pipeline.fetch.fetch import MAX_REFRESHES, Fetch
from xetserve.pipeline.fetch.leases import Lease, Resume
from xetserve.pipeline.flow.budget import SLAB_SIZE, ByteBudget
from xetserve.pipeline.flow.outage import Outage
from xetserve.pipeline.flow.pacing import HostSpeed
from xetserve.pipeline.plan.window_plan import Step
from xetserve.pipeline.tally import Tally
from xetserve.upstream.cas.source import Access, Provenance
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import hash_chunk
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction
from xetserve.xet.xorb import make_chunk_header

NUM_CHUNKS = 10
CHUNKS = [bytes([number]) * 1000 for number in range(NUM_CHUNKS)]
RECORD_SIZE = 1008
XORB = FakeXorb.make(CHUNKS, [Scheme.NONE])
ALL = ChunkRange(0, NUM_CHUNKS)
ALL_CHUNKS = range(NUM_CHUNKS)
ONCE = (1,) * NUM_CHUNKS
POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.2)


def make_info(chunks: ChunkRange = ALL, url: str = "http://data.test/1") -> FetchInfo:
    return FetchInfo(chunks, XORB.byte_range(chunks), url)


class Origin:
    """A store's copy, and the hashes that it is told."""

    def __init__(self) -> None:
        self.hashes: dict[int, bytes] = {}

    def note_hash(self, chunk: int, size: int, chunk_hash: bytes) -> None:
        assert size == 1000
        self.hashes[chunk] = chunk_hash

    def note_proven(self, chunks: ChunkRange) -> None:
        raise AssertionError("a fetch proves nothing")


@dataclass
class Answer:
    """What the source answers to one request.

    data: None: the range as it is.
    error: raised instead of an answer.
    stops_at: bytes after which the answer waits until it is let on.
    origins: what a byte's position comes from, by the position up to which it does.
    """

    data: bytes | None = None
    error: Exception | None = None
    piece: int = 1 << 20
    stops_at: int | None = None
    is_stored: bool = False
    has_imported: bool = False
    origins: list[tuple[int, Provenance | None]] = field(default_factory=list)
    has_stopped: asyncio.Event = field(default_factory=asyncio.Event)
    let_on: asyncio.Event = field(default_factory=asyncio.Event)
    origin: Provenance | None = None
    position: int = 0

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        assert self.data is not None
        end = self.position + min(self.piece, len(view))
        if self.stops_at is not None and not self.let_on.is_set():
            if self.position == self.stops_at:
                self.has_stopped.set()
                await self.let_on.wait()
            else:
                end = min(end, self.stops_at)
        for upto, origin in self.origins:
            if self.position < upto:
                end, self.origin = min(end, upto), origin
                break
        part = self.data[self.position : end]
        view[: len(part)] = part
        self.position += len(part)
        return len(part)


class Source:
    """A CasSource that answers as the test says; after that, with the data as it is."""

    max_stored_size: ClassVar[int | None] = None

    def __init__(self, *answers: Answer, xorb: FakeXorb) -> None:
        self.xorb = xorb
        self.answers = list(answers)
        self.asked: list[FetchInfo] = []
        self.took_imported: list[bool] = []
        self.forgotten: list[ChunkRange] = []
        self.num_open = 0
        self.before_open: Callable[[], None] = lambda: None

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        raise AssertionError("a fetch asks for data only")

    @asynccontextmanager
    async def open_data(
        self,
        xorb_hash: bytes,
        info: FetchInfo,
        *,
        is_proven: bool = False,
        takes_imported: bool = True,
    ) -> AsyncIterator[Answer]:
        assert xorb_hash == self.xorb.xorb_hash
        self.asked.append(info)
        self.took_imported.append(takes_imported)
        answer = self.answers.pop(0) if self.answers else Answer()
        self.num_open += 1
        try:
            await asyncio.sleep(0)
            self.before_open()
            if answer.error is not None:
                raise answer.error
            if answer.data is None:
                answer.data = self.xorb.packed(info.byte_range)
            yield answer
        finally:
            self.num_open -= 1

    def forget(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        assert xorb_hash == self.xorb.xorb_hash
        self.forgotten.append(chunks)


class Stage:
    """A fetch, its source and its budget."""

    def __init__(
        self,
        *answers: Answer,
        xorb: FakeXorb = XORB,
        chunks: ChunkRange = ALL,
        uses: tuple[int, ...] = ONCE,
        policy: RetryPolicy = POLICY,
        **options: bool,
    ) -> None:
        self.source = Source(*answers, xorb=xorb)
        self.budget = ByteBudget(1 << 27)
        info = FetchInfo(chunks, xorb.byte_range(chunks), "http://data.test/1")
        self.step = Step(xorb.xorb_hash, info, uses)
        self.is_awaited = False
        self.patience = 0.0  # seconds that each user would wait
        self.fetch = Fetch(
            self.step,
            self.source,
            self.budget,
            policy=policy,
            stall_timeout=1.0,
            is_awaited=lambda: self.is_awaited,
            host_speed=HostSpeed(),
            **options,
        )

    def join(
        self,
        uses: tuple[int, ...] | None = None,
        fresh: list[FetchInfo] | None = None,
        resume: Resume | None = None,
        **options: bool,
    ) -> Lease:
        """Join the fetch; `fresh` has the fetch info that the user can give, one for each time."""

        async def refresh(stale: FetchInfo) -> FetchInfo:
            if not fresh:
                raise UrlExpired("this user has none")
            return fresh.pop(0)

        step = self.step if uses is None else self.step._replace(uses=uses)
        return Lease(
            self.fetch,
            step,
            refresh,
            Tally(),
            resume=resume,
            outage=Outage(lambda: self.patience),
            **options,
        )

    def start(self) -> None:
        assert self.fetch.start(1 << 20)

    async def read(self, lease: Lease, *chunks: int) -> bytes:
        """Wait for chunks, and take and release one after the other."""
        content = bytearray()
        for chunk in chunks or range(NUM_CHUNKS):
            await self.fetch.wait(chunk)
            content += self.fetch.decode(chunk)
            lease.release(chunk)
        return bytes(content)

    async def finish(self, *leases: Lease) -> None:
        """Close the leases and the fetch; nothing may be left of them."""
        for lease in leases:
            lease.close()
        assert not self.fetch.is_used
        self.fetch.close()
        await self.fetch.wait_closed()
        assert (self.budget.held, self.source.num_open) == (0, 0)


CONTENT = b"".join(CHUNKS)


async def test_a_shared_fetch_works_in_the_name_of_the_request_that_started_it() -> None:
    named = []
    stage = Stage()
    stage.source.before_open = lambda: named.append(REQUEST_ID.get())
    first = stage.join()
    REQUEST_ID.set("one")
    stage.start()
    REQUEST_ID.set("two")
    second = stage.join()
    assert await stage.read(second) == CONTENT
    assert named == ["one"]
    await stage.finish(first, second)


async def test_one_user_gets_all_chunks_of_one_request() -> None:
    stage = Stage()
    lease = stage.join()
    assert not stage.fetch.is_started
    stage.start()
    assert stage.fetch.is_started
    assert stage.budget.held == stage.fetch.granted == stage.fetch.size
    assert await stage.read(lease) == CONTENT
    assert stage.fetch.is_complete
    assert stage.source.asked == [make_info()]
    assert lease.tally == Tally(upstream_bytes=NUM_CHUNKS * RECORD_SIZE)
    assert stage.budget.held == 0
    await stage.finish(lease)


async def test_a_start_without_room_asks_for_nothing() -> None:
    stage = Stage()
    lease = stage.join()
    assert not stage.fetch.start(100)
    assert not stage.fetch.is_started
    assert stage.fetch.start(100, streams=True)
    assert await stage.read(lease) == CONTENT
    await stage.finish(lease)


# Retries.


@pytest.mark.parametrize("num_bytes", [0, 5, RECORD_SIZE, 3 * RECORD_SIZE + 8, 5000])
async def test_an_answer_that_breaks_off_is_asked_for_again(num_bytes: int) -> None:
    stage = Stage(Answer(XORB.packed(XORB.byte_range(ALL))[:num_bytes], piece=700))
    lease = stage.join()
    before = UPSTREAM_RETRIES.total
    stage.start()
    assert await stage.read(lease) == CONTENT
    assert len(stage.source.asked) == 2
    assert UPSTREAM_RETRIES.total == before + 1
    assert lease.tally.upstream_bytes == num_bytes + NUM_CHUNKS * RECORD_SIZE
    assert stage.source.forgotten == []
    await stage.finish(lease)


async def test_chunks_that_arrived_before_a_failure_stay() -> None:
    part = XORB.packed(XORB.byte_range(ALL))[: 3 * RECORD_SIZE]
    stage = Stage(Answer(part), Answer(stops_at=0))
    lease, second = stage.join(), stage.source.answers[1]
    stage.start()
    await second.has_stopped.wait()
    assert [chunk for chunk in range(NUM_CHUNKS) if stage.fetch.has(chunk)] == [0, 1, 2]
    assert await stage.read(lease, 0, 1, 2) == CONTENT[:3000]
    second.let_on.set()
    assert await stage.read(lease, *range(3, NUM_CHUNKS)) == CONTENT[3000:]
    assert not stage.fetch.has(0)  # it came twice, and was used up
    await stage.finish(lease)


async def test_with_progress_it_goes_on_longer_than_the_time_limit_of_one_failure() -> None:
    packed = XORB.packed(XORB.byte_range(ALL))
    parts = [Answer(packed[: number * RECORD_SIZE]) for number in range(1, NUM_CHUNKS)]
    stage = Stage(*parts, policy=RetryPolicy(first_delay=0.02, max_delay=10.0, time_limit=0.1))
    lease = stage.join()
    stage.start()
    assert await stage.read(lease) == CONTENT  # nine pauses; without progress the third is too long
    await stage.finish(lease)


async def test_what_fails_for_good_is_raised_for_everybody_who_waits() -> None:
    stage = Stage(Answer(error=UpstreamDenied("no", status=403)))
    leases = [stage.join(), stage.join()]
    stage.start()
    waits = [asyncio.ensure_future(stage.fetch.wait(chunk)) for chunk in (0, 9)]
    for waiting in waits:
        with pytest.raises(UpstreamDenied):
            await waiting
    with pytest.raises(UpstreamDenied):  # and for those who come later
        await stage.fetch.wait(3)
    assert not stage.fetch.is_complete
    assert not stage.fetch.can_serve(ONCE)
    await stage.finish(*leases)


async def test_what_always_fails_is_given_up() -> None:
    stage = Stage(*(Answer(error=UpstreamError("503")) for _ in range(1000)))
    lease = stage.join()
    stage.start()
    with pytest.raises(UpstreamError, match="503"):
        await stage.fetch.wait(0)
    assert len(stage.source.asked) > 1
    await stage.finish(lease)


async def test_a_chunk_that_the_range_does_not_hold_is_an_integrity_error() -> None:
    stage = Stage()
    lease = stage.join()
    stage.start()
    with pytest.raises(IntegrityError, match="chunk 10 is missing"):
        await stage.fetch.wait(10)
    await stage.finish(lease)


# URLs that have run out.


async def test_an_expired_url_is_replaced_by_the_first_user_that_has_another() -> None:
    stage = Stage(Answer(error=UrlExpired("403")))
    fresh = make_info(url="http://data.test/2")
    leases = [stage.join(), stage.join(fresh=[fresh]), stage.join(fresh=[make_info(url="other")])]
    before = EXPIRED_URLS.total
    stage.start()
    assert await stage.read(leases[0]) == CONTENT
    assert stage.source.asked == [make_info(), fresh]
    assert EXPIRED_URLS.total == before + 1
    await stage.finish(*leases)


async def test_a_fresh_url_may_be_for_a_range_around() -> None:
    middle = ChunkRange(3, 6)
    stage = Stage(Answer(error=UrlExpired("403")), chunks=middle, uses=(1, 1, 1))
    lease = stage.join(fresh=[make_info(url="http://data.test/2")])
    stage.start()
    assert await stage.read(lease, 3, 4, 5) == CONTENT[3000:6000]
    assert not any(stage.fetch.has(chunk) for chunk in range(NUM_CHUNKS))
    await stage.finish(lease)


async def test_without_another_url_the_users_see_that_it_has_expired() -> None:
    stage = Stage(Answer(error=UrlExpired("403")))
    lease = stage.join()
    stage.start()
    with pytest.raises(UrlExpired):
        await stage.fetch.wait(0)
    assert len(stage.source.asked) == 1
    await stage.finish(lease)


async def test_a_failing_refresh_fails_the_fetch() -> None:
    stage = Stage(Answer(error=UrlExpired("403")))

    async def refuse(stale: FetchInfo) -> FetchInfo:
        raise UpstreamDenied("the CAS refused the token", status=401)

    lease = Lease(stage.fetch, stage.step, refuse, Tally())
    stage.start()
    with pytest.raises(UpstreamDenied):
        await stage.fetch.wait(0)
    await stage.finish(lease)


async def test_only_so_many_fresh_urls_in_a_row_are_tried() -> None:
    stage = Stage(*(Answer(error=UrlExpired("403")) for _ in range(100)))
    fresh = [make_info(url=f"http://data.test/{number}") for number in range(2, 100)]
    lease = stage.join(fresh=fresh)
    stage.start()
    with pytest.raises(UrlExpired):
        await stage.fetch.wait(0)
    assert len(stage.source.asked) == 1 + MAX_REFRESHES
    await stage.finish(lease)


async def test_a_url_that_runs_out_on_the_way_goes_on_with_another() -> None:
    """URLs that were good for a while do not count as refused in a row."""
    packed = XORB.packed(XORB.byte_range(ALL))
    answers = []
    for number in range(1, NUM_CHUNKS):
        answers += [Answer(packed[: number * RECORD_SIZE]), Answer(error=UrlExpired("403"))]
    stage = Stage(*answers)
    lease = stage.join(fresh=[make_info(url=f"http://data.test/{n}") for n in range(20)])
    stage.start()
    assert await stage.read(lease) == CONTENT
    await stage.finish(lease)


# Damage.


def damage(chunk: int, payload: bytes = b"\xff") -> bytes:
    """The range with another payload in one chunk."""
    at = chunk * RECORD_SIZE + 8
    packed = XORB.packed(XORB.byte_range(ALL))
    return packed[:at] + payload + packed[at + len(payload) :]


async def test_a_rejected_chunk_is_fetched_again_and_the_others_stay() -> None:
    second = Answer(stops_at=2 * RECORD_SIZE)
    stage = Stage(Answer(damage(4)), second)
    lease = stage.join()
    stage.start()
    assert await stage.read(lease, 0, 1) == CONTENT[:2000]
    await stage.fetch.wait(4)
    assert bytes(stage.fetch.decode(4)) != CHUNKS[4]
    stage.fetch.reject(4, IntegrityError("chunk 4 is not the file's"))
    assert not stage.fetch.has(4)
    await second.has_stopped.wait()
    assert all(stage.fetch.has(chunk) for chunk in (2, 3, 5, 6, 7, 8, 9))
    second.let_on.set()
    assert await stage.read(lease, *range(2, NUM_CHUNKS)) == CONTENT[2000:]
    assert len(stage.source.asked) == 2
    await stage.finish(lease)


async def test_a_chunk_can_be_rejected_while_the_others_are_still_coming() -> None:
    first = Answer(damage(1), stops_at=3 * RECORD_SIZE)
    stage = Stage(first)
    lease = stage.join()
    stage.start()
    await first.has_stopped.wait()
    stage.fetch.reject(1, FormatError("damaged"))
    assert await stage.read(lease) == CONTENT
    assert len(stage.source.asked) == 2
    await stage.finish(lease)


@pytest.mark.parametrize("is_stored", [False, True], ids=["data host", "store"])
async def test_damaged_records_are_asked_for_again_and_forgotten_where_stored(
    is_stored: bool,
) -> None:
    at = 5 * RECORD_SIZE
    packed = XORB.packed(XORB.byte_range(ALL))
    data = packed[:at] + b"\xff" + packed[at + 1 :]  # a version that there is not
    stage = Stage(Answer(data, is_stored=is_stored))
    lease = stage.join()
    stage.start()
    assert await stage.read(lease) == CONTENT
    assert stage.source.forgotten == ([ALL] if is_stored else [])
    size = NUM_CHUNKS * RECORD_SIZE
    stored = (lease.tally.cache_bytes, lease.tally.cache_hits)
    assert stored == ((size, 1) if is_stored else (0, 0))
    assert lease.tally.upstream_bytes == (size if is_stored else 2 * size)
    await stage.finish(lease)


async def test_damaged_data_that_stays_damaged_is_the_upstreams_failure() -> None:
    data = b"\xff" * (NUM_CHUNKS * RECORD_SIZE)
    stage = Stage(*(Answer(data) for _ in range(1000)))
    lease = stage.join()
    stage.start()
    with pytest.raises(UpstreamError, match="the data host sent damaged data"):
        await stage.fetch.wait(0)
    await stage.finish(lease)


async def test_an_answer_that_is_too_long_is_asked_for_again() -> None:
    """The chunks are good all the same."""
    stage = Stage(Answer(XORB.packed(XORB.byte_range(ALL)) + b"\0"), Answer(stops_at=0))
    lease, second = stage.join(), stage.source.answers[1]
    stage.start()
    await second.has_stopped.wait()
    assert await stage.read(lease) == CONTENT
    assert not stage.fetch.is_complete
    second.let_on.set()
    await until(lambda: stage.fetch.is_complete)
    await stage.finish(lease)


@pytest.mark.parametrize("num_chunks", [NUM_CHUNKS - 1, NUM_CHUNKS + 1])
async def test_another_number_of_chunks_than_promised_is_damage(num_chunks: int) -> None:
    """So many chunks make the same number of bytes."""
    size = NUM_CHUNKS * RECORD_SIZE - 8 * num_chunks
    sizes = [size // num_chunks] * (num_chunks - 1)
    sizes.append(size - sum(sizes))
    wrong = FakeXorb.make([bytes(each) for each in sizes], [Scheme.NONE])
    data = b"".join(wrong.records)
    assert len(data) == NUM_CHUNKS * RECORD_SIZE
    stage = Stage(*(Answer(data) for _ in range(1000)))
    lease = stage.join()
    stage.start()
    with pytest.raises(UpstreamError, match=f"{num_chunks} chunks in a range, expected 10"):
        await stage.fetch.wait(NUM_CHUNKS)
    await stage.finish(lease)


@pytest.mark.parametrize(
    "error", [UpstreamError("503"), UrlExpired("the CAS could not be asked")], ids=str
)
async def test_while_somebody_is_patient_an_outage_is_waited_for(error: UpstreamError) -> None:
    failures = [Answer(error=error) for _ in range(9)]
    policy = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.0)
    stage = Stage(*failures, policy=policy)
    stage.patience = 60.0
    lease = stage.join(fresh=[make_info(url="http://data.test/2")] * 9)
    stage.start()
    assert await stage.read(lease) == b"".join(CHUNKS)
    assert len(stage.source.asked) == 10


async def test_a_cas_that_gives_no_new_url_is_asked_again() -> None:
    stage = Stage(Answer(error=UrlExpired("old")), Answer(error=UrlExpired("old")))
    errors = [UpstreamError("the CAS does not answer")]

    async def refresh(stale: FetchInfo) -> FetchInfo:
        if errors:
            raise errors.pop()
        return stale

    lease = Lease(stage.fetch, stage.step, refresh, Tally())
    stage.start()
    assert await stage.read(lease) == b"".join(CHUNKS)


async def test_a_long_pause_holds_nothing_of_the_budget() -> None:
    stage = Stage(Answer(error=UpstreamBusy("503", status=503, retry_after=30.0)))
    stage.patience = 60.0
    lease = stage.join()
    stage.start()
    assert stage.budget.held > 0
    await until(lambda: stage.budget.held == 0)
    assert stage.fetch.is_started
    lease.close()
    stage.fetch.close()
    await stage.fetch.wait_closed()
    assert stage.budget.held == 0


# Several users.


async def test_two_users_share_the_data_the_decoding_and_the_hashes() -> None:
    stage = Stage(xorb=FakeXorb.make(CHUNKS))  # packed: decoded bytes do not lie in a slab
    one, other = stage.join(), stage.join()
    stage.start()
    await stage.fetch.wait(9)
    data = stage.fetch.decode(3)
    assert stage.fetch.get_known_hash(3) is None
    assert stage.fetch.get_hash(3, data) == hash_chunk(CHUNKS[3])
    assert stage.fetch.get_known_hash(3) == hash_chunk(CHUNKS[3])
    assert stage.fetch.decode(3) is data
    assert stage.fetch.copy_record(3) is None  # the record is gone
    assert stage.fetch.copy_record(4) is not None
    one.release(3)
    assert stage.fetch.has(3)
    other.release(3)
    assert not stage.fetch.has(3)
    rest = [chunk for chunk in range(NUM_CHUNKS) if chunk != 3]
    expected = CONTENT[:3000] + CONTENT[4000:]
    assert await stage.read(one, *rest) == await stage.read(other, *rest) == expected
    assert len(stage.source.asked) == 1
    assert other.tally == Tally()  # the bytes came for the first user
    assert stage.budget.held == 0
    await stage.finish(one, other)


async def test_for_a_packed_user_records_stay_as_they_are() -> None:
    stage = Stage()
    plain, packed = stage.join(), stage.join(is_packed=True)
    stage.start()
    await stage.fetch.wait(0)
    stage.fetch.decode(0)
    record = stage.fetch.copy_record(0)
    assert record is not None
    slab, start, end = stage.fetch.find_records(0)
    assert bytes(slab[start:end]) == make_chunk_header(record.header) + CHUNKS[0]
    assert bytes(record.payload) == CHUNKS[0]
    await stage.finish(plain, packed)


async def test_one_who_leaves_early_takes_only_its_own_uses_along() -> None:
    stage = Stage()
    early, other = stage.join(), stage.join()
    stage.start()
    assert await stage.read(early, 0, 1) == CONTENT[:2000]
    early.close()
    early.close()  # a second time does nothing
    assert stage.fetch.is_used
    assert await stage.read(other) == CONTENT
    assert stage.budget.held == 0
    await stage.finish(other)


async def test_one_who_leaves_while_data_comes_does_not_stop_it() -> None:
    first = Answer(stops_at=4 * RECORD_SIZE)
    stage = Stage(first)
    early, other = stage.join(), stage.join()
    stage.start()
    await first.has_stopped.wait()
    early.close()
    first.let_on.set()
    assert await stage.read(other) == CONTENT
    assert other.tally.upstream_bytes == 6 * RECORD_SIZE  # what came after the first had left
    await stage.finish(other)


@pytest.mark.parametrize("is_cut", [False, True], ids=["released", "cut"])
async def test_bytes_that_a_socket_may_still_have_are_not_written_over(is_cut: bool) -> None:
    xorb = FakeXorb.make([bytes(100_000)] * 12, [Scheme.NONE])  # the first ten fill a slab
    stage = Stage(xorb=xorb, chunks=ChunkRange(0, 12), uses=(1,) * 12)
    lease = stage.join()
    assert stage.fetch.start(1 << 21)
    await stage.fetch.wait(11)
    buffer = stage.fetch.find_records(0)[0].obj
    if not is_cut:
        lease.release_run(0, 12)
    lease.close()
    assert (stage.budget.make_slab(SLAB_SIZE) is buffer) == (not is_cut)
    await stage.finish()


async def test_chunks_that_nobody_uses_are_not_kept() -> None:
    uses = (1, 0) * (NUM_CHUNKS // 2)
    stage = Stage(uses=uses)
    lease = stage.join()
    stage.start()
    await stage.fetch.wait(8)
    assert [stage.fetch.has(chunk) for chunk in ALL_CHUNKS] == [bool(count) for count in uses]
    await stage.finish(lease)


async def test_for_those_that_are_awaited_chunks_stay_after_their_last_use() -> None:
    stage = Stage()
    stage.is_awaited = True
    lease = stage.join()
    stage.start()
    assert await stage.read(lease) == CONTENT
    lease.close()
    assert stage.fetch.can_serve(ONCE)
    assert all(stage.fetch.has(chunk) for chunk in ALL_CHUNKS)
    follower = stage.join()
    assert await stage.read(follower) == CONTENT
    assert len(stage.source.asked) == 1
    await stage.finish(follower)


async def test_it_can_serve_those_whose_chunks_are_here_or_to_come() -> None:
    first = Answer(stops_at=4 * RECORD_SIZE)
    stage = Stage(first)
    lease = stage.join()
    assert stage.fetch.can_serve(ONCE)
    stage.start()
    await first.has_stopped.wait()
    assert stage.fetch.can_serve(ONCE)
    await stage.read(lease, 0)
    assert not stage.fetch.can_serve(ONCE)
    assert stage.fetch.can_serve((0, *ONCE[1:]))
    lease.close()
    stage.fetch.close()
    assert not stage.fetch.can_serve((0, *ONCE[1:]))
    await stage.finish()


async def test_a_fetch_for_a_proven_file_is_for_others_that_are_proven() -> None:
    stage = Stage(is_proven=True)
    assert not stage.fetch.can_serve(ONCE)
    assert stage.fetch.can_serve(ONCE, is_proven=True)


# Closing.


@pytest.mark.parametrize("stops_at", [0, 100, 5 * RECORD_SIZE + 3, NUM_CHUNKS * RECORD_SIZE])
async def test_closing_while_receiving_gives_all_back_at_once(stops_at: int) -> None:
    first = Answer(stops_at=stops_at)
    stage = Stage(first)
    lease = stage.join()
    stage.start()
    await first.has_stopped.wait()
    lease.close()
    stage.fetch.close()
    assert stage.budget.held == 0
    await stage.finish()
    assert stage.source.num_open == 0


async def test_closing_before_the_first_turn_asks_for_nothing() -> None:
    stage = Stage()
    lease = stage.join()
    stage.start()
    await stage.finish(lease)
    assert stage.source.asked == []


async def test_a_fetch_that_waits_for_room_can_be_closed() -> None:
    """It streams, and one slab is all that it has: the first record."""
    xorb = FakeXorb.make([bytes(50_000)] * 3, [Scheme.NONE])
    stage = Stage(xorb=xorb, chunks=ChunkRange(0, 3), uses=(1, 1, 1))
    lease = stage.join()
    before = FETCH_WAITS.total
    assert stage.fetch.start(0, must=True)
    await until(lambda: FETCH_WAITS.total > before)
    assert [stage.fetch.has(chunk) for chunk in range(3)] == [True, False, False]
    await stage.finish(lease)


async def test_who_waits_for_a_chunk_gets_room_for_it() -> None:
    xorb = FakeXorb.make([bytes(50_000)] * 3, [Scheme.NONE])
    stage = Stage(xorb=xorb, chunks=ChunkRange(0, 3), uses=(1, 1, 1))
    lease = stage.join()
    before = FETCH_WAITS.total
    assert stage.fetch.start(0, must=True)
    await until(lambda: FETCH_WAITS.total > before)
    await stage.fetch.wait(2)  # though nobody has used the others
    await stage.finish(lease)


# Imported data, and where chunks come from.


async def test_imported_data_is_for_users_that_prove_all_of_it() -> None:
    stage = Stage(Answer(has_imported=True), takes_imported=True)
    lease = stage.join(takes_imported=True)
    stage.start()
    assert await stage.read(lease, 0) == CHUNKS[0]
    assert stage.source.took_imported == [True]
    uses = (0, *ONCE[1:])
    assert not stage.fetch.can_serve(uses)
    assert stage.fetch.can_serve(uses, takes_imported=True)
    await stage.finish(lease)


async def test_who_joins_while_imported_data_is_opened_gets_better_data() -> None:
    stage = Stage(Answer(has_imported=True), takes_imported=True)
    leases = [stage.join(takes_imported=True)]

    def come() -> None:
        if len(leases) == 1:
            assert stage.fetch.can_serve(ONCE)  # nothing has been taken yet
            leases.append(stage.join(takes_imported=False))

    stage.source.before_open = come
    stage.start()
    await stage.fetch.wait(0)
    assert await stage.read(leases[1]) == CONTENT
    assert stage.source.took_imported == [True, False]
    assert leases[0].tally.upstream_bytes == NUM_CHUNKS * RECORD_SIZE
    await stage.finish(*leases)


async def test_a_hash_is_told_to_the_copy_that_the_whole_record_came_from() -> None:
    stored, storing = Origin(), Origin()
    cut = 4 * RECORD_SIZE + 500  # inside a record: it is from two places, and proof of neither
    stage = Stage(Answer(origins=[(cut, stored), (1 << 30, storing)]))
    lease = stage.join()
    stage.start()
    await stage.fetch.wait(9)
    for chunk in ALL_CHUNKS:
        origin = stage.fetch.get_origin(chunk)
        assert origin is (stored if chunk < 4 else storing if chunk > 4 else None)
        stage.fetch.get_hash(chunk, stage.fetch.decode(chunk))
    assert list(stored.hashes) == [0, 1, 2, 3]
    assert list(storing.hashes) == [5, 6, 7, 8, 9]
    assert stored.hashes[2] == hash_chunk(CHUNKS[2])
    await stage.finish(lease)


@pytest.mark.parametrize("offers", ["less", "none", "an error"])
async def test_a_long_range_that_broke_off_begins_at_the_missing_chunk(
    offers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "MIN_RESUMED", 4 * RECORD_SIZE)
    asked: list[int] = []

    async def resume(first: int) -> FetchInfo | None:
        asked.append(first)
        if offers == "an error":
            raise UpstreamError("the CAS does not answer")
        return make_info(ChunkRange(first - 1, NUM_CHUNKS)) if offers == "less" else None

    stage = Stage(Answer(XORB.packed(make_info().byte_range)[: 7 * RECORD_SIZE + 5]))
    lease = stage.join(resume=resume)
    stage.start()
    assert await stage.read(lease) == CONTENT
    assert asked == [7]
    second = ChunkRange(6, NUM_CHUNKS) if offers == "less" else ALL
    assert [info.chunks for info in stage.source.asked] == [ALL, second]
    await stage.finish(lease)


async def test_a_range_that_broke_off_early_is_not_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch_module, "MIN_RESUMED", 4 * RECORD_SIZE)

    async def resume(first: int) -> FetchInfo | None:
        raise AssertionError

    stage = Stage(Answer(XORB.packed(make_info().byte_range)[: 3 * RECORD_SIZE + 5]))
    lease = stage.join(resume=resume)
    stage.start()
    assert await stage.read(lease) == CONTENT
    await stage.finish(lease)
