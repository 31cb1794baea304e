"""Who is served now, on a clock that the test turns."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from tests.bodies import iter_blocks
from xetserve.app.middleware.admission import Admission, AdmissionLimits
from xetserve.app.middleware.traffic_control import TrafficControl
from xetserve.app.status.active_streams import StreamTable
from xetserve.errors import RequestError
from xetserve.http.messages import Block, Handler, Headers, Request, Response
from xetserve.metrics.catalogue import REQUESTS_REFUSED
from xetserve.net.loop_turns import Turns

RATE = AdmissionLimits(burst=1)


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Body:
    """A body of some blocks; tells whether it was closed."""

    def __init__(self, *sizes: int) -> None:
        self._left = list(sizes)
        self.is_closed = False

    def __aiter__(self) -> AsyncIterator[Block]:
        return self

    async def __anext__(self) -> Block:
        if not self._left:
            raise StopAsyncIteration
        return [bytes(self._left.pop(0))]

    async def aclose(self) -> None:
        self.is_closed = True


class Controlled(Admission):
    """Admission, and the handler that asks it."""

    def __init__(self, handler: Handler, limits: AdmissionLimits, **clock: Any) -> None:
        super().__init__(limits, **clock)
        self.handle = TrafficControl(handler, self, Turns(), StreamTable()).handle


def limits_of(kind: str, rate: float, burst: float = 1) -> AdmissionLimits:
    limits: dict[str, Any] = {kind: rate}
    return AdmissionLimits(burst=burst, **limits)


def ask(path: str = "/x", token: str | None = None, peer: str = "192.0.2.1") -> Request:
    fields = [] if token is None else [("Authorization", f"Bearer {token}")]
    return Request("GET", path, Headers(fields), client=peer)


async def ok(request: Request) -> Response:
    return Response(200, [], b"0123456789")


def retry_after(response: Response) -> str | None:
    return dict(response.headers).get("Retry-After")


async def test_without_limits_everything_passes_unchanged() -> None:
    body = Body(5)

    async def handle(request: Request) -> Response:
        return Response(200, [], body)

    admission = Controlled(handle, AdmissionLimits())
    responses = [await admission.handle(ask()) for _ in range(100)]
    assert {response.status for response in responses} == {200}


# Requests under way


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (AdmissionLimits(max_active=1), "active"),
        (AdmissionLimits(max_with_files=1), "files"),
        (AdmissionLimits(max_active=9, max_with_files=1), "files"),
    ],
)
async def test_a_request_counts_until_its_body_is_closed(
    limits: AdmissionLimits, name: str
) -> None:
    body = Body(1)

    async def handle(request: Request) -> Response:
        return Response(200, [], body)

    admission = Controlled(handle, limits)
    first = await admission.handle(ask())
    before = REQUESTS_REFUSED.values.get((name,), 0)
    second = await admission.handle(ask())
    assert (second.status, retry_after(second)) == (503, "1")
    assert REQUESTS_REFUSED.values[(name,)] == before + 1
    assert await read(first) == [1]
    assert (await admission.handle(ask())).status == 503, "it has ended, but is not closed"
    for _ in range(2):  # closing twice counts once
        await first.aclose()
    assert body.is_closed
    assert admission.num_active == 0
    assert (await admission.handle(ask())).status == 200


async def test_huggingface_hub_waits_for_its_turn() -> None:
    """It gives up a download that is answered with 503, and waits if the status is 429."""

    async def handle(request: Request) -> Response:
        return Response(200, [], Body(1))

    admission = Controlled(handle, AdmissionLimits(max_active=1))
    assert (await admission.handle(ask())).status == 200
    fields = Headers([("User-Agent", "unknown/None; hf_hub/2.4.0")])
    refused = await admission.handle(Request("GET", "/o/n/resolve/main/a", fields))
    assert (refused.status, retry_after(refused)) == (429, "1")


async def test_an_answer_in_memory_counts_until_it_is_made() -> None:
    admission = Controlled(ok, AdmissionLimits(max_active=1))
    for _ in range(3):
        assert (await admission.handle(ask())).status == 200
    assert admission.num_active == 0


@pytest.mark.parametrize("error", [RequestError(404, "no"), ZeroDivisionError()], ids=repr)
async def test_a_handler_that_raises_counts_no_more(error: Exception) -> None:
    async def handle(request: Request) -> Response:
        raise error

    admission = Controlled(handle, AdmissionLimits(max_active=1))
    for _ in range(3):
        with pytest.raises(type(error)):
            await admission.handle(ask())


async def test_a_client_that_leaves_counts_no_more() -> None:
    async def handle(request: Request) -> Response:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    admission = Controlled(handle, AdmissionLimits(max_active=1))
    task = asyncio.ensure_future(admission.handle(ask()))
    await asyncio.sleep(0)
    assert admission.num_active == 1
    task.cancel()
    await asyncio.wait([task])
    assert admission.num_active == 0


@pytest.mark.parametrize("path", ["/health", "/ready", "/ready?x=1"])
async def test_operators_are_always_answered(path: str) -> None:
    async def handle(request: Request) -> Response:
        return Response(200, [], Body(1) if request.target == "/x" else b"ok")

    limits = AdmissionLimits(max_active=1, address_requests=0.001)
    admission = Controlled(handle, limits)
    assert (await admission.handle(ask())).status == 200
    for _ in range(5):
        assert (await admission.handle(ask(path))).status == 200


# Requests a second


@pytest.mark.parametrize("kind", ["token_requests", "address_requests"])
async def test_requests_beyond_the_rate_are_429_until_time_has_passed(kind: str) -> None:
    clock = Clock()
    limits = limits_of(kind, 0.5, burst=4)
    admission = Controlled(ok, limits, clock=clock)
    one = ask(token="hf_one", peer="192.0.2.1")
    other = ask(token="hf_other", peer="192.0.2.2")
    assert [(await admission.handle(one)).status for _ in range(3)] == [200, 200, 429]
    refused = await admission.handle(one)
    assert retry_after(refused) == "2"
    assert (await admission.handle(other)).status == 200
    clock.now += 2
    assert [(await admission.handle(one)).status for _ in range(2)] == [200, 429]


async def test_a_token_is_the_same_from_everywhere_and_an_address_with_every_token() -> None:
    admission = Controlled(ok, replace(RATE, token_requests=1), clock=Clock())
    assert (await admission.handle(ask(token="hf_a", peer="192.0.2.1"))).status == 200
    assert (await admission.handle(ask(token="hf_a", peer="192.0.2.2"))).status == 429
    admission = Controlled(ok, replace(RATE, address_requests=1), clock=Clock())
    assert (await admission.handle(ask(token="hf_a"))).status == 200
    assert (await admission.handle(ask(token="hf_b"))).status == 429
    assert (await admission.handle(ask())).status == 429


async def test_a_refused_request_uses_up_nothing() -> None:
    clock = Clock()
    limits = replace(RATE, token_requests=1, address_requests=2)
    admission = Controlled(ok, limits, clock=clock)
    assert (await admission.handle(ask(token="hf_a"))).status == 200
    for _ in range(10):
        assert (await admission.handle(ask(token="hf_a"))).status == 429
    assert (await admission.handle(ask(token="hf_b"))).status == 200


async def test_a_token_counts_in_whatever_form_it_comes() -> None:
    """git sends the token as the password of a user."""
    admission = Controlled(ok, replace(RATE, token_requests=1), clock=Clock())
    basic = base64.b64encode(b"user:hf_a").decode()
    request = Request("GET", "/x", Headers([("Authorization", f"Basic {basic}")]), client="::1")
    assert [(await admission.handle(request)).status for _ in range(2)] == [200, 429]
    assert (await admission.handle(ask(token="hf_a"))).status == 429


async def test_what_is_no_token_is_limited_by_its_address() -> None:
    limits = replace(RATE, token_requests=1, address_requests=1)
    admission = Controlled(ok, limits, clock=Clock())
    request = Request("GET", "/x", Headers([("Authorization", "Basic x")]), client="192.0.2.1")
    assert [(await admission.handle(request)).status for _ in range(2)] == [200, 429]


async def test_no_token_is_kept() -> None:
    admission = Controlled(ok, replace(RATE, token_requests=1))
    await admission.handle(ask(token="hf_secret"))
    (table,) = [table for table in admission._requests if table is not None]
    assert "hf_secret" not in str(table._buckets.peek_first())


# Bytes a second


async def read(response: Response) -> list[int]:
    return [sum(map(len, block)) async for block in iter_blocks(response)]


@pytest.mark.parametrize("kind", ["token_bytes", "address_bytes"])
async def test_bytes_are_paced(kind: str) -> None:
    clock = Clock()

    async def handle(request: Request) -> Response:
        return Response(200, [], Body(*[100] * 10))

    admission = Controlled(
        handle, limits_of(kind, 100), clock=clock, sleep=clock.sleep
    )  # a burst of one second
    response = await admission.handle(ask(token="hf_a"))
    assert await read(response) == [100] * 10
    # A second's worth is there at first, and the block that empties the bucket is not waited for.
    assert clock.now == pytest.approx(1000 + 9)


async def test_two_bodies_share_the_rate_of_their_client() -> None:
    clock = Clock()

    async def handle(request: Request) -> Response:
        return Response(200, [], Body(*[100] * 5))

    admission = Controlled(handle, replace(RATE, token_bytes=100), clock=clock, sleep=clock.sleep)
    responses = [await admission.handle(ask(token="hf_a")) for _ in range(2)]
    other = await admission.handle(ask(token="hf_b"))
    await asyncio.gather(*map(read, responses))
    assert clock.now == pytest.approx(1000 + 9)
    assert await read(other) == [100] * 5


async def test_many_short_answers_are_paced_like_a_long_one() -> None:
    clock = Clock()

    async def handle(request: Request) -> Response:
        return Response(206, [], Body(100))

    admission = Controlled(handle, replace(RATE, address_bytes=100), clock=clock, sleep=clock.sleep)
    for _ in range(10):
        await read(await admission.handle(ask()))
    assert clock.now == pytest.approx(1000 + 9)


async def test_answers_in_memory_are_charged() -> None:
    clock = Clock()

    async def handle(request: Request) -> Response:
        return Response(200, [], b"x" * 1000 if request.target == "/memory" else Body(1))

    admission = Controlled(handle, replace(RATE, address_bytes=100), clock=clock, sleep=clock.sleep)
    await admission.handle(ask("/memory"))
    await read(await admission.handle(ask()))
    assert clock.now == pytest.approx(1000 + 9.01)


async def test_limits_may_change_while_requests_are_under_way() -> None:
    clock = Clock()
    body = Body(10, 10)

    async def handle(request: Request) -> Response:
        return Response(200, [], body)

    admission = Controlled(handle, AdmissionLimits(), clock=clock, sleep=clock.sleep)
    response = await admission.handle(ask())
    admission.configure(AdmissionLimits(max_active=1, address_requests=1, burst=1))
    assert (await admission.handle(ask())).status == 503
    assert await read(response) == [10, 10]
    await response.aclose()
    assert admission.num_active == 0
    assert (await admission.handle(ask("/x", peer="192.0.2.9"))).status == 200


async def test_limits_that_stay_the_same_leave_the_buckets_as_they_are() -> None:
    async def handle(request: Request) -> Response:
        return Response(200)

    limits = AdmissionLimits(address_requests=1, burst=1)
    clock = Clock()
    admission = Controlled(handle, limits, clock=clock, sleep=clock.sleep)
    assert (await admission.handle(ask())).status == 200
    admission.configure(replace(limits))
    assert (await admission.handle(ask())).status == 429
