"""A hostile Hub and CAS: huge reconstructions, content in empty frames, and refusals.

/api/models/frames/...              JSON in empty gzip members
.../xet-read-token/...              a CAS token; for frames/... in empty zstd frames
.../resolve/...                     a Xet file; for refused/... 401
/v1/reconstructions/aaaa...         a reconstruction of the maximum size
/v1/reconstructions/ffff...         a reconstruction in empty zstd frames
.../info/lfs/objects/batch          errors: the objects do not exist
anything else                       a small JSON document
"""

import asyncio
import gzip
import json
import time
from types import TracebackType
from typing import Final, Self

import zstandard

from xetserve.xet.reconstruction import MAX_TERMS

HUGE: Final = "a" * 64  # the hash of a file with a huge reconstruction
FRAMES: Final = "f" * 64  # the hash of a file whose reconstruction has empty frames
NUM_TERMS: Final = MAX_TERMS  # the limit of the server
NUM_RANGES: Final = NUM_TERMS // 4
CHUNK_SIZE: Final = 8192  # bytes, decoded
NUM_MEMBERS: Final = 200_000  # gzip members, 4 MB
NUM_TOKEN_FRAMES: Final = 100_000  # zstd frames, 900 KB; a token document has at most 1 MiB
NUM_PLAN_FRAMES: Final = 1_500_000  # zstd frames, 13 MB
_JSON: Final = "Content-Type: application/json"


def make_plan() -> bytes:
    """Make a v1 reconstruction: terms of one chunk in NUM_RANGES fetch ranges."""
    per_range = NUM_TERMS // NUM_RANGES
    terms = [
        {"hash": HUGE, "unpacked_length": CHUNK_SIZE, "range": {"start": number, "end": number + 1}}
        for number in range(NUM_TERMS)
    ]
    ranges = [
        {
            "range": {"start": number * per_range, "end": (number + 1) * per_range},
            "url": f"http://127.0.0.1:1/{number}?{'signature' * 30}",
            "url_range": {"start": number * 32768, "end": number * 32768 + 32767},
        }
        for number in range(NUM_RANGES)
    ]
    value = {"offset_into_first_range": 0, "terms": terms, "fetch_info": {HUGE: ranges}}
    return json.dumps(value).encode()


class BadHub:
    """The hostile server, on a free port of the loopback interface."""

    def __init__(self) -> None:
        self.url = ""
        self._server: asyncio.Server | None = None
        self._plan = make_plan()
        self._members = gzip.compress(b"") * NUM_MEMBERS
        frame = zstandard.ZstdCompressor().compress(b"")
        self._token_frames = frame * NUM_TOKEN_FRAMES
        self._plan_frames = frame * NUM_PLAN_FRAMES

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                lengths = [
                    int(line[15:]) for line in head if line.lower().startswith("content-length:")
                ]
                body = await reader.readexactly(lengths[0]) if lengths else b""
                writer.write(self._answer(method, target.partition("?")[0], body))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # asyncio would report the cancellation of a connection as an error
        finally:
            writer.close()

    def _answer(self, method: str, path: str, body: bytes) -> bytes:
        if "/resolve/" in path:
            if path.startswith("/refused"):
                return write(method, 401, b"", "X-Error-Code: RepoNotFound")
            name = FRAMES if path.startswith("/frames") else HUGE
            size = NUM_TERMS * CHUNK_SIZE
            fields = (f"X-Xet-Hash: {name}", f"X-Linked-Size: {size}", f'X-Linked-Etag: "{name}"')
            return write(method, 200, b"", *fields, f"X-Repo-Commit: {'c' * 40}")
        if "/xet-read-token/" in path:
            if "/frames/" in path:
                return write(method, 200, self._token_frames, _JSON, "Content-Encoding: zstd")
            value = {"casUrl": self.url, "accessToken": "t", "exp": int(time.time()) + 3600}
            return write(method, 200, json.dumps(value).encode(), _JSON)
        if path.startswith("/v2/"):
            return write(method, 501, b"")
        if path.startswith("/v1/reconstructions/"):
            if FRAMES in path:
                return write(method, 200, self._plan_frames, _JSON, "Content-Encoding: zstd")
            return write(method, 200, self._plan, _JSON)
        if path.endswith("/info/lfs/objects/batch"):
            error = {"code": 404, "message": "no"}
            objects = [each | {"error": error} for each in json.loads(body)["objects"]]
            return write(method, 200, json.dumps({"objects": objects}).encode(), _JSON)
        if path.startswith("/api/models/frames/"):
            return write(method, 200, self._members, _JSON, "Content-Encoding: gzip")
        if "/tree/" in path or "/paths-info/" in path:
            return write(method, 200, b"[]", _JSON)
        return write(method, 200, b'{"id": "a/b", "sha": "' + b"c" * 40 + b'"}', _JSON)


def write(method: str, status: int, body: bytes, *fields: str) -> bytes:
    """Return the bytes of a response."""
    lines = [f"HTTP/1.1 {status} X", *fields, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + (b"" if method == "HEAD" else body)
