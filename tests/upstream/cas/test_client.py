"""Asking the CAS, and opening data URLs."""

import json
from collections.abc import AsyncIterator

import pytest
import zstandard

from tests.peers import (
    CLOSE,
    RESET,
    STALL,
    Answer,
    Received,
    ScriptedPeer,
    answering,
    http_answer,
    http_head,
    open_pool,
)
from tests.upstream.cas.answers import HASH, INFO, PLAN, POLICY, Access
from tests.waiting import PATIENCE
from xetserve.errors import (
    RangeUnsatisfiable,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamRefused,
    UpstreamTimeout,
    UrlExpired,
)
from xetserve.upstream.cas.client import CasClient
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import (
    ByteRange,
    FetchInfo,
    Reconstruction,
    to_v1,
    to_v2,
)

NAME = format_hash(HASH)
V1 = http_answer(200, json.dumps(to_v1(PLAN)).encode())
V2 = http_answer(200, json.dumps(to_v2(PLAN)).encode())
MISSING = http_answer(404, b"not found")


@pytest.fixture
async def cas() -> AsyncIterator[CasClient]:
    async with open_pool() as pool:
        yield CasClient(pool, timeout=PATIENCE, policy=POLICY)


async def ask(cas: CasClient, peer: ScriptedPeer) -> Reconstruction:
    return await cas.fetch_reconstruction(Access(peer.base), HASH, ByteRange(0, 1000))


def targets(peer: ScriptedPeer) -> list[str]:
    return [request.target.removesuffix(f"/reconstructions/{NAME}") for request in peer.requests]


