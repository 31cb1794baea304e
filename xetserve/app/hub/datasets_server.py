"""The Hub's host for parts of datasets, datasets-server, which clients find by a name.

A client puts "datasets-server." before the host of HF_ENDPOINT, so its requests come here if that
name leads here, too. They go to the host that the settings name, and nothing is cached. The token
goes along, since that host belongs to the Hub.

Source: datasets utils/_dataset_viewer.py.
"""

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from xetserve.app.download.body import start_body
from xetserve.app.hub.passthrough import EXACT, PassThrough
from xetserve.app.hub.paths import find_api_verb
from xetserve.app.route_table import Auth, Call, Route, RouteTable, no_target
from xetserve.http.hosts import DATASETS_LABEL
from xetserve.http.messages import Block, Body, Request, Response
from xetserve.pipeline.engine import ReadLimits
from xetserve.upstream.hub.client import HubClient

PATHS: Final = ("/parquet", "/info", "/splits", "/is-valid", "/size", "/rows")
_WITH_URLS: Final = "/parquet"  # its answers name files of the Hub
_MEMBER: Final = re.compile(rb'"url"\s{0,4}:\s{0,4}"')
_MEMBER_SIZE: Final = len('"url":"') + 4 + 4  # of the longest match
_LABEL: Final = re.compile(r"://datasets-server\.", re.IGNORECASE)


class DatasetsServer:
    """Answers requests for datasets-server.

    Args:
        host: asks that host.
        bases: the start of the Hub's own URLs, without a slash at the end.
    """

    def __init__(self, host: HubClient, limits: ReadLimits, bases: Sequence[str]) -> None:
        self._api = PassThrough(host, limits)
        self._bases = bases
        routes: list[Route[Any]] = [
            Route("api", "GET HEAD", path, Auth.OPTIONAL, no_target, self.answer) for path in PATHS
        ]
        self.routes = RouteTable(routes, find_api_verb)

    def serves(self, request: Request) -> bool:
        """Return whether a request is for datasets-server, by its host and its path."""
        return request.host.lower().startswith(DATASETS_LABEL) and request.raw_path in PATHS

    async def answer(self, call: Call[None]) -> Response:
        """Answer with what the host answers; its URLs of the Hub's files lead here.

        Raises:
            UpstreamError: the host fails or does not answer.
        """
        request = call.request
        # Rows are content of datasets, in which nothing is a token and nothing must change.
        response = await self._api.answer(
            request, call.token, native_above=EXACT, may_have_token=True
        )
        if request.raw_path == _WITH_URLS and request.method == "GET" and response.status == 200:
            mover = UrlMover(self._bases, _LABEL.sub("://", request.base_url, count=1))
            if isinstance(response.body, bytes):
                response.body = mover.feed(response.body) + mover.finish()
            else:
                response.body = await start_body(_move(response.body, mover))
        return response


class UrlMover:
    """Moves the Hub's URLs in members "url" of a JSON text to this server, in bounded memory.

    Args:
        bases: the start of the Hub's URLs, without a slash at the end.
        base_url: what they become.
    """

    def __init__(self, bases: Sequence[str], base_url: str) -> None:
        self._bases = [base.encode() for base in bases]
        self._new = base_url.encode()
        # The size of the longest match, with a base and the slash behind it.
        self._held_size = _MEMBER_SIZE + max(map(len, bases)) + 1
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return the next bytes of the text; a match may have begun in those that are held."""
        text = self._held + data
        done = 0
        out = []
        for match in _MEMBER.finditer(text):
            at = match.end()
            for base in self._bases:
                if text.startswith(base + b"/", at):
                    out += [text[done:at], self._new]
                    done = at + len(base)
                    break
        end = max(done, len(text) - self._held_size)
        self._held = text[end:]
        return b"".join((*out, text[done:end]))

    def finish(self) -> bytes:
        """Return the end of the text."""
        return self._held


async def _move(body: Body, mover: UrlMover) -> AsyncGenerator[Block, None]:
    async with aclosing(body):
        async for block in body:
            yield [mover.feed(b"".join(block))]
        yield [mover.finish()]
