"""The Hub's API, passed on."""

import asyncio
import gzip
import json
from collections.abc import Callable

import pytest

from tests.app.world import TOKEN, World, ask
from tests.peers import Answer, Received, http_answer
from tests.waiting import PATIENCE, until
from xetserve import __version__
from xetserve.app.hub.passthrough import HELD_SIZE, MAX_QUESTION_SIZE
from xetserve.app.hub.xet_mode import CLIENT_LIMIT, NATIVE, XetMode
from xetserve.upstream.answers.cache import AnswerCache, AnswerPolicy

JSON = "Content-Type: application/json; charset=utf-8"
ENTRY = {"type": "file", "path": "a", "xetHash": "0" * 64, "size": 1}
PLAIN_ENTRY = {"type": "file", "path": "a", "size": 1}


def hub(answer: Answer | Callable[[Received], Answer]) -> World:
    return World({"hub": answer})


class TestQuestions:
    async def test_it_goes_to_the_hub_as_it_is(self) -> None:
        world = hub(http_answer(200, b"{}", JSON))
        target = "/api/models/o/n/tree/refs%2Fpr%2F1/d%20e?recursive=True&x=%2F"
        async with world.run() as client:
            status, _, body = await ask(
                client, target, "User-Agent: hf/2", "Cookie: c=d", "Range: bytes=0-1",
                "TE: trailers", 'If-None-Match: W/"x"', "Accept: application/json",
            )  # fmt: skip
            assert (status, body) == (200, b"{}")
        (request,) = world.hub.requests
        assert (request.method, request.target) == ("GET", target)
        assert dict(request.headers) == {
            "host": f"127.0.0.1:{world.hub.port}",
            "accept": "application/json",
            "accept-encoding": "gzip",
            "if-none-match": 'W/"x"',
            "user-agent": f"xetserve/{__version__} hf/2",
            "via": "1.1 xetserve-test",
            "authorization": f"Bearer {TOKEN}",
        }

    async def test_without_a_token(self) -> None:
        world = hub(http_answer(200, b"[]", JSON))
        async with world.run() as client:
            assert (await ask(client, "/api/models?search=x", token=None))[0] == 200
        assert world.hub.requests[0].get("authorization") is None

    @pytest.mark.parametrize(
        "path",
        ["/api/models", "/api/datasets/o/n", "/api/models/gpt2/refs", "/api/whoami-v2",
         "/api/models/o/n/auth-check", "/api/spaces/o/n/commits/main", "/api/quicksearch?q=x",
         "/api/models/o/n/revision/refs%2Fpr%2F1", "/api/anything/else"],
    )  # fmt: skip
    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_every_question_passes(self, method: str, path: str) -> None:
        world = hub(http_answer(200, b"" if method == "HEAD" else b"{}", JSON))
        async with world.run() as client:
            assert (await ask(client, path, method=method))[0] == 200
        assert [(r.method, r.target) for r in world.hub.requests] == [(method, path)]

    async def test_a_list_of_paths(self) -> None:
        world = hub(http_answer(200, json.dumps([ENTRY]).encode(), JSON))
        body = b"paths=a&paths=b&expand=true"
        async with world.run() as client:
            await client.send(
                b"POST /api/datasets/o/n/paths-info/main HTTP/1.1\r\nHost: h\r\n"
                b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            status, _, answer = await client.read_answer()
        assert (status, json.loads(answer)) == (200, [PLAIN_ENTRY])
        (request,) = world.hub.requests
        assert (request.method, request.body) == ("POST", body)
        assert request.get("content-type") == "application/x-www-form-urlencoded"

    async def test_a_list_is_let_go_of_once_the_hub_answers(self) -> None:
        answer = b"[" + b" " * (32 << 20) + b"]"  # more than sockets take: it is sent as it is read
        world = hub(http_answer(200, answer, JSON))
        body = b"paths=" + b"a" * 100_000
        async with world.run() as client:
            await client.send(
                b"POST /api/models/o/n/paths-info/main HTTP/1.1\r\nHost: h\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body[:-1])
            )
            await until(lambda: world.bodies.held == len(body))
            await client.send(body[-1:])
            await until(lambda: world.bodies.held == 0)
            assert (await client.read_answer())[0] == 200

    async def test_too_long_a_list(self) -> None:
        world = World()
        async with world.run() as client:
            await client.send(
                b"POST /api/models/o/n/paths-info/main HTTP/1.1\r\nHost: h\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
                + b"%x\r\n" % (MAX_QUESTION_SIZE + 1)
                + b"x" * (MAX_QUESTION_SIZE + 1)
            )
            assert (await client.read_answer())[0] == 413
        assert world.hub.wires == []

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/api/repos/create", 405),
            ("POST", "/api/models/o/n/commit/main", 403),
            ("POST", "/api/repos/delete", 405),
            ("DELETE", "/api/models/o/n/settings", 405),
            ("PUT", "/api/models/o/n/x/settings", 403),
            ("PUT", "/api/models/o/n", 403),
            ("DELETE", "/api/models/o/n/branch/main", 403),
            ("GET", "/api/models/o/n/paths-info/main", 405),
            ("GET", "/api/models/o/n/xet-read-token/main", 404),
            ("GET", "/api/models/gpt2/xet-read-token/main", 404),
            ("HEAD", "/api/datasets/o/n/xet-read-token/refs%2Fpr%2F1", 404),
            ("GET", "/api/spaces/o/n/xet-write-token/main", 404),
            ("GET", "/api/models/o/n/xet%2Dread%2dtoken/main", 404),
            ("GET", "/api/models/o/n/%78et-write-token/main", 404),
            ("GET", "/api/models/o/n/Xet-Write-Token/main", 404),
            ("GET", "/api/models/acme/tree/xet-read-token/main", 404),
            ("GET", "/api/buckets/o/n/xet-write-token", 404),
            ("GET", "/api/buckets/o/n/xet-read-token", 404),
            ("HEAD", "/api/buckets/o/n/xet-read-token", 404),
            ("GET", "/api/kernels/o/n/xet-read-token/main", 404),
            ("GET", "/api/kernels/o/n/xet-write-token/main", 404),
            ("GET", "/api/anything/o/n/xet-read-token", 404),
            ("GET", "/api/models/o/n/xet-read-token", 404),
            ("GET", "/api/models/o/n/xet-write-token/", 404),
            ("GET", "/api/models/resolve/n/xet-read-token/main", 404),
            ("GET", "/api/models/raw/n/xet-write-token/main", 404),
            ("GET", "/api//models/o/n/xet-read-token/main", 400),
            ("GET", "/api/models/o/n//xet-read-token/main", 400),
            ("GET", "/api/models/o/n/xet%%32Dread-token/main", 400),
            ("POST", "/api/models/o/n/preupload/main", 403),
            ("POST", "/api/kernels/o/n/preupload/main", 403),
            ("POST", "/api/buckets/o/n/batch", 403),
            ("PATCH", "/api/models/o/n", 403),
            ("POST", "/api/models/acme/paths-info/commit/main", 403),
            ("POST", "/api/models/acme/paths-info/preupload/main", 403),
            ("POST", "/api/models/acme/paths-info/discussions", 403),
            ("POST", "/api/models/o/n/comm%69t/main", 403),
            ("GET", "/api/../o", 400),
            ("GET", "/api/models/%2e%2e/%2E%2e/x", 400),
            ("GET", "/api/models/a%2F..%2Fb", 400),
            ("GET", "/api/models/%0d%0ax", 400),
        ],
    )
    async def test_what_the_hub_is_not_asked(self, method: str, path: str, status: int) -> None:
        world = World()
        async with world.run() as client:
            assert (await ask(client, path, method=method))[0] == status
        assert world.hub.wires == []