class TestReconstructions:
    async def test_the_request(self, cas: CasClient) -> None:
        async with ScriptedPeer(answering(V2)) as peer:
            access = Access(peer.base + "/prefix")
            assert await cas.fetch_reconstruction(access, HASH, ByteRange(5, 10)) == PLAN
            (request,) = peer.requests
        assert request.target == f"/prefix/v2/reconstructions/{NAME}"
        assert request.get("authorization") == "Bearer t0"
        assert request.get("range") == "bytes=5-9"

    async def test_the_answer_may_be_packed(self, cas: CasClient) -> None:
        body = zstandard.ZstdCompressor().compress(json.dumps(to_v2(PLAN)).encode())
        async with ScriptedPeer(
            answering(http_answer(200, body, "Content-Encoding: zstd"))
        ) as peer:
            assert await ask(cas, peer) == PLAN

    @pytest.mark.parametrize("status", [404, 501])
    async def test_version_1_is_asked_where_2_is_unknown_and_remembered(
        self, cas: CasClient, status: int
    ) -> None:
        async with ScriptedPeer(answering(http_answer(status), V1)) as peer:
            assert await ask(cas, peer) == PLAN
            assert await ask(cas, peer) == PLAN
            assert targets(peer) == ["/v2", "/v1", "/v1"]

    async def test_version_2_is_asked_again_once_1_is_gone(self, cas: CasClient) -> None:
        async with ScriptedPeer(answering(MISSING, V1, MISSING, V2)) as peer:
            await ask(cas, peer)
            assert await ask(cas, peer) == PLAN
            assert await ask(cas, peer) == PLAN
            assert targets(peer) == ["/v2", "/v1", "/v1", "/v2", "/v2"]

    @pytest.mark.parametrize("second", [404, 501])
    async def test_a_file_that_no_version_knows_is_missing(
        self, cas: CasClient, second: int
    ) -> None:
        async with ScriptedPeer(answering(MISSING, http_answer(second))) as peer:
            with pytest.raises(UpstreamMissing, match=NAME) as caught:
                await ask(cas, peer)
            assert caught.value.status == 404
            assert targets(peer) == ["/v2", "/v1"]

    async def test_a_cas_that_implements_no_version_is_not_a_missing_file(
        self, cas: CasClient
    ) -> None:
        async with ScriptedPeer(answering(http_answer(501))) as peer:
            with pytest.raises(UpstreamRefused) as caught:
                await ask(cas, peer)
            assert caught.value.status == 502

    async def test_a_refused_token_is_renewed_once(self, cas: CasClient) -> None:
        def judge(request: Received) -> Answer:
            return V2 if request.get("authorization") == "Bearer t1" else http_answer(401)

        async with ScriptedPeer(answering(judge)) as peer:
            assert await ask(cas, peer) == PLAN
        async with ScriptedPeer(answering(http_answer(401))) as peer:
            with pytest.raises(UpstreamDenied) as caught:
                await ask(cas, peer)
            assert caught.value.status == 401
            assert [r.get("authorization") for r in peer.requests] == ["Bearer t0", "Bearer t1"]

    async def test_403_is_not_an_expired_token(self, cas: CasClient) -> None:
        async with ScriptedPeer(answering(http_answer(403))) as peer:
            with pytest.raises(UpstreamDenied) as caught:
                await ask(cas, peer)
            assert (caught.value.status, len(peer.requests)) == (403, 1)

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (http_answer(416), RangeUnsatisfiable),
            (http_answer(400), UpstreamRefused),
            (http_answer(429, b"", "Retry-After: 60"), UpstreamBusy),
            (http_answer(500), UpstreamError),
            (http_answer(504), UpstreamTimeout),
            (http_answer(200, b"not json"), UpstreamError),
            (http_answer(200, b"[" * 100_000), UpstreamError),
            (http_answer(200, b'{"terms":[]}'), UpstreamError),
            (http_answer(200, b"{}", "Content-Encoding: gzip"), UpstreamError),
            (CLOSE, UpstreamError),
        ],
    )
    async def test_errors(self, cas: CasClient, answer: Answer, kind: type[Exception]) -> None:
        async with ScriptedPeer(answering(answer)) as peer:
            with pytest.raises(UpstreamError) as caught:
                await ask(cas, peer)
            assert type(caught.value) is kind
            assert "t0" not in str(caught.value)

    async def test_trouble_is_tried_again(self, cas: CasClient) -> None:
        trouble: list[Answer] = [http_answer(500), RESET, http_answer(200, b"{"), http_answer(503)]
        async with ScriptedPeer(answering(*trouble, V2)) as peer:
            assert await ask(cas, peer) == PLAN
            assert len(peer.requests) == 5

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    async def test_the_read_token_follows_no_redirect(self, cas: CasClient, status: int) -> None:
        async with ScriptedPeer(answering(V2)) as other:
            redirect = http_answer(status, b"", f"Location: {other.base}/v2")
            async with ScriptedPeer(answering(redirect)) as peer:
                with pytest.raises(UpstreamRefused):
                    await ask(cas, peer)
            assert other.wires == []


CONTENT = bytes(range(20))
PART = http_answer(206, CONTENT, "Content-Range: bytes 10-29/100")


def info_at(peer: ScriptedPeer, target: str = "/x%2Fy?X-Sig=a%2Bb==&Expires=1") -> FetchInfo:
    return INFO._replace(url=peer.base + target)


async def read(cas: CasClient, info: FetchInfo, timeout: float = PATIENCE) -> bytes:
    content = bytearray()
    buffer = memoryview(bytearray(1000))
    async with cas.open_data(bytes(32), info) as response:
        assert not response.is_stored
        while count := await response.receive_into(buffer, timeout):
            content += buffer[:count]
    return bytes(content)


