"""A client that calls an origin's handler directly, with the requests that real clients make."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xetserve.errors import RequestError, XetserveError
from xetserve.http.messages import Headers, Request, Response
from xetserve.origin.app import Origin
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import MerkleTree, format_hash, hash_chunk, hash_range
from xetserve.xet.reconstruction import ChunkRange, Term
from xetserve.xet.shard import ShardFile, make_shard
from xetserve.xet.xorb import pack_chunk

BASE = "http://hub.test"


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    """Yield the parts, as a body that is received does."""
    for part in parts:
        yield part


class Body:
    """A request body that comes in pieces."""

    def __init__(self, data: bytes, piece_size: int = 10_000) -> None:
        self._data = data
        self._piece_size = piece_size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._data), self._piece_size):
            yield self._data[start : start + self._piece_size]

    async def read(self, limit: int) -> bytes:
        if len(self._data) > limit:
            raise RequestError(413, "too large")
        return self._data

    def release(self) -> None:
        pass


@dataclass
class Answer:
    """A response, with its body read to the end; error is what broke it."""

    response: Response
    content: bytes
    error: Exception | None = None

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> Headers:
        return Headers(self.response.headers)

    def header(self, name: str) -> str:
        """A header field that has to be there."""
        value = self.headers.get(name)
        assert value is not None, f"no {name}"
        return value

    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class XorbFile:
    """A xorb of given chunks, and a file that is the whole of it."""

    chunks: Sequence[bytes]
    scheme: Scheme = Scheme.LZ4
    tree: MerkleTree = field(init=False)

    def __post_init__(self) -> None:
        self.tree = MerkleTree()
        for chunk in self.chunks:
            self.tree.add(hash_chunk(chunk), len(chunk))

    @property
    def xorb(self) -> bytes:
        return b"".join(pack_chunk(chunk, self.scheme) for chunk in self.chunks)

    @property
    def xorb_name(self) -> str:
        return format_hash(self.tree.xorb_hash())

    @property
    def content(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def file_name(self) -> str:
        return format_hash(self.tree.file_hash())

    @property
    def term(self) -> Term:
        return Term(
            self.tree.xorb_hash(), ChunkRange(0, len(self.chunks)), sum(map(len, self.chunks))
        )

    @property
    def shard_file(self) -> ShardFile:
        proof = hash_range(map(hash_chunk, self.chunks))
        return ShardFile(self.tree.file_hash(), (self.term,), (proof,), self.sha256)

    @property
    def shard(self) -> bytes:
        return make_shard([self.shard_file], [])


class Client:
    """Talks to an origin; token is sent to the Hub."""

    def __init__(self, origin: Origin, token: str | None = None) -> None:
        self.origin = origin
        self.token = token

    async def ask(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        headers: Iterable[tuple[str, str]] = (),
        token: str | None = None,
    ) -> Answer:
        """Make a request, and read the answer's body to its end or until it breaks.

        token: instead of the client's own; "" for none.
        """
        token = self.token if token is None else token
        fields = [("Host", BASE.removeprefix("http://")), *headers]
        if token:
            fields.append(("Authorization", f"Bearer {token}"))
        target = target.removeprefix(BASE)
        request = Request(method, target, Headers(fields), body=Body(body))
        response = await self.origin.handle(request)
        if isinstance(response.body, bytes):
            return Answer(response, response.body)
        parts = []
        error = None
        try:
            async for block in response.body:
                parts += [bytes(part) for part in block]
        except XetserveError as exc:
            error = exc
        content = b"".join(parts)
        if error is None:
            assert len(content) == response.length
        await response.aclose()
        return Answer(response, content, error)

    async def get(self, target: str, **options: Any) -> Answer:
        return await self.ask("GET", target, **options)

    async def get_json(self, target: str, **options: Any) -> Any:
        answer = await self.get(target, **options)
        assert answer.status == 200, answer.content
        return answer.json()

    async def post_json(self, target: str, value: Any, **options: Any) -> Answer:
        return await self.ask("POST", target, json.dumps(value).encode(), **options)

    async def create_repo(self, name: str, **fields: Any) -> Answer:
        namespace, _, short = name.rpartition("/")
        value = {"name": short, **fields}
        if namespace:
            value["organization"] = namespace
        return await self.post_json("/api/repos/create", value)

    async def get_cas_token(
        self, repo: str = "models/me/repo", scope: str = "read", revision: str = "main"
    ) -> str:
        answer = await self.get_json(f"/api/{repo}/xet-{scope}-token/{revision}")
        return str(answer["accessToken"])

    async def upload(self, file: XorbFile, repo: str = "models/me/repo") -> None:
        """Upload a xorb and the shard of its file, as the official client of today does."""
        token = await self.get_cas_token(repo, "write")
        answer = await self.ask(
            "POST", f"/v1/xorbs/default/{file.xorb_name}", file.xorb, token=token
        )
        assert answer.status == 200, answer.content
        answer = await self.ask("POST", "/v2/shards", file.shard, token=token)
        assert answer.status == 200, answer.content

    async def commit(
        self, *changes: tuple[str, dict[str, Any]], repo: str = "models/me/repo", to: str = "main"
    ) -> Answer:
        """Post a commit; a change is (key, value)."""
        header = ("header", {"summary": "change"})
        lines = [json.dumps({"key": key, "value": value}) for key, value in (header, *changes)]
        return await self.ask("POST", f"/api/{repo}/commit/{to}", "\n".join(lines).encode())

    async def add(self, file: XorbFile, path: str, repo: str = "models/me/repo") -> None:
        """Upload a file and commit it."""
        await self.upload(file, repo)
        answer = await self.commit(large(path, file), repo=repo)
        assert answer.status == 200, answer.content

    async def set_faults(self, **faults: Any) -> None:
        answer = await self.post_json("/_test/faults", faults)
        assert answer.status == 200, answer.content


def large(path: str, file: XorbFile) -> tuple[str, dict[str, Any]]:
    """A commit's line for a large file."""
    size = len(file.content)
    return "lfsFile", {"path": path, "algo": "sha256", "oid": file.sha256, "size": size}


def plain(path: str, content: bytes) -> tuple[str, dict[str, Any]]:
    """A commit's line for a plain file."""
    text = base64.b64encode(content).decode()
    return "file", {"path": path, "content": text, "encoding": "base64"}


def list_files(folder: Path) -> set[str]:
    """Everything that lies in a folder, empty folders left out."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
