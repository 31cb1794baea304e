"""Large files found by sha256 in the Hub's listing."""

import asyncio
import json
from collections.abc import Sequence

import pytest

from tests.peers import Answer, Received, ScriptedPeer, answering, http_answer, open_pool
from tests.waiting import PATIENCE, until
from xetserve.errors import UpstreamDenied, UpstreamError, UpstreamMissing, UpstreamRefused
from xetserve.upstream.hub import listing as listing_module
from xetserve.upstream.hub.client import HubClient, RepoRef
from xetserve.upstream.hub.listing import LIFETIME, LargeFiles
from xetserve.upstream.retry import RetryPolicy

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.1)
REPO = RepoRef("dataset", "o/n")
TREE = "/api/datasets/o/n/tree/refs%2Fpr%2F1?recursive=true"


def digest(number: int) -> str:
    return f"{number:064x}"


def make_page(numbers: Sequence[int]) -> bytes:
    entries = [
        {"type": "file", "path": f"d/{n} ü", "lfs": {"oid": digest(n), "size": n}} for n in numbers
    ]
    others = [{"type": "directory", "path": "d"}, {"type": "file", "path": "a", "size": 1}, 7, {}]
    return json.dumps([*others, *entries]).encode()


class Hub:
    """A Hub whose listing has some pages, and a clock that a test can move."""

    def __init__(self, *pages: Sequence[int]) -> None:
        self.pages = list(pages)
        self.peer = ScriptedPeer(answering(self.answer))
        self.now = 0.0
        self.is_missing = False
        self.other_name = ""
        self.files = LargeFiles(lambda: self.now)

    def answer(self, request: Received) -> Answer:
        if self.is_missing:
            return http_answer(404, b"")
        number = int(request.target.partition("cursor=")[2] or 0)
        fields = []
        if number + 1 < len(self.pages):
            base = self.other_name or self.peer.base
            fields.append(f'Link: <{base}{TREE}&cursor={number + 1}>; rel="next"')
        return http_answer(200, make_page(self.pages[number]), *fields)

    async def find(
        self, *numbers: int, revision: str = "refs/pr/1", token: str | None = "hf_a"
    ) -> list[str | None]:
        async with open_pool() as pool:
            hub = HubClient(pool, self.peer.base, timeout=PATIENCE, policy=POLICY)
            work = (self.files.find(hub, REPO, revision, digest(n), token) for n in numbers)
            found = await asyncio.gather(*work, return_exceptions=True)
        paths = []
        for path in found:
            if isinstance(path, BaseException):
                raise path
            paths.append(path)
        return paths

    @property
    def targets(self) -> list[str]:
        return [request.target for request in self.peer.requests]


async def test_pages_may_name_the_hub_otherwise() -> None:
    hub = Hub([1], [2])
    hub.other_name = "http://hub.internal:80"
    async with hub.peer:
        assert await hub.find(2) == ["d/2 ü"]


async def test_pages_are_read_as_far_as_needed_and_once() -> None:
    hub = Hub([1, 2], [3], [4, 5])
    async with hub.peer:
        assert await hub.find(1) == ["d/1 ü"]
        assert hub.targets == [TREE]
        assert await hub.find(2, 3) == ["d/2 ü", "d/3 ü"]
        assert hub.targets == [TREE, f"{TREE}&cursor=1"]
        assert await hub.find(9, 5, 1) == [None, "d/5 ü", "d/1 ü"]
        assert await hub.find(9) == [None]
        assert len(hub.targets) == 3
    assert {request.get("authorization") for request in hub.peer.requests} == {"Bearer hf_a"}


async def test_many_at_once_share_the_pages() -> None:
    hub = Hub([1], [2], [3])
    async with hub.peer:
        assert await hub.find(*[3] * 16) == ["d/3 ü"] * 16
    assert len(hub.targets) == 3


async def test_every_token_and_revision_asks_for_itself() -> None:
    hub = Hub([1])
    async with hub.peer:
        for token in ("hf_a", "hf_b", None):
            assert await hub.find(1, token=token) == ["d/1 ü"]
        assert await hub.find(1, revision="main") == ["d/1 ü"]
    assert [request.get("authorization") for request in hub.peer.requests] == [
        "Bearer hf_a", "Bearer hf_b", None, "Bearer hf_a",
    ]  # fmt: skip


