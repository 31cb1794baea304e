"""One exchange with an upstream: errors named, retried; documents read."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterable

import pytest
import zstandard

from tests.peers import (
    CLOSE,
    RESET,
    STALL,
    Script,
    ScriptedPeer,
    Wire,
    answering,
    http_answer,
    open_pool,
)
from tests.waiting import PATIENCE
from xetserve.errors import (
    BrokenStream,
    UpstreamBusy,
    UpstreamError,
    UpstreamLoop,
    UpstreamMissing,
    UpstreamRefused,
    UpstreamTimeout,
)
from xetserve.http.framing import CHUNKS_PER_TURN
from xetserve.http.messages import Headers
from xetserve.metrics.catalogue import UPSTREAM_FAILURES, UPSTREAM_RETRIES, UPSTREAM_THROTTLED
from xetserve.net.client_connection import TAKES_PER_TURN
from xetserve.net.pool import ConnectionPool
from xetserve.net.url import parse_url
from xetserve.upstream.requests import (
    error_for_status,
    join_url,
    make_url,
    naming_errors,
    parse_retry_after,
    read_document,
    retrying,
    send_request,
)
from xetserve.upstream.retry import RetryPolicy
from xetserve.upstream.slices import SLICE_SIZE

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.5)


@pytest.fixture
async def pool() -> AsyncIterator[ConnectionPool]:
    async with open_pool() as made:
        yield made


async def fetch(
    pool: ConnectionPool, peer: ScriptedPeer, *, limit: int = 1000, timeout: float = PATIENCE
) -> bytes:
    async with send_request(pool, "the Hub", "GET", peer.url(), (), timeout) as response:
        return await read_document(response, "the Hub", limit, timeout)


def then_end(answer: bytes) -> Script:
    async def play(wire: Wire) -> None:
        await wire.read_request()
        await wire.send(answer)
        wire.writer.write_eof()

    return play


class TestErrors:
    @pytest.mark.parametrize(
        "script",
        [
            pytest.param(answering(CLOSE), id="closes"),
            pytest.param(answering(RESET), id="resets"),
            pytest.param(answering(b"nonsense\r\n\r\n"), id="not HTTP"),
            pytest.param(then_end(http_answer(200, b"xx")[:-1]), id="a short body"),
        ],
    )
    async def test_a_broken_connection_is_an_upstream_error_with_a_name(
        self, pool: ConnectionPool, script: Script
    ) -> None:
        async with ScriptedPeer(script) as peer:
            with pytest.raises(UpstreamError, match=r"^the Hub: ") as caught:
                await fetch(pool, peer)
            assert caught.value.status == 502

    async def test_silence_is_a_timeout(self, pool: ConnectionPool) -> None:
        async with ScriptedPeer(answering(STALL)) as peer:
            with pytest.raises(UpstreamTimeout, match="the Hub did not answer in time") as caught:
                await fetch(pool, peer, timeout=0.02)
            assert caught.value.status == 504

    @pytest.mark.parametrize("status", [200, 429, 503])
    async def test_answers_that_are_busy_are_counted(
        self, pool: ConnectionPool, status: int
    ) -> None:
        failures, throttled = (
            UPSTREAM_FAILURES.values[("hub",)],
            UPSTREAM_THROTTLED.values[("hub",)],
        )
        async with ScriptedPeer(answering(http_answer(status, b""))) as peer:
            await fetch(pool, peer)
        assert UPSTREAM_FAILURES.values[("hub",)] == failures + (status != 200)
        assert UPSTREAM_THROTTLED.values[("hub",)] == throttled + (status == 429)

    async def test_nobody_there(self, pool: ConnectionPool) -> None:
        async with ScriptedPeer(answering(CLOSE)) as peer:
            pass
        with pytest.raises(UpstreamError, match="the Hub: cannot connect"):
            await fetch(pool, peer)

    def test_what_breaks_in_the_block_is_named_and_the_rest_passes(self) -> None:
        with pytest.raises(UpstreamError, match="the CAS: reset"), naming_errors("the CAS"):
            raise BrokenStream("reset")
        with pytest.raises(UpstreamTimeout), naming_errors("the CAS"):
            raise TimeoutError
        with pytest.raises(ZeroDivisionError), naming_errors("the CAS"):
            raise ZeroDivisionError
        with pytest.raises(asyncio.CancelledError), naming_errors("the CAS"):
            raise asyncio.CancelledError

    @pytest.mark.parametrize(
        ("status", "kind", "becomes", "retriable"),
        [
            (300, UpstreamRefused, 502, False),
            (302, UpstreamRefused, 502, False),
            (400, UpstreamRefused, 502, False),
            (401, UpstreamRefused, 502, False),
            (404, UpstreamRefused, 502, False),
            (408, UpstreamTimeout, 504, True),
            (416, UpstreamRefused, 502, False),
            (429, UpstreamBusy, 429, True),
            (500, UpstreamError, 502, True),
            (501, UpstreamRefused, 502, False),
            (502, UpstreamError, 502, True),
            (503, UpstreamBusy, 503, True),
            (504, UpstreamTimeout, 504, True),
            (508, UpstreamLoop, 508, False),
            (599, UpstreamError, 502, True),
        ],
    )
    def test_error_for_status(
        self, status: int, kind: type[UpstreamError], becomes: int, retriable: bool
    ) -> None:
        error = error_for_status("the CAS", status, Headers())
        assert (type(error), error.status, error.retriable) == (kind, becomes, retriable)
        assert str(error) == f"the CAS answered {status}"

    def test_rate_limits_are_passed_on(self) -> None:
        headers = Headers([
            ("Retry-After", "7"), ("RateLimit", '"api";r=0;t=7'), ("RateLimit-Policy", "x"),
            ("Set-Cookie", "secret"), ("Location", "http://x/?sig"),
        ])  # fmt: skip
        error = error_for_status("the Hub", 429, headers)
        assert isinstance(error, UpstreamBusy)
        assert error.retry_after == 7
        assert dict(error.headers) == {"RateLimit": '"api";r=0;t=7', "RateLimit-Policy": "x"}

    @pytest.mark.parametrize(
        ("value", "expected"),
        [(None, None), ("0", 0), ("12", 12), ("-1", None), ("1.5", None), ("", None), ("٣", None),
         ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("9" * 5000, None)],
    )  # fmt: skip
    def test_parse_retry_after(self, value: str | None, expected: float | None) -> None:
        assert parse_retry_after(value) == expected


class TestUrls:
    @pytest.mark.parametrize("text", ["", "/x", "ftp://h/", "http://h/\r\nX: secret", "http://[x"])
    def test_one_that_cannot_be_requested_is_named_but_not_shown(self, text: str) -> None:
        with pytest.raises(UpstreamRefused, match="the CAS URL: ") as caught:
            make_url(text, "the CAS URL")
        assert "secret" not in str(caught.value)
        assert caught.value.__suppress_context__

    def test_join(self) -> None:
        base = parse_url("http://h/a")
        assert join_url(base, "/b?c", "redirect") == parse_url("http://h/b?c")
        with pytest.raises(UpstreamRefused, match=r"^redirect: "):
            join_url(base, "file:///etc/passwd", "redirect")


class TestDocuments:
    async def test_one_that_is_packed(self, pool: ConnectionPool) -> None:
        answer = http_answer(200, gzip.compress(b"text"), "Content-Encoding: gzip")
        async with ScriptedPeer(answering(answer)) as peer:
            assert await fetch(pool, peer) == b"text"

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(http_answer(200, b"x" * 1001), id="too long"),
            pytest.param(
                b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"x" * 1001
                + b"\r\n0\r\n\r\n",
                id="too long, chunked",
            ),
            pytest.param(
                http_answer(200, gzip.compress(bytes(10_000_000)), "Content-Encoding: gzip"),
                id="a bomb",
            ),
            pytest.param(http_answer(200, b"x", "Content-Encoding: gzip"), id="not gzip"),
            pytest.param(http_answer(200, b"x", "Content-Encoding: br"), id="another coding"),
        ],
    )  # fmt: skip
    async def test_one_that_is_too_large_or_damaged(
        self, pool: ConnectionPool, answer: bytes
    ) -> None:
        async with ScriptedPeer(answering(answer)) as peer:
            with pytest.raises(UpstreamError):
                await fetch(pool, peer)


class TestTurns:
    """However much an answer makes of the event loop's time, others have their turns in between."""

    @staticmethod
    async def count_turns(pool: ConnectionPool, answer: bytes, limit: int) -> int:
        """Fetch what is here already, and count the turns of the loop meanwhile."""
        async with (
            ScriptedPeer(answering(answer)) as peer,
            send_request(pool, "the Hub", "GET", peer.url(), (), PATIENCE) as response,
        ):
            num_turns = 0
            reading = asyncio.ensure_future(read_document(response, "the Hub", limit, PATIENCE))
            while not reading.done():
                await asyncio.sleep(0)
                num_turns += 1
            await reading
        return num_turns

    async def test_a_large_document_is_decoded_in_turns(self, pool: ConnectionPool) -> None:
        size = 16 * SLICE_SIZE
        packed = gzip.compress(bytes(size))
        assert len(packed) < 20_000  # it arrives at once
        answer = http_answer(200, packed, "Content-Encoding: gzip")
        assert await self.count_turns(pool, answer, size) >= 8

    async def test_small_chunks_are_read_in_turns(self, pool: ConnectionPool) -> None:
        head = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n"
        num_chunks = 8 * CHUNKS_PER_TURN * TAKES_PER_TURN
        answer = head + b"1\r\nx\r\n" * num_chunks + b"0\r\n\r\n"
        assert len(answer) < 65_536
        assert await self.count_turns(pool, answer, num_chunks) >= 8

    async def test_many_empty_frames_are_refused(self, pool: ConnectionPool) -> None:
        frame = zstandard.ZstdCompressor().compress(b"")
        answer = http_answer(200, frame * 10_000, "Content-Encoding: zstd")
        async with ScriptedPeer(answering(answer)) as peer:
            with pytest.raises(UpstreamError, match="members"):
                await fetch(pool, peer, limit=1_000_000)


