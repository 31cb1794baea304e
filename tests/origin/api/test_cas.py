import asyncio
import base64
import hashlib
import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.origin.client import BASE, Answer, Client, XorbFile, large, list_files
from tests.origin.conftest import Clock
from xetserve.origin.api import cas
from xetserve.origin.app import Origin
from xetserve.xet.hashes import MerkleTree, format_hash, hash_chunk, hash_range, parse_hash
from xetserve.xet.reconstruction import (
    ChunkRange,
    FetchInfo,
    Reconstruction,
    Term,
    parse_reconstruction,
)
from xetserve.xet.shard import ShardChunk, ShardFile, ShardXorb, make_shard
from xetserve.xet.xorb import iter_records

DATA = Path(__file__).parents[2] / "data"
EXAMPLE: dict[str, Any] = json.loads((DATA / "reconstruction.json").read_text())["reconstruction"]
OFFICIAL: list[dict[str, Any]] = json.loads((DATA / "xorbs.json").read_text())[
    "xorbs_from_official_client"
]["cases"]

FILE = XorbFile([b"a" * 100, b"b" * 200, b"c" * 300])
REPO = "models/me/repo"

example_cases = pytest.mark.parametrize(
    "case", EXAMPLE["cases"], ids=lambda case: case["range_header"] or "whole"
)


async def add_example(client: Client) -> str:
    """Upload the worked example as a client would; gives a token that reads it."""
    token = await client.get_cas_token(scope="write")
    chunks = {}
    for xorb in EXAMPLE["xorbs"]:
        data = base64.b64decode(xorb["xorb_base64"])
        answer = await client.ask(
            "POST", f"/v1/xorbs/default/{xorb['xorb_hash']}", data, token=token
        )
        assert answer.json() == {"was_inserted": True}
        chunks[xorb["xorb_hash"]] = [bytes(record.decode()) for record in iter_records(data)]
    file = EXAMPLE["file"]
    terms, proofs = [], []
    for segment in file["segments"]:
        run = ChunkRange(segment["chunk_start"], segment["chunk_end"])
        terms.append(Term(parse_hash(segment["xorb_hash"]), run, segment["unpacked_length"]))
        proofs.append(hash_range(map(hash_chunk, chunks[segment["xorb_hash"]][slice(*run)])))
    shard = make_shard(
        [
            ShardFile(
                parse_hash(file["file_hash"]), tuple(terms), tuple(proofs), file["content_sha256"]
            )
        ],
        [],
    )
    assert (await client.ask("POST", "/v2/shards", shard, token=token)).status == 200
    value = {"path": "x.bin", "oid": file["content_sha256"], "size": file["size"]}
    assert (await client.commit(("lfsFile", value))).status == 200
    return await client.get_cas_token()


async def add_file(client: Client) -> str:
    await client.add(FILE, "x.bin")
    return await client.get_cas_token()


async def rebuild(client: Client, answer: Answer, size: int) -> bytes:
    """Fetch what a reconstruction names, and put it together."""
    plan = parse_reconstruction(answer.content)
    parts = []
    for term in plan.terms:
        info = plan.find_fetch_info(term)
        data = await client.get(
            info.url, headers=[("Range", info.byte_range.to_header())], token=""
        )
        assert (data.status, data.error) == (206, None)
        chunks = [bytes(record.decode()) for record in iter_records(data.content)]
        first = term.chunks.start - info.chunks.start
        parts += chunks[first : first + term.chunks.end - term.chunks.start]
    content = b"".join(parts)
    return content[plan.offset_into_first_range :][:size]


def fetch_ranges(plan: Reconstruction) -> dict[str, list[dict[str, Any]]]:
    def describe(info: FetchInfo) -> dict[str, Any]:
        start, end = info.byte_range
        return {"chunks": info.chunks._asdict(), "bytes": {"start": start, "end": end - 1}}

    return {
        format_hash(xorb): [describe(info) for info in infos]
        for xorb, infos in plan.fetch_info.items()
    }


