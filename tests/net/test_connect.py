"""Opening upstream connections: addresses, proxies, TLS."""

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import Callable, Container
from ipaddress import ip_address
from typing import Any

import pytest

from tests.peers import (
    CLOSE,
    RESET,
    STALL,
    Answer,
    Certificates,
    ScriptedPeer,
    Wire,
    answering,
    http_answer,
    http_head,
    turn,
)
from tests.waiting import PATIENCE, until
from xetserve.errors import BrokenStream, ConfigError, UpstreamRefused, UpstreamUntrusted
from xetserve.net.address_policy import AddressPolicy
from xetserve.net.client_connection import ClientConnection
from xetserve.net.connect import AddressBook, open_connection
from xetserve.net.proxies import ProxyRules
from xetserve.net.tls import check_ca_files, make_client_context
from xetserve.net.url import Origin, Url, parse_url

DIRECT = ProxyRules({})
OK = http_answer(200, b"ok")
NO_TRUST = ssl.create_default_context()


async def ask(
    url: Url, rules: ProxyRules = DIRECT, tls: ssl.SSLContext = NO_TRUST, timeout: float = PATIENCE
) -> bytes:
    """Connect, ask, leave."""
    connection = await open_connection(url.origin, rules, tls, timeout)
    try:
        response = await connection.request("GET", url, (), b"", PATIENCE)
        return await response.read(1000, PATIENCE)
    finally:
        await leave(connection)


async def leave(connection: ClientConnection) -> None:
    connection.stream.abort()
    await connection.stream.aclose()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def relay(wire: Wire, host: str, port: int, greeting: bytes) -> None:
    """Connect to a host, greet the client, and copy in both directions."""
    reader, writer = await asyncio.open_connection(host, port)
    await wire.send(greeting)

    async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.closing(sink), contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                sink.write(data)

    try:
        await asyncio.gather(copy(wire.reader, writer), copy(reader, wire.writer))
    finally:
        writer.transport.abort()


