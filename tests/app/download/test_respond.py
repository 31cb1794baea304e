"""Which bytes answer a request, and how they are coded: on a file in memory."""

import asyncio
import random
from contextlib import aclosing
from typing import cast

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.app.download.responses import headers_of, read
from tests.fakes import FakeAccess, FakeCas, FakeFile, FakeXorb
from tests.multiparts import read_parts
from xetserve.app.download.content import XetContent
from xetserve.app.download.representation import Representation
from xetserve.app.download.respond import FileAnswers
from xetserve.app.download.zstd_body import Compressors, ZstdBody
from xetserve.errors import IntegrityError
from xetserve.http.messages import Headers, Record, Request, Response
from xetserve.http.ranges import MAX_SPANS, parse_content_range
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.compression import Scheme
from xetserve.xet.reconstruction import ChunkRange

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.1)
SOURCE = random.Random(7)
TEXT = [b" ".join(SOURCE.choices([b"some", b"words", b"again"], k=9000)) for _ in range(6)]
NOISE = [SOURCE.randbytes(50_000) for _ in range(6)]


def make_file(chunks: list[bytes], scheme: Scheme = Scheme.LZ4) -> FakeFile:
    return FakeFile([(FakeXorb.make(chunks, [scheme]), ChunkRange(0, len(chunks)))])


TEXT_FILE = make_file(TEXT)
NOISE_FILE = make_file(NOISE)
SMALL_CHUNKS = make_file([bytes([n]) * (n % 7 + 1) for n in range(60)], Scheme.NONE)


class Stage:
    """A file in memory and what answers for it."""

    def __init__(self, file: FakeFile, compressors: Compressors | None = None) -> None:
        self.cas = FakeCas(file)
        self.budget = ByteBudget(1 << 24)
        self.content = file.content
        self.file = Representation(
            "a.bin", "text/plain", len(self.content), '"tag"', file_hash=file.file_hash,
            sha256="ab" * 32,
        )  # fmt: skip
        self.answers = FileAnswers(compressors)
        limits = ReadLimits(stall_timeout=1.0, gap_timeout=5.0)
        self.engine = Engine(self.cas, self.budget, policy=POLICY, limits=limits)

    async def get(self, *, version: str = "1.1", **headers: str) -> Response:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        request = Request("GET", "/x", Headers(fields), http_version=version)
        content = XetContent(
            self.engine, FakeAccess(), self.cas.file.file_hash, len(self.content), Record()
        )
        return await self.answers.answer_get(request, self.file, content)

    def head(self, **headers: str) -> Response:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return self.answers.answer_head(Request("HEAD", "/x", Headers(fields)), self.file)

    def check(self, **headers: str) -> Response | None:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        return self.answers.check(Request("GET", "/x", Headers(fields)), self.file)


def unpack(data: bytes) -> bytes:
    decoder = zstandard.ZstdDecompressor().decompressobj()
    decoded = decoder.decompress(data)
    assert decoder.eof
    assert not decoder.unused_data
    return decoded


# Ranges


@st.composite
def range_fields(draw: st.DrawFn) -> str:
    size = len(SMALL_CHUNKS.content)
    specs = []
    for _ in range(draw(st.integers(1, MAX_SPANS))):
        first = draw(st.none() | st.integers(0, size + 3))
        low = 0 if first is None else first
        last = draw(st.integers(low, size + 5) | (st.none() if first is not None else st.nothing()))
        specs.append(f"{'' if first is None else first}-{'' if last is None else last}")
    return "bytes=" + ",".join(specs)


def positions(field: str, size: int) -> set[int]:
    """The positions that a Range field asks for."""
    wanted: set[int] = set()
    for spec in field.removeprefix("bytes=").split(","):
        first, _, last = spec.partition("-")
        if not first:
            wanted.update(range(max(0, size - int(last)), size))
        else:
            wanted.update(range(int(first), min(size, int(last) + 1) if last else size))
    return wanted


