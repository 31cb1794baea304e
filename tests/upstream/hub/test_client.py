"""What the Hub says, and where a client's token goes."""

import json
import logging
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.peers import (
    CLOSE,
    RESET,
    Answer,
    Received,
    ScriptedPeer,
    answering,
    http_answer,
    http_head,
    open_pool,
)
from tests.waiting import PATIENCE
from xetserve.errors import (
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamRefused,
    UpstreamTimeout,
)
from xetserve.net.pool import ConnectionPool
from xetserve.upstream.hub.client import CasToken, FileEntry, HubClient, ReadAccess, RepoRef
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.hashes import format_hash

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.5)
REPO = RepoRef("model", "owner/name")
TOKEN = "hf_the_clients_token"
SHA = "a" * 64
HASH = bytes(range(32))
COMMIT = "c" * 40

Respond = Callable[[Received], Answer]


@pytest.fixture
async def pool() -> AsyncIterator[ConnectionPool]:
    async with open_pool() as made:
        yield made


def hub_at(pool: ConnectionPool, peer: ScriptedPeer) -> HubClient:
    return HubClient(pool, peer.base, timeout=PATIENCE, policy=POLICY)


def tokens_in(peer: ScriptedPeer) -> list[str | None]:
    return [request.get("authorization") for request in peer.requests]


async def resolve(
    pool: ConnectionPool, *answers: Answer | Respond, token: str | None = TOKEN
) -> FileEntry:
    async with ScriptedPeer(answering(*answers)) as peer:
        return await hub_at(pool, peer).resolve(REPO, "main", "a.bin", token)


