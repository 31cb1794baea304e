"""An in-process client: send requests to the application, and list the files of a repository.

The requests are the same that clients send. The answers that the server caches for these requests
are therefore cached for clients too.
"""

import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from xetserve.errors import UpstreamError, XetserveError
from xetserve.http.messages import Handler, Headers, Request, Response
from xetserve.upstream.hub.client import RepoRef

MAX_PAGE_SIZE: Final = 64 * 1024 * 1024  # bytes in one response
MAX_PAGES: Final = 10_000
_HOST: Final = "pull.invalid"  # the host of links in responses, which lead back to the application
# The query with which kernels lists the builds.
_BUILDS: Final = "recursive=false&expand=false"
_NEXT: Final = re.compile(r'<([^<>]*)>\s*;\s*rel="?next"?')


class Refused(XetserveError):
    """The application answered with an error status.

    Args:
        retry_after: seconds, from the Retry-After field; None: the response has none.
    """

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.retry_after = retry_after


class RemoteFile(NamedTuple):
    """A file of a repository, and its size in bytes. content: files with equal ones are equal."""

    path: str
    size: int
    content: str = ""


class HandlerClient:
    """A client of a handler in the same process, for one repository.

    Args:
        token: the Hub token to send with every request; None: send none.
    """

    def __init__(self, handler: Handler, repo: RepoRef, revision: str, token: str | None) -> None:
        self.repo = repo
        self.revision = revision
        self._handler = handler
        self._fields = [("host", _HOST), ("user-agent", "pull")]
        if token is not None:
            self._fields.append(("authorization", f"Bearer {token}"))

    async def ask(self, method: str, target: str) -> tuple[Request, Response]:
        """Send a request; the caller must close the response.

        Raises:
            Refused: the status of the response is an error.
        """
        request = Request(method, target, Headers(self._fields), request_id="pull")
        response = await self._handler(request)
        if response.status >= 400:
            text = bytes(await read_body(response, MAX_PAGE_SIZE))
            raise Refused(response.status, _read_error(text), _read_retry_after(response))
        return request, response

    async def head(self, target: str) -> dict[str, str]:
        """Send a HEAD request; return the response fields by lower-case name."""
        _, response = await self.ask("HEAD", target)
        await response.aclose()
        return {name.lower(): value for name, value in response.headers}

    def file_target(self, path: str, revision: str) -> str:
        """Return the request target of a file."""
        return f"{self.repo.url_prefix}/resolve/{quote(revision, safe='')}/{quote(path)}"

    async def find_commit(self) -> str:
        """Return the commit of the revision.

        Raises:
            Refused, UpstreamError: the Hub does not name it.
        """
        revision = quote(self.revision, safe="")
        info, _ = await self._get_document(f"{self.repo.api_prefix}/revision/{revision}")
        commit = info.get("sha") if isinstance(info, dict) else None
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise UpstreamError("the Hub names no commit")
        return commit

    async def ask_about_repo(self, commit: str) -> None:
        """Ask what clients ask besides, so that the answers are stored.

        Raises:
            Refused, UpstreamError: the Hub does not answer.
        """
        prefix = self.repo.api_prefix
        await self._get_document(f"{prefix}/revision/{commit}")
        if self.revision == "main":
            await self._get_document(prefix)
        await self._get_document(f"{prefix}/refs")  # llama.cpp and kernels begin with these
        if self.repo.kind == "kernel":
            with suppress(Refused):  # there is no such folder
                await self._get_document(f"{prefix}/tree/{commit}/build?{_BUILDS}")

    async def iter_files(self, revision: str) -> AsyncIterator[RemoteFile]:
        """Yield all files, requesting the list page by page.

        Raises:
            Refused, UpstreamError: the list cannot be read.
        """
        prefix = f"{self.repo.api_prefix}/tree/{quote(revision, safe='')}"
        target: str | None = f"{prefix}?recursive=true&expand=false"
        for _ in range(MAX_PAGES):
            if target is None:
                return
            page, link = await self._get_document(target)
            if not isinstance(page, list):
                raise UpstreamError("the Hub's list of files is not a JSON list")
            for item in page:
                try:
                    if item["type"] == "file":
                        content = str((item.get("lfs") or item).get("oid", ""))
                        yield RemoteFile(str(item["path"]), int(item["size"]), content)
                except (AttributeError, KeyError, TypeError, ValueError):
                    raise UpstreamError("the Hub's list of files is damaged") from None
            match = _NEXT.search(link)
            target = None if match is None else match[1].removeprefix(f"http://{_HOST}")
            if target is not None and not target.startswith("/"):
                raise UpstreamError("the Hub's list of files continues on another host")
        raise UpstreamError("the Hub's list of files does not end")

    async def _get_document(self, target: str) -> tuple[Any, str]:
        """Return a JSON document and the Link field of its response."""
        _, response = await self.ask("GET", target)
        text = await read_body(response, MAX_PAGE_SIZE)
        link = ", ".join(value for name, value in response.headers if name.lower() == "link")
        try:
            return json.loads(text), link
        except (ValueError, RecursionError):
            raise UpstreamError("the Hub's answer is not JSON") from None


async def read_body(response: Response, limit: int) -> bytes | bytearray:
    """Read a whole body.

    Raises:
        UpstreamError: the body is larger than limit bytes, or breaks off.
    """
    if isinstance(response.body, bytes):
        return response.body
    text = bytearray()
    try:
        async for block in response.body:
            for part in block:
                text += part
            if len(text) > limit:
                raise UpstreamError(f"a response has more than {limit} bytes")
    finally:
        await response.aclose()
    return text


def is_wanted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Return whether patterns select a path, as in huggingface_hub: "*" also matches "/"."""

    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(path, f"{p}*" if p.endswith("/") else p) for p in patterns)

    return (not include or matches(include)) and not matches(exclude)


def _read_error(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "the server gave no reason"


def _read_retry_after(response: Response) -> float | None:
    for name, value in response.headers:
        if name.lower() == "retry-after" and value.isascii() and value.isdigit():
            return float(value)
    return None