@settings(deadline=None, max_examples=60)
@given(range_fields())
def test_any_ranges_give_exactly_their_bytes(field: str) -> None:
    size = len(SMALL_CHUNKS.content)
    wanted = positions(field, size)

    async def check() -> None:
        stage = Stage(SMALL_CHUNKS)
        if not wanted:
            with pytest.raises(Exception, match="the file has"):
                await stage.get(range=field)
            return
        response = await stage.get(range=field)
        body = await read(response)
        assert (response.status, response.length) == (206, len(body))
        headers = headers_of(response)
        if "Content-Range" in headers:
            parts = [(headers["Content-Range"], body)]
        else:
            parts = read_parts(headers["Content-Type"], body)
            assert len(parts) > 1
        found: dict[int, int] = {}
        for content_range, data in parts:
            parsed = parse_content_range(content_range)
            assert parsed is not None
            span, told = parsed
            assert (told, span.size) == (size, len(data))
            found.update(zip(range(*span), data, strict=True))
        assert found == {at: stage.content[at] for at in wanted}
        assert (stage.budget.held, stage.budget.num_readers, stage.cas.num_open) == (0, 0, 0)

    asyncio.run(check())


async def test_two_range_fields_mean_nothing() -> None:
    stage = Stage(NOISE_FILE)
    fields = Headers([("Range", "bytes=0-1"), ("Range", "bytes=4-5")])
    content = XetContent(
        stage.engine,
        FakeAccess(), stage.cas.file.file_hash, len(stage.content), Record(),
    )  # fmt: skip
    response = await stage.answers.answer_get(Request("GET", "/", fields), stage.file, content)
    assert (response.status, await read(response)) == (200, stage.content)


# Coding


async def test_what_shrinks_is_coded_for_clients_that_ask() -> None:
    compressors = Compressors()
    stage = Stage(TEXT_FILE, compressors)
    response = await stage.get(accept_encoding="gzip, zstd")
    assert (response.status, response.length, compressors.num_active) == (200, None, 1)
    headers = headers_of(response)
    assert headers["Content-Encoding"] == "zstd"
    assert headers["ETag"] == '"tag-zstd"'
    assert headers["Vary"] == "Authorization, Accept-Encoding"
    assert headers["Accept-Ranges"] == "none"
    assert "Repr-Digest" not in headers
    data = await read(response)
    assert unpack(data) == stage.content
    assert len(data) < len(stage.content) // 2
    assert compressors.num_active == 0
    assert list(response.trailers) == ["X-Xet-Verified"]
    assert len(response.trailers["X-Xet-Verified"]()) == 64


@pytest.mark.parametrize(
    ("file", "headers"),
    [
        pytest.param(NOISE_FILE, {"accept_encoding": "zstd"}, id="it does not shrink"),
        pytest.param(TEXT_FILE, {}, id="not asked for"),
        pytest.param(TEXT_FILE, {"accept_encoding": "gzip, br"}, id="another coding"),
        pytest.param(TEXT_FILE, {"accept_encoding": "zstd;q=0"}, id="ruled out"),
        pytest.param(TEXT_FILE, {"accept_encoding": "*"}, id="a star"),
        pytest.param(TEXT_FILE, {"accept_encoding": "zstd", "version": "1.0"}, id="HTTP/1.0"),
        pytest.param(SMALL_CHUNKS, {"accept_encoding": "zstd"}, id="small"),
    ],
)
async def test_everything_else_is_sent_as_it_is(file: FakeFile, headers: dict[str, str]) -> None:
    stage = Stage(file, Compressors())
    response = await stage.get(**headers)
    assert await read(response) == stage.content
    answer = headers_of(response)
    assert "Content-Encoding" not in answer
    assert answer["ETag"] == '"tag"'
    assert answer["Vary"] == "Authorization, Accept-Encoding"


