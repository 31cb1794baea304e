"""Asking the application for a repository, as clients do."""

import json

import pytest

from xetserve.commands.pull.listing import HandlerClient, Refused, RemoteFile, is_wanted
from xetserve.errors import UpstreamError
from xetserve.http.messages import Request, Response, error_response
from xetserve.upstream.hub.client import RepoRef

COMMIT = "c" * 40
REPO = RepoRef("dataset", "o/n")
TREE = f"/api/datasets/o/n/tree/{COMMIT}"


def item(path: str, size: object = 5, kind: str = "file") -> dict[str, object]:
    return {"type": kind, "path": path, "size": size}


class Answers:
    """A handler that has answers for targets."""

    def __init__(self, answers: dict[str, Response]) -> None:
        self._answers = answers
        self.requests: list[Request] = []

    async def __call__(self, request: Request) -> Response:
        self.requests.append(request)
        found = self._answers.get(request.target)
        return error_response(404, "nothing here") if found is None else found


def make_client(
    answers: dict[str, Response], token: str | None = None
) -> tuple[HandlerClient, Answers]:
    handler = Answers(answers)
    return HandlerClient(handler, REPO, "refs/pr/1", token), handler


def page(items: object, link: str | None = None) -> Response:
    headers = [] if link is None else [("Link", link)]
    return Response(200, headers, json.dumps(items).encode())


async def list_files(answers: dict[str, Response]) -> list[RemoteFile]:
    client, _ = make_client(answers)
    return [file async for file in client.iter_files(COMMIT)]


FIRST = f"{TREE}?recursive=true&expand=false"


async def test_all_pages_are_read() -> None:
    found = await list_files(
        {
            FIRST: page(
                [item("a"), item("d", 0, "directory")],
                f'<http://pull.invalid{TREE}?cursor=2>; rel="next"',
            ),
            f"{TREE}?cursor=2": page([item("b/c", 7)], f"<{TREE}?cursor=3>; rel=next"),
            f"{TREE}?cursor=3": page([]),
        }
    )
    assert found == [RemoteFile("a", 5), RemoteFile("b/c", 7)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (page([], '<https://elsewhere.test/x>; rel="next"'), "another host"),
        (page([], f'<{FIRST}>; rel="next"'), "does not end"),
        (page({"error": 1}), "is not a JSON list"),
        (page([{"type": "file"}]), "damaged"),
        (page([item("a", "many")]), "damaged"),
        (page(["a"]), "damaged"),
        (Response(200, [], b"<html>"), "not JSON"),
        (Response(200, [], b"[" * 100_000), "not JSON"),
    ],
)
async def test_a_list_that_is_none(answer: Response, message: str) -> None:
    with pytest.raises(UpstreamError, match=message):
        await list_files({FIRST: answer})


async def test_a_refusal_says_why() -> None:
    limited = error_response(429, "slowly", [("Retry-After", "7")])
    with pytest.raises(Refused, match="429: slowly") as caught:
        await list_files({FIRST: limited})
    assert (caught.value.status, caught.value.retry_after) == (429, 7.0)
    with pytest.raises(Refused, match="404: nothing here"):
        await list_files({})


INFO = "/api/datasets/o/n/revision/refs%2Fpr%2F1"


async def test_the_commit_of_a_revision() -> None:
    client, handler = make_client({INFO: page({"sha": COMMIT})}, "hf_secret")
    assert await client.find_commit() == COMMIT
    assert handler.requests[0].headers.get("authorization") == "Bearer hf_secret"
    assert client.file_target("a b/ü", "main") == "/datasets/o/n/resolve/main/a%20b/%C3%BC"


@pytest.mark.parametrize("answer", [{}, [], {"sha": None}, {"sha": "main"}, {"sha": "../x" * 10}])
async def test_a_commit_that_is_none(answer: object) -> None:
    client, _ = make_client({INFO: page(answer)})
    with pytest.raises(UpstreamError, match="names no commit"):
        await client.find_commit()


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], True),
        (["*.bin"], [], True),
        (["*.json"], [], False),
        (["*.json", "a/*"], [], True),
        (["a/"], [], True),
        ([], ["a/"], False),
        (["*"], ["*/x.b?n"], False),
        (["A/*"], [], False),
    ],
)
def test_patterns(include: list[str], exclude: list[str], expected: bool) -> None:
    assert is_wanted("a/b/x.bin", include, exclude) is expected