class TestData:
    async def test_the_request_is_exactly_what_was_signed(self, cas: CasClient) -> None:
        async with ScriptedPeer(answering(PART)) as peer:
            assert await read(cas, info_at(peer)) == CONTENT
            (request,) = peer.requests
        assert (request.method, request.target) == ("GET", "/x%2Fy?X-Sig=a%2Bb==&Expires=1")
        assert request.get("range") == "bytes=10-29"
        assert request.get("accept-encoding") == "identity"
        assert {name for name, _ in request.headers} == {
            "host", "user-agent", "accept-encoding", "range",
        }  # fmt: skip

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(http_answer(206, CONTENT), id="206 without Content-Range"),
            pytest.param(http_answer(200, CONTENT), id="200 with the slice"),
            pytest.param(
                http_answer(206, CONTENT, "Content-Range: bytes 10-29/*"), id="size unknown"
            ),
            pytest.param(
                http_head(206, "Content-Range: bytes 10-29/100", "Transfer-Encoding: chunked")
                + b"14\r\n" + CONTENT + b"\r\n0\r\n\r\n",
                id="chunked",
            ),
        ],
    )  # fmt: skip
    async def test_other_ways_to_give_the_range(self, cas: CasClient, answer: bytes) -> None:
        async with ScriptedPeer(answering(answer)) as peer:
            assert await read(cas, info_at(peer)) == CONTENT

    @pytest.mark.parametrize(
        "answer",
        [
            pytest.param(http_answer(200, bytes(100)), id="the whole xorb"),
            pytest.param(http_answer(206, CONTENT[1:]), id="too short"),
            pytest.param(http_answer(206, CONTENT + b"x"), id="too long"),
            pytest.param(
                http_answer(206, CONTENT, "Content-Range: bytes 9-28/100"), id="another range"
            ),
            pytest.param(http_answer(206, CONTENT, "Content-Range: nonsense"), id="no range"),
            pytest.param(
                http_head(
                    206, "Content-Type: multipart/byteranges; boundary=x", "Content-Length: 99"
                ),
                id="multipart",
            ),
            pytest.param(
                http_head(200, "Transfer-Encoding: chunked") + b"0\r\n\r\n", id="200, chunked"
            ),
            pytest.param(http_answer(500), id="500"),
            pytest.param(http_answer(206, CONTENT)[:-1], id="cut"),
            pytest.param(RESET, id="reset"),
            pytest.param(CLOSE, id="close"),
        ],
    )
    async def test_anything_else_is_an_upstream_error(self, cas: CasClient, answer: Answer) -> None:
        async with ScriptedPeer(answering(answer)) as peer:
            with pytest.raises(UpstreamError) as caught:
                await read(cas, info_at(peer), 0.1)
        assert caught.value.retriable

    @pytest.mark.parametrize(
        ("status", "kind", "becomes"),
        [(403, UrlExpired, 502), (204, UpstreamRefused, 502), (404, UpstreamRefused, 502),
         (416, UpstreamRefused, 502), (401, UpstreamRefused, 502), (503, UpstreamBusy, 503)],
    )  # fmt: skip
    async def test_statuses(
        self, cas: CasClient, status: int, kind: type[UpstreamError], becomes: int
    ) -> None:
        async with ScriptedPeer(answering(http_answer(status))) as peer:
            with pytest.raises(kind) as caught:
                await read(cas, info_at(peer))
            assert caught.value.status == becomes
            assert "Sig" not in str(caught.value)

    async def test_redirects_are_followed_with_the_range_and_without_credentials(
        self, cas: CasClient
    ) -> None:
        async with ScriptedPeer(answering(PART)) as other:
            redirect = http_answer(302, b"", f"Location: {other.base}/y?sig=2")
            async with ScriptedPeer(answering(redirect)) as peer:
                assert await read(cas, info_at(peer)) == CONTENT
            (request,) = other.requests
            assert (request.target, request.get("range")) == ("/y?sig=2", "bytes=10-29")
            assert request.get("authorization") is None

    async def test_redirects_in_circles_end(self, cas: CasClient) -> None:
        async with ScriptedPeer(answering(http_answer(302, b"", "Location: /x"))) as peer:
            with pytest.raises(UpstreamRefused, match="circles"):
                await read(cas, info_at(peer))

    async def test_a_silent_host_is_a_timeout(self, cas: CasClient) -> None:
        cas._timeout = 0.02
        async with ScriptedPeer(answering(STALL)) as peer:
            with pytest.raises(UpstreamTimeout):
                await read(cas, info_at(peer))

    async def test_a_body_that_is_left_in_the_middle_leaks_nothing(self, cas: CasClient) -> None:
        async with ScriptedPeer(answering(PART)) as peer:
            async with cas.open_data(bytes(32), info_at(peer)) as response:
                await response.receive_into(memoryview(bytearray(3)), PATIENCE)
            await peer.wires[0].ended.wait()