class TestAnswers:
    async def test_links_lead_to_us(self) -> None:
        def answer(request: Received) -> Answer:
            base = "https://huggingface.co" if "public" in request.target else world.hub.base
            return http_answer(200, b"[]", JSON, f'Link: <{base}/api/x?cursor=abc>; rel="next"')

        world = hub(answer)
        async with world.run() as client:
            for path in ("/api/models", "/api/models?public"):
                _, headers, _ = await ask(client, path)
                assert headers["link"] == '<http://files.test/api/x?cursor=abc>; rel="next"'

    @pytest.mark.parametrize(
        "base",
        ["http://localhost:{port}", "http://hub.internal", "https://huggingface.co:443", "//hub:80",
         "HTTPS://Hub.Test:8443", ""],
    )  # fmt: skip
    async def test_the_next_page_is_ours_whatever_host_it_names(self, base: str) -> None:
        path = "/api/models/o/n/tree/refs%2Fpr%2F1"

        def answer(request: Received) -> Answer:
            named = base.format(port=world.hub.port)
            return http_answer(
                200, b"[]", JSON, f'Link: <{named}{path}?recursive=true&cursor=a>; rel="next"'
            )

        world = hub(answer)
        async with world.run() as client:
            _, headers, _ = await ask(client, f"{path}?recursive=true")
            ours = "" if base == "" else "http://files.test"
            assert headers["link"] == f'<{ours}{path}?recursive=true&cursor=a>; rel="next"'
            # The path of something else stays what it is.
            _, headers, _ = await ask(client, "/api/models/o/n/refs")
            if base == "http://hub.internal":
                assert headers["link"].startswith("<http://hub.internal/")

    async def test_pages_are_joined_whatever_host_they_name(self) -> None:
        path = "/api/models/o/n/tree/main"

        def answer(request: Received) -> Answer:
            more = [f'Link: <http://other.test{path}?cursor=a>; rel="next"']
            is_last = "cursor" in request.target
            return http_answer(200, b"[2]" if is_last else b"[1]", JSON, *([] if is_last else more))

        world = hub(answer)
        async with world.run() as client:
            agent = "User-Agent: llama-cpp/b1"
            status, headers, body = await ask(client, f"{path}?recursive=true", agent)
        assert (status, json.loads(body), "link" in headers) == (200, [1, 2], False)

    async def test_fields(self) -> None:
        world = hub(
            http_answer(
                200, b"{}", JSON, 'ETag: W/"1"', "X-Xet-Hash: 00", "Set-Cookie: a=b",
                "Vary: Origin", "X-Request-Id: theirs", "Via: 1.1 cdn", "X-Total-Count: 3",
                "Access-Control-Allow-Origin: x",
            )
        )  # fmt: skip
        async with world.run() as client:
            _, headers, _ = await ask(client, "/api/models")
        assert headers["via"] == "1.1 cdn, 1.1 xetserve-test"
        assert headers["vary"] == "Origin, Authorization, Accept-Encoding"
        assert (headers["etag"], headers["x-total-count"]) == ('W/"1"', "3")
        assert headers["access-control-allow-origin"] == "*"
        assert headers["x-request-id"] != "theirs"
        assert headers["content-length"] == "2"
        assert not {"set-cookie", "x-xet-hash"} & set(headers)

    @pytest.mark.parametrize("is_coded", [False, True])
    @pytest.mark.parametrize("with_length", [False, True])
    @pytest.mark.parametrize("count", [1, 30_000])
    async def test_nothing_tells_of_xet(
        self, count: int, with_length: bool, is_coded: bool
    ) -> None:
        data = json.dumps([ENTRY] * count).encode()
        fields = [JSON, "Content-Encoding: gzip"] if is_coded else [JSON]
        sent = gzip.compress(data, 1) if is_coded else data
        if with_length:
            world = hub(http_answer(200, sent, *fields))
        else:
            fields.append("Transfer-Encoding: chunked")
            world = hub(http_answer(200, chunked(sent), *fields, length=False))
        async with world.run() as client:
            status, headers, body = await ask(client, "/api/models/o/n/tree/main")
        assert (status, json.loads(body)) == (200, [PLAIN_ENTRY] * count)
        assert ("content-length" in headers) == (len(data) <= HELD_SIZE)
        assert "content-encoding" not in headers

    @pytest.mark.parametrize("count", [0, 200_000])
    @pytest.mark.parametrize(
        ("text", "fields"),
        [
            ('{"a": "b", "casUrl" : "https://cas.test", "accessToken": "t"}', ()),
            ('{"a":{}, "casUrl":"https://cas.test"}', ()),
            ("{}", ("X-Xet-Access-Token: t",)),
            ("{}", ("X-Xet-Cas-Url: https://cas.test",)),
        ],
    )
    async def test_a_token_leaves_at_no_path(
        self, text: str, fields: tuple[str, ...], count: int
    ) -> None:
        if count and fields:
            return  # the fields alone decide
        blanks = b" " * count
        world = hub(http_answer(200, blanks + text.encode(), JSON, *fields))
        for mode in (None, XetMode(NATIVE)):
            for method in ("GET", "HEAD") if fields else ("GET",):
                async with world.run(mode=mode) as client:
                    for path in ("/api/models/o/xet-read-token", "/api/x/o/n/token"):
                        status, _, body = await ask(client, path, method=method)
                        assert status == 502
                        assert b"cas.test" not in body

    async def test_a_token_without_a_content_type_does_not_leave(self) -> None:
        world = hub(http_answer(200, b'{"casUrl": "https://cas.test"}'))
        async with world.run() as client:
            assert (await ask(client, "/api/x/o/n/token"))[0] == 502

    @pytest.mark.parametrize(
        "path", ["/api/models", "/api/models?search=x", "/api/spaces", "/api/x", "/api/models/o/n"]
    )
    async def test_a_card_with_such_names_stays(self, path: str) -> None:
        card = {"casUrl": "hi", "accessToken": "there"}
        for count in (1, 20_000):
            text = json.dumps([{"id": "a/b", "cardData": card}] * count).encode()
            async with hub(http_answer(200, text, JSON)).run() as client:
                status, _, found = await ask(client, path)
                assert (status, found) == (200, text)

    async def test_a_token_of_another_kind_stays(self) -> None:
        text = b'{"auth": {"accessToken": {"role": "read"}}, "card": "say \\"casUrl\\": 1"}'
        world = hub(http_answer(200, text, JSON))
        async with world.run() as client:
            assert (await ask(client, "/api/whoami-v2"))[2] == text

    async def test_what_is_no_json_stays_as_it_is(self) -> None:
        text = b'{"xetHash": "0"}'
        async with hub(http_answer(200, text, "Content-Type: text/plain")).run() as client:
            assert (await ask(client, "/api/x"))[2] == text

    async def test_not_modified(self) -> None:
        async with hub(http_answer(304, b"", 'ETag: W/"1"', length=False)).run() as client:
            status, headers, _ = await ask(client, "/api/x", 'If-None-Match: W/"1"')
            assert (status, headers["etag"]) == (304, 'W/"1"')

    @pytest.mark.parametrize("is_kept", [False, True])
    async def test_every_answer_has_the_vary_of_the_whole(self, is_kept: bool) -> None:
        """RFC 9110, 15.4.5 and 9.3.2."""
        path = "/api/models/o/n" if is_kept else "/api/x"
        body = json.dumps(["a" * 2000]).encode()

        def answer(request: Received) -> Answer:
            if request.get("if-none-match") is not None:
                return http_answer(304, b"", 'ETag: W/"1"', "Vary: Origin", length=False)
            is_head = request.method == "HEAD"
            fields = (JSON, 'ETag: W/"1"', "Vary: Origin")
            return http_answer(200, b"" if is_head else body, *fields)

        world = hub(answer)
        world.metadata = AnswerCache(AnswerPolicy(ttl=60.0)) if is_kept else None
        coded = "Accept-Encoding: zstd"
        async with world.run(mode=XetMode("native")) as client:
            whole = await ask(client, path, coded)
            small = await ask(client, path)
            head = await ask(client, path, coded, method="HEAD")
            unchanged = await ask(client, path, coded, 'If-None-Match: W/"1"')
        assert [each[0] for each in (whole, small, head, unchanged)] == [200, 200, 200, 304]
        assert (whole[1]["content-encoding"], small[2]) == ("zstd", body)
        for _, headers, _ in (whole, small, head, unchanged):
            assert headers["vary"] == "Origin, Authorization, Accept-Encoding, User-Agent, Accept"

    async def test_marks_of_a_request_go_to_the_hub(self) -> None:
        trace = f"00-{'a1' * 16}-{'b2' * 8}-01"
        marks = ("X-HF-Download-Counter: 1", f"traceparent: {trace}")
        world = World()
        async with world.run() as client:
            for path in ("/api/x", "/o/n/resolve/main/a", "/download/o/n/a"):
                await ask(client, path, *marks)
                await ask(client, path, "X-HF-Download-Counter: a", f"traceparent: {trace}-x")
        peers = (world.hub, world.cas, world.data)
        marked = [
            [
                (each.get("traceparent"), each.get("x-hf-download-counter"), each.path)
                for each in peer.requests
                if each.get("traceparent") or each.get("x-hf-download-counter")
            ]
            for peer in peers
        ]
        assert {each[:2] for each in marked[0]} == {(trace, "1")}
        paths = {"/api/x", "/o/n/resolve/main/a", "/api/models/o/n/xet-read-token/main"}
        assert {each[2] for each in marked[0]} == paths
        assert marked[1:] == [[], []]

    @pytest.mark.parametrize("token", [None, TOKEN])
    async def test_a_refusal_says_that_no_token_came(self, token: str | None) -> None:
        answer = http_answer(401, b"{}", JSON, "X-Error-Message: Repository not found")
        async with hub(answer).run() as client:
            _, headers, _ = await ask(client, "/api/models/o/n", token=token)
        note = " (no token came with the request)" if token is None else ""
        assert headers["x-error-message"] == f"Repository not found{note}"

    @pytest.mark.parametrize("name", ["native", "auto"])
    async def test_a_hash_that_is_none_is_left_out(self, name: str) -> None:
        size = CLIENT_LIMIT + 1
        entries = [{**PLAIN_ENTRY, "size": size, "xetHash": each} for each in ("", None, "*" * 64)]
        large = {**ENTRY, "size": size}
        world = hub(http_answer(200, json.dumps([*entries, large]).encode(), JSON))
        async with world.run(mode=XetMode(name)) as client:
            target = "/api/models/o/n/tree/main"
            _, _, body = await ask(client, target, "User-Agent: hf_hub/2.4; hf_xet/1.8")
        assert json.loads(body) == [*[{**PLAIN_ENTRY, "size": size}] * 3, large]

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
    async def test_a_refusal_is_passed_on(self, status: int) -> None:
        answer = http_answer(
            status, b'{"error":"no"}', JSON, "X-Error-Code: Some", "X-Error-Message: so it is",
            "Cache-Control: max-age=9",
        )  # fmt: skip
        async with hub(answer).run() as client:
            for _ in range(2):
                found, headers, body = await ask(client, "/api/models/o/n")
                assert (found, json.loads(body)) == (status, {"error": "no"})
                assert headers["x-error-code"] == "Some"
                assert headers["x-error-message"] == "so it is"
                assert headers["cache-control"] == "no-store"

    @pytest.mark.parametrize(
        ("answer", "status"),
        [
            (http_answer(429, b"", "Retry-After: 60"), 429),
            (http_answer(500, b""), 502),
            (http_answer(503, b""), 503),
            (http_answer(504, b""), 504),
            (http_answer(508, b""), 508),
            (http_answer(200, b"x", "Content-Encoding: br"), 502),
            (http_answer(200, b"nonsense", "Content-Encoding: gzip"), 502),
            ("reset", 502),
            ("close", 502),
        ],
    )
    async def test_trouble_of_the_hub(self, answer: Answer, status: int) -> None:
        async with hub(answer).run() as client:
            for _ in range(2):
                found, headers, _ = await ask(client, "/api/models/o/n")
                assert found == status
        assert headers.get("retry-after") == ("60" if status == 429 else None)

    async def test_trouble_that_passes(self) -> None:
        answers = [http_answer(503), http_answer(200, b"{}", JSON)]
        async with hub(lambda request: answers.pop(0)).run() as client:
            assert (await ask(client, "/api/models/o/n"))[0] == 200

    async def test_an_answer_that_breaks_off_is_cut(self) -> None:
        def answer(request: Received) -> Answer:
            return http_answer(200, b" " * (2 * HELD_SIZE), JSON, length=False).replace(
                b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % (4 * HELD_SIZE), 1
            )

        def script(request: Received) -> Answer:
            asyncio.get_running_loop().call_later(0, leave)
            return answer(request)

        def leave() -> None:
            for wire in world.hub.wires:
                wire.writer.close()

        world = hub(script)
        async with world.run() as client:
            await client.send(b"GET /api/models HTTP/1.1\r\nHost: h\r\n\r\n")
            received, how = await client.read_end()
            assert not received.endswith(b"0\r\n\r\n")
            assert how == "reset" or b" 502 " in received[:20]

    async def test_a_client_that_leaves_releases_the_connection(self) -> None:
        body = http_answer(200, b" " * (2 * HELD_SIZE), JSON, length=False).replace(
            b"\r\n\r\n", b"\r\nContent-Length: 9999999999\r\n\r\n", 1
        )
        world = hub(body)
        async with world.run() as client:
            await client.send(b"GET /api/models HTTP/1.1\r\nHost: h\r\n\r\n")
            assert (await client.read())[:12] == b"HTTP/1.1 200"
            client.reset()
            await asyncio.wait_for(world.hub.wires[0].ended.wait(), PATIENCE)


