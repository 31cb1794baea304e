"""Plans that are kept: who gets them, and for how long they are fresh."""

import asyncio
import random
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import FakeAccess, FakeCas, FakeFile, FakeXorb
from xetserve.errors import (
    IntegrityError,
    RangeUnsatisfiable,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamOffline,
    UrlExpired,
)
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.upstream.answers.backoff import DOWN_TIME
from xetserve.upstream.answers.cache import AnswerCache, AnswerPolicy
from xetserve.upstream.answers.folder import IMPORTED
from xetserve.upstream.answers.scope import ANONYMOUS, get_scope
from xetserve.upstream.answers.store import AnswerStore
from xetserve.upstream.answers.stored_file import Stored, pack_file, unpack_file
from xetserve.upstream.cas import reconstruction_archive
from xetserve.upstream.cas.cached_reconstructions import CachedReconstructions
from xetserve.upstream.cas.reconstruction_archive import (
    STORED_URL,
    _without_urls,
    make_plan_folder,
    pack_plan,
)
from xetserve.upstream.hub.read_tokens import CasToken
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.merge import Part, join_parts
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction

SOURCE = random.Random(4)
XORB = FakeXorb.make([SOURCE.randbytes(50_000) for _ in range(60)])
FILE = FakeFile([(XORB, ChunkRange(0, 60)), (XORB, ChunkRange(3, 9))])
SIZE = len(FILE.content)
FIRST = ByteRange(0, 1_000_000)


@dataclass
class Access(FakeAccess):
    """Somebody's right to read a repository; the Hub may take it back."""

    scope: str = get_scope("hf_mine")
    repo_name: str = "model/o/n"
    error: UpstreamError | None = None

    async def get_token(self) -> CasToken:
        if self.error is not None:
            raise self.error
        return await super().get_token()