class TestResolve:
    @pytest.mark.parametrize(
        ("repo", "revision", "path", "target"),
        [
            pytest.param(REPO, "main", "a.bin", "/owner/name/resolve/main/a.bin", id="model"),
            pytest.param(
                RepoRef("dataset", "o/n"), "refs/pr/1", "d/a.bin",
                "/datasets/o/n/resolve/refs%2Fpr%2F1/d/a.bin", id="dataset, pull request",
            ),
            pytest.param(
                RepoRef("space", "o/n"), "main", "ä b?#%.txt",
                "/spaces/o/n/resolve/main/%C3%A4%20b%3F%23%25.txt", id="space, odd name",
            ),
        ],
    )  # fmt: skip
    async def test_the_request(
        self, pool: ConnectionPool, repo: RepoRef, revision: str, path: str, target: str
    ) -> None:
        async with ScriptedPeer(answering(http_answer(200))) as peer:
            await hub_at(pool, peer).resolve(repo, revision, path, TOKEN)
            (request,) = peer.requests
        assert (request.method, request.target) == ("HEAD", target)
        assert request.get("authorization") == f"Bearer {TOKEN}"
        assert request.get("accept-encoding") == "identity"

    async def test_without_a_token_none_is_sent(self, pool: ConnectionPool) -> None:
        async with ScriptedPeer(answering(http_answer(200))) as peer:
            await hub_at(pool, peer).resolve(REPO, "main", "a", None)
            assert tokens_in(peer) == [None]

    async def test_a_xet_file(self, pool: ConnectionPool) -> None:
        entry = await resolve(
            pool,
            http_head(
                302, "Location: https://cdn.test/x?sig", f"X-Repo-Commit: {COMMIT}",
                "X-Linked-Size: 1234", f'X-Linked-ETag: "{SHA}"', 'ETag: "other"',
                f"X-Xet-Hash: {format_hash(HASH)}", "Content-Length: 9",
                'Link: <https://hub.test/token>; rel="xet-auth", <https://c/v1>; rel="x"',
            ),
        )  # fmt: skip
        assert entry.file_hash == HASH
        assert (entry.size, entry.etag, entry.sha256) == (1234, SHA, SHA)
        assert (entry.commit, entry.token_url) == (COMMIT, "https://hub.test/token")

    async def test_a_plain_file(self, pool: ConnectionPool) -> None:
        blob = "b" * 40
        entry = await resolve(
            pool, http_head(200, "Content-Length: 7", f'ETag: W/"{blob}"', "Last-Modified: x")
        )
        assert (entry.file_hash, entry.size, entry.etag, entry.sha256) == (None, 7, blob, None)
        assert entry.last_modified == "x"

    @pytest.mark.parametrize(
        ("fields", "size", "file_hash"),
        [
            pytest.param(["X-Linked-Size: x"], None, None, id="a size that is none"),
            pytest.param(["X-Linked-Size: -1"], None, None, id="a negative size"),
            pytest.param(["X-Linked-Size: " + "9" * 5000], None, None, id="a size out of bounds"),
            pytest.param(["X-Xet-Hash: " + "*" * 64], None, None, id="a redacted hash"),
            pytest.param(["X-Xet-Hash: abc"], None, None, id="a short hash"),
            pytest.param(["Link: <<<<;;", "ETag: "], None, None, id="odd headers"),
            pytest.param(["Link: " + "<" * 120_000], None, None, id="a link without an end"),
        ],
    )
    async def test_odd_headers_are_passed_over(
        self, pool: ConnectionPool, fields: list[str], size: int | None, file_hash: bytes | None
    ) -> None:
        entry = await resolve(pool, http_head(302, "Location: http://other.test/", *fields))
        assert (entry.size, entry.file_hash) == (size, file_hash)

    @pytest.mark.parametrize("location", ["/moved", "moved", "{base}/moved"])
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_redirect_within_the_hub_is_followed_with_the_token(
        self, pool: ConnectionPool, location: str, status: int
    ) -> None:
        async with ScriptedPeer(
            answering(
                lambda _: http_answer(status, b"", f"Location: {location.format(base=peer.base)}"),
                http_answer(200, b"", "X-Linked-Size: 5"),
            )
        ) as peer:
            entry = await hub_at(pool, peer).resolve(REPO, "main", "a", TOKEN)
            assert entry.size == 5
            assert entry.url.target.endswith("/moved")
            assert tokens_in(peer) == [f"Bearer {TOKEN}"] * 2

    async def test_a_redirect_to_another_port_is_not_followed(self, pool: ConnectionPool) -> None:
        async with ScriptedPeer(answering(http_answer(200))) as other:
            answer = http_answer(302, b"", f"Location: {other.base}/x", "X-Linked-Size: 5")
            entry = await resolve(pool, answer)
            assert entry.size == 5
            assert other.wires == []

    async def test_redirects_in_circles_end(self, pool: ConnectionPool) -> None:
        with pytest.raises(UpstreamRefused, match="circles"):
            await resolve(pool, http_answer(302, b"", "Location: /again"))

    @pytest.mark.parametrize("location", ["ftp://x/", "http://[", "http://h:port/", "x y"])
    async def test_a_redirect_to_nowhere_is_refused(
        self, pool: ConnectionPool, location: str
    ) -> None:
        with pytest.raises(UpstreamRefused, match="redirect"):
            await resolve(pool, http_answer(302, b"", f"Location: {location}"))

    @pytest.mark.parametrize(
        ("status", "fields", "kind", "becomes"),
        [
            (401, ["X-Error-Code: GatedRepo"], UpstreamDenied, 401),
            (403, ["X-Error-Message: no way"], UpstreamDenied, 403),
            (
                404,
                ["X-Error-Code: EntryNotFound", f"X-Repo-Commit: {COMMIT}"],
                UpstreamMissing,
                404,
            ),
            (410, [], UpstreamMissing, 404),
            (429, ["Retry-After: 60"], UpstreamBusy, 429),
            (400, [], UpstreamRefused, 502),
            (302, [], UpstreamRefused, 502),
            (500, [], UpstreamError, 502),
            (503, [], UpstreamBusy, 503),
            (504, [], UpstreamTimeout, 504),
        ],
    )
    async def test_errors_keep_their_meaning(
        self,
        pool: ConnectionPool,
        status: int,
        fields: list[str],
        kind: type[UpstreamError],
        becomes: int,
    ) -> None:
        with pytest.raises(UpstreamError) as caught:
            await resolve(pool, http_answer(status, b"", *fields, "Set-Cookie: x"))
        error = caught.value
        assert (type(error), error.status) == (kind, becomes)
        if kind in (UpstreamDenied, UpstreamMissing):
            passed = [tuple(field.split(": ")) for field in fields]
            assert [(name.title(), value) for name, value in error.headers] == passed
        assert TOKEN not in str(error)

    async def test_the_hubs_own_words_are_kept(self, pool: ConnectionPool) -> None:
        with pytest.raises(UpstreamMissing, match=r"^Repository not found$") as caught:
            await resolve(
                pool,
                http_answer(
                    404, b"", "X-Error-Code: RepoNotFound", "X-Error-Message: Repository not found"
                ),
            )
        assert caught.value.code == "RepoNotFound"

    async def test_trouble_is_tried_again(self, pool: ConnectionPool) -> None:
        trouble: list[Answer] = [http_answer(500), http_answer(503), RESET, CLOSE]
        entry = await resolve(pool, *trouble, http_answer(200, b"", "X-Linked-Size: 5"))
        assert entry.size == 5


