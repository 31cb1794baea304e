"""Files: a scripted Hub, a CAS in memory, and what our clients get."""

import asyncio
import hashlib
import random
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import pytest
import zstandard

from tests.app.download.responses import headers_of, read
from tests.fakes import FakeCas, FakeFile, FakeXorb
from tests.multiparts import read_parts
from tests.peers import (
    STALL,
    Answer,
    Received,
    ScriptedPeer,
    answering,
    http_answer,
    http_head,
    open_pool,
)
from tests.waiting import PATIENCE
from xetserve.app.download.service import FileService, Upstreams
from xetserve.errors import (
    IntegrityError,
    RangeUnsatisfiable,
    RequestError,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamRefused,
    UpstreamTimeout,
)
from xetserve.http.messages import Body, Headers, Request, Response
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.upstream.cas.source import Access
from xetserve.upstream.hub.client import HubClient
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.1)
CHUNKS = [bytes([n]) * (30_000 + n) for n in range(20)]
FILE = FakeFile([(FakeXorb.make(CHUNKS), ChunkRange(0, 20))])
CONTENT = FILE.content
SIZE = len(CONTENT)
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = format_hash(FILE.file_hash)
COMMIT = "c" * 40
CHANGED = "Wed, 21 Oct 2015 07:28:00 GMT"
LATER = "Wed, 21 Oct 2015 07:28:01 GMT"
TOKEN = "hf_token"

XET = http_head(
    302, "Location: http://cdn.test/x", f"X-Linked-Size: {SIZE}", f'X-Linked-ETag: "{SHA}"',
    f"X-Xet-Hash: {NAME}", f"X-Repo-Commit: {COMMIT}", f"Last-Modified: {CHANGED}",
    "Content-Length: 0",
)  # fmt: skip

TEXT = b"plain text"
BLOB = hashlib.sha1(b"blob %d\0" % len(TEXT) + TEXT).hexdigest()
PLAIN = http_answer(200, b"", f'ETag: "{BLOB}"', f"X-Linked-Size: {len(TEXT)}")


@dataclass
class Stage:
    """A file service between a scripted Hub and a CAS in memory."""

    service: FileService
    hub: ScriptedPeer
    cas: FakeCas
    budget: ByteBudget

    async def get(
        self,
        path: str = "d/model.gguf",
        *,
        method: str = "GET",
        query: str = "",
        token: str | None = TOKEN,
        **headers: str,
    ) -> Response:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        request = Request(method, f"/download/o/n/{path}{query}", Headers(fields))
        return await self.service.get_file(request, None, "o", "n", path.split("/"), token)

    async def get_hash(
        self, text: str = NAME, *, method: str = "GET", query: str = "", **headers: str
    ) -> Response:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        request = Request(method, f"/download-hash/{text}{query}", Headers(fields))
        return await self.service.get_by_hash(request, text, TOKEN)


@asynccontextmanager
async def staged(
    *hub_answers: Answer | Callable[[Received], Answer],
    gap_timeout: float = PATIENCE,
    cas: FakeCas | None = None,
    download_length: bool = False,
) -> AsyncIterator[Stage]:
    made = cas or FakeCas(FILE)
    budget = ByteBudget(1 << 24)
    async with open_pool() as pool, ScriptedPeer(answering(*hub_answers)) as hub:
        upstreams = Upstreams(
            HubClient(pool, hub.base, timeout=PATIENCE, policy=POLICY),
            Engine(
                made,
                budget,
                policy=POLICY,
                limits=ReadLimits(stall_timeout=PATIENCE, gap_timeout=gap_timeout),
            ),
            "hash/repo",
        )
        service = FileService(upstreams, download_length=download_length)
        yield Stage(service, hub, made, budget)
        # Whatever has happened, nothing is held any more.
        assert (budget.held, budget.num_readers, made.num_open) == (0, 0, 0)
        assert pool.num_active == 0


