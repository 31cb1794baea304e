"""The CAS that we play: what native clients get from us, and what is asked behind us."""

import asyncio
import json
import logging
import math
import secrets
import time
from typing import Any

import pytest
from hypothesis import given, settings

from tests.app.world import (
    CAS_TOKEN,
    CONTENT,
    FILE,
    NAME,
    SEALER,
    SIGNATURE,
    TOKEN,
    XORB,
    World,
    ask,
)
from tests.peers import Answer, RawClient, Received, connected, http_answer
from tests.sealed import changed
from tests.waiting import until
from xetserve.app.hub.passthrough import HELD_SIZE
from xetserve.app.hub.xet_mode import AUTO, NATIVE, XetMode
from xetserve.app.native import batch
from xetserve.http.messages import Headers, Request
from xetserve.metrics.catalogue import INTEGRITY_FAILURES, STRANGE_GRANTS
from xetserve.net.body_budget import BodyLease
from xetserve.net.url import parse_url
from xetserve.upstream.cas.reconstruction_budget import TERM_COST
from xetserve.upstream.hub.read_tokens import make_cas_token
from xetserve.xet import data_urls
from xetserve.xet.grants import Grant, GrantedRange, open_grant, seal_grant
from xetserve.xet.reconstruction import (
    MAX_RANGES,
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
    Term,
    to_v2,
)
from xetserve.xet.signing import Sealer

IN_NATIVE = XetMode(NATIVE)
PACKED = b"".join(XORB.records)
WHOLE = f"Range: bytes=0-{len(PACKED) - 1}"
TOKEN_URL = "/api/models/o/n/xet-read-token/main"


def make_world(**answers: Any) -> World:
    """A world whose CAS knows where the file ends."""
    world = World(answers)
    given = answers.get("cas")

    def cas(request: Received) -> Answer:
        if given is not None:
            return given(request) if callable(given) else given  # type: ignore[no-any-return]
        start = int((request.get("range") or "").partition("=")[2].partition("-")[0])
        if start >= len(CONTENT):
            return http_answer(416)
        return http_answer(200, json.dumps(to_v2(plan(world, start))).encode())

    world.answers["cas"] = cas
    return world


def plan(world: World, start: int, query: str = SIGNATURE) -> Reconstruction:
    chunks = ChunkRange(0, 8)
    info = FetchInfo(chunks, XORB.byte_range(chunks), f"{world.data.base}/xorb?{query}")
    term = Term(XORB.xorb_hash, chunks, len(CONTENT))
    return Reconstruction(start, (term,), {XORB.xorb_hash: (info,)})


async def get_token(client: RawClient) -> str:
    status, _, body = await ask(client, TOKEN_URL)
    assert status == 200
    return str(json.loads(body)["accessToken"])


async def get_target(client: RawClient) -> str:
    """Where the data of the file is, here."""
    token = await get_token(client)
    status, _, body = await ask(client, f"/v2/reconstructions/{NAME}", token=token)
    assert status == 200, body
    ((entry,),) = json.loads(body)["xorbs"].values()
    return str(entry["url"]).removeprefix("http://files.test")


async def get_data(
    client: RawClient, target: str, wanted: str = WHOLE
) -> tuple[int, dict[str, str], bytes]:
    return await ask(client, target, wanted, token=None)


@pytest.mark.parametrize(
    "path",
    ["/api/buckets/o/n/", "/api/kernels/o/n/", "/api/anything/o/n/", "/api/models/o/n/"],
)
@pytest.mark.parametrize("revision", ["", "/main"])
async def test_the_tokens_of_every_kind_are_sealed(path: str, revision: str) -> None:
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        status, headers, body = await ask(client, f"{path}xet-read-token{revision}")
        value = json.loads(body)
        assert (status, value["casUrl"]) == (200, "http://files.test")
        assert headers["x-xet-cas-url"] == value["casUrl"]
        assert headers["x-xet-access-token"] == value["accessToken"]
        assert CAS_TOKEN not in value["accessToken"]
        status, _, _ = await ask(client, f"/v2/reconstructions/{NAME}", token=value["accessToken"])
        assert status == 200
        assert (await ask(client, f"{path}xet-write-token{revision}"))[0] == 403
    assert world.cas.requests[0].get("authorization") == f"Bearer {CAS_TOKEN}"


