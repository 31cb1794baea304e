"""The whole application on sockets, in front of a scripted Hub, CAS and data host."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.fakes import FakeFile, FakeXorb
from tests.peers import (
    Answer,
    RawClient,
    Received,
    ScriptedPeer,
    Served,
    answering,
    connected,
    http_answer,
    open_pool,
    serving,
)
from tests.waiting import PATIENCE, until
from xetserve.app.application import Application
from xetserve.app.download.service import Upstreams
from xetserve.app.hub.xet_mode import XetMode
from xetserve.http.hosts import HostPolicy
from xetserve.net.body_budget import BodyBudget
from xetserve.net.pool import ConnectionPool
from xetserve.net.server_connection import ConnectionLimits
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.upstream.answers.cache import AnswerCache
from xetserve.upstream.cas.client import CasClient
from xetserve.upstream.hub.client import HubClient
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ChunkRange, FetchInfo, Reconstruction, Term, to_v2
from xetserve.xet.signing import KEY_SIZE, Sealer

POLICY = RetryPolicy(first_delay=0.001, max_delay=0.002, time_limit=0.1)
XORB = FakeXorb.make([bytes([n]) * 50_000 for n in range(8)])
FILE = FakeFile([(XORB, ChunkRange(0, 8))])
CONTENT = FILE.content
NAME = format_hash(FILE.file_hash)
TOKEN = "hf_clients_token"
CAS_TOKEN = "cas_read_token"
SIGNATURE = "X-Sig=signature"
SEALER = Sealer(b"k" * KEY_SIZE)


@dataclass
class World:
    """A Hub, a CAS and a data host, each with an answer that a test may replace."""

    answers: dict[str, Answer | Callable[[Received], Answer]] = field(default_factory=dict)
    hub: ScriptedPeer = field(init=False)
    cas: ScriptedPeer = field(init=False)
    data: ScriptedPeer = field(init=False)
    datasets: ScriptedPeer | None = None  # datasets-server; the test starts it
    budget: ByteBudget = field(default_factory=lambda: ByteBudget(1 << 24))
    bodies: BodyBudget = field(default_factory=BodyBudget)
    metadata: AnswerCache | None = None
    port: int = 0
    write_timeout: float = PATIENCE
    listener: Served = field(init=False)

    def __post_init__(self) -> None:
        self.hub = ScriptedPeer(answering(self._hub))
        self.cas = ScriptedPeer(answering(self._cas))
        self.data = ScriptedPeer(answering(self._data))

    def _find(self, name: str, request: Received) -> Answer | None:
        answer = self.answers.get(name)
        return answer(request) if callable(answer) else answer

    def _hub(self, request: Received) -> Answer:
        if "hub" in self.answers:
            return self._find("hub", request) or http_answer(404)
        if "xet-read-token" in request.path:
            return self._find("token", request) or http_answer(200, json.dumps(
                {"casUrl": self.cas.base, "accessToken": CAS_TOKEN, "exp": time.time() + 900}
            ).encode())  # fmt: skip
        return self._find("resolve", request) or http_answer(
            302, b"", f"Location: {self.data.base}/bridge?{SIGNATURE}", f"X-Xet-Hash: {NAME}",
            f"X-Linked-Size: {len(CONTENT)}", f'X-Linked-ETag: "{"e" * 64}"',
        )  # fmt: skip

    def _cas(self, request: Received) -> Answer:
        chunks = ChunkRange(0, 8)
        info = FetchInfo(chunks, XORB.byte_range(chunks), f"{self.data.base}/xorb?{SIGNATURE}")
        start = (request.get("range") or "bytes=0-").partition("=")[2].partition("-")[0]
        plan = Reconstruction(
            int(start), (Term(XORB.xorb_hash, chunks, len(CONTENT)),), {XORB.xorb_hash: (info,)}
        )
        return self._find("cas", request) or http_answer(200, json.dumps(to_v2(plan)).encode())

    def _data(self, request: Received) -> Answer:
        return self._find("data", request) or http_answer(206, b"".join(XORB.records))

    @asynccontextmanager
    async def run(
        self,
        *,
        allow_anonymous: bool = False,
        mode: XetMode | None = None,
        management: str = "auto",
        hosts: HostPolicy | None = None,
    ) -> AsyncIterator[RawClient]:
        async with self.hub, self.cas, self.data, open_pool() as pool:
            upstreams = self._upstreams(pool)
            self.ledgers = upstreams.engine.ledgers
            app = Application(
                upstreams,
                allow_anonymous=allow_anonymous,
                mode=mode,
                management=management,
                sealer=SEALER,
                hosts=hosts,
            )
            limits = ConnectionLimits(linger_timeout=0.2, write_timeout=self.write_timeout)
            async with serving(app.handle, limits, bodies=self.bodies) as listener:
                self.port, self.listener = listener.port, listener
                async with connected(listener.port) as client:
                    yield client
                await until(lambda: not listener.num_connections)
            assert (self.budget.held, self.budget.num_readers, self.bodies.held) == (0, 0, 0)

    def _upstreams(self, pool: ConnectionPool) -> Upstreams:
        return Upstreams(
            HubClient(
                pool,
                self.hub.base,
                timeout=PATIENCE,
                policy=POLICY,
                instance="xetserve-test",
                metadata=self.metadata,
            ),
            Engine(
                CasClient(pool, timeout=PATIENCE, policy=POLICY),
                self.budget,
                policy=POLICY,
                limits=ReadLimits(stall_timeout=PATIENCE, gap_timeout=PATIENCE),
            ),
            "hash/repo",
            datasets_server=self._make_datasets_server(pool),
        )

    def _make_datasets_server(self, pool: ConnectionPool) -> HubClient | None:
        if self.datasets is None:
            return None
        return HubClient(
            pool, self.datasets.base, timeout=PATIENCE, policy=POLICY, instance="xetserve-test"
        )


async def ask(
    client: RawClient, target: str, *fields: str, method: str = "GET", token: str | None = TOKEN
) -> tuple[int, dict[str, str], bytes]:
    """Send a request without a body; return status, fields and body of the answer."""
    lines = [f"{method} {target} HTTP/1.1", "Host: files.test", *fields]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    await client.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
    return await client.read_answer(is_head=method == "HEAD")


JSON = "Content-Type: application/json; charset=utf-8"


async def send(
    client: RawClient,
    method: str,
    target: str,
    body: bytes,
    *fields: str,
    token: str | None = TOKEN,
) -> tuple[int, dict[str, str], bytes]:
    """Send a request with a body; return status, fields and body of the answer."""
    lines = [f"{method} {target} HTTP/1.1", "Host: files.test", *fields]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    lines += [f"Content-Length: {len(body)}", "", ""]
    await client.send("\r\n".join(lines).encode() + body)
    return await client.read_answer()