@example_cases
@pytest.mark.parametrize("version", ["/v1", "/v2", ""])
async def test_the_worked_example_is_answered_as_the_official_server_does(
    client: Client, case: dict[str, Any], version: str
) -> None:
    token = await add_example(client)
    wanted = case["range_header"]
    answer = await client.get(
        f"{version}/reconstructions/{EXAMPLE['file']['file_hash']}",
        headers=[("Range", wanted)] if wanted else [],
        token=token,
    )
    assert answer.status == case["status"]
    if case["status"] != 200:
        return
    value = answer.json()
    assert value["offset_into_first_range"] == case["offset_into_first_range"]
    assert value["terms"] == case["terms"]
    assert ("xorbs" if version == "/v2" else "fetch_info") in value
    assert fetch_ranges(parse_reconstruction(answer.content)) == case["fetch_ranges"]
    content = await rebuild(client, answer, case["content_length"])
    assert hashlib.sha256(content).hexdigest() == case["content_sha256"]


@pytest.mark.parametrize(
    ("header", "status", "content"),
    [
        pytest.param("bytes=590-", 200, FILE.content[590:], id="open end"),
        pytest.param("bytes=-10", 200, FILE.content[-10:], id="suffix"),
        pytest.param("bytes=590-10000", 200, FILE.content[590:], id="end past the end"),
        pytest.param("bytes=600-700", 416, b"", id="start past the end"),
        pytest.param("bytes=5-4", 416, b"", id="reversed"),
        pytest.param("bytes=0-1,3-4", 416, b"", id="several"),
        pytest.param("chunks=0-1", 416, b"", id="another unit"),
    ],
)
async def test_ranges_of_a_file(client: Client, header: str, status: int, content: bytes) -> None:
    token = await add_file(client)
    answer = await client.get(
        f"/v2/reconstructions/{FILE.file_name}", headers=[("Range", header)], token=token
    )
    assert answer.status == status
    if status == 416:
        assert answer.header("Content-Range") == "bytes */600"
    else:
        assert await rebuild(client, answer, len(content)) == content


@pytest.mark.parametrize(
    ("header", "status"), [(None, 200), ("bytes=0-9", 200), ("bytes=1-9", 416)]
)
async def test_an_empty_file_needs_nothing(client: Client, header: str | None, status: int) -> None:
    shard = make_shard([ShardFile(bytes(32), (), (), hashlib.sha256().hexdigest())], [])
    token = await client.get_cas_token(scope="write")
    assert (await client.ask("POST", "/v2/shards", shard, token=token)).status == 200
    await client.commit(
        ("lfsFile", {"path": "e.bin", "oid": hashlib.sha256().hexdigest(), "size": 0})
    )
    answer = await client.get(
        f"/v2/reconstructions/{'0' * 64}",
        headers=[("Range", header)] if header else [],
        token=await client.get_cas_token(),
    )
    assert answer.status == status
    if status == 200:
        assert answer.json() == {"offset_into_first_range": 0, "terms": [], "xorbs": {}}


async def test_v2_signs_all_ranges_of_a_xorb_with_one_url_and_v1_each_with_its_own(
    client: Client,
) -> None:
    token = await add_example(client)
    name = EXAMPLE["file"]["file_hash"]
    v2 = await client.get(f"/v2/reconstructions/{name}", token=token)
    assert [len(entries) for entries in v2.json()["xorbs"].values()] == [1, 1]
    v1 = await client.get(f"/v1/reconstructions/{name}", token=token)
    urls = [item["url"] for items in v1.json()["fetch_info"].values() for item in items]
    assert len(urls) == len(set(urls)) == 3
    assert all(url.startswith(f"{BASE}/data/") for url in urls)


async def test_data_urls_may_lead_elsewhere(tmp_path: Path) -> None:
    client = Client(Origin(tmp_path, data_url="http://data.test:81/"))
    await client.create_repo("me/repo")
    token = await add_file(client)
    value = await client.get_json(f"/v2/reconstructions/{FILE.file_name}", token=token)
    url = urlsplit(value["xorbs"][FILE.xorb_name][0]["url"])
    assert (url.netloc, url.path) == ("data.test:81", f"/data/{FILE.xorb_name}")


@pytest.mark.parametrize(
    ("token", "status"),
    [
        pytest.param("", 401, id="none"),
        pytest.param("xet_abc.def", 401, id="made up"),
        pytest.param("hf_user", 401, id="a Hub token"),
    ],
)
async def test_a_wrong_token_is_refused(client: Client, token: str, status: int) -> None:
    await add_file(client)
    for method, target in (
        ("GET", f"/v2/reconstructions/{FILE.file_name}"),
        ("GET", f"/reconstructions/{FILE.file_name}"),
        ("HEAD", f"/v1/files/{FILE.file_name}"),
        ("HEAD", f"/v1/xorbs/default/{FILE.xorb_name}"),
        ("GET", f"/v1/chunks/default/{FILE.xorb_name}"),
        ("POST", f"/v1/xorbs/default/{FILE.xorb_name}"),
        ("POST", "/v1/shards"),
        ("POST", "/shards"),
    ):
        assert (await client.ask(method, target, token=token)).status == status