async def test_a_file_and_every_secret_where_it_belongs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        status, headers, body = await ask(client, TOKEN_URL)
        value = json.loads(body)
        assert (status, value["casUrl"]) == (200, "http://files.test")
        assert headers["x-xet-cas-url"] == value["casUrl"]
        assert headers["x-xet-access-token"] == value["accessToken"]
        assert headers["x-xet-token-expiration"] == str(value["exp"])
        assert headers["cache-control"] == "no-store"
        target = await get_target(client)
        status, headers, body = await get_data(client, target)
        assert (status, body) == (206, PACKED)
        assert headers["content-length"] == str(len(PACKED))
        assert headers["content-range"] == f"bytes 0-{len(PACKED) - 1}/*"
        assert {r.get("authorization") for r in world.hub.requests} == {f"Bearer {TOKEN}"}
        assert {r.get("authorization") for r in world.cas.requests} == {f"Bearer {CAS_TOKEN}"}
        assert {r.get("authorization") for r in world.data.requests} == {None}
        assert TOKEN.encode() not in world.cas.received + world.data.received
        assert value["accessToken"].encode() not in (
            world.hub.received + world.cas.received + world.data.received
        )
    for secret in (TOKEN, CAS_TOKEN, SIGNATURE, value["accessToken"], target):
        assert secret not in caplog.text


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_what_the_hub_refuses_stays_refused(method: str) -> None:
    answer = http_answer(403, b'{"error":"no"}', "X-Error-Code: GatedRepo")
    async with make_world(token=answer).run(mode=IN_NATIVE) as client:
        status, headers, body = await ask(client, TOKEN_URL, method=method)
        assert (status, headers["x-error-code"]) == (403, "GatedRepo")
        assert body == (b"" if method == "HEAD" else b'{"error":"no"}')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"casUrl":"http://[","accessToken":"t","exp":1}',
        b'{"casUrl":"http://c","accessToken":"\\n","exp":1}',
        json.dumps(
            {"casUrl": "http://c", "accessToken": secrets.token_hex(40_000), "exp": 1}
        ).encode(),
        b'{"casUrl":"http://c","accessToken":"t","exp":2000000000}' + b" " * HELD_SIZE,
    ],
    ids=["nothing", "no token", "no URL", "not a token", "too long", "too long to be held"],
)
async def test_a_token_answer_that_cannot_be_used_is_502(body: bytes) -> None:
    async with make_world(token=http_answer(200, body)).run(mode=IN_NATIVE) as client:
        status, _, answer = await ask(client, TOKEN_URL)
        assert status == 502
        assert set(json.loads(answer)) == {"error"}


@pytest.mark.parametrize("exp", ["1e400", "NaN", "-1", '"x"', "null"])
async def test_a_token_without_an_end_is_502(exp: str) -> None:
    body = f'{{"casUrl":"http://c","accessToken":"t","exp":{exp}}}'.encode()
    async with make_world(token=http_answer(200, body)).run(mode=IN_NATIVE) as client:
        assert (await ask(client, TOKEN_URL))[0] == 502


@settings(max_examples=300)
@given(value=changed(["http://cas.test", "token", 2e9]))
def test_a_sealed_token_of_any_shape_is_one_or_none(value: Any) -> None:
    token = make_cas_token(value)
    if token is not None:
        assert token.access_token.isascii()
        assert math.isfinite(token.expires)
        parse_url(token.cas_url)


async def test_a_sealed_value_of_another_version_is_401_or_409() -> None:
    async with make_world().run(mode=IN_NATIVE) as client:
        values: list[Any] = [
            None,
            1,
            "x",
            {},
            [],
            ["http://cas.test", "t"],
            {"a": 1, "b": 2, "c": 3},
        ]
        values += [
            ["cas", "t", 2e9],
            ["http://cas.test", "t t", 2e9],
            ["http://cas.test", "t", "x"],
        ]
        for value in values:
            sealed = SEALER.seal("token", value)
            for target in (f"/v2/reconstructions/{NAME}", f"/v1/reconstructions?file_id={NAME}"):
                assert (await ask(client, target, token=sealed))[0] == 401, value
            grant = SEALER.seal("data", value)
            assert (await get_data(client, f"/xorbs/{NAME}?grant={grant}"))[0] == 409