async def test_a_part_is_never_coded() -> None:
    stage = Stage(TEXT_FILE, Compressors())
    for if_range in ({}, {"if_range": '"tag"'}):
        response = await stage.get(accept_encoding="zstd", range="bytes=5-9999", **if_range)
        assert (response.status, await read(response)) == (206, stage.content[5:10_000])
        assert "Content-Encoding" not in headers_of(response)
    # Who has a part of the coded file starts again.
    response = await stage.get(accept_encoding="zstd", range="bytes=5-", if_range='"tag-zstd"')
    assert (response.status, unpack(await read(response))) == (200, stage.content)


async def test_too_many_at_a_time_are_sent_as_they_are() -> None:
    compressors = Compressors(1)
    stage = Stage(TEXT_FILE, compressors)
    first = await stage.get(accept_encoding="zstd")
    second = await stage.get(accept_encoding="zstd")
    assert await read(second) == stage.content
    assert unpack(await read(first)) == stage.content
    assert unpack(await read(await stage.get(accept_encoding="zstd"))) == stage.content


async def test_switched_off_nothing_is_coded() -> None:
    stage = Stage(TEXT_FILE)
    response = await stage.get(accept_encoding="zstd")
    assert await read(response) == stage.content
    assert headers_of(response)["Vary"] == "Authorization"


@pytest.mark.parametrize("num_blocks", [0, 1, 2])
async def test_a_client_that_leaves_releases_the_compressor(num_blocks: int) -> None:
    compressors = Compressors()
    stage = Stage(TEXT_FILE, compressors)
    body = cast(ZstdBody, (await stage.get(accept_encoding="zstd")).body)
    for _ in range(num_blocks):
        await anext(body)
    await body.aclose()
    await body.aclose()
    assert (compressors.num_active, stage.budget.held, stage.budget.num_readers) == (0, 0, 0)


async def test_damage_leaves_a_frame_without_an_end_and_no_trailer() -> None:
    stage = Stage(TEXT_FILE, Compressors())
    stage.cas.file = make_file([*TEXT[:-1], TEXT[-1][::-1]])
    content = XetContent(
        stage.engine,
        FakeAccess(), TEXT_FILE.file_hash, len(stage.content), Record(),
    )  # fmt: skip
    request = Request("GET", "/", Headers([("Accept-Encoding", "zstd")]))
    response = await stage.answers.answer_get(request, stage.file, content)
    received = bytearray()

    async def receive() -> None:
        async with aclosing(cast(ZstdBody, response.body)) as body:
            async for block in body:
                received.extend(b"".join(block))

    with pytest.raises(IntegrityError):
        await receive()
    decoder = zstandard.ZstdDecompressor().decompressobj()
    assert len(decoder.decompress(bytes(received))) < len(stage.content)
    assert not decoder.eof
    with pytest.raises(IntegrityError):
        response.trailers["X-Xet-Verified"]()


def test_head_has_no_length_where_a_get_might_be_coded() -> None:
    stage = Stage(TEXT_FILE, Compressors())
    plain, coded = stage.head(), stage.head(accept_encoding="zstd")
    assert (plain.length, coded.length) == (len(stage.content), None)
    assert headers_of(plain) == headers_of(coded)
    assert headers_of(coded)["X-Linked-Size"] == str(len(stage.content))


@pytest.mark.parametrize(
    ("headers", "etag"),
    [
        ({"if_none_match": '"tag-zstd"', "accept_encoding": "zstd"}, '"tag-zstd"'),
        ({"if_none_match": 'W/"tag-zstd"', "accept_encoding": "zstd"}, '"tag-zstd"'),
        ({"if_none_match": '"tag-zstd", "tag"', "accept_encoding": "zstd"}, '"tag"'),
        ({"if_none_match": '"tag-zstd", "tag"'}, '"tag"'),
        ({"if_none_match": '"tag-zstd"'}, None),
        ({"if_match": '"tag-zstd"', "accept_encoding": "zstd"}, None),
    ],
)
def test_conditions_know_both_versions(headers: dict[str, str], etag: str | None) -> None:
    response = Stage(TEXT_FILE, Compressors()).check(**headers)
    assert (None if response is None else headers_of(response)["ETag"]) == etag
