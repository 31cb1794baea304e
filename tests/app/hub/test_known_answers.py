"""What the application answers out of what it knows, and what it asks all the same."""

import gzip
import json
from collections.abc import Callable

import pytest

from tests.app.world import TOKEN, World, ask
from tests.peers import Answer, RawClient, Received, http_answer
from xetserve.app.download.service import STALE_FIELD
from xetserve.app.hub.passthrough import HELD_SIZE
from xetserve.net.url import parse_url
from xetserve.upstream.answers.cache import AnswerCache, AnswerPolicy
from xetserve.upstream.answers.question import Answer as KeptAnswer
from xetserve.upstream.answers.question import Question
from xetserve.upstream.answers.scope import get_scope
from xetserve.upstream.hub.cached_api import MAX_ANSWER_SIZE
from xetserve.upstream.hub.cached_entries import make_file_question, pack_entry
from xetserve.upstream.hub.entry import FileEntry, RepoRef

JSON = "Content-Type: application/json; charset=utf-8"
COMMIT = "c" * 40
TREE = f"/api/models/o/n/tree/{COMMIT}?recursive=True"
ENTRY = {"type": "file", "path": "a", "xetHash": "0" * 64, "size": 1}
PLAIN_ENTRY = {"type": "file", "path": "a", "size": 1}
OTHER_TOKEN = "hf_another_token"


class Knowing(World):
    """A world whose server keeps answers, by a clock that the test turns."""

    now = 1_000_000.0

    def keep(self, **policy: float | bool) -> "Knowing":
        made = AnswerPolicy(**policy)  # type: ignore[arg-type]
        self.metadata = AnswerCache(made, clock=lambda: self.now)
        return self

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.target}" for request in self.hub.requests]


def hub(answer: Answer | Callable[[Received], Answer], **policy: float | bool) -> Knowing:
    return Knowing({"hub": answer}).keep(**policy)


async def post(client: RawClient, body: bytes, target: str) -> tuple[int, dict[str, str], bytes]:
    await client.send(
        b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (target.encode(), len(body), body)
    )
    return await client.read_answer()