async def test_etags_of_tokens_are_not_passed_on() -> None:
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        status, _, _ = await ask(client, TOKEN_URL, 'If-None-Match: "x"')
        assert status == 200
        assert world.hub.requests[0].get("if-none-match") is None


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (http_answer(401), 401),
        (http_answer(403), 403),
        (http_answer(404), 404),
        (http_answer(416), 416),
        (http_answer(429, b"", "Retry-After: 60"), 429),
        (http_answer(500), 502),
        (http_answer(501), 502),
        (http_answer(503), 503),
        (http_answer(504), 504),
        (http_answer(200, b'{"terms":'), 502),
        ("reset", 502),
    ],
)
async def test_what_the_cas_says_is_what_clients_hear(answer: Answer, status: int) -> None:
    world = make_world(cas=answer)
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        for version in ("/v1", "/v2", ""):
            target = f"{version}/reconstructions/{NAME}"
            found, headers, body = await ask(client, target, "Range: bytes=0-9", token=token)
            assert found == status
            assert set(json.loads(body)) == {"error"}
            assert ("www-authenticate" in headers) == (status == 401)
            assert ("retry-after" in headers) == (status == 429)
        # The client renews its token, nobody else.
        assert len(world.hub.requests) == 1


async def test_the_cas_is_asked_every_time_and_for_the_size_once() -> None:
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        for _ in range(3):
            target = f"/v2/reconstructions/{NAME}"
            status, _, _ = await ask(client, target, "Range: bytes=5-99", token=token)
            assert status == 200
        asked = [request.get("range") for request in world.cas.requests]
        assert asked.count("bytes=5-99") == 3
        assert len(asked) == 4
        reply = await ask(client, f"/v1/files/{NAME}", method="HEAD", token=token)
        assert (reply[0], reply[1]["content-length"]) == (200, str(len(CONTENT)))


async def test_nothing_is_said_of_a_file_before_the_cas_agreed() -> None:
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        target = f"/v2/reconstructions/{NAME}"
        past_end = f"Range: bytes={len(CONTENT)}-"
        assert (await ask(client, target, token=token))[0] == 200  # the size is known from here on
        status, headers, _ = await ask(client, target, past_end, token=token)
        assert (status, headers["content-range"]) == (416, f"bytes */{len(CONTENT)}")
        asked = len(world.cas.requests)
        for wanted in ("bytes=9-3", "bytes=-5", "lines=1-2"):
            status, headers, body = await ask(client, target, f"Range: {wanted}", token=token)
            assert status == 416
            assert str(len(CONTENT)) not in repr(headers) + body.decode()
        assert len(world.cas.requests) == asked
        world.answers["cas"] = http_answer(403)
        for version, method in (("v2/reconstructions", "GET"), ("v1/files", "HEAD")):
            for wanted in (past_end, "Range: bytes=0-0"):
                path = f"/{version}/{NAME}"
                status, headers, _ = await ask(client, path, wanted, token=token, method=method)
                assert (status, "content-range" in headers) == (403, False)


def make_many(num_ranges: int) -> Answer:
    """An answer with so many ranges, each with a URL that cannot be packed."""
    infos = tuple(
        FetchInfo(
            ChunkRange(at, at + 1),
            ByteRange(at, at + 1),
            f"http://data.test/?{secrets.token_hex(200)}",
        )
        for at in range(num_ranges)
    )
    terms = tuple(Term(XORB.xorb_hash, info.chunks, 9) for info in infos)
    plan = Reconstruction(0, terms, {XORB.xorb_hash: infos})
    return http_answer(200, json.dumps(to_v2(plan)).encode())