class TestXetFiles:
    async def test_a_whole_one(self) -> None:
        async with staged(XET) as stage:
            response = await stage.get()
            assert (response.status, response.length, response.chunked) == (200, SIZE, True)
            assert headers_of(response) == {
                "Content-Type": "application/octet-stream",
                "Content-Disposition": 'attachment; filename="model.gguf"',
                "X-Content-Type-Options": "nosniff",
                "ETag": f'"{SHA}"',
                "Last-Modified": CHANGED,
                "Repr-Digest": f"sha-256=:{b64encode(bytes.fromhex(SHA)).decode()}:",
                "Cache-Control": "private, no-cache",
                "Vary": "Authorization, Accept-Encoding",
                "Accept-Ranges": "bytes",
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(SIZE),
                "X-Xet-Hash": NAME,
            }
            assert await read(response) == CONTENT
            assert {k: value() for k, value in response.trailers.items()} == {
                "X-Xet-Verified": NAME
            }

    @pytest.mark.parametrize(
        ("value", "start", "end"),
        [
            ("bytes=0-0", 0, 1),
            ("bytes=100000-", 100_000, SIZE),
            ("bytes=-5", SIZE - 5, SIZE),
            ("bytes=29999-60001", 29_999, 60_002),
            (f"bytes=0-{SIZE * 2}", 0, SIZE),
        ],
    )
    async def test_a_part(self, value: str, start: int, end: int) -> None:
        async with staged(XET) as stage:
            response = await stage.get(range=value)
            assert (response.status, response.length) == (206, end - start)
            assert not response.chunked
            assert headers_of(response)["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
            assert await read(response) == CONTENT[start:end]

    @pytest.mark.parametrize("value", [f"bytes={SIZE}-", "bytes=-0", "bytes=99999999999999999999-"])
    async def test_a_part_past_the_end_is_416(self, value: str) -> None:
        async with staged(XET) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get(range=value)
            assert caught.value.status == 416
            assert caught.value.headers == (("Content-Range", f"bytes */{SIZE}"),)
            assert stage.cas.asked == []

    @pytest.mark.parametrize("query", ["?length=1", "?length=0", ""])
    @pytest.mark.parametrize("by_default", [False, True])
    async def test_a_length_where_it_is_wanted(self, query: str, by_default: bool) -> None:
        async with staged(XET, download_length=by_default) as stage:
            wants_length = query == "?length=1" or (by_default and not query)
            for get in (stage.get, stage.get_hash):
                headers = {"accept_encoding": "zstd"} if wants_length else {}
                response = await get(query=query, **headers)
                assert response.chunked is not wants_length
                assert response.length == SIZE or not wants_length
                assert bool(response.trailers) is not wants_length
                assert await read(response) == CONTENT
            response = await stage.get(method="HEAD", query=query)
            assert response.length == SIZE

    async def test_a_length_that_is_no_switch(self) -> None:
        async with staged(XET) as stage:
            with pytest.raises(RequestError, match="length must be 0 or 1, not '5'"):
                await stage.get(query="?length=5")

    async def test_several_parts(self) -> None:
        async with staged(XET) as stage:
            response = await stage.get(range="bytes=-5,29999-30001,60000-")
            # The first lies within the last, and takes its place.
            assert (response.status, response.chunked) == (206, False)
            headers = headers_of(response)
            assert "Content-Range" not in headers
            body = await read(response)
            assert len(body) == response.length
            assert read_parts(headers["Content-Type"], body) == [
                (f"bytes 60000-{SIZE - 1}/{SIZE}", CONTENT[60_000:]),
                (f"bytes 29999-30001/{SIZE}", CONTENT[29_999:30_002]),
            ]

    async def test_several_parts_cost_only_what_they_need(self) -> None:
        async with staged(XET) as stage:
            await read(await stage.get(range="bytes=0-9,300000-300009"))
            fetched = sum(info.byte_range.size for info in stage.cas.fetched)
            assert 0 < fetched < sum(map(len, FILE.runs[0][0].records)) // 5

    @pytest.mark.parametrize("num_blocks", [0, 1, 2, 4])
    async def test_a_client_that_leaves_between_parts_releases_everything(
        self, num_blocks: int
    ) -> None:
        async with staged(XET) as stage:
            body = cast(Body, (await stage.get(range="bytes=0-9,50000-50009,90000-")).body)
            for _ in range(num_blocks):
                await anext(body)
            await body.aclose()

    async def test_a_part_that_fails_cuts_the_body(self) -> None:
        def fail_later(answer: Reconstruction) -> Reconstruction:
            if len(cas.asked) > 1:
                raise UpstreamDenied("no", status=403)
            return answer

        cas = FakeCas(FILE, on_plan=fail_later)
        async with staged(XET, cas=cas) as stage:
            response = await stage.get(range="bytes=0-9,50000-50009")
            with pytest.raises(UpstreamDenied):
                await read(response)

    @pytest.mark.parametrize(
        "value",
        ["lines=1-2", "bytes=5-1", "nonsense", "bytes=0-1,x", "bytes=" + ",".join(
            f"{at}-{at}" for at in range(0, 34, 2)
        )],
    )  # fmt: skip
    async def test_a_range_that_is_ignored(self, value: str) -> None:
        async with staged(XET) as stage:
            response = await stage.get(range=value)
            assert response.status == 200
            assert await read(response) == CONTENT

    @pytest.mark.parametrize(
        ("condition", "status"),
        [(f'"{SHA}"', 206), (f' "{SHA}" ', 206), (f'W/"{SHA}"', 200), ('"old"', 200), (SHA, 200),
         (f'"{SHA}-zstd"', 200), (CHANGED, 206), (LATER, 200)],
    )  # fmt: skip
    async def test_if_range(self, condition: str, status: int) -> None:
        async with staged(XET) as stage:
            response = await stage.get(range="bytes=0-1", if_range=condition)
            assert response.status == status
            await read(response)

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        "headers",
        [
            {"if_none_match": f'"{SHA}"'},
            {"if_none_match": f'"x", W/"{SHA}"', "range": "bytes=0-1"},
            {"if_modified_since": CHANGED},
        ],
    )
    async def test_what_the_client_has_is_asked_of_the_hub_only(
        self, method: str, headers: dict[str, str]
    ) -> None:
        async with staged(XET) as stage:
            response = await stage.get(method=method, **headers)
            assert (response.status, await read(response)) == (304, b"")
            assert headers_of(response) == {
                "ETag": f'"{SHA}"',
                "Cache-Control": "private, no-cache",
                "Vary": "Authorization, Accept-Encoding",
                "X-Repo-Commit": COMMIT,
            }
            assert (stage.cas.asked, len(stage.hub.requests)) == ([], 1)

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    @pytest.mark.parametrize(
        "headers",
        [
            {"if_match": '"x"'},
            {"if_match": f'W/"{SHA}"'},
            {"if_match": f'"{SHA}-zstd"'},  # without Accept-Encoding there is none
            {"if_match": '"x"', "range": f"bytes={SIZE}-"},
            {"if_unmodified_since": "Wed, 21 Oct 2015 07:27:59 GMT"},
        ],
    )
    async def test_a_condition_that_fails_asks_the_hub_only(
        self, method: str, headers: dict[str, str]
    ) -> None:
        async with staged(XET) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get(method=method, **headers)
            assert caught.value.status == 412
            assert (stage.cas.asked, len(stage.hub.requests)) == ([], 1)

    @pytest.mark.parametrize(
        ("revision", "token", "expected"),
        [
            ("main", TOKEN, "private, no-cache"),
            ("main", None, "public, no-cache"),
            (COMMIT, TOKEN, "private, max-age=31536000, immutable"),
            (COMMIT, None, "public, max-age=31536000, immutable"),
            ("d" * 40, TOKEN, "private, no-cache"),  # a branch with the name of a commit
            (COMMIT[:-1], TOKEN, "private, no-cache"),
        ],
    )
    async def test_how_long_it_may_be_kept(
        self, revision: str, token: str | None, expected: str
    ) -> None:
        async with staged(XET) as stage:
            response = await stage.get(method="HEAD", query=f"?revision={revision}", token=token)
            assert headers_of(response)["Cache-Control"] == expected

    async def test_a_date_or_an_etag_that_is_none_is_left_out(self) -> None:
        odd = http_head(302, "Location: http://c.test/", f"X-Linked-Size: {SIZE}", "ETag: a b",
                        "Last-Modified: yesterday", f"X-Xet-Hash: {NAME}",
                        "Content-Length: 0")  # fmt: skip
        async with staged(odd) as stage:
            headers = headers_of(await stage.get(method="HEAD"))
            assert not {"ETag", "Last-Modified", "Repr-Digest"} & set(headers)

    @pytest.mark.parametrize("headers", [{}, {"range": "bytes=0-1"}])
    async def test_head_asks_the_hub_only(self, headers: dict[str, str]) -> None:
        async with staged(XET) as stage:
            response = await stage.get(method="HEAD", **headers)
            assert (response.status, response.content_length) == (200, SIZE)
            assert headers_of(response)["X-Xet-Hash"] == NAME
            assert stage.cas.asked == []

    async def test_an_empty_one_needs_no_cas(self) -> None:
        empty = http_head(302, "Location: http://c.test/", "X-Linked-Size: 0",
                          "X-Xet-Hash: " + "0" * 64, "Content-Length: 0")  # fmt: skip
        async with staged(empty) as stage:
            assert await read(await stage.get()) == b""
            assert stage.cas.asked == []

    async def test_one_whose_size_the_hub_does_not_tell(self) -> None:
        unknown = http_answer(302, b"", "Location: http://c.test/", f"X-Xet-Hash: {NAME}")
        async with staged(unknown) as stage:
            response = await stage.get(range="bytes=0-1")
            assert (response.status, response.length) == (200, None)
            assert "Accept-Ranges" not in headers_of(response)
            assert await read(response) == CONTENT

    @pytest.mark.parametrize("num_blocks", [0, 1, 3])
    async def test_a_client_that_leaves_releases_everything(self, num_blocks: int) -> None:
        async with staged(XET) as stage:
            body = cast(Body, (await stage.get()).body)
            for _ in range(num_blocks):
                await anext(body)
            await body.aclose()

    @pytest.mark.parametrize("num_turns", [0, 1, 3, 10, 30, 60, 100])
    async def test_a_client_that_leaves_before_the_head_releases_everything(
        self, num_turns: int
    ) -> None:
        async with staged(XET) as stage:
            task = asyncio.ensure_future(stage.get())
            for _ in range(num_turns):
                await asyncio.sleep(0)
            if not task.cancel():
                await cast(Body, task.result().body).aclose()
                return
            with pytest.raises(asyncio.CancelledError):
                await task

    async def test_damage_shows_before_the_end(self) -> None:
        other = http_head(302, "Location: http://c.test/", f"X-Linked-Size: {SIZE}",
                          "X-Xet-Hash: " + "1" * 64, "Content-Length: 0")  # fmt: skip
        async with staged(other) as stage:
            received = b""
            with pytest.raises(IntegrityError):
                received = await read(await stage.get())
            assert received == b""

    async def test_a_size_that_is_not_the_files_is_no_success(self) -> None:
        longer = XET.replace(f"X-Linked-Size: {SIZE}".encode(), b"X-Linked-Size: %d" % (SIZE + 1))
        async with staged(longer) as stage:
            with pytest.raises(IntegrityError):
                await read(await stage.get())

    async def test_a_cas_that_fails_has_a_status_still(self) -> None:
        def fail(_: Reconstruction) -> Reconstruction:
            raise UpstreamDenied("no", status=403)

        async with staged(XET, cas=FakeCas(FILE, on_plan=fail)) as stage:
            with pytest.raises(UpstreamDenied):
                await stage.get()

    async def test_a_cas_that_says_nothing_is_a_timeout(self) -> None:
        class Silent(FakeCas):
            async def fetch_reconstruction(
                self, access: Access, file_hash: bytes, byte_range: ByteRange
            ) -> Reconstruction:
                await asyncio.get_running_loop().create_future()
                raise AssertionError

        async with staged(XET, gap_timeout=0.05, cas=Silent(FILE)) as stage:
            with pytest.raises(UpstreamTimeout, match=r"0\.05 seconds"):
                await stage.get()

    async def test_a_hub_that_says_nothing_is_a_timeout(self) -> None:
        async with staged(STALL, gap_timeout=0.05) as stage:
            with pytest.raises(UpstreamTimeout):
                await stage.get()

    async def test_the_hubs_errors_are_the_clients(self) -> None:
        async with staged(http_answer(404, b"", "X-Error-Code: EntryNotFound")) as stage:
            with pytest.raises(UpstreamMissing) as caught:
                await stage.get()
            assert caught.value.code == "EntryNotFound"

    async def test_revision_and_type_reach_the_hub(self) -> None:
        async with staged(XET) as stage:
            await stage.get(method="HEAD", query="?revision=refs/pr/1&type=dataset")
            (request,) = stage.hub.requests
            assert request.target == "/datasets/o/n/resolve/refs%2Fpr%2F1/d/model.gguf"

    @pytest.mark.parametrize("query", ["?type=bucket", "?revision=..", "?revision="])
    async def test_a_bad_parameter_is_400_before_anyone_is_asked(self, query: str) -> None:
        async with staged(XET) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get(query=query)
            assert caught.value.status == 400
            assert stage.hub.wires == []