class TestRedirects:
    @pytest.mark.parametrize("base", ["", "https://huggingface.co"])
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_renamed_repository_is_followed(self, status: int, base: str) -> None:
        def answer(request: Received) -> Answer:
            if request.target == "/api/models/new/n?x=y":
                return http_answer(200, b"{}", JSON)
            return http_answer(status, b"", f"Location: {base}/api/models/new/n?x=y")

        world = hub(answer)
        async with world.run() as client:
            assert (await ask(client, "/api/models/old/n?x=y"))[0] == 200
        assert [r.get("authorization") for r in world.hub.requests] == [f"Bearer {TOKEN}"] * 2

    async def test_another_host_is_for_the_client_to_ask(self) -> None:
        world = World()
        async with world.data as elsewhere:
            world = hub(http_answer(302, b"", f"Location: {elsewhere.base}/x"))
            async with world.run() as client:
                status, headers, _ = await ask(client, "/api/avatar")
                assert (status, headers["location"]) == (302, f"{elsewhere.base}/x")
            assert elsewhere.wires == []

    async def test_circles(self) -> None:
        world = hub(http_answer(307, b"", "Location: /api/x"))
        async with world.run() as client:
            assert (await ask(client, "/api/x"))[0] == 502
        assert len(world.hub.requests) < 10


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