async def test_a_large_answer_is_made_as_it_is_read_and_counts_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_ranges, sealed = 12_000, 0

    def count(sealer: Sealer, grant: Grant) -> str:
        nonlocal sealed
        sealed += 1
        return seal_grant(sealer, grant)

    monkeypatch.setattr(data_urls, "seal_grant", count)
    world = make_world()
    world.answers["cas"] = make_many(num_ranges)
    target = f"/v2/reconstructions/{NAME}"
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        status, headers, body = await ask(client, target, "Range: bytes=0-999999", token=token)
        assert (status, headers["content-type"]) == (200, "application/json")
        ((*entries,),) = json.loads(body)["xorbs"].values()
        assert len(entries) == num_ranges
        assert world.budget.held == 0
        sealed = 0
        async with connected(world.port) as slow:
            lines = [f"GET {target} HTTP/1.1", "Host: h", f"Authorization: Bearer {token}", "", ""]
            await slow.send("\r\n".join(lines).encode())
            await until(lambda: sealed > 0)
            assert world.budget.held > num_ranges * (400 + TERM_COST)
            slow.reset()
        await until(lambda: world.budget.held == 0)
        assert sealed < num_ranges


async def test_a_question_about_too_much_is_413_and_says_what_to_do() -> None:
    world = make_world()
    world.answers["cas"] = make_many(MAX_RANGES + 1)
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        status, _, body = await ask(client, f"/v2/reconstructions/{NAME}", token=token)
        assert (status, b"shorter range" in body) == (413, True)
        status, _, body = await post_batch(client, batch_of(NAME), token)
        assert (status, b"fewer files" in body) == (413, True)


async def test_an_upstream_url_that_is_too_long_is_502() -> None:
    query = secrets.token_hex(9000)
    world = make_world()
    world.answers["cas"] = lambda request: http_answer(
        200, json.dumps(to_v2(plan(world, 0, query))).encode()
    )
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        status, _, body = await ask(client, f"/v2/reconstructions/{NAME}", token=token)
        assert status == 502
        assert b"too long" in body


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (http_answer(403), 403),
        (http_answer(404), 502),
        (http_answer(500), 502),
        (http_answer(503), 503),
        (http_answer(206, b"short"), 502),
        (http_answer(206, bytes(len(PACKED))), 502),
        ("reset", 502),
    ],
)
async def test_trouble_with_data_before_the_head(answer: Answer, status: int) -> None:
    world = make_world(data=answer)
    async with world.run(mode=IN_NATIVE) as client:
        target = await get_target(client)
        for _ in range(2):  # and the connection goes on
            found, _, body = await get_data(client, target)
            assert found == status
            assert set(json.loads(body)) == {"error"}
            assert b"signature=" not in body


async def test_a_part_of_a_range_costs_nothing_upstream() -> None:
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        target, last = await get_target(client), len(PACKED) - 1
        for wanted in ("0-0", f"1-{last}", f"0-{last - 1}", "0-0,1-1", f"0-{last},0-{last}"):
            status, _, body = await get_data(client, target, f"Range: bytes={wanted}")
            assert (status, set(json.loads(body))) == (403, {"error"})
        assert world.data.wires == []
        for _ in range(2):  # a client whose transfer broke off asks for the same
            assert (await get_data(client, target))[2] == PACKED


async def test_damage_is_cut_and_urls_from_before_are_refused() -> None:
    wrong = bytearray(PACKED)
    wrong[:] = XORB.records[1] + XORB.records[0] + b"".join(XORB.records[2:])
    assert len(wrong) == len(PACKED)
    data: dict[str, bytes] = {"body": bytes(wrong)}
    world = make_world(data=lambda request: http_answer(206, data["body"]))
    async with world.run(mode=IN_NATIVE) as client:
        target = await get_target(client)
        before = INTEGRITY_FAILURES.total
        try:  # as small as it is, it may not even begin
            status, _, _ = await get_data(client, target)
        except (asyncio.IncompleteReadError, ConnectionError):
            status = 502
        assert status == 502
        assert INTEGRITY_FAILURES.total == before + 1
        data["body"] = PACKED
        async with connected(world.port) as other:
            status, _, body = await get_data(other, target)
            assert (status, set(json.loads(body))) == (409, {"error"})
            status, _, body = await get_data(other, await get_target(other))
            assert (status, body) == (206, PACKED)