async def test_a_token_expires(client: Client, clock: Clock) -> None:
    token = await add_file(client)
    target = f"/v2/reconstructions/{FILE.file_name}"
    clock.now += 899
    assert (await client.get(target, token=token)).status == 200
    clock.now += 1
    assert (await client.get(target, token=token)).status == 401


async def test_a_token_outlives_a_restart(client: Client, clock: Clock) -> None:
    token = await add_file(client)
    again = Client(Origin(client.origin.library.root, clock=clock))
    assert (await again.get(f"/v2/reconstructions/{FILE.file_name}", token=token)).status == 200


async def test_a_read_token_cannot_write(client: Client) -> None:
    token = await client.get_cas_token()
    xorb = await client.ask("POST", f"/v1/xorbs/default/{FILE.xorb_name}", FILE.xorb, token=token)
    shard = await client.ask("POST", "/v2/shards", FILE.shard, token=token)
    assert (xorb.status, shard.status) == (403, 403)


async def test_a_token_reads_the_files_of_its_own_repository_only(client: Client) -> None:
    await add_file(client)
    await client.create_repo("me/other")
    other = await client.get_cas_token("models/me/other")
    assert (await client.get(f"/v2/reconstructions/{FILE.file_name}", token=other)).status == 404
    assert (await client.ask("HEAD", f"/v1/files/{FILE.file_name}", token=other)).status == 404


async def test_a_file_that_no_commit_names_cannot_be_read(client: Client) -> None:
    await client.upload(FILE)
    token = await client.get_cas_token(scope="write")
    assert (await client.get(f"/v2/reconstructions/{FILE.file_name}", token=token)).status == 404
    await client.commit(large("x.bin", FILE))
    assert (await client.get(f"/v2/reconstructions/{FILE.file_name}", token=token)).status == 200


async def test_sizes_are_told(client: Client) -> None:
    token = await add_file(client)
    file = await client.ask("HEAD", f"/v1/files/{FILE.file_name}", token=token)
    xorb = await client.ask("HEAD", f"/v1/xorbs/default/{FILE.xorb_name}", token=token)
    assert (file.status, file.response.content_length) == (200, 600)
    assert (xorb.status, xorb.response.content_length) == (200, len(FILE.xorb))


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        pytest.param("GET", "/v2/reconstructions/" + "ab" * 32, 404, id="unknown file"),
        pytest.param("GET", "/v2/reconstructions/xyz", 400, id="not a hash"),
        pytest.param("GET", "/v2/reconstructions/" + "AB" * 32, 400, id="upper case"),
        pytest.param("HEAD", "/v1/files/" + "ab" * 32, 404, id="size of an unknown file"),
        pytest.param("HEAD", "/v1/xorbs/default/" + "ab" * 32, 404, id="unknown xorb"),
        pytest.param("HEAD", "/v1/xorbs/default/x", 400, id="not a xorb hash"),
        pytest.param("GET", "/v1/chunks/default/" + "ab" * 32, 404, id="no global deduplication"),
        pytest.param("GET", "/chunks/default/" + "ab" * 32, 404, id="nor for old clients"),
        pytest.param("POST", "/v1/xorb-grants/default/" + "ab" * 32, 404, id="no grants"),
        pytest.param("POST", "/v1/telemetry", 200, id="telemetry"),
        pytest.param("POST", "/telemetry", 200, id="old telemetry"),
        pytest.param("GET", "/v2/file-chunk-hashes/" + "ab" * 32, 404, id="no delta uploads"),
        pytest.param("DELETE", "/v1/files/" + "ab" * 32, 404, id="another method"),
    ],
)
async def test_statuses(client: Client, method: str, target: str, status: int) -> None:
    token = await client.get_cas_token(scope="write")
    assert (await client.ask(method, target, token=token)).status == status


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: case["name"])
@pytest.mark.parametrize(
    ("xorbs", "shards"), [("/v1/xorbs", "/v2/shards"), ("/xorbs", "/shards")], ids=["new", "old"]
)
async def test_an_official_upload_is_accepted_and_can_be_read(
    client: Client, case: dict[str, Any], xorbs: str, shards: str
) -> None:
    token = await client.get_cas_token(scope="write")
    data = base64.b64decode(case["xorb_base64"])
    for inserted in (True, False):
        answer = await client.ask("POST", f"{xorbs}/default/{case['xorb_hash']}", data, token=token)
        assert (answer.status, answer.json()) == (200, {"was_inserted": inserted})
    for result in (1, 0):
        answer = await client.ask(
            "POST", shards, base64.b64decode(case["shard_base64"]), token=token
        )
        assert answer.status == 200
        last = json.loads(answer.content.splitlines()[-1])
        assert last["result"] == result
    assert (answer.header("Content-Type") == "application/x-ndjson") is (shards == "/v2/shards")
    for file in case["files"]:
        value = {"path": file["name"], "oid": file["sha256"], "size": file["size"]}
        assert (await client.commit(("lfsFile", value))).status == 200
        answer = await client.get(f"/me/repo/resolve/main/{file['name']}")
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.header("X-Xet-Hash") == file["file_hash"]


