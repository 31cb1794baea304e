import random
from email.parser import BytesParser
from typing import Any

import pytest

from tests.origin.client import Answer, Client, XorbFile
from tests.origin.conftest import Clock
from xetserve.origin.faults import InjectedReset
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import hash_range
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Term
from xetserve.xet.shard import ShardFile, make_shard
from xetserve.xet.xorb import iter_records

source = random.Random(5)
FILE = XorbFile([source.randbytes(300_000 // 4) for _ in range(4)] + [b"z" * 5000], Scheme.LZ4)
XORB = FILE.xorb


async def get_urls(client: Client) -> tuple[str, list[ByteRange]]:
    """Upload, and give a URL that signs three ranges, with the ranges."""
    await client.upload(FILE)
    signer = client.origin._cas._signer
    ranges = [ByteRange(10, 20), ByteRange(30, 100_000), ByteRange(200_000, len(XORB))]
    url = signer.make_data_url(
        "http://hub.test", FILE.tree.xorb_hash(), ranges, signer.get_expiry(60)
    )
    return url, ranges


async def get(client: Client, url: str, header: str | None) -> Answer:
    headers = [("Range", header)] if header is not None else []
    return await client.get(url, headers=headers, token="")


async def test_each_signed_range_is_served(client: Client) -> None:
    url, ranges = await get_urls(client)
    for byte_range in ranges:
        answer = await get(client, url, byte_range.to_header())
        assert answer.status == 206
        assert answer.content == XORB[byte_range.start : byte_range.end]
        assert answer.header("Content-Range") == (
            f"bytes {byte_range.start}-{byte_range.end - 1}/{len(XORB)}"
        )


@pytest.mark.parametrize("wanted", [(0, 1, 2), (0, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("comma", [",", ", "])
async def test_several_signed_ranges_come_as_parts(
    client: Client, wanted: tuple[int, ...], comma: str
) -> None:
    url, ranges = await get_urls(client)
    chosen = [ranges[n] for n in wanted]
    header = "bytes=" + comma.join(r.to_header().removeprefix("bytes=") for r in chosen)
    answer = await get(client, url, header)
    assert answer.status == 206
    head = f"Content-Type: {answer.header('Content-Type')}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + answer.content)
    assert message.get_content_type() == "multipart/byteranges"
    boundary = b"\r\n--" + message.get_boundary("").encode()
    pieces = answer.content.split(boundary)
    assert (pieces[0], pieces[-1]) == (b"", b"--\r\n")
    for byte_range, piece in zip(chosen, pieces[1:-1], strict=True):
        fields, _, content = piece.partition(b"\r\n\r\n")
        assert content == XORB[byte_range.start : byte_range.end]
        assert f"bytes {byte_range.start}-{byte_range.end - 1}/".encode() in fields


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(None, id="no range"),
        pytest.param("", id="an empty header"),
        pytest.param("bytes=11-19", id="a part of a signed one"),
        pytest.param("bytes=10-29", id="more than a signed one"),
        pytest.param("bytes=0-9", id="another"),
        pytest.param("bytes=10-", id="open"),
        pytest.param("bytes=-5", id="suffix"),
        pytest.param("bytes=10-19,5-6", id="one of two is another"),
        pytest.param("bytes=30-99999,10-19", id="descending"),
        pytest.param("bytes=10-19,10-19", id="twice the same"),
        pytest.param("octets=10-19", id="another unit"),
    ],
)
async def test_any_other_range_is_forbidden(client: Client, header: str | None) -> None:
    url, _ = await get_urls(client)
    assert (await get(client, url, header)).status == 403


async def test_a_url_expires_and_cannot_be_changed(client: Client, clock: Clock) -> None:
    url, _ = await get_urls(client)
    for bad in (
        url.replace("10-19", "10-18"),
        url.replace("Expires=1", "Expires=2"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
        url.partition("&Signature")[0],
        url.partition("?")[0],
        url.replace(FILE.xorb_name, "ab" * 32),
    ):
        assert (await get(client, bad, "bytes=10-19")).status == 403
    clock.now += 59
    assert (await get(client, url, "bytes=10-19")).status == 206
    clock.now += 1
    assert (await get(client, url, "bytes=10-19")).status == 403


async def test_a_signed_xorb_that_is_gone_is_missing(client: Client) -> None:
    signer = client.origin._cas._signer
    url = signer.make_data_url("", bytes(32), [ByteRange(0, 1)], signer.get_expiry(60))
    assert (await get(client, url, "bytes=0-0")).status == 404


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT"])
async def test_the_signature_is_for_get(client: Client, method: str) -> None:
    url, _ = await get_urls(client)
    assert (await client.ask(method, url, headers=[("Range", "bytes=10-19")])).status == 403


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        pytest.param({"data_403_first": 2}, [403, 403, 206], id="403 first"),
        pytest.param(
            {"data_status_burst": {"status": 503, "count": 1}}, [503, 206, 206], id="burst"
        ),
        pytest.param({"data_ignore_range": True}, [200, 200, 200], id="whole xorb"),
    ],
)
async def test_statuses_can_be_wrong(
    client: Client, faults: dict[str, Any], expected: list[int]
) -> None:
    url, _ = await get_urls(client)
    await client.set_faults(**faults)
    answers = [await get(client, url, "bytes=10-19") for _ in expected]
    assert [answer.status for answer in answers] == expected
    whole = [answer.content for answer in answers if answer.status == 200]
    assert all(content == XORB for content in whole)


async def test_several_ranges_can_be_too_many(client: Client) -> None:
    url, _ = await get_urls(client)
    await client.set_faults(multipart_off=True)
    assert (await get(client, url, "bytes=10-19,30-99999")).status == 416
    assert (await get(client, url, "bytes=10-19")).status == 206


async def test_a_body_can_be_short(client: Client) -> None:
    url, _ = await get_urls(client)
    await client.set_faults(short_body_first=1)
    short = await get(client, url, "bytes=30-99999")
    assert (short.content, short.response.length) == (XORB[30:50_015], 49_985)
    assert short.header("Content-Range") == f"bytes 30-99999/{len(XORB)}"
    assert len((await get(client, url, "bytes=30-99999")).content) == 99_970


async def test_a_body_can_break_off(client: Client) -> None:
    url, _ = await get_urls(client)
    await client.set_faults(reset_first=1)
    broken = await get(client, url, "bytes=30-99999")
    assert isinstance(broken.error, InjectedReset)
    assert (broken.content, broken.response.length) == (XORB[30:50_015], 99_970)
    assert (await get(client, url, "bytes=30-99999")).error is None


@pytest.mark.parametrize("xorb", [None, FILE.xorb_name], ids=["any", "this one"])
async def test_a_byte_can_be_flipped(client: Client, xorb: str | None) -> None:
    url, _ = await get_urls(client)
    await client.set_faults(flip_byte={"offset": 40, "xorb": xorb})
    wanted = bytearray(XORB[30:100_000])
    wanted[10] ^= 0xFF
    assert (await get(client, url, "bytes=30-99999")).content == wanted
    assert (await get(client, url, "bytes=10-19")).content == XORB[10:20]


async def test_a_byte_can_be_flipped_once(client: Client) -> None:
    url, _ = await get_urls(client)
    await client.set_faults(flip_byte={"offset": 40, "first": 1})
    assert (await get(client, url, "bytes=10-19")).content == XORB[10:20]
    found = [(await get(client, url, "bytes=30-99999")).content for _ in range(2)]
    assert (found[0] == XORB[30:100_000], found[1] == XORB[30:100_000]) == (False, True)


async def test_another_xorb_is_left_alone(client: Client) -> None:
    url, _ = await get_urls(client)
    await client.set_faults(
        flip_byte={"offset": 40, "xorb": "ab" * 32}, swap_chunk={"chunk": 0, "xorb": "ab" * 32}
    )
    assert (await get(client, url, "bytes=30-99999")).content == XORB[30:100_000]


@pytest.mark.parametrize("chunk", [0, 3, 4])
async def test_a_chunk_can_be_swapped(client: Client, chunk: int) -> None:
    await client.upload(FILE)
    signer = client.origin._cas._signer
    whole = ByteRange(0, len(XORB))
    url = signer.make_data_url("", FILE.tree.xorb_hash(), [whole], signer.get_expiry(60))
    await client.set_faults(swap_chunk={"chunk": chunk})
    answer = await get(client, url, whole.to_header())
    chunks = [bytes(record.decode()) for record in iter_records(answer.content)]
    assert [len(one) for one in chunks] == [len(one) for one in FILE.chunks]
    changed = [n for n, one in enumerate(chunks) if one != FILE.chunks[n]]
    assert changed == [chunk]


async def test_faults_beyond_the_end_change_nothing(client: Client) -> None:
    url, _ = await get_urls(client)
    await client.set_faults(flip_byte={"offset": 10**9}, swap_chunk={"chunk": 99})
    assert (await get(client, url, "bytes=30-99999")).content == XORB[30:100_000]


async def test_many_ranges_of_a_xorb_are_split_over_urls(client: Client) -> None:
    """A file that takes every second chunk of a xorb of 1300."""
    chunks = [n.to_bytes(2, "big") for n in range(1300)]
    xorb = XorbFile(chunks, Scheme.NONE)
    token = await client.get_cas_token(scope="write")
    await client.ask("POST", f"/v1/xorbs/default/{xorb.xorb_name}", xorb.xorb, token=token)
    picked = XorbFile(chunks[::2])
    terms = [Term(xorb.tree.xorb_hash(), ChunkRange(n, n + 1), 2) for n in range(0, len(chunks), 2)]
    hashes = [leaf for leaf, _ in (await index_of(client, xorb)).leaves(ChunkRange(0, 1300))]
    proofs = tuple(hash_range([hashes[n]]) for n in range(0, 1300, 2))
    file = ShardFile(picked.tree.file_hash(), tuple(terms), proofs, picked.sha256)
    shard = make_shard([file], [])
    assert (await client.ask("POST", "/v2/shards", shard, token=token)).status == 200
    value = {"path": "x.bin", "oid": picked.sha256, "size": 1300}
    assert (await client.commit(("lfsFile", value))).status == 200
    token = await client.get_cas_token()
    value = await client.get_json(f"/v2/reconstructions/{picked.file_name}", token=token)
    (entries,) = value["xorbs"].values()
    assert [len(entry["ranges"]) for entry in entries] == [500, 150]
    for entry in entries:
        header = "bytes=" + ",".join(
            f"{part['bytes']['start']}-{part['bytes']['end']}" for part in entry["ranges"]
        )
        assert len(entry["url"]) < 9000
        assert (await get(client, entry["url"], header)).status == 206


async def index_of(client: Client, file: XorbFile) -> Any:
    return await client.origin.library.xorbs.require_index(file.tree.xorb_hash())
