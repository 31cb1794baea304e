"""Memory for large reconstructions, and their reading in turns of the loop."""

import asyncio
import json
from collections.abc import Generator

import pytest

from tests.peers import Received, ScriptedPeer, answering, http_answer, open_pool
from tests.upstream.cas.answers import HASH, PLAN, POLICY, Access
from tests.waiting import PATIENCE, until
from xetserve.errors import UpstreamBusy, UpstreamTooLarge
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.upstream.cas import client as cas_module
from xetserve.upstream.cas.client import CasClient
from xetserve.upstream.cas.reconstruction_budget import (
    FREE_READ_SIZE,
    FREE_SIZE,
    JSON_COST,
    ReconstructionBudget,
    estimate_size,
)
from xetserve.upstream.slices import run_slices
from xetserve.xet.reconstruction import MAX_TERMS, ByteRange, Reconstruction, to_v2

ASKED = ByteRange(0, 1000)


def make_large(num_terms: int) -> Reconstruction:
    return PLAN._replace(terms=PLAN.terms * num_terms)


def dump(plan: Reconstruction) -> bytes:
    return json.dumps(to_v2(plan)).encode()


def test_one_holder_may_always_go_on_others_if_there_is_room() -> None:
    budget = ByteBudget(FREE_SIZE)
    reconstructions = ReconstructionBudget(budget)
    with (
        reconstructions.reserve() as first,
        reconstructions.reserve() as second,
        reconstructions.reserve() as small,
    ):
        for _ in range(10):
            first.grow(FREE_SIZE)
        assert (first.size, reconstructions.held, budget.held) == (
            10 * FREE_SIZE,
            9 * FREE_SIZE,
            9 * FREE_SIZE,
        )
        small.grow(FREE_SIZE)
        with pytest.raises(UpstreamBusy):
            second.grow(FREE_SIZE + 1)
        first.release()
        second.grow(3 * FREE_SIZE)
        assert budget.held == 2 * FREE_SIZE
    assert (reconstructions.held, budget.held) == (0, 0)


def test_others_share_what_there_is() -> None:
    reconstructions = ReconstructionBudget(ByteBudget(10 * FREE_SIZE))
    with reconstructions.reserve() as first, reconstructions.reserve() as second:
        first.grow(5 * FREE_SIZE)
        second.grow(5 * FREE_SIZE)
        with pytest.raises(UpstreamBusy):
            first.grow(3 * FREE_SIZE)


async def test_windows_of_plain_reads_need_no_room() -> None:
    """A window of 32 MiB in terms of 20 KiB, while file data takes all of the budget."""
    budget = ByteBudget(1 << 20)
    budget.take(1 << 20)
    plan = PLAN._replace(terms=PLAN.terms * 1600)
    async with open_pool() as pool, ScriptedPeer(answering(http_answer(200, dump(plan)))) as peer:
        reconstructions = ReconstructionBudget(budget, FREE_READ_SIZE)
        cas = CasClient(pool, timeout=PATIENCE, policy=POLICY, budget=reconstructions)
        asked = [cas.fetch_reconstruction(Access(peer.base), HASH, ASKED) for _ in range(20)]
        assert await asyncio.gather(*asked) == [plan] * 20
    assert budget.held == 1 << 20


def test_a_size_counts_every_url_once() -> None:
    one, many = estimate_size(PLAN), estimate_size(make_large(1000))
    assert 500 < one < 2000
    assert many > 200 * 1000


async def test_slices_let_others_have_their_turn() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def steps() -> Generator[None, None, int]:
        for _ in range(50):
            yield
        return turns

    task = asyncio.create_task(others())
    assert await run_slices(steps()) >= 49
    task.cancel()


async def test_a_large_answer_is_counted_while_it_is_read() -> None:
    body = dump(make_large(5000))
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    budget = ByteBudget(1 << 20)
    gone = asyncio.Event()

    def answer(request: Received) -> bytes:
        return head + (body if gone.is_set() else body[:-1])

    async with open_pool() as pool, ScriptedPeer(answering(answer)) as peer:
        cas = CasClient(pool, timeout=PATIENCE, policy=POLICY, budget=ReconstructionBudget(budget))
        held = len(body) * JSON_COST - FREE_SIZE
        first = asyncio.create_task(cas.fetch_reconstruction(Access(peer.base), HASH, ASKED))
        await until(lambda: budget.held >= held - JSON_COST)
        with pytest.raises(UpstreamBusy):
            await cas.fetch_reconstruction(Access(peer.base), HASH, ASKED)
        first.cancel()
        await asyncio.wait([first])
        assert budget.held == 0
        gone.set()
        found = await cas.fetch_reconstruction(Access(peer.base), HASH, ASKED)
        assert len(found.terms) == 5000
        assert budget.held == 0


@pytest.mark.parametrize("by_size", [False, True])
async def test_an_answer_that_is_too_large_is_asked_for_once(
    by_size: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_size:
        monkeypatch.setattr(cas_module, "MAX_RECONSTRUCTION_SIZE", 1000)
    body = dump(make_large(100 if by_size else MAX_TERMS + 1))
    async with open_pool() as pool, ScriptedPeer(answering(http_answer(200, body))) as peer:
        cas = CasClient(pool, timeout=PATIENCE, policy=POLICY)
        with pytest.raises(UpstreamTooLarge, match="more than"):
            await cas.fetch_reconstruction(Access(peer.base), HASH, ASKED)
        assert len(peer.requests) == 1