async def test_it_is_listed_anew_after_a_while_or_when_told() -> None:
    hub = Hub([1])
    async with hub.peer:
        await hub.find(1)
        hub.now = LIFETIME
        await hub.find(1)
        assert len(hub.targets) == 1
        hub.now = LIFETIME + 1
        await hub.find(1)
        assert len(hub.targets) == 2
        hub.files.forget(REPO, "refs/pr/1", "hf_a")
        await hub.find(1)
        assert len(hub.targets) == 3


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "MAX_FILES", 4)
    monkeypatch.setattr(listing_module, "MAX_MEMORY", 2000)
    hub = Hub([1, 2], [3, 4], [5])
    async with hub.peer:
        assert await hub.find(5) == [None]  # too long a listing is not read to its end
        assert len(hub.targets) == 2
        await hub.find(1, token="hf_b")
        await hub.find(1)
        assert len(hub.targets) == 4  # the first one was forgotten


async def test_pages_that_lead_in_a_circle_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "MAX_PAGES", 7)
    hub = Hub([1], [])

    def lead_back(request: Received) -> Answer:
        number = "cursor=1" not in request.target
        link = f'Link: <{hub.peer.base}{TREE}&cursor={int(number)}>; rel="next"'
        return http_answer(200, make_page([1]), link)

    hub.peer = ScriptedPeer(answering(lead_back))
    async with hub.peer:
        assert await hub.find(2) == [None]
        assert len(hub.targets) == 7
        assert await hub.find(2) == [None]
        assert len(hub.targets) == 7


async def test_failures_are_not_kept_and_cost_the_next_look_up_nothing() -> None:
    hub = Hub([1])
    async with hub.peer:
        hub.is_missing = True
        for number in range(300):
            with pytest.raises(UpstreamMissing):
                await hub.find(1, revision=f"r{number}")
        assert hub.files.num_kept == 0
        hub.is_missing = False
        assert await hub.find(1) == ["d/1 ü"]
        assert hub.files.num_kept == 1


async def test_empty_listings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_module, "MAX_MEMORY", 20 * listing_module.LISTING_COST)
    hub = Hub([])
    async with hub.peer:
        for number in range(100):
            await hub.find(1, revision=f"r{number}")
    assert hub.files.num_kept == 20


async def test_what_was_told_to_be_forgotten_is_not_brought_back_by_a_slow_reader() -> None:
    hub = Hub([1], [2])
    async with hub.peer:
        await hub.find(1)
        slow = asyncio.create_task(hub.find(2))
        await until(lambda: len(hub.targets) == 2)
        hub.files.forget(REPO, "refs/pr/1", "hf_a")
        await slow
        assert hub.files.num_kept == 0


async def test_a_cancelled_question_does_not_spoil_the_next() -> None:
    hub = Hub([1], [2])
    asked = asyncio.Event()
    answer = hub.answer

    def stall_once(request: Received) -> Answer:
        if not asked.is_set():
            asked.set()
            return "stall"
        return answer(request)

    hub.peer = ScriptedPeer(answering(stall_once))
    async with hub.peer:
        first = asyncio.create_task(hub.find(2))
        await asked.wait()
        second = asyncio.create_task(hub.find(2))
        first.cancel()
        assert await second == ["d/2 ü"]
        await asyncio.wait([first])


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(http_answer(403, b"", "X-Error-Code: GatedRepo"), UpstreamDenied, id="gated"),
        pytest.param(http_answer(200, b"{}"), UpstreamError, id="an object"),
        pytest.param(http_answer(200, b"["), UpstreamError, id="half"),
        pytest.param(http_answer(200, b"[" * 100_000), UpstreamError, id="deep"),
        pytest.param(
            http_answer(200, b"[]", 'Link: <http://elsewhere.test/x>; rel="next"'),
            UpstreamRefused, id="goes on elsewhere",
        ),
        pytest.param(
            http_answer(200, b"[]", 'Link: </x\xe9>; rel="next"'),
            UpstreamRefused, id="goes on at what is no URL",
        ),
        pytest.param(
            http_answer(200, b"[]", f'Link: <{TREE}>; rel="next"'), UpstreamRefused, id="a circle"
        ),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none(answer: Answer, error: type[UpstreamError]) -> None:
    hub = Hub()
    hub.peer = ScriptedPeer(answering(answer))
    async with hub.peer:
        for _ in range(2):  # the next look-up finds nothing that was left behind
            with pytest.raises(error):
                await hub.find(1)