BAD = FILE.shard_file
OTHER = bytes(31) + b"\1"
SHARD_XORB = ShardXorb(
    FILE.tree.xorb_hash(), tuple(ShardChunk(OTHER, 0, 100) for _ in FILE.chunks), 600, 0
)


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        pytest.param(b"", "shard of 0 bytes", id="empty"),
        pytest.param(b"x" + FILE.shard[1:], "unknown tag", id="bad tag"),
        pytest.param(FILE.shard[:-1], "records", id="cut"),
        pytest.param(
            make_shard([BAD._replace(terms=(FILE.term._replace(xorb_hash=OTHER),))], []),
            "was not uploaded",
            id="unknown xorb",
        ),
        pytest.param(
            make_shard([BAD._replace(terms=(FILE.term._replace(chunks=ChunkRange(0, 4)),))], []),
            "names chunk 3",
            id="chunks beyond the end",
        ),
        pytest.param(
            make_shard([BAD._replace(range_hashes=(OTHER,))], []), "verification", id="bad proof"
        ),
        pytest.param(
            make_shard([BAD._replace(range_hashes=None)], []), "no verification", id="no proof"
        ),
        pytest.param(
            make_shard([BAD._replace(terms=(FILE.term._replace(decoded_size=601),))], []),
            "600 bytes, not 601",
            id="bad size",
        ),
        pytest.param(
            make_shard([BAD._replace(file_hash=OTHER)], []),
            "its chunks hash to",
            id="bad file hash",
        ),
        pytest.param(make_shard([BAD], [SHARD_XORB]), "other chunks", id="bad xorb section"),
        pytest.param(
            make_shard([], [SHARD_XORB._replace(xorb_hash=OTHER)]), "not uploaded", id="absent xorb"
        ),
        pytest.param(
            make_shard([BAD, BAD._replace(file_hash=OTHER)], []), "hash to", id="the second is bad"
        ),
        pytest.param(
            make_shard([BAD._replace(terms=(), range_hashes=())] * 2, []),
            "several empty files",
            id="files without terms",
        ),
        pytest.param(
            make_shard([BAD], [SHARD_XORB._replace(chunks=())]),
            "without chunks",
            id="a xorb without chunks",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v2/shards", "/v1/shards", "/shards"])
async def test_a_bad_shard_is_refused_and_leaves_nothing_behind(
    client: Client, shard: bytes, reason: str, path: str
) -> None:
    token = await client.get_cas_token(scope="write")
    await client.ask("POST", f"/v1/xorbs/default/{FILE.xorb_name}", FILE.xorb, token=token)
    before = list_files(client.origin.library.root)
    answer = await client.ask("POST", path, shard, token=token)
    assert answer.status == 400
    assert reason in answer.json()["error"]
    assert list_files(client.origin.library.root) == before


async def test_few_bytes_of_a_shard_name_many_chunks(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are hashed beside the loop, and only so many."""
    token = await client.get_cas_token(scope="write")
    await client.ask("POST", f"/v1/xorbs/default/{FILE.xorb_name}", FILE.xorb, token=token)
    threads: set[int] = set()
    add = cas._add_leaves

    def note(*args: object) -> bytes:
        threads.add(threading.get_ident())
        return add(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(cas, "_add_leaves", note)
    monkeypatch.setattr(cas, "CHUNKS_AT_ONCE", 2)
    assert (await client.ask("POST", "/v2/shards", FILE.shard, token=token)).status == 200
    assert threads
    assert threading.get_ident() not in threads
    monkeypatch.setattr(cas, "MAX_SHARD_CHUNKS", 5)
    shard = make_shard([BAD, BAD], [])
    answer = await client.ask("POST", "/v2/shards", shard, token=token)
    assert (answer.status, "more than 5 chunks" in answer.json()["error"]) == (400, True)


async def test_a_bad_xorb_is_refused_and_leaves_nothing_behind(client: Client) -> None:
    token = await client.get_cas_token(scope="write")
    before = list_files(client.origin.library.root)
    for name, data in (
        ("ab" * 32, FILE.xorb),
        (FILE.xorb_name, FILE.xorb[:-1]),
        (FILE.xorb_name, b""),
        ("nonsense", FILE.xorb),
    ):
        answer = await client.ask("POST", f"/v1/xorbs/default/{name}", data, token=token)
        assert answer.status == 400
    assert list_files(client.origin.library.root) == before


async def test_a_xorb_that_is_announced_as_too_large_is_not_read(client: Client) -> None:
    token = await client.get_cas_token(scope="write")
    answer = await client.ask(
        "POST",
        f"/v1/xorbs/default/{FILE.xorb_name}",
        headers=[("Content-Length", str(2**40))],
        token=token,
    )
    assert answer.status == 413


async def test_the_same_xorb_may_come_twice_at_once(client: Client) -> None:
    token = await client.get_cas_token(scope="write")
    answers = await asyncio.gather(
        *(
            client.ask("POST", f"/v1/xorbs/default/{FILE.xorb_name}", FILE.xorb, token=token)
            for _ in range(5)
        )
    )
    assert [answer.status for answer in answers] == [200] * 5
    assert (await add_file(client)) != ""


async def test_known_content_needs_a_shard_only(client: Client) -> None:
    """What the official client sends when its cache says that the server has the xorbs."""
    await add_file(client)
    await client.create_repo("me/other")
    token = await client.get_cas_token("models/me/other", "write")
    assert (await client.ask("POST", "/v2/shards", FILE.shard, token=token)).status == 200
    answer = await client.commit(large("y.bin", FILE), repo="models/me/other")
    assert answer.status == 200


async def plan_of(client: Client, token: str, header: str = "bytes=0-599") -> Reconstruction:
    answer = await client.get(
        f"/v2/reconstructions/{FILE.file_name}", headers=[("Range", header)], token=token
    )
    assert answer.status == 200
    return parse_reconstruction(answer.content)


@pytest.mark.parametrize("status", [404, 501])
async def test_v2_can_be_off(client: Client, status: int) -> None:
    token = await add_file(client)
    await client.set_faults(v2_status=status)
    target = f"reconstructions/{FILE.file_name}"
    assert (await client.get(f"/v2/{target}", token=token)).status == status
    assert (await client.get(f"/v1/{target}", token=token)).status == 200


async def test_v2_can_have_an_entry_for_each_range(client: Client) -> None:
    token = await add_example(client)
    await client.set_faults(v2_one_entry_per_range=True)
    value = await client.get_json(
        f"/v2/reconstructions/{EXAMPLE['file']['file_hash']}", token=token
    )
    counts = [[len(entry["ranges"]) for entry in entries] for entries in value["xorbs"].values()]
    assert sorted(counts) == [[1], [1, 1]]


async def test_terms_can_be_whole(client: Client) -> None:
    token = await add_file(client)
    assert (await plan_of(client, token, "bytes=310-320")).terms == (
        FILE.term._replace(chunks=ChunkRange(2, 3), decoded_size=300),
    )
    await client.set_faults(untrimmed_terms=True)
    plan = await plan_of(client, token, "bytes=310-320")
    assert (plan.terms, plan.offset_into_first_range) == ((FILE.term,), 310)


@pytest.mark.parametrize("delta", [-1, 5])
async def test_a_term_can_lie_about_its_length(client: Client, delta: int) -> None:
    token = await add_file(client)
    await client.set_faults(wrong_term_length=delta)
    assert (await plan_of(client, token)).terms[0].decoded_size == 600 + delta


async def test_lifetimes_can_be_short(client: Client, clock: Clock) -> None:
    await add_file(client)
    await client.set_faults(url_lifetime=1, token_lifetime=2)
    answer = await client.get_json(f"/api/{REPO}/xet-read-token/main")
    assert answer["exp"] == int(clock.now) + 2
    plan = await plan_of(client, answer["accessToken"])
    ((info,),) = plan.fetch_info.values()
    assert dict(parse_qsl(urlsplit(info.url).query))["Expires"] == str(int(clock.now) + 1)


async def test_a_damaged_disk_is_an_internal_error(client: Client) -> None:
    token = await add_file(client)
    root = client.origin.library.root
    (root / "xorbs" / FILE.xorb_name).unlink()
    fresh = Client(replace_origin(client))
    answer = await fresh.get(f"/v2/reconstructions/{FILE.file_name}", token=token)
    assert (answer.status, "missing on disk" in answer.json()["error"]) == (500, True)


def replace_origin(client: Client) -> Origin:
    return Origin(client.origin.library.root, clock=Clock())


def test_the_example_is_what_it_says() -> None:
    tree = MerkleTree()
    xorbs = {
        xorb["xorb_hash"]: [
            bytes(record.decode()) for record in iter_records(base64.b64decode(xorb["xorb_base64"]))
        ]
        for xorb in EXAMPLE["xorbs"]
    }
    for segment in EXAMPLE["file"]["segments"]:
        for chunk in xorbs[segment["xorb_hash"]][segment["chunk_start"] : segment["chunk_end"]]:
            tree.add(hash_chunk(chunk), len(chunk))
    assert tree.file_hash() == parse_hash(EXAMPLE["file"]["file_hash"])


OTHER_FILE = XorbFile([b"d" * 50, b"e" * 60])


@pytest.mark.parametrize("form", ["post", "get", "get without a version"])
async def test_several_files(client: Client, form: str) -> None:
    await client.add(FILE, "x.bin")
    await client.add(OTHER_FILE, "y.bin")
    token = await client.get_cas_token()
    names = [FILE.file_name, OTHER_FILE.file_name, FILE.file_name]
    if form == "post":
        body = json.dumps([{"prefix": "default", "hash": name} for name in names]).encode()
        answer = await client.ask("POST", "/v1/reconstructions", body, token=token)
    else:
        root = "/v1/reconstructions" if form == "get" else "/reconstructions"
        query = "&".join(f"file_id={name}" for name in names)
        answer = await client.get(f"{root}?{query}", token=token)
    assert answer.status == 200
    value = answer.json()
    assert set(value) == {"files", "fetch_info"}
    assert set(value["files"]) == set(names)
    for file in (FILE, OTHER_FILE):
        part = {"terms": value["files"][file.file_name], "fetch_info": value["fetch_info"]}
        one = Answer(answer.response, json.dumps(part).encode(), None)
        assert await rebuild(client, one, 1000) == file.content


@pytest.mark.parametrize(
    ("names", "status"),
    [
        pytest.param([FILE.file_name, "1" * 64], 404, id="one that is not there"),
        pytest.param(["x"], 400, id="no hash"),
        pytest.param(["0" * 62 + f"{n:02x}" for n in range(101)], 400, id="too many"),
        pytest.param([], 200, id="none"),
    ],
)
async def test_several_files_or_an_error(client: Client, names: list[str], status: int) -> None:
    token = await add_file(client)
    body = json.dumps([{"prefix": "default", "hash": name} for name in names]).encode()
    for root in ("/v1", ""):
        answer = await client.ask("POST", f"{root}/reconstructions", body, token=token)
        assert answer.status == status
    assert (await client.ask("POST", "/v2/reconstructions", body, token=token)).status == 404
    assert (await client.ask("POST", "/v1/reconstructions", body, token="")).status == 401
    assert (await client.ask("PUT", "/v1/reconstructions", body, token=token)).status == 404


async def test_several_files_of_other_repositories(client: Client) -> None:
    await client.add(FILE, "x.bin")
    await client.create_repo("me/other")
    await client.add(OTHER_FILE, "y.bin", "models/me/other")
    token = await client.get_cas_token()
    query = f"file_id={FILE.file_name}&file_id={OTHER_FILE.file_name}"
    answer = await client.get(f"/v1/reconstructions?{query}", token=token)
    assert answer.status == 404
    assert OTHER_FILE.file_name in answer.json()["error"]
