"""What all request bodies hold together: counted, granted in order, refused where nothing moves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.peers import RawClient, connected, serving, turn
from tests.waiting import until
from xetserve.errors import RequestError
from xetserve.http.messages import Request, Response
from xetserve.metrics.catalogue import REQUESTS_REFUSED
from xetserve.net.body_budget import SLOW_RATE, BodyBudget, BodyLease

HOUR = 3600.0
HEAD = b"POST / HTTP/1.1\r\nHost: h\r\n"
POST = HEAD + b"Content-Length: %d\r\n\r\n"


@contextlib.asynccontextmanager
async def taking(
    budget: BodyBudget, size: int, client: str = ""
) -> AsyncIterator["asyncio.Task[None]"]:
    """Somebody who wants room, in a task that has begun."""
    task = asyncio.ensure_future(budget.take(size, client))
    await turn()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def read_slowly(lease: BodyLease, size: int, received: int) -> None:
    """Hold room for a body of which no more comes."""
    async with lease.hold(size):
        lease.received = received
        await asyncio.get_running_loop().create_future()


async def test_there_is_room_until_it_is_taken_and_again_when_it_is_given_back() -> None:
    budget = BodyBudget(100)
    await budget.take(60)
    await budget.take(40)
    async with taking(budget, 30) as task:
        assert not task.done()
        budget.give(40)
        await task
    assert budget.held == 90


async def test_those_that_leave_the_queue_are_not_searched_for() -> None:
    compared = 0

    class Size(int):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) == other

        __hash__ = int.__hash__

    budget = BodyBudget(100)
    await budget.take(100)
    tasks = [asyncio.ensure_future(budget.take(Size(50))) for _ in range(200)]
    await turn()
    for task in reversed(tasks):
        task.cancel()
    await asyncio.wait(tasks)
    assert compared <= len(tasks)
    budget.give(100)
    await budget.take(100)


async def test_room_that_becomes_free_when_the_one_that_waits_is_just_leaving() -> None:
    budget = BodyBudget(100)
    await budget.take(100)
    async with taking(budget, 80) as leaving, taking(budget, 70) as other:
        leaving.cancel()
        budget.give(100)  # it has not heard of it yet
        await other
        assert leaving.cancelled()
        assert budget.held == 70


async def test_who_came_first_goes_first_and_small_ones_do_not_pass() -> None:
    budget = BodyBudget(100)
    await budget.take(90)
    async with taking(budget, 50) as first, taking(budget, 50) as second, taking(budget, 5) as last:
        await budget.take(0)
        assert not last.done(), "there is room for it, but others wait"
        budget.give(40)
        await first
        assert not second.done()
        budget.give(50)
        await second
        assert not last.done()
        budget.give(50)
        await last
    assert budget.held == 55


async def test_a_wait_that_is_cancelled_leaves_nothing_behind() -> None:
    budget = BodyBudget(100)
    await budget.take(90)
    async with taking(budget, 50), taking(budget, 10) as behind:
        assert not behind.done()
    assert (budget.held, repr(budget)) == (90, "<BodyBudget 90 of 100, 0 waiting>")
    async with taking(budget, 50) as task:
        budget.give(90)  # granted, and cancelled before it knows
        task.cancel()
        await asyncio.wait((task,))
    assert budget.held == 0


async def test_one_that_gives_up_lets_those_behind_it_go_on() -> None:
    budget = BodyBudget(100)
    await budget.take(90)
    async with taking(budget, 50) as first, taking(budget, 10) as second:
        first.cancel()
        await second
    assert budget.held == 100


async def test_a_body_holds_what_it_may_become_and_then_what_it_is() -> None:
    budget = BodyBudget(100)
    lease = BodyLease(budget)
    async with lease.hold(80):
        assert budget.held == 80
        lease.received = 30
    assert budget.held == 30
    lease.release()
    lease.release()
    assert budget.held == 0


async def test_a_body_that_fails_holds_nothing() -> None:
    budget = BodyBudget(100)
    with pytest.raises(RequestError):
        async with BodyLease(budget).hold(80):
            raise RequestError(400, "malformed")
    assert (budget.held, budget.receiving) == (0, set())


async def test_without_room_in_time_it_is_503_and_says_when_to_come_again() -> None:
    before = REQUESTS_REFUSED.values[("bodies",)]
    budget = BodyBudget(100, wait=0.01)
    await budget.take(100)
    with pytest.raises(RequestError) as caught:
        async with BodyLease(budget).hold(1):
            pytest.fail("there is no room")
    assert (caught.value.status, caught.value.headers) == (503, (("Retry-After", "1"),))
    assert REQUESTS_REFUSED.values[("bodies",)] == before + 1
    assert budget.held == 100


async def test_clients_get_room_in_rotation() -> None:
    budget = BodyBudget(100)
    await budget.take(100)
    async with (
        taking(budget, 50, "many") as first,
        taking(budget, 50, "many") as second,
        taking(budget, 50, "one") as other,
    ):
        budget.give(50)
        await first
        budget.give(50)
        await other
        assert not second.done()
        budget.give(50)
        await second


async def test_while_others_wait_the_slowest_body_is_refused() -> None:
    budget = BodyBudget(100, wait=HOUR, stall=0.01)
    slow = asyncio.ensure_future(read_slowly(BodyLease(budget), 50, 100 * SLOW_RATE))
    fast = asyncio.ensure_future(read_slowly(BodyLease(budget), 50, 1000 * SLOW_RATE))
    await turn(2)
    async with taking(budget, 10) as task:
        await task
    with pytest.raises(RequestError) as caught:
        await slow
    assert caught.value.status == 503
    assert (fast.done(), budget.held) == (False, 60)
    fast.cancel()
    await asyncio.wait((fast,))
    assert budget.held == 10


async def test_while_others_wait_all_bodies_are_refused_that_hardly_come() -> None:
    budget = BodyBudget(100, wait=HOUR, stall=0.01)
    idle = [asyncio.ensure_future(read_slowly(BodyLease(budget), 20, 0)) for _ in range(4)]
    fast = asyncio.ensure_future(read_slowly(BodyLease(budget), 20, 1000 * SLOW_RATE))
    await turn(2)
    async with taking(budget, 80) as task:
        await task
    assert budget.held == 100
    for each in idle:
        with pytest.raises(RequestError):
            await each
    assert not fast.done()
    fast.cancel()
    await asyncio.wait((fast,))


async def test_a_body_that_has_just_begun_is_not_a_slow_one() -> None:
    budget = BodyBudget(100, wait=HOUR, stall=HOUR)
    old = asyncio.ensure_future(read_slowly(BodyLease(budget), 50, 100_000 * SLOW_RATE))
    new = asyncio.ensure_future(read_slowly(BodyLease(budget), 50, 0))
    await turn(2)
    async with taking(budget, 10):
        budget.refuse_slow(HOUR / 2 + asyncio.get_running_loop().time())
        await turn(2)
        assert (old.done(), new.done()) == (False, False)
        budget.refuse_slow(2 * HOUR + asyncio.get_running_loop().time())
        await turn(2)
        assert (old.done(), new.done()) == (False, True)
    old.cancel()
    await asyncio.wait((old, new))


class TestConnections:
    async def test_a_body_counts_until_its_request_is_answered(self) -> None:
        may_answer = asyncio.Event()
        budget = BodyBudget(1 << 20)

        async def handle(request: Request) -> Response:
            body = await request.body.read(1 << 19)
            await may_answer.wait()
            return Response(200, [], b"%d" % len(body))

        async with serving(handle, bodies=budget) as listener, connected(listener.port) as client:
            await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await until(lambda: budget.held == 1 << 19)
            await client.send(b"0\r\n\r\n")
            await until(lambda: budget.held == 3)
            may_answer.set()
            assert (await client.read_answer())[2] == b"3"
            await until(lambda: budget.held == 0)

    async def test_a_client_that_reads_slowly_keeps_no_room(self) -> None:
        budget = BodyBudget(1 << 20)

        async def handle(request: Request) -> Response:
            await request.body.read(1 << 19)
            return Response(200, [], bytes(32 << 20))

        async with serving(handle, bodies=budget) as listener, connected(listener.port) as client:
            await client.send(POST % 100_000 + bytes(99_999))
            await until(lambda: budget.held == 100_000)
            await client.send(b"x")
            await until(lambda: budget.held == 0)
            assert listener.num_connections == 1, "it has not read its answer"

    @pytest.mark.parametrize("leaving", ["waiting for more", "waiting for room", "being served"])
    async def test_a_client_that_leaves_holds_nothing(self, leaving: str) -> None:
        budget = BodyBudget(100_000, wait=HOUR, stall=HOUR)
        is_read = asyncio.Event()

        async def handle(request: Request) -> Response:
            await request.body.read(1 << 20)
            is_read.set()
            await asyncio.get_running_loop().create_future()
            return Response(200)

        others = 60_000 if leaving == "waiting for room" else 0
        await budget.take(others)
        async with serving(handle, bodies=budget) as listener, connected(listener.port) as client:
            await client.send(POST % 50_000 + bytes(20_000))
            if leaving == "waiting for room":
                await until(lambda: "1 waiting" in repr(budget))
            else:
                await until(lambda: budget.held == 50_000)
            if leaving == "being served":
                await client.send(bytes(30_000))
                await is_read.wait()
            client.reset()
            await until(lambda: not listener.num_connections)
        assert budget.held == others

    async def test_one_without_room_is_503_and_one_that_can_never_fit_413(self) -> None:
        budget = BodyBudget(100_000, wait=0.01, stall=HOUR)
        await budget.take(50_000)

        async def handle(request: Request) -> Response:
            return Response(200, [], await request.body.read(1 << 20))

        async def ask(client: RawClient, size: int) -> tuple[int, dict[str, str], bytes]:
            await client.send(POST % size + bytes(min(size, 60_000)))
            return await client.read_answer()

        async with serving(handle, bodies=budget) as listener:
            async with connected(listener.port) as client:
                assert (await ask(client, 10))[0] == 200
                status, headers, _ = await ask(client, 60_000)
                assert (status, headers["retry-after"]) == (503, "1")
                assert (await ask(client, 10))[0] == 200
            async with connected(listener.port) as client:
                assert (await ask(client, 100_001))[0] == 413
        assert budget.held == 50_000

    async def test_a_length_above_the_limit_is_refused_before_it_is_sent(self) -> None:
        async def handle(request: Request) -> Response:
            return Response(200, [], await request.body.read(10))

        async with serving(handle) as listener, connected(listener.port) as client:
            await client.send((POST % 11)[:-2] + b"Expect: 100-continue\r\n\r\n")
            assert (await client.read_answer())[0] == 413