@dataclass
class Cas(FakeCas):
    """A CAS that may be in trouble."""

    error: UpstreamError | None = None

    async def fetch_reconstruction(
        self, access: object, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        if self.error is not None:
            self.asked.append(byte_range)
            raise self.error
        return await super().fetch_reconstruction(FakeAccess(), file_hash, byte_range)


class World:
    """Plans in front of a CAS, a clock, and a folder."""

    def __init__(self, folder: Path) -> None:
        self.cas = Cas(FILE)
        self.now = 1_000_000.0
        self._folder = folder
        self._made: list[AnswerCache] = []
        self.start()

    def start(self, **policy: float | bool) -> None:
        store = AnswerStore(self._folder / "meta", max_size=1 << 24, max_pending=1 << 24)
        policy_ = AnswerPolicy(**policy)  # type: ignore[arg-type]
        self.metadata = AnswerCache(policy_, store, "", lambda: self.now)
        self._made.append(self.metadata)
        self.plans = CachedReconstructions(self.cas, self.metadata)

    async def restart(self, **policy: float | bool) -> None:
        await self.metadata.aclose()
        self.start(**policy)

    async def aclose(self) -> None:
        for made in self._made:
            await made.aclose()

    async def ask(self, asked: ByteRange = FIRST, access: object = None) -> Reconstruction:
        given = Access() if access is None else access
        return await self.plans.fetch_reconstruction(
            given,  # type: ignore[arg-type]
            FILE.file_hash,
            asked,
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    await made.aclose()


def without_urls(answer: Reconstruction) -> Reconstruction:
    infos = {
        name: tuple(info._replace(url="") for info in found)
        for name, found in answer.fetch_info.items()
    }
    return answer._replace(fetch_info=infos)


async def test_many_terms_are_joined_beside_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await world.ask()
    threads = []

    def join(parts: Sequence[Part], asked: ByteRange) -> Reconstruction | None:
        threads.append(threading.get_ident())
        return join_parts(parts, asked)

    monkeypatch.setattr(reconstruction_archive, "join_parts", join)
    monkeypatch.setattr(reconstruction_archive, "MAX_TERMS_AT_ONCE", 0)
    await world.restart(is_offline=True)
    assert without_urls(await world.ask()) == without_urls(expected)
    assert threads
    assert threading.get_ident() not in threads


class TestFresh:
    async def test_equal_questions_are_asked_once(self, world: World) -> None:
        found = await asyncio.gather(*(world.ask() for _ in range(20)))
        assert world.cas.asked == [FIRST]
        assert all(answer == found[0] for answer in found)
        world.now += 29
        assert await world.ask() == found[0]
        world.now += 2
        await world.ask()
        assert world.cas.asked == [FIRST, FIRST]

    async def test_what_is_too_large_to_keep_is_given_all_the_same(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = await world.ask()
        await world.restart()
        monkeypatch.setattr(reconstruction_archive, "MAX_STORED_SIZE", 100)
        found = await asyncio.gather(*(world.ask() for _ in range(3)))
        assert [without_urls(answer) for answer in found] == [without_urls(expected)] * 3
        assert len(world.cas.asked) == 4  # each for itself

    async def test_another_token_or_repository_asks_itself(self, world: World) -> None:
        for access in (Access(), Access(scope=ANONYMOUS), Access(repo_name="model/o/m")):
            await world.ask(access=access)
        assert world.cas.asked == [FIRST] * 3

    async def test_access_of_which_nothing_is_known(self, world: World) -> None:
        for _ in range(2):
            await world.ask(access=FakeAccess())
        assert world.cas.asked == [FIRST] * 2

    async def test_the_hubs_word_is_asked_for_all_the_same(self, world: World) -> None:
        await world.ask()
        with pytest.raises(UpstreamDenied):
            await world.ask(access=Access(error=UpstreamDenied("no", status=403)))

    async def test_urls_that_ran_out_are_not_given_again(self, world: World) -> None:
        await world.ask()

        def refuse(count: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
            raise UrlExpired("403")

        world.cas.on_data = refuse
        info = (await world.ask()).fetch_info[XORB.xorb_hash][0]
        with pytest.raises(UrlExpired):
            async with world.plans.open_data(XORB.xorb_hash, info):
                pass
        again = (await world.ask()).fetch_info[XORB.xorb_hash][0]
        assert again.url != info.url
        assert world.cas.asked == [FIRST] * 2

    async def test_a_file_that_is_none_says_nothing_of_others(self, world: World) -> None:
        await world.ask()
        world.cas.error = UpstreamMissing("no such file")
        for _ in range(2):
            with pytest.raises(UpstreamMissing):
                await world.plans.fetch_reconstruction(Access(), bytes(32), FIRST)
        assert len(world.cas.asked) == 2
        await world.ask()
        assert len(world.cas.asked) == 2


class TestStored:
    async def test_offline_any_range_of_what_was_asked_for(self, world: World) -> None:
        size = 400_000
        for start in range(0, SIZE, size):
            await world.ask(ByteRange(start, min(start + size, SIZE)))
        count = len(world.cas.asked)
        await world.restart(is_offline=True)
        for start, end in ((0, 1), (0, SIZE), (777_777, 1_888_888), (SIZE - 1, SIZE)):
            answer = await world.ask(ByteRange(start, end))
            assert answer.decoded_size >= end - start
            urls = {info.url for found in answer.fetch_info.values() for info in found}
            assert urls == {STORED_URL}
        assert len(world.cas.asked) == count

    async def test_offline_what_was_not(self, world: World) -> None:
        await world.ask(FIRST)
        await world.restart(is_offline=True)
        with pytest.raises(UpstreamOffline):
            await world.ask(ByteRange(0, 2_000_000))

    async def test_offline_for_whom_it_was_given_to(self, world: World) -> None:
        mine = await world.ask()
        await world.restart(is_offline=True)
        assert without_urls(await world.ask()) == without_urls(mine)
        for access in (
            Access(scope=get_scope("hf_other")),
            Access(scope=ANONYMOUS),
            Access(repo_name="model/o/m"),
        ):
            with pytest.raises(UpstreamOffline):
                await world.ask(access=access)

    async def test_offline_what_is_public_is_for_all(self, world: World) -> None:
        await world.ask(access=Access(scope=ANONYMOUS))
        await world.restart(is_offline=True)
        await world.ask(access=Access(scope=get_scope("hf_other")))

    async def test_the_end_of_a_file_is_remembered(self, world: World) -> None:
        beyond = ByteRange(SIZE - 1, SIZE + 100)
        await world.ask(beyond)
        await world.restart(is_offline=True)
        assert (await world.ask(beyond)).decoded_size == 1
        with pytest.raises(RangeUnsatisfiable):
            await world.ask(ByteRange(SIZE, SIZE + 100))

    async def test_so_is_one_that_was_asked_beyond(self, world: World) -> None:
        await world.ask(ByteRange(0, SIZE))
        with pytest.raises(RangeUnsatisfiable):
            await world.ask(ByteRange(SIZE, SIZE + 100))
        await world.restart(is_offline=True)
        with pytest.raises(RangeUnsatisfiable):
            await world.ask(ByteRange(SIZE, SIZE + 100))

    async def test_no_url_is_on_disk(self, world: World, tmp_path: Path) -> None:
        await world.ask()
        await world.metadata.aclose()
        stored = b"".join(read_all(tmp_path))
        assert b"terms" in stored
        assert b"data.test" not in stored

    async def test_what_the_cas_refuses_is_forgotten(self, world: World) -> None:
        await world.ask()
        world.cas.error = UpstreamDenied("no", status=403)
        world.now += 31
        with pytest.raises(UpstreamDenied):
            await world.ask()
        await world.restart(is_offline=True)
        with pytest.raises(UpstreamOffline):
            await world.ask()

    async def test_offline_no_data_host_is_asked(self, world: World) -> None:
        info = (await world.ask()).fetch_info[XORB.xorb_hash][0]
        await world.restart(is_offline=True)
        with pytest.raises(UpstreamOffline):
            async with world.plans.open_data(XORB.xorb_hash, info):
                pass
        assert world.cas.fetched == []


class TestSmallRanges:
    async def test_a_chunk_is_stored_once_whatever_was_asked_of_it(
        self, world: World, tmp_path: Path
    ) -> None:
        positions = range(0, 500_000, 2500)
        chunks = set()
        for position in positions:
            answer = await world.ask(ByteRange(position, position + 1))
            chunks |= {term.chunks for term in answer.terms}
        await world.restart(is_offline=True)
        stored = list((tmp_path / "meta/plans").rglob("*-*"))
        assert 5 <= len(stored) <= len(chunks) < len(positions) // 5
        for position in positions:
            found = await world.ask(ByteRange(position, position + 1))
            assert found.decoded_size > 0

    async def test_what_is_not_much_smaller_than_what_is_stored_adds_nothing(
        self, world: World, tmp_path: Path
    ) -> None:
        await world.ask(ByteRange(0, 100_000))
        before = sorted((tmp_path / "meta/plans").rglob("*-*"))
        for end in range(99_000, 40_000, -1000):
            await world.ask(ByteRange(0, end))
        assert world.metadata.store is not None
        await world.metadata.store.settle()
        assert len(sorted((tmp_path / "meta/plans").rglob("*-*"))) - len(before) <= 1


async def test_stored_plans_lead_nowhere(world: World, tmp_path: Path) -> None:
    """Whoever has planted one in the folder."""
    await world.ask()
    await world.metadata.aclose()
    (path,) = (tmp_path / "meta/plans").rglob("*-*")
    name = path.relative_to(tmp_path / "meta").as_posix()
    stored = unpack_file(name, path.read_bytes())
    assert stored is not None
    body = stored.body.replace(STORED_URL.encode(), b"http://169.254.169.254/")
    assert body != stored.body
    path.write_bytes(pack_file(name, stored._replace(body=body)))
    world.start(is_offline=True)
    found = await world.ask()
    assert {info.url for infos in found.fetch_info.values() for info in infos} == {STORED_URL}


class TestStale:
    async def test_when_the_cas_is_in_trouble(self, world: World) -> None:
        await world.restart(stale_for=100)
        fresh = await world.ask()
        world.now += 31
        world.cas.error = UpstreamError("down")
        assert without_urls(await world.ask()) == without_urls(fresh)
        assert len(world.cas.asked) == 2
        await world.ask()
        assert len(world.cas.asked) == 2  # known to be down
        world.now += DOWN_TIME + 1
        world.cas.error = None
        assert await world.ask() == await world.ask()
        assert len(world.cas.asked) == 3

    async def test_when_the_hub_is(self, world: World) -> None:
        await world.restart(stale_for=100)
        await world.ask()
        world.now += 31
        await world.ask(access=Access(error=UpstreamError("down")))
        assert len(world.cas.asked) == 1

    async def test_not_when_the_permission_is_too_old(self, world: World) -> None:
        await world.restart(stale_for=10, stale_permission=100)
        await world.ask()
        world.now += 101
        world.cas.error = UpstreamError("down")
        with pytest.raises(UpstreamError, match="down"):
            await world.ask()

    async def test_not_when_it_is_not_wanted(self, world: World) -> None:
        await world.ask()
        world.now += 31
        world.cas.error = UpstreamError("down")
        with pytest.raises(UpstreamError, match="down"):
            await world.ask()


class TestImported:
    """How a file is built, as whoever has made an archive has written it."""

    EVIL = FakeXorb.make([SOURCE.randbytes(50_000) for _ in range(60)])

    async def bring(self, world: World, folder: Path, plan: Reconstruction) -> None:
        """Put a plan of the whole file where imports put it; the token may read the file."""
        await world.ask(ByteRange(0, 1000))
        await world.metadata.aclose()
        path = f"{make_plan_folder(FILE.file_hash)}/0-{SIZE}"
        target = folder / "meta" / IMPORTED / path
        target.parent.mkdir(parents=True)
        packed = await pack_plan(_without_urls(plan))
        assert packed is not None
        target.write_bytes(pack_file(path, Stored(0.0, packed)))

    async def bring_wrong_one(self, world: World, folder: Path) -> DiskCache:
        """Give a cache in which all chunks that the plan names are right for their xorb."""
        evil = FakeFile([(self.EVIL, ChunkRange(0, 60)), (self.EVIL, ChunkRange(3, 9))])
        plan = await FakeCas(evil).fetch_reconstruction(
            FakeAccess(), evil.file_hash, ByteRange(0, SIZE)
        )
        await self.bring(world, folder, plan)
        cache = DiskCache(FakeCas(evil), folder / "cache", max_size=1 << 30, min_free=0)
        await cache.start()
        assert await read(cache, file=evil) == evil.content
        await cache.settle()
        await cache.aclose()
        assert list((folder / "cache").glob("??/*/*.proven.xc"))
        return DiskCache(world.plans, folder / "cache", max_size=1 << 30, min_free=0)

    async def test_no_range_is_read_by_a_wrong_plan(self, world: World, tmp_path: Path) -> None:
        cache = await self.bring_wrong_one(world, tmp_path)
        world.start(is_offline=True)
        cache = DiskCache(world.plans, tmp_path / "cache", max_size=1 << 30, min_free=0)
        await cache.start()
        with pytest.raises(UpstreamOffline, match="only an archive says"):
            await read(cache, 2_000_000, 2_100_000)
        with pytest.raises(IntegrityError):
            await read(cache)
        await cache.aclose()

    async def test_online_it_says_nothing_in_time_of_trouble(
        self, world: World, tmp_path: Path
    ) -> None:
        await self.bring_wrong_one(world, tmp_path)
        world.start(stale_for=1000)
        world.cas.error = UpstreamError("down")
        cache = DiskCache(world.plans, tmp_path / "cache", max_size=1 << 30, min_free=0)
        await cache.start()
        with pytest.raises(UpstreamError, match="down"):
            await read(cache, 2_000_000, 2_100_000)
        await cache.aclose()

    async def test_a_right_one_serves_ranges_once_it_is_proven(
        self, world: World, tmp_path: Path
    ) -> None:
        cache = DiskCache(world.plans, tmp_path / "cache", max_size=1 << 30, min_free=0)
        await cache.start()
        assert await read(cache) == FILE.content
        await cache.settle()
        await cache.aclose()
        plan = await world.ask(ByteRange(0, SIZE))
        shutil.rmtree(tmp_path / "meta/plans")
        await world.restart()
        await self.bring(world, tmp_path, plan)
        world.start(is_offline=True)
        cache = DiskCache(world.plans, tmp_path / "cache", max_size=1 << 30, min_free=0)
        await cache.start()
        engine = make_engine(cache)
        with pytest.raises(UpstreamOffline, match="only an archive says"):
            await read(cache, 2_000_000, 2_100_000, engine=engine)
        assert await read(cache, engine=engine) == FILE.content
        expected = FILE.content[2_000_000:2_100_000]
        assert await read(cache, 2_000_000, 2_100_000, engine=engine) == expected
        await cache.aclose()

    async def test_what_was_seen_of_the_end_here_counts_more(
        self, world: World, tmp_path: Path
    ) -> None:
        await world.ask(ByteRange(SIZE - 1, SIZE + 100))
        await self.bring(world, tmp_path, await world.ask(ByteRange(0, SIZE)))
        path = f"{make_plan_folder(FILE.file_hash)}/end-5"
        (tmp_path / "meta" / IMPORTED / path).write_bytes(pack_file(path, Stored(0.0, b"")))
        world.start(is_offline=True)
        assert (await world.ask(ByteRange(0, SIZE))).decoded_size == SIZE


@pytest.mark.parametrize("window", [200_000, 1_000_000, 10_000_000])
async def test_a_stored_file_is_read_and_proven(world: World, tmp_path: Path, window: int) -> None:
    """Whatever was asked for before, a reader offline gets the file out of the disk cache."""
    cache = DiskCache(world.plans, tmp_path / "cache", max_size=1 << 30, min_free=0)
    await cache.start()
    assert await read(cache) == FILE.content
    for start in range(0, SIZE, window):
        await world.ask(ByteRange(start, min(start + window, SIZE)))
    await cache.settle()
    await cache.aclose()
    asked, fetched = len(world.cas.asked), len(world.cas.fetched)
    await world.restart(is_offline=True)
    cache = DiskCache(world.plans, tmp_path / "cache", max_size=1 << 30, min_free=0)
    await cache.start()
    assert await read(cache) == FILE.content
    assert await read(cache, 1_234_567, 2_345_678) == FILE.content[1_234_567:2_345_678]
    assert (len(world.cas.asked), len(world.cas.fetched)) == (asked, fetched)
    await cache.aclose()


def make_engine(cache: DiskCache) -> Engine:
    policy = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.1)
    limits = ReadLimits(stall_timeout=5.0, gap_timeout=5.0)
    return Engine(cache, ByteBudget(1 << 26), policy=policy, limits=limits)


async def read(
    cache: DiskCache,
    start: int = 0,
    end: int | None = None,
    *,
    file: FakeFile = FILE,
    engine: Engine | None = None,
) -> bytes:
    used = engine or make_engine(cache)
    reader = used.read(Access(), file.file_hash, start=start, end=end, size=SIZE)
    found = b""
    async for block in reader:
        found += b"".join(block)
    assert reader.is_verified or end is not None
    return found


def read_all(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