class TestRetrying:
    @staticmethod
    async def run(outcomes: Iterable[Exception | str]) -> tuple[str | Exception, int]:
        left = list(outcomes)
        before = len(left)

        async def attempt() -> str:
            outcome = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        try:
            return await retrying(attempt, POLICY, "test"), before - len(left)
        except UpstreamError as exc:
            return exc, before - len(left)

    async def test_until_it_succeeds(self) -> None:
        before = UPSTREAM_RETRIES.values["test", "UpstreamTimeout"]
        errors = [UpstreamError("500"), UpstreamTimeout("late"), UpstreamBusy("busy")]
        assert await self.run([*errors, "done"]) == ("done", 3)
        assert UPSTREAM_RETRIES.values["test", "UpstreamTimeout"] == before + 1

    async def test_until_it_fails_for_good(self) -> None:
        missing = UpstreamMissing("no")
        assert await self.run([UpstreamError("500"), missing, "never"]) == (missing, 2)

    async def test_until_the_time_is_over(self) -> None:
        error = UpstreamError("500")
        assert (await self.run([error]))[0] is error

    async def test_an_upstream_that_asks_for_too_much_patience_is_not_asked_again(self) -> None:
        busy = UpstreamBusy("busy", status=429, retry_after=60)
        assert await self.run([busy, "never"]) == (busy, 1)