def token_answer(**changes: object) -> bytes:
    value = {"casUrl": "http://cas.test/", "accessToken": "t0", "exp": time.time() + 900, **changes}
    return http_answer(200, json.dumps(value).encode())


class TestTokens:
    async def ask(self, pool: ConnectionPool, *answers: Answer | Respond) -> CasToken:
        async with ScriptedPeer(answering(*answers)) as peer:
            return await hub_at(pool, peer).get_read_token(REPO, "main", TOKEN)

    async def test_a_renamed_repository_is_followed_on_the_hub_only(
        self, pool: ConnectionPool
    ) -> None:
        async with ScriptedPeer(answering(token_answer())) as other:
            moved = http_answer(307, b"", "Location: /api/models/new/name/xet-read-token/main")
            astray = http_answer(307, b"", f"Location: {other.base}/token")
            async with ScriptedPeer(answering(moved, token_answer(), astray)) as peer:
                hub = hub_at(pool, peer)
                assert (await hub.get_read_token(REPO, "main", TOKEN)).access_token == "t0"
                assert tokens_in(peer) == [f"Bearer {TOKEN}"] * 2
                with pytest.raises(UpstreamRefused, match="another host"):
                    await hub.renew_read_token(REPO, "main", TOKEN)
            assert other.requests == []

    async def test_the_request(self, pool: ConnectionPool) -> None:
        async with ScriptedPeer(answering(token_answer())) as peer:
            token = await hub_at(pool, peer).get_read_token(REPO, "refs/pr/1", TOKEN)
            (request,) = peer.requests
        assert request.target == "/api/models/owner/name/xet-read-token/refs%2Fpr%2F1"
        assert request.get("authorization") == f"Bearer {TOKEN}"
        assert (token.cas_url, token.access_token) == ("http://cas.test", "t0")

    @pytest.mark.parametrize("answer", [b"", b"[]", b"null", b"{}", b"{", b"\xff", b"3",
        b'{"casUrl":"http://c","accessToken":"t"}',
        b'{"casUrl":"http://c","accessToken":"t","exp":"soon"}',
        b'{"casUrl":"http://c","accessToken":"t","exp":null}',
        b'{"casUrl":"http://c","accessToken":"t","exp":1' + b"0" * 400 + b"}",
        b'{"casUrl":"http://c","accessToken":"t","exp":1' + b"0" * 5000 + b"}",
        b'{"casUrl":"ftp://c","accessToken":"t","exp":1}',
        b'{"casUrl":null,"accessToken":"t","exp":1}',
        b'{"casUrl":"http://c\\r\\nX: y","accessToken":"t","exp":1}',
        b'{"casUrl":"http://c","accessToken":"t\\r\\nX-Evil: y","exp":1}',
        b'{"casUrl":"http://c","accessToken":"\\u20ac","exp":1}',
        b'{"casUrl":"http://c","accessToken":"","exp":1}',
        b'{"casUrl":"http://c","accessToken":null,"exp":1}',
        b'{"casUrl":"http://c","accessToken":["t"],"exp":1}',
        b"[" * 100_000,
    ])  # fmt: skip
    async def test_an_answer_that_is_no_token_is_an_upstream_error(
        self, pool: ConnectionPool, answer: bytes
    ) -> None:
        with pytest.raises(UpstreamError, match="the Hub") as caught:
            await self.ask(pool, http_answer(200, answer))
        assert caught.value.status == 502

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(401, UpstreamDenied), (403, UpstreamDenied), (404, UpstreamMissing),
         (302, UpstreamRefused), (204, UpstreamRefused), (500, UpstreamError)],
    )  # fmt: skip
    async def test_errors(self, pool: ConnectionPool, status: int, kind: type[Exception]) -> None:
        with pytest.raises(kind):
            await self.ask(pool, http_answer(status, b"", "Location: http://evil.test/"))

    async def test_a_good_one_is_remembered_for_whoever_asks_with_the_same_token(
        self, pool: ConnectionPool
    ) -> None:
        count = iter(range(10))
        answers = answering(lambda _: token_answer(accessToken=f"t{next(count)}"))
        async with ScriptedPeer(answers) as peer:
            hub = hub_at(pool, peer)

            async def ask(token: str | None, revision: str = "main") -> str:
                return (await hub.get_read_token(REPO, revision, token)).access_token

            assert [await ask(TOKEN), await ask(TOKEN)] == ["t0", "t0"]
            assert await ask("hf_other") == "t1"
            assert await ask(None) == "t2"
            assert await ask(TOKEN, "dev") == "t3"
            assert await ask(TOKEN) == "t0"
            assert (await hub.renew_read_token(REPO, "main", TOKEN)).access_token == "t4"
            assert await ask(TOKEN) == "t4"
            assert TOKEN not in repr(vars(hub))

    async def test_one_that_ends_soon_is_replaced(self, pool: ConnectionPool) -> None:
        async with ScriptedPeer(answering(token_answer(exp=time.time() + 50))) as peer:
            hub = hub_at(pool, peer)
            for _ in range(2):
                await hub.get_read_token(REPO, "main", TOKEN)
            assert len(peer.requests) == 2

    @pytest.mark.parametrize(
        ("token_url", "target"),
        [
            pytest.param("{base}/api/x/token?y", "/api/x/token?y", id="on the Hub"),
            pytest.param("https://huggingface.co/api/t?y", "/api/t?y", id="on the public Hub"),
            pytest.param("http://evil.test/api/t", None, id="elsewhere"),
            pytest.param("http://127.0.0.1:1/api/t", None, id="another port"),
            pytest.param("https://huggingface.co.evil.test/api/t", None, id="looks like the Hub"),
            pytest.param("https://huggingface.co@evil.test/api/t", None, id="the Hub as a user"),
            pytest.param(None, None, id="none"),
        ],
    )
    async def test_the_clients_token_never_follows_a_token_url_off_the_hub(
        self, pool: ConnectionPool, token_url: str | None, target: str | None
    ) -> None:
        async with ScriptedPeer(answering(token_answer())) as peer:
            given = None if token_url is None else token_url.format(base=peer.base)
            access = ReadAccess(hub_at(pool, peer), REPO, "main", TOKEN, given)
            await access.get_token()
            await access.renew_token()
            usual = "/api/models/owner/name/xet-read-token/main"
            assert [r.target for r in peer.requests] == [target or usual] * 2

    def test_a_token_does_not_show(self) -> None:
        assert "secret" not in repr(CasToken("http://cas.test", "secret", 1.0))
        assert "secret" not in f"{CasToken('http://cas.test', 'secret', 1.0)}"