class TestPages:
    """Lists for clients that take the first page for all of it."""

    LLAMA = "User-Agent: llama-cpp/b9999-0123abc"
    TREE = "/api/models/o/n/tree/main?recursive=true"

    def make_world(self, *pages: Answer | bytes, fields: tuple[str, ...] = ()) -> World:
        """A Hub that gives pages in turn, each with a link to the next."""

        def answer(request: Received) -> Answer:
            number = int(request.target.partition("cursor=")[2] or 0)
            page = pages[number]
            if isinstance(page, bytes) and not page.startswith(b"HTTP"):
                links = [f'Link: <{world.hub.base}{self.TREE}&cursor={number + 1}>; rel="next"']
                links = links if number + 1 < len(pages) else []
                return http_answer(200, page, JSON, 'ETag: W/"1"', *links, *fields)
            return page

        world = hub(answer)
        return world

    @pytest.mark.parametrize("count", [1, 10_000])
    async def test_all_of_them_come_as_one(self, count: int) -> None:
        page = json.dumps([ENTRY] * count).encode()
        world = self.make_world(page, b"[]", b" [ ] ", page)
        async with world.run() as client:
            status, headers, body = await ask(client, self.TREE, self.LLAMA, 'If-None-Match: "2"')
        assert (status, json.loads(body)) == (200, [PLAIN_ENTRY] * (2 * count))
        assert not {"link", "etag"} & set(headers)
        first, *others = world.hub.requests
        assert len(others) == 3
        assert first.get("if-none-match") == '"2"'
        assert {r.get("if-none-match") for r in others} == {None}
        assert {r.get("authorization") for r in others} == {f"Bearer {TOKEN}"}

    async def test_others_get_pages(self) -> None:
        world = self.make_world(b"[1]", b"[2]")
        async with world.run() as client:
            status, headers, body = await ask(client, self.TREE, "User-Agent: hf_hub/2")
        assert (status, body) == (200, b"[1]")
        assert headers["link"].startswith("<http://files.test/api/")
        assert len(world.hub.requests) == 1

    async def test_what_has_one_page_is_as_it_was(self) -> None:
        async with self.make_world(b"[1] ").run() as client:
            status, headers, body = await ask(client, self.TREE, self.LLAMA)
        assert (status, body, headers["etag"]) == (200, b"[1] ", 'W/"1"')

    async def test_a_refusal(self) -> None:
        async with self.make_world(http_answer(404, b"{}", JSON)).run() as client:
            assert (await ask(client, self.TREE, self.LLAMA))[0] == 404

    @pytest.mark.parametrize(
        "second",
        [http_answer(404, b"{}", JSON), http_answer(500), b"{}", b"[1", http_answer(200, b"x")],
    )
    @pytest.mark.parametrize("count", [1, 10_000])
    async def test_a_list_that_breaks_off_is_no_whole_answer(
        self, second: Answer, count: int
    ) -> None:
        world = self.make_world(json.dumps([ENTRY] * count).encode(), second)
        async with world.run() as client:
            await client.send(
                f"GET {self.TREE} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
                f"{self.LLAMA}\r\n\r\n".encode()
            )
            received, how = await client.read_end()
        assert not received.endswith(b"0\r\n\r\n")
        assert how == "reset" or received.startswith(b"HTTP/1.1 502 ")

    async def test_it_does_not_follow_to_elsewhere(self) -> None:
        world = World()
        async with world.data as elsewhere:
            link = f'Link: <{elsewhere.base}/api/x>; rel="next"'
            async with hub(http_answer(200, b"[1]", JSON, link)).run() as client:
                assert (await ask(client, self.TREE, self.LLAMA))[0] == 502
            assert elsewhere.wires == []