class TestApi:
    async def test_fields_that_change_nothing_make_no_other_question(self) -> None:
        world = hub(http_answer(200, json.dumps([PLAIN_ENTRY]).encode(), JSON))
        async with world.run() as client:
            for number in range(20):
                language = f"Accept-Language: {number}{'x' * 5000}"
                accept = f"Accept: text/{number}, */*"
                status, _, _ = await ask(client, "/api/models/o/n", language, accept)
                assert status == 200
            assert world.metadata is not None
            size = world.metadata.size
        assert world.asked == ["GET /api/models/o/n"]
        assert size < 5000

    async def test_what_asks_for_an_odd_type_at_length_is_passed_on(self) -> None:
        world = hub(http_answer(200, json.dumps([PLAIN_ENTRY]).encode(), JSON))
        async with world.run() as client:
            for accept in ("text/plain", "text/plain", f"text/{'x' * 5000}", f"text/{'x' * 5000}"):
                status, _, _ = await ask(client, "/api/models/o/n", f"Accept: {accept}")
                assert status == 200
        assert len(world.asked) == 3

    async def test_the_manifest_of_another_client_is_none_for_llama_cpp(self) -> None:
        answers: list[Answer] = [http_answer(200, b"{}", JSON), http_answer(503)]
        world = hub(lambda _: answers.pop(0) if len(answers) > 1 else answers[0], stale_for=1000)
        path = "/v2/o/n/manifests/Q4"
        async with world.run() as client:
            assert (await ask(client, path, "User-Agent: ollama/1"))[0] == 200
            world.now += 500
            assert (await ask(client, path, "User-Agent: llama-cpp/1"))[0] == 503
            assert (await ask(client, path, "User-Agent: ollama/1"))[0] == 200

    @pytest.mark.parametrize("path", ["/api/models/acme/tree/main", "/api/models/o/n"])
    @pytest.mark.parametrize(
        ("answer", "status"),
        [
            (http_answer(200, b"{}", JSON, "X-Xet-Access-Token: secret"), 502),
            (http_answer(200, b"{}", JSON, "X-Xet-Cas-Url: secret"), 502),
            (
                http_answer(
                    200, gzip.compress(b'{"casUrl":"secret"}'), JSON, "Content-Encoding: gzip"
                ),
                502,
            ),
        ],
    )
    async def test_a_token_is_not_kept_whatever_the_path_is(
        self, path: str, answer: Answer, status: int
    ) -> None:
        world = hub(answer)
        assert world.metadata is not None
        async with world.run() as client:
            for number in (2, 3):  # the first answer shows what it is
                found, _, body = await ask(client, path)
                assert found == status
                assert status == 200 or b"secret" not in body
                assert len(world.asked) == number
        assert world.metadata.size == 0

    async def test_a_card_with_the_names_of_a_token_is_asked_once(self) -> None:
        card = {"id": "o/n", "cardData": {"casUrl": "hi", "accessToken": "there"}}
        world = hub(http_answer(200, json.dumps(card).encode(), JSON))
        async with world.run() as client:
            for _ in range(3):
                status, _, body = await ask(client, "/api/models/o/n")
                assert (status, json.loads(body)) == (200, card)
        assert len(world.asked) == 1

    @pytest.mark.parametrize(
        "path",
        ["/api/models/o/n", "/api/models/gpt2", "/api/datasets/o/n/revision/main",
         "/api/models/o/n/tree/main/d?recursive=True", "/api/models/gpt2/refs",
         "/api/models?search=x", "/api/spaces/o/n/commits/main",
         "/api/models/o/n/revision/refs%2Fpr%2F1"],
    )  # fmt: skip
    async def test_questions_that_are_asked_once(self, path: str) -> None:
        body = gzip.compress(json.dumps([ENTRY]).encode())
        answer = http_answer(
            200, body, JSON, "Content-Encoding: gzip", 'ETag: "1"', "X-Total-Count: 3"
        )
        world = hub(answer)
        async with world.run() as client:
            found = [await ask(client, path) for _ in range(3)]
            head = await ask(client, path, method="HEAD")
        for status, headers, content in found:
            assert (status, json.loads(content)) == (200, [PLAIN_ENTRY])
            assert (headers["etag"], headers["x-total-count"]) == ('W/"1"', "3")
            assert headers["vary"] == "Authorization, Accept-Encoding"
            assert STALE_FIELD.lower() not in headers
        assert (head[0], head[1]["etag"]) == (200, 'W/"1"')
        assert head[1]["vary"] == "Authorization, Accept-Encoding"
        assert world.asked == [f"GET {path}"]

    @pytest.mark.parametrize(
        "path",
        ["/api/whoami-v2", "/api/models/o/n/auth-check", "/api/spaces/o/n/logs/run",
         "/api/models/o/n/discussions", "/api/quicksearch?q=x", "/api/models/o/n/x/y/z"],
    )  # fmt: skip
    async def test_questions_that_are_not_kept(self, path: str) -> None:
        world = hub(http_answer(200, b"{}", JSON))
        async with world.run() as client:
            for _ in range(2):
                assert (await ask(client, path))[0] == 200
        assert world.asked == [f"GET {path}"] * 2

    async def test_what_is_not_json_is_not_kept(self) -> None:
        world = hub(http_answer(200, b"data: x", "Content-Type: text/event-stream"))
        async with world.run() as client:
            assert (await ask(client, "/api/models/o/n"))[2] == b"data: x"
        assert len(world.asked) == 2

    async def test_tokens_are_told_apart(self) -> None:
        world = hub(
            lambda request: http_answer(
                200, json.dumps(request.get("authorization")).encode(), JSON
            )
        )
        async with world.run() as client:
            for _ in range(2):
                for token in (TOKEN, OTHER_TOKEN, None):
                    _, _, body = await ask(client, "/api/models/o/n", token=token)
                    assert json.loads(body) == (token and f"Bearer {token}")
        assert len(world.asked) == 3

    async def test_so_are_lists_of_paths(self) -> None:
        world = hub(
            lambda request: http_answer(200, json.dumps(request.body.decode()).encode(), JSON)
        )
        target = "/api/models/o/n/paths-info/main"
        async with world.run() as client:
            for _ in range(2):
                for body in (b"paths=a", b"paths=b"):
                    assert json.loads((await post(client, body, target))[2]) == body.decode()
        assert [request.body for request in world.hub.requests] == [b"paths=a", b"paths=b"]

    async def test_refusals_with_the_words_of_the_hub(self) -> None:
        refusal = http_answer(
            404, b'{"error":"no"}', JSON, "X-Error-Code: RepoNotFound",
            "X-Error-Message: Repository not found", "Cache-Control: max-age=100",
        )  # fmt: skip
        world = hub(refusal, ttl=30, negative_ttl=5)
        async with world.run() as client:
            for _ in range(2):
                status, headers, body = await ask(client, "/api/models/o/n")
                assert (status, body) == (404, b'{"error":"no"}')
                assert headers["x-error-code"] == "RepoNotFound"
                assert headers["x-error-message"] == "Repository not found"
                assert headers["cache-control"] == "no-store"
            world.now += 6
            await ask(client, "/api/models/o/n")
        assert len(world.asked) == 2

    async def test_what_a_client_has_already(self) -> None:
        world = hub(http_answer(200, b"{}", JSON, 'ETag: W/"1"'))
        async with world.run() as client:
            assert (await ask(client, "/api/models/o/n", 'If-None-Match: W/"1"'))[0] == 304
            assert (await ask(client, "/api/models/o/n", 'If-None-Match: "1"'))[0] == 304
            assert (await ask(client, "/api/models/o/n", 'If-None-Match: "2"'))[0] == 200
        (request,) = world.hub.requests
        assert request.get("if-none-match") is None

    async def test_what_is_larger_than_is_held(self) -> None:
        entries = [ENTRY] * (HELD_SIZE // 40)
        world = hub(http_answer(200, json.dumps(entries).encode(), JSON))
        async with world.run() as client:
            for _ in range(2):
                _, headers, body = await ask(client, TREE)
                assert headers["transfer-encoding"] == "chunked"
                assert json.loads(body) == [PLAIN_ENTRY] * len(entries)
        assert len(world.asked) == 1

    async def test_what_is_too_large_is_passed_on(self) -> None:
        text = json.dumps("x" * (MAX_ANSWER_SIZE + 1)).encode()
        world = hub(http_answer(200, text, JSON))
        async with world.run() as client:
            for _ in range(2):
                assert (await ask(client, TREE))[2] == text
        assert len(world.asked) == 3  # the first time it has to be found out
        assert world.metadata is not None
        assert world.metadata.size == 0

    async def test_a_bomb_is_passed_on(self) -> None:
        text = json.dumps("x" * (4 * MAX_ANSWER_SIZE)).encode()
        world = hub(http_answer(200, gzip.compress(text), JSON, "Content-Encoding: gzip"))
        async with world.run() as client:
            assert (await ask(client, TREE))[2] == text

    async def test_a_tree_of_a_commit_stays(self) -> None:
        world = hub(http_answer(200, b"[]", JSON), ttl=30)
        async with world.run() as client:
            await ask(client, TREE)
            world.now += 31
            for _ in range(3):
                await ask(client, TREE)
        assert world.asked == [f"GET {TREE}", "GET /api/models/o/n/auth-check"]

    async def test_clients_share_a_tree_of_a_commit(self) -> None:
        world = hub(http_answer(200, b"[]", JSON), ttl=30)
        tree = f"/api/models/o/n/tree/{COMMIT}"
        async with world.run() as client:
            for query in ("recursive=True&expand=False", "recursive=true&expand=false",
                          "recursive=true"):  # fmt: skip
                await ask(client, f"{tree}?{query}")
                world.now += 31
            await ask(client, f"{tree}?recursive=true&expand=true")
            world.now += 31
            await ask(client, f"{tree}?recursive=true&expand=true")
        assert world.asked == [
            f"GET {tree}?recursive=True&expand=False",
            *["GET /api/models/o/n/auth-check"] * 2,
            *[f"GET {tree}?recursive=true&expand=true"] * 2,
        ]

    async def test_when_the_hub_is_in_trouble(self) -> None:
        answers = [http_answer(200, b"[]", JSON)]
        world = hub(
            lambda request: answers.pop() if answers else http_answer(500),
            ttl=30,
            stale_for=50,
            stale_permission=100,
        )
        async with world.run() as client:
            await ask(client, TREE)
            world.now += 90
            status, headers, body = await ask(client, TREE)
            assert (status, body, headers[STALE_FIELD.lower()]) == (200, b"[]", "90")
            world.now += 20  # a commit's tree stays, the permission does not
            assert (await ask(client, TREE))[0] == 502


class TestFiles:
    async def test_a_file_is_asked_about_once(self) -> None:
        world = Knowing().keep()
        async with world.run() as client:
            for method, path in (("HEAD", "/o/n/resolve/main/a"), ("GET", "/o/n/resolve/main/a"),
                                 ("GET", "/download/o/n/a")):  # fmt: skip
                assert (await ask(client, path, method=method))[0] == 200
        assert world.asked == [
            "HEAD /o/n/resolve/main/a",
            "GET /api/models/o/n/xet-read-token/main",
        ]

    async def test_a_refusal_is_repeated_with_all_that_the_hub_said(self) -> None:
        refusal = http_answer(403, b"", "X-Error-Code: GatedRepo", "X-Error-Message: restricted")
        world = hub(refusal)
        async with world.run() as client:
            for _ in range(2):
                status, headers, _ = await ask(client, "/o/n/resolve/main/a")
                assert (status, headers["x-error-code"]) == (403, "GatedRepo")
                assert headers["x-error-message"] == "restricted"
        assert len(world.asked) == 1

    async def test_so_is_a_file_that_is_none(self) -> None:
        missing = http_answer(404, b"", "X-Error-Code: EntryNotFound", f"X-Repo-Commit: {COMMIT}")
        world = hub(missing)
        async with world.run() as client:
            for _ in range(2):
                status, headers, _ = await ask(client, "/o/n/resolve/main/a", method="HEAD")
                assert (status, headers["x-error-code"]) == (404, "EntryNotFound")
                assert headers["x-repo-commit"] == COMMIT
        assert len(world.asked) == 1

    async def test_a_hub_that_wants_patience_gets_it(self) -> None:
        world = hub(http_answer(429, b"", "Retry-After: 20", 'RateLimit: "resolvers";r=0;t=20'))
        async with world.run() as client:
            for name, left in (("a", "20"), ("b", "20"), ("c", "10")):
                world.now += 10 if name == "c" else 0
                status, headers, _ = await ask(client, f"/o/n/resolve/main/{name}", method="HEAD")
                assert (status, headers["retry-after"]) == (429, left)
                assert headers["ratelimit"] == '"resolvers";r=0;t=20'
        assert len(world.asked) == 1

    async def test_files_of_a_commit_need_one_permission(self) -> None:
        def answer(request: Received) -> Answer:
            if request.path.endswith("auth-check"):
                return http_answer(200, b"{}", JSON)
            return http_answer(200, b"", f"X-Repo-Commit: {COMMIT}", f'ETag: "{"e" * 40}"')

        world = hub(answer, ttl=30)
        async with world.run() as client:
            for step in range(3):
                for name in "abc":
                    path = f"/o/n/resolve/{COMMIT}/{name}"
                    assert (await ask(client, path, method="HEAD"))[0] == 200
                world.now += 31
                expected = 3 + step
                assert len(world.asked) == expected
        assert world.asked[3:] == ["GET /api/models/o/n/auth-check"] * 2

    @pytest.mark.parametrize("status", [401, 403, 404])
    async def test_which_can_be_taken_back(self, status: int) -> None:
        gone: list[bool] = []

        def answer(request: Received) -> Answer:
            if gone:
                return http_answer(status, b"", "X-Error-Code: RepoNotFound")
            return http_answer(200, b"", f"X-Repo-Commit: {COMMIT}", f'ETag: "{"e" * 40}"')

        world = hub(answer, ttl=30, stale_for=1000)
        path = f"/o/n/resolve/{COMMIT}/a"
        async with world.run() as client:
            assert (await ask(client, path, method="HEAD"))[0] == 200
            gone.append(True)
            world.now += 31
            assert (await ask(client, path, method="HEAD"))[0] == status

    async def test_a_file_by_hash_needs_the_hubs_word_again(self) -> None:
        refused: list[bool] = []

        def token(request: Received) -> Answer | None:
            return http_answer(401, b"") if refused else None

        world = Knowing({"token": token}).keep(ttl=30)  # type: ignore[dict-item]
        path = f"/download-hash/{'0' * 63}1"
        async with world.run() as client:
            for _ in range(2):
                assert (await ask(client, path, method="HEAD"))[0] == 200
            assert len(world.asked) == 1
        world = Knowing({"token": token}).keep(ttl=0)  # type: ignore[dict-item]
        async with world.run() as client:
            assert (await ask(client, path, method="HEAD"))[0] == 200
            refused.append(True)
            assert (await ask(client, path, method="HEAD"))[0] == 401


async def test_an_entry_that_leads_off_the_hub_is_not_followed() -> None:
    """However it has got there."""
    world = hub(http_answer(404, b""), ttl=30)
    entry = FileEntry(
        size=1, etag="e", sha256=None, commit=COMMIT, last_modified=None, content_type=None,
        file_hash=None, token_url=None, url=parse_url("http://169.254.169.254/latest"),
    )  # fmt: skip
    question = make_file_question(get_scope(TOKEN), RepoRef("model", "o/n"), COMMIT, "a")
    assert world.metadata is not None
    world.metadata.put(question, pack_entry(entry))
    async with world.run() as client:
        status, _, body = await ask(client, f"/o/n/resolve/{COMMIT}/a")
        assert (status, b"not the Hub's" in body) == (502, True)
        # And nothing is renewed about it: the Hub is asked for the entry itself.
        world.now += 31
        status, _, _ = await ask(client, f"/o/n/resolve/{COMMIT}/a")
        assert status == 404
    assert world.asked == [f"HEAD /o/n/resolve/{COMMIT}/a"]


@pytest.mark.parametrize(
    ("target", "is_minor"),
    [
        ("/api/models/o/n", False),
        ("/api/models/o/n/revision/main?blobs=true&expand[]=sha", False),
        ("/api/models/o/n/tree/main?recursive=True&expand=False", False),
        ("/api/models?search=made+up", True),
        ("/api/models/o/n?made=up", True),
        ("/api/models/o/n/tree/main?recursive=True&made=up", True),
    ],
)
async def test_answers_without_end_go_first(
    target: str, is_minor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = hub(http_answer(200, b"[]", JSON), ttl=30)
    kept: list[KeptAnswer] = []
    assert world.metadata is not None
    put = world.metadata.put

    def note(question: Question, answer: KeptAnswer) -> KeptAnswer:
        kept.append(answer)
        return put(question, answer)

    monkeypatch.setattr(world.metadata, "put", note)
    async with world.run() as client:
        assert (await ask(client, target))[0] == 200
    assert [answer.is_minor for answer in kept] == [is_minor]
