"""Whether new clients are welcome."""

import asyncio

import pytest

from tests.waiting import until
from xetserve.app.status import readiness as module
from xetserve.app.status.readiness import (
    CACHE,
    CERTIFICATE,
    FRESH,
    HUB,
    REACHABLE,
    RESULT_TIME,
    Readiness,
)
from xetserve.errors import UpstreamError
from xetserve.metrics.catalogue import DEGRADED, UPSTREAM_LAST_ANSWER


class Stage:
    """A Hub and a cache that do as they are told, and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.hub_error: Exception | None = None
        self.disk_error: Exception | None = None
        self.num_probes = 0
        self.readiness = Readiness(
            probe_hub=self.probe, check_cache=self.check, clock=lambda: self.now
        )

    async def probe(self, timeout: float) -> None:
        self.num_probes += 1
        await asyncio.sleep(0)
        if self.hub_error is not None:
            raise self.hub_error
        UPSTREAM_LAST_ANSWER.set(self.now, "hub")

    async def check(self) -> None:
        if self.disk_error is not None:
            raise self.disk_error

    async def ask(self, later: float = 0.0) -> str | None:
        self.now += later
        obstacles = await self.readiness.find_obstacles()
        for obstacle in obstacles:
            assert obstacle.cause == (CACHE if "cache" in obstacle.reason else HUB)
        return obstacles[0].reason if obstacles else None


@pytest.fixture
def stage() -> Stage:
    UPSTREAM_LAST_ANSWER.set(0, "hub")
    DEGRADED.set(0, HUB)  # another test may have left it
    return Stage()


async def test_a_hub_that_nobody_has_asked_is_asked(stage: Stage) -> None:
    assert await stage.ask() is None
    assert stage.num_probes == 1


async def test_a_hub_that_has_just_answered_is_left_alone(stage: Stage) -> None:
    UPSTREAM_LAST_ANSWER.set(stage.now, "hub")
    assert await stage.ask(FRESH - 1) is None
    assert stage.num_probes == 0
    assert await stage.ask(FRESH) is None
    assert stage.num_probes == 1


async def test_a_hub_that_never_answers_is_an_obstacle(stage: Stage) -> None:
    stage.hub_error = UpstreamError("the Hub: no connection")
    assert await stage.ask() == "the Hub: no connection"


async def test_one_lost_answer_is_none(stage: Stage) -> None:
    assert await stage.ask() is None
    stage.hub_error = UpstreamError("gone")
    assert await stage.ask(FRESH + 1) is None
    assert await stage.ask(REACHABLE) == "gone"
    stage.hub_error = None
    assert await stage.ask(RESULT_TIME) is None


async def test_a_hub_that_hangs_is_an_obstacle(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.01)

    async def hang(timeout: float) -> None:
        await asyncio.get_running_loop().create_future()

    stage.readiness.probe_hub = hang
    assert await stage.ask() == "the Hub did not answer in time"


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), TimeoutError()])
async def test_a_cache_that_takes_nothing_is_an_obstacle(stage: Stage, error: Exception) -> None:
    stage.disk_error = error
    assert await stage.ask() == "the disk cache cannot be written to"


async def test_a_result_holds_for_a_while(stage: Stage) -> None:
    stage.hub_error = UpstreamError("gone")
    assert await stage.ask() == "gone"
    assert await stage.ask(RESULT_TIME - 1) == "gone"
    assert stage.num_probes == 1
    assert await stage.ask(1) == "gone"
    assert stage.num_probes == 2


async def test_many_who_ask_at_once_wait_for_one_look(stage: Stage) -> None:
    assert await asyncio.gather(*(stage.ask() for _ in range(20))) == [None] * 20
    assert stage.num_probes == 1


async def test_one_who_leaves_does_not_take_the_look_along(stage: Stage) -> None:
    first, second = asyncio.create_task(stage.ask()), asyncio.create_task(stage.ask())
    await asyncio.sleep(0)
    first.cancel()
    assert await second is None
    assert stage.num_probes == 1


async def test_each_cause_has_its_gauge(stage: Stage) -> None:
    stage.hub_error, stage.disk_error = UpstreamError("gone"), OSError(28, "No space left")
    found = await stage.readiness.find_obstacles()
    assert [each.cause for each in found] == [HUB, CACHE]
    assert (DEGRADED.get(HUB), DEGRADED.get(CACHE)) == (1, 1)
    stage.hub_error = None
    assert await stage.ask(RESULT_TIME) == "the disk cache has no room"
    assert (DEGRADED.get(HUB), DEGRADED.get(CACHE)) == (0, 1)
    stage.disk_error = None
    assert await stage.ask(RESULT_TIME) is None
    assert (DEGRADED.get(HUB), DEGRADED.get(CACHE)) == (0, 0)


async def test_a_cause_that_the_server_cannot_do_without_comes_first(stage: Stage) -> None:
    stage.readiness.can_do_without = frozenset({HUB})
    stage.hub_error, stage.disk_error = UpstreamError("gone"), OSError(28, "No space left")
    assert await stage.ask() == "the disk cache has no room"


async def test_a_slow_check_does_not_delay_a_known_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load balancers and kubelets wait for a second, a Hub behind a firewall answers nobody."""
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    assert await stage.ask() is None
    answered = asyncio.get_running_loop().create_future()

    async def hang(timeout: float) -> None:
        await answered
        raise UpstreamError("gone")

    stage.readiness.probe_hub = hang
    assert await stage.ask(REACHABLE) is None  # what was last known
    answered.set_result(None)
    for _ in range(5):  # turns of the loop until the check is over
        await asyncio.sleep(0)
    assert await stage.ask() == "gone"


async def test_a_failure_is_looked_at_again_though_nobody_asks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker of several may have said it, and may not be asked again for long."""
    monkeypatch.setattr(module, "RESULT_TIME", 0.0)
    stage.hub_error = UpstreamError("gone")
    watching = asyncio.create_task(stage.readiness.watch())
    try:
        stage.readiness.expect()
        await until(lambda: DEGRADED.get(HUB) == 1)
        stage.hub_error = None
        await until(lambda: DEGRADED.get(HUB) == 0)
        num_probes = stage.num_probes
        for _ in range(20):
            await asyncio.sleep(0)
        assert stage.num_probes == num_probes  # all is well: the Hub is left alone
    finally:
        watching.cancel()


async def test_without_a_certificate_no_client_is_welcome(stage: Stage) -> None:
    has_certificate = False
    stage.readiness.has_certificate = lambda: has_certificate
    stage.disk_error = OSError(28, "No space left on device")
    (obstacle,) = await stage.readiness.find_obstacles()
    assert obstacle == (CERTIFICATE, "there is no TLS certificate yet")
    has_certificate = True
    (obstacle,) = await stage.readiness.find_obstacles()  # at once
    assert obstacle.cause == CACHE