class TestPlainFiles:
    async def test_a_whole_one(self) -> None:
        async with staged(PLAIN, http_answer(200, TEXT)) as stage:
            response = await stage.get("README.md")
            assert (response.status, response.length) == (200, len(TEXT))
            assert headers_of(response)["ETag"] == f'"{BLOB}"'
            assert await read(response) == TEXT
            assert stage.cas.asked == []

    async def test_one_without_a_length_has_the_hubs(self) -> None:
        chunked = http_head(200, "Transfer-Encoding: chunked") + b"a\r\n" + TEXT + b"\r\n0\r\n\r\n"
        async with staged(PLAIN, chunked) as stage:
            response = await stage.get("README.md")
            assert response.length == len(TEXT)
            assert await read(response) == TEXT

    async def test_a_part(self) -> None:
        part = http_answer(206, TEXT[2:5], f"Content-Range: bytes 2-4/{len(TEXT)}")
        async with staged(PLAIN, part) as stage:
            response = await stage.get("README.md", range="bytes=2-4")
            assert (response.status, response.length) == (206, 3)
            assert headers_of(response)["Content-Range"] == "bytes 2-4/10"
            assert await read(response) == TEXT[2:5]
            assert stage.hub.requests[1].get("range") == "bytes=2-4"

    async def test_several_parts(self) -> None:
        parts = [
            http_answer(206, TEXT[start:end], f"Content-Range: bytes {start}-{end - 1}/10")
            for start, end in ((8, 10), (0, 3))
        ]
        async with staged(PLAIN, *parts) as stage:
            response = await stage.get("README.md", range="bytes=-2,0-2")
            body = await read(response)
            assert (response.status, response.length) == (206, len(body))
            assert read_parts(headers_of(response)["Content-Type"], body) == [
                ("bytes 8-9/10", TEXT[8:]),
                ("bytes 0-2/10", TEXT[:3]),
            ]
            asked = [request.get("range") for request in stage.hub.requests[1:]]
            assert asked == ["bytes=8-9", "bytes=0-2"]

    @pytest.mark.parametrize(
        "second",
        [
            pytest.param(http_answer(200, TEXT), id="the whole"),
            pytest.param(
                http_answer(206, TEXT[1:3], "Content-Range: bytes 1-2/10"), id="another part"
            ),
            pytest.param(
                http_head(206, "Content-Range: bytes 8-9/10", "Transfer-Encoding: chunked")
                + b"1\r\nx\r\n0\r\n\r\n",
                id="a short part",
            ),
            pytest.param(
                http_head(206, "Content-Range: bytes 8-9/10", "Transfer-Encoding: chunked")
                + b"3\r\nxyz\r\n0\r\n\r\n",
                id="a long part",
            ),
            pytest.param(http_answer(404), id="gone"),
        ],
    )
    async def test_a_second_part_that_is_not_what_it_should_be_cuts_the_body(
        self, second: bytes
    ) -> None:
        first = http_answer(206, TEXT[:3], "Content-Range: bytes 0-2/10")
        async with staged(PLAIN, first, second) as stage:
            response = await stage.get("README.md", range="bytes=0-2,8-9")
            assert response.status == 206
            with pytest.raises((UpstreamError, IntegrityError)):
                await read(response)

    @pytest.mark.parametrize("value", ["bytes=2-4", "bytes=2-4,8-9"])
    async def test_a_hub_that_ignores_the_range_gives_the_whole(self, value: str) -> None:
        async with staged(PLAIN, http_answer(200, TEXT)) as stage:
            response = await stage.get("README.md", range=value)
            assert (response.status, response.length) == (200, len(TEXT))
            assert "Content-Range" not in headers_of(response)
            assert await read(response) == TEXT

    @pytest.mark.parametrize(
        ("answer", "value"),
        [
            pytest.param(http_answer(200, b"Plain text"), None, id="other content"),
            pytest.param(http_answer(200, b""), None, id="nothing"),
            pytest.param(http_answer(200, TEXT + b"!"), None, id="too long"),
            pytest.param(http_answer(200, TEXT, "Content-Encoding: gzip"), None, id="packed"),
            pytest.param(http_answer(416, b""), None, id="416"),
            pytest.param(http_answer(416, b""), "bytes=1-2", id="416 to a range"),
            pytest.param(http_answer(206, TEXT), None, id="206 to no range"),
            pytest.param(http_answer(206, b"la"), "bytes=1-2", id="206 without Content-Range"),
            pytest.param(
                http_answer(206, b"la", "Content-Range: bytes 0-1/10"),
                "bytes=1-2",
                id="another part",
            ),
            pytest.param(
                http_answer(206, b"l", "Content-Range: bytes 1-2/10"),
                "bytes=1-2",
                id="a short part",
            ),
            pytest.param(
                http_head(200, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
                None,
                id="nothing, chunked",
            ),
        ],
    )
    async def test_anything_else_never_reaches_the_client(
        self, answer: bytes, value: str | None
    ) -> None:
        async with staged(PLAIN, answer) as stage:
            headers = {} if value is None else {"range": value}
            with pytest.raises((UpstreamRefused, IntegrityError)):
                await stage.get("README.md", **headers)

    @pytest.mark.parametrize(
        ("content", "is_coded"),
        [
            pytest.param(b"words again " * 50_000, True, id="a text"),
            pytest.param(random.Random(3).randbytes(300_000), False, id="noise"),
            pytest.param(b"words again " * 80, False, id="a small text"),
        ],
    )
    async def test_one_that_shrinks_is_coded(self, content: bytes, is_coded: bool) -> None:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        head = http_answer(200, b"", f'ETag: "{blob}"', f"X-Linked-Size: {len(content)}")
        async with staged(head, http_answer(200, content)) as stage:
            response = await stage.get("a.txt", accept_encoding="zstd")
            data = await read(response)
            headers = headers_of(response)
            assert (headers.get("Content-Encoding"), response.trailers) == (
                "zstd" if is_coded else None,
                {},
            )
            assert headers["ETag"] == (f'"{blob}-zstd"' if is_coded else f'"{blob}"')
            assert (data != content) == is_coded
            if is_coded:
                assert zstandard.ZstdDecompressor().decompress(data) == content

    async def test_one_that_breaks_off_is_an_upstream_error(self) -> None:
        cut = http_head(200, "Transfer-Encoding: chunked") + b"a\r\nplain\r\n"
        async with staged(PLAIN, cut, gap_timeout=0.05) as stage:
            with pytest.raises(UpstreamError):
                await stage.get("README.md")

    async def test_one_without_a_hash_must_have_the_size_that_was_announced(self) -> None:
        head = http_answer(200, b"", f"X-Linked-Size: {len(TEXT)}")
        short = http_head(200, "Transfer-Encoding: chunked") + b"5\r\nplain\r\n0\r\n\r\n"
        async with staged(head, short) as stage:
            response = await stage.get("README.md")
            # The connection holds the body to it, and cuts what is short.
            assert response.length == len(TEXT)
            assert await read(response) == b"plain"

    async def test_a_client_that_leaves_releases_the_connection(self) -> None:
        big = bytes(4_000_000)
        head = http_answer(200, b"", f"X-Linked-Size: {len(big)}")
        async with staged(head, http_answer(200, big)) as stage:
            body = cast(Body, (await stage.get("README.md")).body)
            await anext(body)
            await body.aclose()


class TestChecksums:
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_of_a_file_whose_sha256_the_hub_names(self, method: str) -> None:
        async with staged(XET) as stage:
            response = await stage.get("d/a\\b.gguf", method=method, query="?checksum=sha256")
            assert await read(response) == f"\\{SHA}  a\\\\b.gguf\n".encode()
            headers = headers_of(response)
            assert headers["Content-Type"] == "text/plain; charset=utf-8"
            assert (headers["X-Repo-Commit"], stage.cas.asked) == (COMMIT, [])

    async def test_of_a_plain_file_it_is_made(self) -> None:
        async with staged(PLAIN, http_answer(200, TEXT)) as stage:
            response = await stage.get("README.md", query="?checksum=sha256")
            expected = f"{hashlib.sha256(TEXT).hexdigest()}  README.md\n"
            assert await read(response) == expected.encode()

    @pytest.mark.parametrize(
        ("etag", "content"),
        [
            pytest.param(BLOB, b"Plain text", id="other content"),
            pytest.param("unknown", TEXT[:-1], id="a byte short"),
            pytest.param("unknown", TEXT + b"!", id="a byte more"),
            pytest.param("unknown", b"", id="nothing"),
        ],
    )
    async def test_of_something_else_there_is_none(self, etag: str, content: bytes) -> None:
        head = PLAIN.replace(BLOB.encode(), etag.encode())
        chunk = b"%x\r\n%s\r\n" % (len(content), content) if content else b""
        body = http_head(200, "Transfer-Encoding: chunked") + chunk + b"0\r\n\r\n"
        async with staged(head, body) as stage:
            with pytest.raises(IntegrityError):
                await stage.get("README.md", query="?checksum=sha256")

    @pytest.mark.parametrize(
        "head",
        [
            pytest.param(
                http_answer(200, b"", "X-Linked-Size: 17000000", 'ETag: "x"'),
                id="a large plain file",
            ),
            pytest.param(XET.replace(SHA.encode(), b"x"), id="a Xet file without one"),
        ],
    )
    async def test_of_others_there_is_none(self, head: bytes) -> None:
        async with staged(head) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get(query="?checksum=sha256")
            assert caught.value.status == 404
            assert (len(stage.hub.requests), stage.cas.asked) == (1, [])

    @pytest.mark.parametrize("kind", ["md5", "", "SHA256"])
    async def test_another_kind_is_400_before_anyone_is_asked(self, kind: str) -> None:
        async with staged(XET) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get(query=f"?checksum={kind}")
            assert (caught.value.status, stage.hub.wires) == (400, [])


class TestByHash:
    async def test_a_whole_one(self) -> None:
        async with staged(STALL) as stage:
            response = await stage.get_hash(NAME.upper())
            assert (response.status, response.length) == (200, None)
            assert headers_of(response)["X-Xet-Hash"] == NAME
            assert await read(response) == CONTENT

    async def test_head_asks_whether_it_exists(self) -> None:
        async with staged(STALL) as stage:
            response = await stage.get_hash(method="HEAD")
            assert (response.status, response.content_length) == (200, SIZE)
            assert headers_of(response) == {
                "Content-Type": "application/octet-stream",
                "Content-Disposition": f'attachment; filename="{NAME}"',
                "X-Content-Type-Options": "nosniff",
                "ETag": f'"{NAME}"',
                "Accept-Ranges": "bytes",
                "Cache-Control": "private, max-age=31536000, immutable",
                "Vary": "Authorization, Accept-Encoding",
                "X-Linked-Size": str(SIZE),
                "X-Xet-Hash": NAME,
            }
            assert stage.cas.fetched == []

    @pytest.mark.parametrize(
        ("value", "start", "end"),
        [("bytes=0-9", 0, 10), ("bytes=-7", SIZE - 7, SIZE), ("bytes=50000-", 50_000, SIZE)],
    )
    async def test_a_part(self, value: str, start: int, end: int) -> None:
        async with staged(STALL) as stage:
            for _ in range(2):  # the size is looked up, then remembered
                response = await stage.get_hash(range=value)
                assert (response.status, response.length) == (206, end - start)
                assert headers_of(response)["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
                assert await read(response) == CONTENT[start:end]

    async def test_several_parts(self) -> None:
        async with staged(STALL) as stage:
            response = await stage.get_hash(range="bytes=0-9,-3")
            body = await read(response)
            assert read_parts(headers_of(response)["Content-Type"], body) == [
                (f"bytes 0-9/{SIZE}", CONTENT[:10]),
                (f"bytes {SIZE - 3}-{SIZE - 1}/{SIZE}", CONTENT[-3:]),
            ]

    async def test_a_part_past_the_end_is_416(self) -> None:
        async with staged(STALL) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get_hash(range=f"bytes={SIZE}-")
            assert caught.value.headers == (("Content-Range", f"bytes */{SIZE}"),)

    @pytest.mark.parametrize("headers", [{"if_none_match": f'"{NAME}"'}, {"if_none_match": "*"}])
    async def test_what_the_client_has_needs_no_data(self, headers: dict[str, str]) -> None:
        async with staged(STALL) as stage:
            assert (await stage.get_hash(**headers)).status == 304
            assert (stage.cas.asked, stage.cas.fetched) == ([ByteRange(0, 1)], [])
            with pytest.raises(RequestError) as caught:
                await stage.get_hash(if_match='"other"')
            assert caught.value.status == 412

    @pytest.mark.parametrize(
        "headers",
        [
            {"if_none_match": "*"},
            {"if_match": '"x"'},
            {"range": "bytes=0-1"},
            {"range": f"bytes={SIZE}-"},
        ],
    )
    async def test_nothing_is_told_to_those_who_may_not_read_it(
        self, headers: dict[str, str]
    ) -> None:
        allowed = True

        def judge(answer: Reconstruction) -> Reconstruction:
            if not allowed:
                raise UpstreamDenied("no", status=403)
            return answer

        async with staged(STALL, cas=FakeCas(FILE, on_plan=judge)) as stage:
            await stage.get_hash(method="HEAD")  # now its size is known
            allowed = False
            with pytest.raises(UpstreamDenied):
                await stage.get_hash(**headers)

    async def test_there_is_no_checksum(self) -> None:
        async with staged(STALL) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get_hash(query="?checksum=sha256")
            assert caught.value.status == 404
            assert stage.cas.asked == []

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_one_that_the_cas_does_not_know(self, method: str) -> None:
        def fail(_: Reconstruction) -> Reconstruction:
            raise UpstreamMissing("no")

        async with staged(STALL, cas=FakeCas(FILE, on_plan=fail)) as stage:
            with pytest.raises(UpstreamMissing):
                await stage.get_hash(method=method)

    async def test_head_of_an_empty_one(self) -> None:
        def fail(_: Reconstruction) -> Reconstruction:
            raise RangeUnsatisfiable("empty")

        async with staged(STALL, cas=FakeCas(FILE, on_plan=fail)) as stage:
            response = await stage.get_hash(method="HEAD")
            assert (response.status, response.content_length) == (200, 0)
            with pytest.raises(RequestError) as caught:
                await stage.get_hash(range="bytes=0-")
            assert caught.value.headers == (("Content-Range", "bytes */0"),)

    async def test_another_file_than_the_named_one_is_no_success(self) -> None:
        async with staged(STALL) as stage:
            with pytest.raises(IntegrityError):
                await read(await stage.get_hash("1" * 64))

    @pytest.mark.parametrize("text", ["", "abc", "g" * 64, "0" * 63, "0" * 65, "*" * 64, "é" * 64])
    async def test_what_is_no_hash_is_400(self, text: str) -> None:
        async with staged(STALL) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get_hash(text)
            assert caught.value.status == 400

    @pytest.mark.parametrize("query", ["?repo=x", "?repo=../y", "?type=x", "?revision=.."])
    async def test_a_bad_parameter_is_400(self, query: str) -> None:
        async with staged(STALL) as stage:
            with pytest.raises(RequestError) as caught:
                await stage.get_hash(query=query)
            assert caught.value.status == 400


@pytest.mark.parametrize(
    ("name", "disposition", "media_type"),
    [
        ("a.json", 'attachment; filename="a.json"', "application/json"),
        ("a.html", 'attachment; filename="a.html"', "text/html"),
        ("a b.txt", 'attachment; filename="a b.txt"', "text/plain"),
        ("a.tar.gz", 'attachment; filename="a.tar.gz"', "application/octet-stream"),
        ("none", 'attachment; filename="none"', "application/octet-stream"),
        ('a"b', "attachment; filename=\"a_b\"; filename*=UTF-8''a%22b", "application/octet-stream"),
        ("a\\b", "attachment; filename=\"a_b\"; filename*=UTF-8''a%5Cb",
         "application/octet-stream"),
        ("a%41", "attachment; filename=\"a_41\"; filename*=UTF-8''a%2541",
         "application/octet-stream"),
        ("a;b", 'attachment; filename="a;b"', "application/octet-stream"),
        ("ü.txt", "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%BC.txt", "text/plain"),
        ("a\r\nX: y", "attachment; filename=\"a__X: y\"; filename*=UTF-8''a%0D%0AX%3A%20y",
         "application/octet-stream"),
    ],
)  # fmt: skip
async def test_a_name_becomes_a_header_whatever_is_in_it(
    name: str, disposition: str, media_type: str
) -> None:
    async with staged(XET) as stage:
        headers = headers_of(await stage.get(f"d/{name}", method="HEAD"))
    assert headers["Content-Disposition"] == disposition
    assert headers["Content-Type"] == media_type
