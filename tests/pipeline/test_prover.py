"""Files that were cut are proven again in the background, with what others leave."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from tests.fakes import FakeAccess, FakeCas
from tests.pipeline.reading import (
    CONTENT,
    FILE,
    SIZE,
    assert_released,
    damaged,
    make_engine,
    open_reader,
    read_all,
)
from tests.waiting import until
from xetserve.errors import IntegrityError, UpstreamDenied, UpstreamError
from xetserve.pipeline import prover as prover_module
from xetserve.pipeline.engine import Engine
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.verify import ledger as ledger_module
from xetserve.pipeline.verify import ledgers as ledgers_module
from xetserve.pipeline.verify.worker_bus import PLACE_SIZE, WorkerBus
from xetserve.upstream.cas.source import Access
from xetserve.upstream.hub.read_tokens import CasToken
from xetserve.xet.reconstruction import ByteRange, Reconstruction

HASH = FILE.file_hash


class Deniable(FakeAccess):
    """An access that counts its uses, and may be refused."""

    def __init__(self, error: UpstreamError | None = None) -> None:
        super().__init__()
        self.error = error
        self.num_asked = 0

    async def get_token(self) -> CasToken:
        self.num_asked += 1
        if self.error is not None:
            raise self.error
        return await super().get_token()


class AskingCas(FakeCas):
    """A CAS that needs a token."""

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        await access.get_token()
        return await super().fetch_reconstruction(access, file_hash, byte_range)


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers_module, "SUSPECT_SECONDS", 0.0)
    monkeypatch.setattr(prover_module, "FIRST_PAUSE", 0.001)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An engine that has cut an answer with the file, in front of a CAS that is sound now."""
    engine = await make_cut_engine(AskingCas(FILE))
    yield engine
    await engine.aclose()
    assert engine.budget.held == 0


async def make_cut_engine(cas: FakeCas, bus: WorkerBus | None = None) -> Engine:
    engine = make_engine(damaged(), ByteBudget(1 << 27), worker_bus=bus)
    with pytest.raises(IntegrityError):
        await read_all(open_reader(engine, FILE))
    assert engine.is_suspect(HASH)
    engine.fetches.source = cas
    return engine


async def test_a_file_that_was_cut_is_proven_with_the_access_of_the_request(engine: Engine) -> None:
    access = Deniable()
    assert 0 < engine.prove(access, HASH, SIZE) < 1
    await until(lambda: engine.is_proven(HASH))
    assert access.num_asked
    assert not engine.is_suspect(HASH)
    assert engine.prove(access, HASH, SIZE) == 0
    await until(lambda: len(asyncio.all_tasks()) == 1)
    cas = engine.fetches.source
    assert isinstance(cas, FakeCas)
    assert_released(cas, engine.budget)


async def test_equal_requests_have_a_file_read_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(5):
        engine.prove(FakeAccess(), HASH, SIZE)
    await until(lambda: engine.is_proven(HASH))
    engine.prove(FakeAccess(), HASH, SIZE)
    assert caplog.text.count("proving file") == 1


async def test_what_fails_is_tried_again_after_a_pause_but_not_for_ever(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")  # else two of the three are left out
    engine.fetches.source = damaged()
    engine.prove(FakeAccess(), HASH, SIZE)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert caplog.text.count("is not proven, again after") == prover_module.MAX_TRIES
    assert engine.is_suspect(HASH)
    # The next request has it tried again.
    engine.fetches.source = FakeCas(FILE)
    assert engine.prove(FakeAccess(), HASH, SIZE) > 0
    await until(lambda: engine.is_proven(HASH))


async def test_a_refused_access_is_not_used_again_but_another_one_is(engine: Engine) -> None:
    refused = Deniable(UpstreamDenied("no", status=403))
    engine.prove(refused, HASH, SIZE)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert refused.num_asked == 1
    engine.prove(FakeAccess(), HASH, SIZE)
    await until(lambda: engine.is_proven(HASH))
    assert refused.num_asked == 1


async def test_a_file_that_is_too_large_is_left_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prover_module, "MAX_PROVED", SIZE - 1)
    left = engine.prove(FakeAccess(), HASH, SIZE)
    assert left == pytest.approx(ledgers_module.CUT_SECONDS, abs=30)
    assert len(asyncio.all_tasks()) == 1


async def test_parts_of_a_file_without_a_ledger_are_answered_once_all_of_it_was_right(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of the whole drops the first chunks of a large file after folding them."""
    monkeypatch.setattr(ledger_module, "MAX_FILE_MEMORY", 2000)
    monkeypatch.setattr(ledger_module, "FOLDED_AWAY", 5)
    engine.prove(FakeAccess(), HASH, SIZE)
    await until(lambda: not engine.is_suspect(HASH))
    assert not engine.is_proven(HASH)
    assert await read_all(open_reader(engine, FILE, 5, 99)) == CONTENT[5:99]


async def test_closing_ends_a_proof(engine: Engine) -> None:
    class Stuck(Deniable):
        async def get_token(self) -> CasToken:
            self.num_asked += 1
            await asyncio.Event().wait()
            raise AssertionError

    access = Stuck()
    engine.prove(access, HASH, SIZE)
    await until(lambda: access.num_asked)
    await engine.aclose()
    assert len(asyncio.all_tasks()) == 1
    assert engine.budget.num_readers == 0


async def test_a_proof_waits_while_others_need_the_budget(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prover_module, "BUSY_PAUSE", 0.001)
    budget = engine.budget
    async with aclosing(open_reader(engine, FILE)) as other:
        await other.start()
        budget.take(budget.limit)
        engine.prove(FakeAccess(), HASH, SIZE)
        await until(lambda: budget.num_readers == 2)
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert not engine.is_proven(HASH)
        # It holds the least that a reader can meanwhile.
        assert budget.held - budget.limit < 4 << 20
        budget.give(budget.limit)
        await until(lambda: engine.is_proven(HASH))


async def test_one_worker_reads_for_all() -> None:
    places = [memoryview(bytearray(PLACE_SIZE)) for _ in range(2)]
    cas = AskingCas(FILE)
    one = await make_cut_engine(cas, WorkerBus(places, 0))
    other = make_engine(AskingCas(FILE), ByteBudget(1 << 27), worker_bus=WorkerBus(places, 1))
    assert other.is_suspect(HASH)
    one.ledgers.note_proving(HASH, time.monotonic())
    access = Deniable()
    other.prove(access, HASH, SIZE)
    for _ in range(5):
        await asyncio.sleep(0.001)
    assert not access.num_asked
    one.prove(FakeAccess(), HASH, SIZE)
    await until(lambda: one.is_proven(HASH))
    assert not other.is_suspect(HASH)
    for engine in (one, other):
        await engine.aclose()