async def test_a_url_of_another_instance_needs_a_proof_here(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever has signed it has seen the other parts of the file, and nobody here has."""

    def make_strange(
        target: str, ranges: tuple[GrantedRange, ...] | None = None, **changes: Any
    ) -> str:
        path, _, text = target.partition("&grant=")
        grant = open_grant(SEALER, text)
        assert grant is not None
        grant = grant._replace(instance="another", ranges=ranges or grant.ranges, **changes)
        return f"{path}&grant={seal_grant(SEALER, grant)}"

    before = STRANGE_GRANTS.total
    async with make_world().run(mode=IN_NATIVE) as client:
        target = await get_target(client)
        for _ in range(3):
            status, _, body = await get_data(client, make_strange(target))
            assert (status, b"start again" in body) == (409, True)
        assert STRANGE_GRANTS.total == before + 3
        assert caplog.text.count("scale/haproxy.cfg and scale/nginx.conf") == 1
        # It makes no difference that the file is proven here: the other has given out parts that
        # nobody has proven.
        assert (await get_data(client, target))[0] == 206
        assert (await get_data(client, make_strange(target)))[0] == 409
        # What was granted of a proven file says what it has to be.
        proven = open_grant(SEALER, (await get_target(client)).partition("&grant=")[2])
        assert proven is not None
    async with make_world().run(mode=IN_NATIVE) as client:
        strange = make_strange(await get_target(client), proven.ranges)
        status, _, body = await get_data(client, strange)
        assert (status, body) == (206, PACKED)
        # Whoever is told to ask anew goes on with what it has.
        unproven = tuple(each._replace(digest="") for each in proven.ranges)
        for ranges, expected in ((proven.ranges, 403), (unproven, 409)):
            late = make_strange(target, ranges, expires=time.time() - 1)
            assert (await get_data(client, late))[0] == expected


async def test_what_was_known_of_a_file_may_be_lost_while_it_is_downloaded() -> None:
    """Then its parts are held against what the URL says, or the download begins anew."""
    data = {"body": PACKED}
    world = make_world(data=lambda request: http_answer(206, data["body"]))
    async with world.run(mode=IN_NATIVE) as client:
        unproven = await get_target(client)
        assert (await get_data(client, unproven))[0] == 206
        proven = await get_target(client)
        ledgers = world.ledgers
        ledgers._max_memory = 0
        ledgers.trim(bytes(32))
        assert (await get_data(client, unproven))[0] == 409
        data["body"] = XORB.records[1] + XORB.records[0] + b"".join(XORB.records[2:])
        assert (await get_data(client, proven))[0] == 502


@pytest.mark.parametrize("what", ["cut", "lost"])
async def test_whoever_has_the_beginning_of_a_wrong_file_is_not_told_the_rest(what: str) -> None:
    """All that was granted before may have been read before: no old URL would be refused."""
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        old = await get_token(client)
        url, text, expires, issued = SEALER.unseal("token", old)  # type: ignore[misc]
        assert 0 <= time.time() - issued < 100
        now = time.monotonic()
        if what == "cut":
            world.ledgers.note_cut(FILE.file_hash, now)
        else:
            world.ledgers._lost.note(FILE.file_hash, int(now * 1e9))
        target, rest = f"/v2/reconstructions/{NAME}", "Range: bytes=50000-399999"
        assert (await ask(client, target, rest, token=old))[0] == 409
        for when in (
            issued - 1000,
            issued + 3000,
            0,
        ):  # long before, by a clock that was set back, unknown
            token = SEALER.seal("token", [url, text, expires, when])
            found, _, body = await ask(client, target, rest, token=token)
            assert (found, b"start again" in body) == (409, True), when
            # From the beginning on, everything is looked at.
            assert (await ask(client, target, token=token))[0] == 200
        cut = int((now - 3000) * 1e9)
        world.ledgers._cuts._times.put(FILE.file_hash, cut)
        world.ledgers._lost._times.put(FILE.file_hash, cut)
        assert (await ask(client, target, rest, token=old))[0] == 200


async def test_a_url_is_good_for_a_while() -> None:
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        target = await get_target(client)
        path, _, text = target.partition("&grant=")
        grant = open_grant(SEALER, text)
        assert grant is not None
        assert 800 < grant.expires - time.time() <= 900
        assert 0 <= time.monotonic() - grant.issued < 100  # nobody can set that clock
        for changes, status in (
            ({"expires": time.time() + 60}, 206),
            ({"expires": time.time() - 1}, 403),
            ({"xorb_hash": bytes(32)}, 403),
            ({"ranges": ()}, 403),
        ):
            other = seal_grant(SEALER, grant._replace(**changes))
            found, _, _ = await get_data(client, f"{path}&grant={other}")
            assert found == status, changes


async def test_telemetry_is_taken_within_bounds() -> None:
    async with make_world().run(mode=IN_NATIVE) as client:
        for size, status in ((1000, 204), (300_000, 413)):
            head = f"POST /v1/telemetry HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n"
            await client.send(head.encode() + bytes(size))
            assert (await client.read_answer())[0] == status


async def test_telemetry_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(self: BodyLease, size: int) -> None:
        pytest.fail("it was held")

    monkeypatch.setattr(BodyLease, "hold", hold)
    async with make_world().run(mode=IN_NATIVE) as client:
        await client.send(
            b"POST /v1/telemetry HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n"
        )
        await client.send(bytes(200_000))
        assert (await client.read_answer())[0] == 204


async def post_batch(
    client: RawClient, body: bytes, token: str | None, target: str = "/v1/reconstructions"
) -> tuple[int, dict[str, str], bytes]:
    field = "" if token is None else f"Authorization: Bearer {token}\r\n"
    head = (
        f"POST {target} HTTP/1.1\r\nHost: files.test\r\n{field}Content-Length: {len(body)}\r\n\r\n"
    )
    await client.send(head.encode() + body)
    return await client.read_answer()


def answer_except(world: World, name: str, answer: Answer) -> None:
    """Have the CAS answer something else about one file."""
    known = world.answers["cas"]
    assert callable(known)
    world.answers["cas"] = lambda request: answer if name in request.path else known(request)


def batch_of(*names: str) -> bytes:
    return json.dumps([{"prefix": "default", "hash": name} for name in names]).encode()


def tell_part(world: World, name: str, first: int) -> None:
    """Have the CAS say that a file is made of the last chunks of the xorb; for a world that
    runs.
    """
    chunks = ChunkRange(first, 8)
    info = FetchInfo(chunks, XORB.byte_range(chunks), f"{world.data.base}/xorb?{SIGNATURE}")
    term = Term(XORB.xorb_hash, chunks, 50_000 * (8 - first))
    part = Reconstruction(0, (term,), {XORB.xorb_hash: (info,)})
    answer_except(world, name, http_answer(200, json.dumps(to_v2(part)).encode()))


async def test_files_that_share_chunks_are_not_told_of_together() -> None:
    """One URL could hold the chunks against one of them only."""
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        status, _, body = await post_batch(client, batch_of(NAME, "7" * 64), token)
        assert status == 400
        assert "one file at a time" in json.loads(body)["error"]


async def test_several_files_in_one_answer() -> None:
    world = make_world()
    other = "7" * 64
    async with world.run(mode=IN_NATIVE) as client:
        tell_part(world, other, 4)
        token = await get_token(client)
        status, headers, body = await post_batch(client, batch_of(NAME, other, NAME), token)
        assert (status, headers["cache-control"]) == (200, "no-store")
        value = json.loads(body)
        assert set(value) == {"files", "fetch_info"}
        assert set(value["files"]) == {NAME, other}
        ((info, _),) = value["fetch_info"].values()  # both are of the same xorb
        assert SIGNATURE.encode() not in body
        assert info["url"].startswith("http://files.test/xorbs/")
        asked = [request.path.rpartition("/")[2] for request in world.cas.requests]
        assert sorted(asked) == sorted([NAME, other])
        assert {r.get("authorization") for r in world.cas.requests} == {f"Bearer {CAS_TOKEN}"}
        found = await get_data(client, info["url"].removeprefix("http://files.test"))
        assert (found[0], found[2]) == (206, PACKED)
        for root in ("/v1", ""):
            target = f"{root}/reconstructions?file_id={NAME}&file_id={other}&x=y"
            status, _, body = await ask(client, target, token=token)
            assert (status, set(json.loads(body)["files"])) == (200, {NAME, other})
        # One question tells the size.
        reply = await ask(client, f"/v1/files/{NAME}", method="HEAD", token=token)
        assert reply[1]["content-length"] == str(len(CONTENT))


async def test_an_empty_file_is_one_of_several() -> None:
    empty = "0" * 64
    world = make_world()
    answer_except(world, empty, http_answer(416))
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        status, _, body = await post_batch(client, batch_of(NAME, empty), token)
        assert status == 200
        assert json.loads(body)["files"][empty] == []


@pytest.mark.parametrize(("answer", "status"), [(403, 403), (404, 404), (503, 503), (500, 502)])
async def test_one_that_cannot_be_had_is_the_answer(answer: int, status: int) -> None:
    refused = "9" * 64
    world = make_world()
    answer_except(world, refused, http_answer(answer))
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        found, _, body = await post_batch(client, batch_of(NAME, refused, "8" * 64), token)
        assert found == status
        assert set(json.loads(body)) == {"error"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (batch_of("x"), 400),
        (batch_of(*(f"{number:064x}" for number in range(101))), 400),
        (b" " * 65_537, 413),
        (b"[]", 200),
    ],
    ids=["nothing", "no list", "no hash", "too many", "too long", "none"],
)
async def test_questions_that_are_none(body: bytes, status: int) -> None:
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        token = await get_token(client)
        found, _, _ = await post_batch(client, body, token)
        assert found == status
        assert world.cas.requests == []


async def test_several_files_need_a_token_of_ours() -> None:
    world = make_world()
    async with world.run(mode=IN_NATIVE) as client:
        for token in (None, TOKEN, "x"):
            async with connected(world.port) as other:
                assert (await post_batch(other, batch_of(NAME), token))[0] == 401
        token = await get_token(client)
        for target, method, status in (
            ("/v1/reconstructions", "GET", 400),
            (f"/v1/reconstructions?file_id={NAME}", "HEAD", 405),
            (f"/v1/reconstructions?file_id={NAME}", "PUT", 405),
            (f"/v2/reconstructions?file_id={NAME}", "GET", 404),
        ):
            async with connected(world.port) as other:
                found = await ask(other, target, method=method, token=token)
                assert found[0] == status, target
        assert world.cas.requests == []


@pytest.mark.parametrize("name", ["MAX_TERMS", "MAX_RANGES"])
async def test_an_answer_that_would_be_too_large(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, name, 2)
    world = make_world()
    names = ["1" * 64, "2" * 64, "3" * 64]
    async with world.run(mode=IN_NATIVE) as client:
        for first, other in enumerate(names, 1):
            tell_part(world, other, first)
        token = await get_token(client)
        assert (await post_batch(client, batch_of(*names[:2]), token))[0] == 200
        status, _, body = await post_batch(client, batch_of(*names), token)
        assert status == 413
        assert b"fewer files" in body


@pytest.mark.parametrize(
    ("mode", "agent", "limit"),
    [
        (XetMode(), "hf_hub/2.4.0; hf_xet/1.8.0", None),
        (XetMode(NATIVE), "", -1),
        (XetMode(NATIVE, 7), "curl/8", -1),
        (XetMode(AUTO, 7), "unknown/None; hf_hub/2.4.0; python/3.11.7", 7),
        (XetMode(AUTO, 7), "unknown/None; hf_hub/0.36.2", 7),
        (XetMode(AUTO, 7), "hf-mount/0.9.2; fs/nfs", -1),
        (XetMode(), "hf-mount/0.9.2; fs/nfs", None),
        (XetMode(AUTO), "x; hf_xet/1.8.0", 50 * 10**9),
        (XetMode(AUTO, 0), "hf-xet", 0),
        (XetMode(AUTO, 7), "curl/8", None),
        (XetMode(AUTO, 7), "", None),
        (XetMode(AUTO, 7), "hf_hubbub; hf_xetra", None),
    ],
)
def test_who_is_told_of_xet(mode: XetMode, agent: str, limit: int | None) -> None:
    fields = [("User-Agent", agent)] if agent else []
    assert mode.find_limit(Request("GET", "/", Headers(fields))) == limit