class TestPlainFiles:
    @staticmethod
    async def fetch(
        pool: ConnectionPool, peer: ScriptedPeer, byte_range: str | None = None
    ) -> tuple[int, bytes]:
        hub = hub_at(pool, peer)
        entry = await hub.resolve(REPO, "main", "a", TOKEN)
        async with hub.open_plain(entry, TOKEN, byte_range) as response:
            return response.status, await response.read(1000, PATIENCE)

    async def test_from_the_hub_with_the_token(self, pool: ConnectionPool) -> None:
        async with ScriptedPeer(answering(http_answer(200), http_answer(200, b"text"))) as peer:
            assert await self.fetch(pool, peer) == (200, b"text")
            head, get = peer.requests
            assert (head.target, get.method) == (get.target, "GET")
            assert get.get("authorization") == f"Bearer {TOKEN}"
            assert get.get("accept-encoding") == "identity"

    async def test_trouble_is_tried_again(self, pool: ConnectionPool) -> None:
        trouble: list[Answer] = [http_answer(500), http_answer(429), RESET, CLOSE]
        answers = [http_answer(200), *trouble, http_answer(200, b"text")]
        async with ScriptedPeer(answering(*answers)) as peer:
            assert await self.fetch(pool, peer) == (200, b"text")

    async def test_what_another_host_refuses_is_not_the_clients_fault(
        self, pool: ConnectionPool
    ) -> None:
        async with ScriptedPeer(answering(http_answer(403))) as store:
            redirect = http_answer(302, b"", f"Location: {store.base}/x")
            async with ScriptedPeer(answering(http_answer(200), redirect)) as peer:
                with pytest.raises(UpstreamRefused) as caught:
                    await self.fetch(pool, peer)
        assert caught.value.status == 502

    async def test_what_the_hub_refuses_behind_another_host_is_not_the_clients_fault(
        self, pool: ConnectionPool
    ) -> None:
        back = answering(lambda _: http_answer(302, b"", f"Location: {hub.base}/back"))
        async with ScriptedPeer(back) as store:
            away = http_answer(302, b"", f"Location: {store.base}/x")
            refusal = http_answer(401, b"", "X-Error-Code: RepoNotFound")
            async with ScriptedPeer(answering(http_answer(200), away, refusal)) as hub:
                with pytest.raises(UpstreamRefused) as caught:
                    await self.fetch(pool, hub)
        assert caught.value.status == 502

    async def test_from_another_host_on_without_it_back_on_the_hub_too(
        self, pool: ConnectionPool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        async with (
            ScriptedPeer(
                answering(lambda _: http_answer(302, b"", f"Location: {hub.base}/back"))
            ) as store,
            ScriptedPeer(
                answering(
                    http_answer(200),
                    http_answer(302, b"", f"Location: {store.base}/x?X-Sig=secret"),
                    http_answer(206, b"ex"),
                )
            ) as hub,
        ):
            assert await self.fetch(pool, hub, "bytes=1-2") == (206, b"ex")
            assert tokens_in(store) == [None]
            assert TOKEN.encode() not in store.received
            assert tokens_in(hub) == [f"Bearer {TOKEN}"] * 2 + [None]
            assert [r.get("range") for r in hub.requests] == [None, "bytes=1-2", "bytes=1-2"]
        assert "secret" not in caplog.text
        assert TOKEN not in caplog.text

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (http_answer(401), UpstreamDenied),
            (http_answer(404), UpstreamMissing),
            (http_answer(500), UpstreamError),
            (http_answer(302), UpstreamRefused),
            (http_answer(302, b"", "Location: /again"), UpstreamRefused),
            (http_answer(302, b"", "Location: file:///etc/passwd"), UpstreamRefused),
            (CLOSE, UpstreamError),
        ],
    )
    async def test_errors(
        self, pool: ConnectionPool, answer: Answer, kind: type[Exception]
    ) -> None:
        async with ScriptedPeer(answering(http_answer(200), answer)) as peer:
            with pytest.raises(kind):
                await self.fetch(pool, peer)