class ProxyPeer(ScriptedPeer):
    """A forward proxy for CONNECT."""

    def __init__(self, refusal: Answer | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(self._tunnel, tls=tls)
        self._refusal = refusal

    async def _tunnel(self, wire: Wire) -> None:
        if self._refusal is not None:
            return await answering(self._refusal)(wire)
        request = await wire.read_request()
        assert request is not None
        assert request.method == "CONNECT"
        host, _, port = request.target.rpartition(":")
        established = b"HTTP/1.1 200 Connection established\r\n\r\n"
        await relay(wire, host.strip("[]"), int(port), established)

    def rules(self, scheme: str, **more: str) -> ProxyRules:
        return ProxyRules({scheme: self.base, **more})


class TestAddresses:
    async def test_ipv4(self) -> None:
        async with ScriptedPeer(answering(OK)) as peer:
            assert await ask(peer.url()) == b"ok"

    async def test_ipv6(self) -> None:
        async with ScriptedPeer(answering(OK), host="::1") as peer:
            assert await ask(peer.url()) == b"ok"
            assert peer.requests[0].get("host") == f"[::1]:{peer.port}"

    async def test_a_name_that_leads_to_ipv4(self) -> None:
        async with ScriptedPeer(answering(OK)) as peer:
            assert await ask(parse_url(f"http://localhost:{peer.port}/")) == b"ok"

    @pytest.mark.parametrize(
        ("addresses", "tried"),
        [
            pytest.param(["::1", "127.0.0.1"], ["::1", "127.0.0.1"], id="one that refuses first"),
            pytest.param(
                ["::2", "::3", "127.0.0.1"], ["::2", "127.0.0.1"], id="the other family second"
            ),
            pytest.param(["127.0.0.2", "::1", "127.0.0.1"], ["127.0.0.2", "::1", "127.0.0.1"],
                         id="four, six, four"),
            pytest.param(["::1", "::1", "127.0.0.1"], ["::1", "127.0.0.1"], id="none twice"),
        ],
    )  # fmt: skip
    async def test_the_addresses_are_tried_in_turn(
        self, addresses: list[str], tried: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with ScriptedPeer(answering(OK)) as peer:
            loop = fake_resolver(monkeypatch, addresses)
            assert await ask(parse_url(f"http://many.test:{peer.port}/")) == b"ok"
            assert loop.tried == tried

    async def test_a_silent_address_delays_one_connection_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("xetserve.net.connect.ATTEMPT_DELAY", 0.02)
        async with ScriptedPeer(answering(OK)) as peer:
            loop = fake_resolver(monkeypatch, ["::5", "127.0.0.1"], silent={"::5"})
            url, book = parse_url(f"http://many.test:{peer.port}/"), AddressBook()
            await leave(await open_connection(url.origin, DIRECT, NO_TRUST, PATIENCE, book=book))
            assert loop.tried == ["::5", "127.0.0.1"]
            assert loop.cancelled == ["::5"]
            await leave(await open_connection(url.origin, DIRECT, NO_TRUST, PATIENCE, book=book))
            assert loop.tried == ["::5", "127.0.0.1", "127.0.0.1"]

    async def test_a_silent_resolver_has_one_question_for_each_host(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A lookup keeps a thread until the resolver gives up, also when nobody waits any more."""
        async with ScriptedPeer(answering(OK)) as peer:
            loop = fake_resolver(monkeypatch, ["127.0.0.1"])
            loop.resolver = asyncio.Event()
            origin, book = parse_url(f"http://many.test:{peer.port}/").origin, AddressBook()
            for _ in range(2):
                impatient = [
                    open_connection(origin, DIRECT, NO_TRUST, 0.01, book=book) for _ in range(50)
                ]
                ends = await asyncio.gather(*impatient, return_exceptions=True)
                assert {type(end) for end in ends} == {TimeoutError}
            patient = asyncio.ensure_future(
                open_connection(origin, DIRECT, NO_TRUST, PATIENCE, book=book)
            )
            await asyncio.sleep(0)
            assert loop.num_lookups == 1
            loop.resolver.set()
            await leave(await patient)
            await leave(await open_connection(origin, DIRECT, NO_TRUST, PATIENCE, book=book))
            assert loop.num_lookups == 2  # the answer is not kept: that is the resolver's part

    async def test_a_slow_address_is_forgotten_after_a_while(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        book = AddressBook()
        book.note_slow(["::5"], 80)
        assert book.sort(["::5", "127.0.0.1", "127.0.0.2"], 80) == ["127.0.0.1", "127.0.0.2", "::5"]
        assert book.sort(["::5", "127.0.0.1"], 81) == ["::5", "127.0.0.1"]
        monkeypatch.setattr("xetserve.net.connect.SLOW_TIME", 0.0)
        book.note_slow(["::5"], 80)
        assert book.sort(["::5", "127.0.0.1"], 80) == ["::5", "127.0.0.1"]

    async def test_a_slow_address_may_still_be_the_first_to_answer(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("xetserve.net.connect.ATTEMPT_DELAY", 0.02)
        async with ScriptedPeer(answering(OK)) as peer:
            loop = fake_resolver(monkeypatch, ["127.0.0.1", "::5"], silent={"::5"})
            loop.gates["127.0.0.1"] = asyncio.Event()
            url, book = parse_url(f"http://many.test:{peer.port}/"), AddressBook()
            opening = open_connection(url.origin, DIRECT, NO_TRUST, PATIENCE, book=book)
            task = asyncio.ensure_future(opening)
            await until(lambda: loop.tried == ["127.0.0.1", "::5"])
            loop.gates["127.0.0.1"].set()
            await leave(await task)
            assert loop.cancelled == ["::5"]
            assert book.sort(["127.0.0.1", "::5"], peer.port) == ["127.0.0.1", "::5"]

    async def test_who_leaves_cancels_all_attempts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("xetserve.net.connect.ATTEMPT_DELAY", 0.02)
        loop = fake_resolver(monkeypatch, ["::5", "::6"], silent={"::5", "::6"})
        task = asyncio.ensure_future(ask(parse_url("http://many.test:1/")))
        await until(lambda: len(loop.tried) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sorted(loop.cancelled) == ["::5", "::6"]

    async def test_the_last_silent_address_has_all_the_time_that_is_left(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_resolver(monkeypatch, ["::5"], silent={"::5"})
        with pytest.raises(TimeoutError):
            await ask(parse_url("http://many.test:1/"), timeout=0.02)

    @pytest.mark.parametrize(
        "url",
        [
            pytest.param("http://127.0.0.1:{port}/", id="nobody listens"),
            pytest.param("http://name.invalid:{port}/", id="no such name"),
            pytest.param("http://a..b:{port}/", id="an empty label"),
            pytest.param("http://" + "a" * 70 + ".test:{port}/", id="a label too long"),
            pytest.param("http://[::1%25nowhere]:{port}/", id="no such interface"),
        ],
    )
    async def test_what_cannot_be_reached_is_a_broken_stream(self, url: str) -> None:
        with pytest.raises(BrokenStream, match="cannot connect to"):
            await ask(parse_url(url.format(port=free_port())))

    async def test_no_address_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_resolver(monkeypatch, [])
        with pytest.raises(BrokenStream, match=r"many\.test"):
            await ask(parse_url("http://many.test/"))


class FakeLoop:
    """The running loop with a resolver of the test's own."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, addresses: list[str], silent: set[str]
    ) -> None:
        self._loop = loop
        self._addresses = addresses
        self._silent = silent
        self.tried: list[str] = []
        self.cancelled: list[str] = []
        self.num_lookups = 0
        self.resolver: asyncio.Event | None = None  # what lookups wait for
        self.gates: dict[str, asyncio.Event] = {}  # what an address waits for before it answers

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def getaddrinfo(self, host: str, port: int, *, type: int) -> list[tuple[Any, ...]]:
        self.num_lookups += 1
        if self.resolver is not None:
            await self.resolver.wait()
        return [(0, type, 6, "", (address, port)) for address in self._addresses]

    async def create_connection(self, make: Callable[[], Any], host: str, port: int) -> Any:
        self.tried.append(host)
        if host in self._silent:
            try:
                await self._loop.create_future()
            except asyncio.CancelledError:
                self.cancelled.append(host)
                raise
        if host in self.gates:
            await self.gates[host].wait()
        if host not in ("127.0.0.1", "::1"):
            raise ConnectionRefusedError
        return await self._loop.create_connection(make, host, port)


def fake_resolver(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], silent: set[str] | None = None
) -> FakeLoop:
    loop = FakeLoop(asyncio.get_running_loop(), addresses, silent or set())

    class FakeAsyncio:
        timeout = staticmethod(asyncio.timeout)
        wait = staticmethod(asyncio.wait)
        FIRST_COMPLETED = asyncio.FIRST_COMPLETED
        Task = asyncio.Task

        @staticmethod
        def get_running_loop() -> FakeLoop:
            return loop

    monkeypatch.setattr("xetserve.net.connect.asyncio", FakeAsyncio)
    return loop


PUBLIC_HUB = AddressPolicy(parse_url("https://203.0.113.1/").origin, ())


async def ask_within(reach: AddressPolicy, url: Url, rules: ProxyRules = DIRECT) -> None:
    connection = await open_connection(url.origin, rules, NO_TRUST, PATIENCE, reach)
    await leave(connection)


class TestReach:
    """Addresses that a URL of somebody else's must not lead to."""

    async def test_an_address_out_of_reach_is_refused_before_it_is_connected_to(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with ScriptedPeer(answering(OK)) as peer:
            with pytest.raises(UpstreamRefused, match="upstream_networks") as caught:
                await ask_within(PUBLIC_HUB, peer.url("/path?signature"))
            assert str(caught.value).startswith("127.0.0.1 ")
            assert peer.wires == []
        assert "its address 127.0.0.1 is neither public" in caplog.text
        assert "signature" not in caplog.text + str(caught.value)

    @pytest.mark.parametrize("host", ["localhost", "2130706433", "127.1", "[::ffff:127.0.0.1]"])
    async def test_another_way_to_write_it_changes_nothing(self, host: str) -> None:
        async with ScriptedPeer(answering(OK)) as peer:
            with pytest.raises(UpstreamRefused):
                await ask_within(PUBLIC_HUB, parse_url(f"http://{host}:{peer.port}/"))
            assert peer.wires == []

    async def test_every_address_of_a_name_is_looked_at(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = fake_resolver(monkeypatch, ["10.0.0.1", "127.0.0.1", "::1", "192.168.0.1"])
        reach = AddressPolicy(PUBLIC_HUB._hub, ("127.0.0.0/8",))
        async with ScriptedPeer(answering(OK)) as peer:
            await ask_within(reach, parse_url(f"http://many.test:{peer.port}/"))
        assert loop.tried == ["127.0.0.1"]

    async def test_the_hub_is_reached_wherever_it_is(self) -> None:
        async with ScriptedPeer(answering(OK)) as peer:
            await ask_within(AddressPolicy(peer.url().origin, ()), peer.url())

    async def test_a_proxy_is_reached_wherever_it_is_and_judges_names(self) -> None:
        async with ScriptedPeer(answering(OK)) as proxy:
            rules = ProxyRules({"http": proxy.base})
            await ask_within(PUBLIC_HUB, parse_url("http://name.test/"), rules)

    @pytest.mark.parametrize("host", ["10.0.0.1", "0x7f.1", "localhost", "[64:ff9b::a9fe:a9fe]"])
    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_a_proxy_gets_no_address_out_of_reach(self, scheme: str, host: str) -> None:
        async with ScriptedPeer(answering(OK)) as proxy:
            rules = ProxyRules({scheme: proxy.base})
            with pytest.raises(UpstreamRefused):
                await ask_within(PUBLIC_HUB, parse_url(f"{scheme}://{host}/"), rules)
            assert proxy.wires == []


class TestTls:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    async def test_a_server_whose_ca_is_trusted(
        self, certificates: Certificates, trusting: ssl.SSLContext, host: str
    ) -> None:
        tls = certificates.server_context()
        async with ScriptedPeer(answering(OK), host=host, tls=tls) as peer:
            assert await ask(peer.url(), tls=trusting) == b"ok"

    async def test_an_unknown_ca_is_refused(self, certificates: Certificates) -> None:
        async with ScriptedPeer(answering(OK), tls=certificates.server_context()) as peer:
            with pytest.raises(UpstreamUntrusted, match=r"127\.0\.0\.1: .*certificate"):
                await ask(peer.url())
            assert peer.requests == []

    async def test_a_certificate_for_another_host_is_refused(
        self, certificates: Certificates, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with ScriptedPeer(answering(OK), tls=certificates.server_context()) as peer:
            fake_resolver(monkeypatch, ["127.0.0.1"])
            with pytest.raises(UpstreamUntrusted, match=r"many\.test"):
                await ask(parse_url(f"https://many.test:{peer.port}/"), tls=trusting)
            assert peer.requests == []

    async def test_ssl_cert_file_is_honoured(
        self, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
        monkeypatch.delenv("SSL_CERT_DIR", raising=False)
        context = make_client_context()
        monkeypatch.delenv("SSL_CERT_FILE")
        async with ScriptedPeer(answering(OK), tls=certificates.server_context()) as peer:
            assert await ask(peer.url(), tls=context) == b"ok"
            with pytest.raises(UpstreamUntrusted):
                await ask(peer.url(), tls=make_client_context())

    @pytest.mark.parametrize(
        ("environ", "reason"),
        [
            pytest.param({"SSL_CERT_FILE": "none"}, "cannot read 'none': No such file", id="none"),
            pytest.param({"SSL_CERT_FILE": ""}, "cannot read ''", id="empty"),
            pytest.param({"SSL_CERT_FILE": "/dev/null"}, "holds no certificate", id="not PEM"),
            pytest.param({"SSL_CERT_DIR": "none:no"}, "no folder 'none:no'", id="no folder"),
        ],
    )
    def test_ca_files_that_cannot_be_used(self, environ: dict[str, str], reason: str) -> None:
        with pytest.raises(ConfigError, match=f"{next(iter(environ))}: .*{reason}"):
            check_ca_files(environ)

    def test_ca_files_that_can(self, certificates: Certificates) -> None:
        check_ca_files({})
        check_ca_files({"SSL_CERT_FILE": str(certificates.ca), "SSL_CERT_DIR": "none:/"})

    def test_old_versions_are_not_spoken(self) -> None:
        context = make_client_context()
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname

    async def test_several_requests_on_one_connection(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        content = bytes(300_000)
        answers = answering(http_answer(200, content))
        async with ScriptedPeer(answers, tls=certificates.server_context()) as peer:
            url = peer.url()
            connection = await open_connection(url.origin, DIRECT, trusting, PATIENCE)
            for _ in range(3):
                response = await connection.request("GET", url, (), b"", PATIENCE)
                assert await response.read(1 << 20, PATIENCE) == content
                assert connection.is_reusable
            await leave(connection)

    @pytest.mark.parametrize("how", [CLOSE, RESET, "plain"])
    async def test_a_server_that_does_not_speak_tls(self, how: str) -> None:
        async def play(wire: Wire) -> None:
            await wire.read()
            if how == CLOSE:
                await wire.close()
            elif how == RESET:
                wire.reset()
            else:
                await wire.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with ScriptedPeer(play) as peer:
            with pytest.raises(BrokenStream, match="cannot connect"):
                await ask(Url(Origin("https", "127.0.0.1", peer.port), "/"))

    async def test_a_handshake_that_hangs_times_out(self) -> None:
        async with ScriptedPeer(answering(STALL)) as peer:
            with pytest.raises(TimeoutError):
                await ask(Url(Origin("https", "127.0.0.1", peer.port), "/"), timeout=0.05)
            await asyncio.wait_for(peer.wires[0].ended.wait(), PATIENCE)

    @pytest.mark.parametrize("num_turns", [0, 1, 2, 3, 5, 8, 13, 21])
    async def test_cancelling_at_any_moment_leaks_nothing(
        self, certificates: Certificates, trusting: ssl.SSLContext, num_turns: int
    ) -> None:
        async with ScriptedPeer(answering(STALL), tls=certificates.server_context()) as peer:
            task = asyncio.ensure_future(ask(peer.url(), tls=trusting))
            await turn(num_turns)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await turn(50)
            for wire in peer.wires:
                await asyncio.wait_for(wire.ended.wait(), PATIENCE)


class TestProxies:
    async def test_a_tunnel_for_https(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        async with (
            ScriptedPeer(answering(OK), tls=certificates.server_context()) as peer,
            ProxyPeer() as proxy,
        ):
            assert await ask(peer.url("/x"), proxy.rules("https"), trusting) == b"ok"
            (connect,) = proxy.requests
            assert connect.target == connect.get("host") == f"127.0.0.1:{peer.port}"
            assert connect.get("proxy-authorization") is None
            assert peer.requests[0].target == "/x"

    async def test_a_tunnel_to_ipv6(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        tls = certificates.server_context()
        async with ScriptedPeer(answering(OK), host="::1", tls=tls) as peer, ProxyPeer() as proxy:
            assert await ask(peer.url(), proxy.rules("https"), trusting) == b"ok"
            assert proxy.requests[0].target == f"[::1]:{peer.port}"

    async def test_the_proxys_password_goes_to_the_proxy_only(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        async with (
            ScriptedPeer(answering(OK), tls=certificates.server_context()) as peer,
            ProxyPeer() as proxy,
        ):
            rules = ProxyRules({"https": f"http://me:word@127.0.0.1:{proxy.port}"})
            assert await ask(peer.url(), rules, trusting) == b"ok"
            expected = "Basic " + base64.b64encode(b"me:word").decode()
            assert proxy.requests[0].get("proxy-authorization") == expected
            assert peer.requests[0].get("proxy-authorization") is None

    async def test_plain_http_is_asked_for_in_absolute_form(self) -> None:
        async with ScriptedPeer(answering(OK)) as proxy:
            rules = ProxyRules({"http": f"http://me:word@127.0.0.1:{proxy.port}"})
            assert await ask(parse_url("http://hub.test:81/a%2Fb?c"), rules) == b"ok"
            (request,) = proxy.requests
            assert request.target == "http://hub.test:81/a%2Fb?c"
            assert request.get("host") == "hub.test:81"
            expected = "Basic " + base64.b64encode(b"me:word").decode()
            assert request.get("proxy-authorization") == expected

    async def test_no_proxy_connects_directly(self) -> None:
        async with ScriptedPeer(answering(OK)) as peer, ProxyPeer() as proxy:
            assert await ask(peer.url(), proxy.rules("http", no="127.0.0.1")) == b"ok"
            assert proxy.wires == []
            assert peer.requests[0].target == "/"

    @pytest.mark.parametrize(
        "refusal",
        [
            pytest.param(http_answer(407, b"who are you"), id="407"),
            pytest.param(http_answer(502), id="502"),
            pytest.param(http_head(302, "Location: http://login/"), id="a redirect"),
            pytest.param(b"SSH-2.0-x\r\n\r\n", id="not HTTP"),
            pytest.param(b"HTTP/1.1 200\r\nX:" + b" " * 60_000 + b"\x0b\r\n\r\n", id="blanks"),
            pytest.param(CLOSE, id="closes"),
            pytest.param(RESET, id="resets"),
        ],
    )
    async def test_a_proxy_that_says_no_is_a_broken_stream(self, refusal: Answer) -> None:
        async with ProxyPeer(refusal) as proxy:
            with pytest.raises(BrokenStream) as caught:
                await ask(parse_url("https://hub.test/"), proxy.rules("https"))
            assert "who are you" not in str(caught.value)
            await asyncio.wait_for(proxy.wires[0].ended.wait(), PATIENCE)

    async def test_an_interim_answer_is_not_the_answer(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        class Chatty(ProxyPeer):
            async def _tunnel(self, wire: Wire) -> None:
                await wire.send(b"HTTP/1.1 102 Processing\r\n\r\n")
                await super()._tunnel(wire)

        async with (
            ScriptedPeer(answering(OK), tls=certificates.server_context()) as peer,
            Chatty() as proxy,
        ):
            assert await ask(peer.url(), proxy.rules("https"), trusting) == b"ok"

    async def test_a_silent_proxy_times_out(self) -> None:
        async with ProxyPeer(STALL) as proxy:
            with pytest.raises(TimeoutError):
                await ask(parse_url("https://hub.test/"), proxy.rules("https"), timeout=0.05)
            await asyncio.wait_for(proxy.wires[0].ended.wait(), PATIENCE)

    async def test_a_proxy_that_is_not_there(self) -> None:
        rules = ProxyRules({"https": f"http://127.0.0.1:{free_port()}"})
        with pytest.raises(BrokenStream, match="cannot connect"):
            await ask(parse_url("https://hub.test/"), rules)

    async def test_a_certificate_of_the_proxy_is_checked(self, certificates: Certificates) -> None:
        async with ProxyPeer(tls=certificates.server_context()) as proxy:
            with pytest.raises(UpstreamUntrusted, match=r"the proxy 127\.0\.0\.1: .*SSL_CERT_FILE"):
                await ask(parse_url("https://hub.test/"), proxy.rules("https"))

    @pytest.mark.parametrize("size", [10, 3_000_000])
    async def test_tls_to_the_proxy_and_tls_within(
        self, certificates: Certificates, trusting: ssl.SSLContext, size: int
    ) -> None:
        tls = certificates.server_context()
        body = bytes(range(250)) * (size // 250) or b"0123456789"
        async with (
            ScriptedPeer(answering(http_answer(200, body)), tls=tls) as peer,
            ProxyPeer(tls=tls) as proxy,
        ):
            rules = proxy.rules("https")
            connection = await open_connection(peer.url().origin, rules, trusting, PATIENCE)
            for _ in range(2):
                answer = await connection.request("GET", peer.url("/x"), (), b"", PATIENCE)
                assert await answer.read(len(body), PATIENCE) == body
            await leave(connection)
            assert proxy.requests[0].target == f"127.0.0.1:{peer.port}"
            await asyncio.wait_for(proxy.wires[0].ended.wait(), PATIENCE)

    async def test_tls_to_the_proxy_and_plain_http_within(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        async with ScriptedPeer(answering(OK), tls=certificates.server_context()) as proxy:
            rules = ProxyRules({"http": proxy.base.replace("//", "//me:word@")})
            assert await ask(parse_url("http://hub.test:81/a"), rules, trusting) == b"ok"
            (request,) = proxy.requests
            assert request.target == "http://hub.test:81/a"
            assert request.get("proxy-authorization") is not None

    async def test_a_peer_within_two_layers_may_close(
        self, certificates: Certificates, trusting: ssl.SSLContext
    ) -> None:
        tls = certificates.server_context()
        async with ScriptedPeer(answering(CLOSE), tls=tls) as peer, ProxyPeer(tls=tls) as proxy:
            with pytest.raises(BrokenStream):
                await ask(peer.url(), proxy.rules("https"), trusting)


class SocksPeer(ScriptedPeer):
    """A SOCKS proxy without a login, which refuses some hosts."""

    def __init__(self, refused: Container[str] = ()) -> None:
        super().__init__(self._relay)
        self._refused = refused
        self.hosts: list[str] = []

    async def _relay(self, wire: Wire) -> None:
        await wire.reader.readexactly(3)
        await wire.send(b"\x05\x00")
        kind = (await wire.reader.readexactly(4))[3]
        size = {1: 4, 4: 16}.get(kind) or (await wire.reader.readexactly(1))[0]
        packed = await wire.reader.readexactly(size)
        host = packed.decode() if kind == 3 else str(ip_address(packed))
        port = int.from_bytes(await wire.reader.readexactly(2), "big")
        self.hosts.append(host)
        if host in self._refused:
            return await wire.send(b"\x05\x04\x00\x01" + bytes(6))
        await relay(wire, "127.0.0.1", port, b"\x05\x00\x00\x01" + bytes(6))

    def rules(self, scheme: str) -> ProxyRules:
        return ProxyRules({"all": f"{scheme}://127.0.0.1:{self.port}"})


class TestSocks:
    @pytest.mark.parametrize("is_secure", [False, True])
    async def test_the_proxy_resolves_the_name(
        self, certificates: Certificates, trusting: ssl.SSLContext, is_secure: bool
    ) -> None:
        tls = certificates.server_context() if is_secure else None
        async with ScriptedPeer(answering(OK), tls=tls) as peer, SocksPeer() as proxy:
            scheme, host = ("https", "localhost") if is_secure else ("http", "hub.invalid")
            url = parse_url(f"{scheme}://{host}:{peer.port}/x")
            assert await ask(url, proxy.rules("socks5h"), trusting) == b"ok"
            assert proxy.hosts == [host]
            assert peer.requests[0].target == "/x"
            assert peer.requests[0].get("proxy-authorization") is None

    async def test_this_machine_resolves_the_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_resolver(monkeypatch, ["::1", "127.0.0.1"])
        async with ScriptedPeer(answering(OK)) as peer, SocksPeer(refused={"::1"}) as proxy:
            url = parse_url(f"http://hub.test:{peer.port}/")
            assert await ask(url, proxy.rules("socks5")) == b"ok"
            assert proxy.hosts == ["::1", "127.0.0.1"]  # the next one, if it refuses the first

    async def test_a_host_that_the_proxy_cannot_reach(self) -> None:
        async with SocksPeer(refused={"hub.test"}) as proxy:
            with pytest.raises(BrokenStream, match=r"cannot connect to hub.test: host unreach"):
                await ask(parse_url("http://hub.test/"), proxy.rules("socks5h"))
            assert proxy.hosts == ["hub.test"]
            await asyncio.wait_for(proxy.wires[0].ended.wait(), PATIENCE)

    @pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
    async def test_it_gets_no_address_out_of_reach(
        self, monkeypatch: pytest.MonkeyPatch, scheme: str
    ) -> None:
        fake_resolver(monkeypatch, ["10.0.0.1"])
        async with SocksPeer() as proxy:
            host = "other.test" if scheme == "socks5" else "10.0.0.1"
            with pytest.raises(UpstreamRefused, match="upstream_networks"):
                await ask_within(PUBLIC_HUB, parse_url(f"http://{host}/"), proxy.rules(scheme))
            assert proxy.hosts == []
