"""Which proxy leads to an origin, by the variables of the environment; beside the real curl."""

import asyncio
import base64

import pytest

from tests.conftest import clean_environment, need_program
from tests.peers import ScriptedPeer, answering, http_answer
from xetserve.errors import UpstreamRefused
from xetserve.net.proxies import Exceptions, Proxy, ProxyRules
from xetserve.net.url import parse_url


class TestRules:
    @pytest.mark.parametrize(
        ("proxies", "url", "expected"),
        [
            pytest.param({}, "https://h/", None, id="none"),
            pytest.param({"http": "http://p:1"}, "https://h/", None, id="for http only"),
            pytest.param(
                {"https": "http://p:1"}, "https://h/", ("http", "p", 1, None), id="for https"
            ),
            pytest.param({"all": "http://p:1"}, "http://h/", ("http", "p", 1, None), id="for all"),
            pytest.param(
                {"all": "http://a:1", "http": "http://b:2"}, "http://h/", ("http", "b", 2, None),
                id="the scheme's own before all",
            ),
            pytest.param(
                {"https": "p:3128"}, "https://h/", ("http", "p", 3128, None), id="no scheme"
            ),
            pytest.param(
                {"https": "http://[::1]:9"}, "https://h/", ("http", "::1", 9, None), id="IPv6"
            ),
            pytest.param(
                {"https": "http://me:p%40ss@p:1/"}, "https://h/",
                ("http", "p", 1, ("me", "p@ss")), id="user and password",
            ),
            pytest.param(
                {"https": "http://me@p:1"}, "https://h/",
                ("http", "p", 1, ("me", "")), id="user alone",
            ),
            pytest.param({"https": "http://p"}, "https://h/", ("http", "p", 8080, None), id="8080"),
            pytest.param({"https": "https://p"}, "https://h/", ("https", "p", 443, None), id="443"),
            pytest.param(
                {"all": "socks5://p"}, "https://h/", ("socks5", "p", 1080, None), id="SOCKS"
            ),
            pytest.param(
                {"all": "SOCKS5H://me:word@p:9"}, "https://h/",
                ("socks5h", "p", 9, ("me", "word")), id="SOCKS, and the proxy resolves names",
            ),
            pytest.param(
                {"all": "socks://p:9/"}, "http://h/", ("socks5h", "p", 9, None), id="as in GNOME"
            ),
            pytest.param(
                {"https": "socks5h://:@p"}, "https://h/", ("socks5h", "p", 1080, None),
                id="a login without a name is none",
            ),
            pytest.param({"https": "http://p:1", "no": "*"}, "https://h/", None, id="never"),
            pytest.param({"https": "http://p:1", "no": "h"}, "https://h/", None, id="not for h"),
            pytest.param(
                {"https": "http://p:1", "no": "other, .test"}, "https://a.test/", None,
                id="a domain",
            ),
            pytest.param(
                {"https": "http://p:1", "no": "test"}, "https://contest/", ("http", "p", 1, None),
                id="only whole labels",
            ),
            pytest.param({"http": "http://p:1", "no": "h:81"}, "http://h:81/", None, id="a port"),
            pytest.param(
                {"http": "http://p:1", "no": "h:82"}, "http://h:81/", ("http", "p", 1, None),
                id="another port",
            ),
            pytest.param({"http": "http://p:1", "no": "::1"}, "http://[::1]/", None, id="not ::1"),
        ],
    )  # fmt: skip
    def test_find(
        self,
        proxies: dict[str, str],
        url: str,
        expected: tuple[str, str, int, tuple[str, str] | None] | None,
    ) -> None:
        found = ProxyRules(proxies).find(parse_url(url).origin)
        assert found == (None if expected is None else Proxy(*expected))

    @pytest.mark.parametrize(
        "proxy", ["socks4://p:1", "ftp://p:1", "http://", "http://p:0", "socks5h://",
                  f"socks5://me:{'x' * 256}@p:1", "http://p:port", "http://p:99999",
                  "http://[::1", "file:///x"],
    )  # fmt: skip
    def test_a_proxy_that_cannot_be_used_is_not_tried_again(self, proxy: str) -> None:
        with pytest.raises(UpstreamRefused, match=r"proxy.*HTTPS_PROXY"):
            ProxyRules({"https": proxy}).find(parse_url("https://h/").origin)

    def test_the_environment_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "all_proxy", "no_proxy", "NO_PROXY", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTPS_PROXY", "http://p:1")
        rules = ProxyRules()
        monkeypatch.delenv("HTTPS_PROXY")
        assert rules.find(parse_url("https://h/").origin) == Proxy("http", "p", 1, None)

    def test_a_password_does_not_show(self) -> None:
        proxy = ProxyRules({"https": "http://me:pass@p:1"}).find(parse_url("https://h/").origin)
        assert "pass" not in f"{proxy} {proxy!r}"
        assert proxy is not None
        assert proxy.authorization == "Basic " + base64.b64encode(b"me:pass").decode()


# NO_PROXY, URL, whether it is connected to directly.
NO_PROXY = [
    ("", "http://a.test/", False),
    ("*", "http://a.test/", True),
    ("b.test,*", "http://a.test/", False),
    ("a.test", "http://a.test/", True),
    ("A.Test", "http://a.TEST/", True),
    ("a.test", "http://a.test:8080/", True),
    ("a.test", "http://b.a.test/", True),
    (".a.test", "http://b.a.test/", True),
    (".a.test", "http://a.test/", True),
    ("..a.test", "http://a.test/", False),
    ("a.test.", "http://a.test/", True),
    ("a.test", "http://a.test./", True),
    ("*.a.test", "http://b.a.test/", False),
    ("a.test", "http://ba.test/", False),
    ("test", "http://a.test/", True),
    ("est", "http://a.test/", False),
    (".", "http://a.test/", False),
    ("b.test,a.test", "http://a.test/", True),
    ("b.test, a.test", "http://a.test/", True),
    (",,a.test,,", "http://a.test/", True),
    ("192.0.2.1", "http://192.0.2.1/", True),
    ("192.0.2.1", "http://192.0.2.10/", False),
    ("0.2.1", "http://192.0.2.1/", False),
    ("192.0.2.0/24", "http://192.0.2.77/", True),
    ("192.0.2.99/24", "http://192.0.2.77/", True),
    ("192.0.2.0/25", "http://192.0.2.200/", False),
    ("192.0.2.1/32", "http://192.0.2.1/", True),
    ("192.0.2.0/33", "http://192.0.2.1/", False),
    ("10.0.0.0/8,192.0.2.0/24", "http://192.0.2.77/", True),
    ("2001:db8::/48", "http://[2001:db8:5::1]/", False),
    ("2001:db8::1", "http://[2001:db8::1]/", True),
    ("::/1", "http://192.0.2.1/", False),
    ("192.0.2.0/24", "http://a.test/", False),
]
# What curl does not have, at least not version 7.88: a port, as in Go and Python; IPv6 networks;
# addresses in brackets, or written in another way; a blank beside the star, or in place of a comma.
BEYOND_CURL = [
    ("2001:db8::/32", "http://[2001:db8:5::1]/", True),
    (" * ", "http://a.test/", True),
    ("2001:db8::1", "http://[2001:DB8:0::1]/", True),
    ("a.test:81", "http://a.test:81/", True),
    ("a.test:81", "http://a.test:82/", False),
    ("a.test:80", "http://a.test/", True),
    ("a.test:443", "https://a.test/", True),
    (".a.test:81", "http://b.a.test:81/", True),
    ("192.0.2.0/24:81", "http://192.0.2.1:81/", True),
    ("192.0.2.0/24:81", "http://192.0.2.1/", False),
    ("[2001:db8::1]", "http://[2001:db8::1]/", True),
    ("[2001:db8::1]:81", "http://[2001:db8::1]:81/", True),
    ("[2001:db8::1]:81", "http://[2001:db8::1]/", False),
    ("[2001:db8::]/32:81", "http://[2001:db8::1]:81/", False),
    ("a.test:port", "http://a.test/", False),
    (":81", "http://a.test:81/", False),
    ("a.test b.test", "http://b.test/", True),
]


@pytest.mark.parametrize(("text", "url", "expected"), [*NO_PROXY, *BEYOND_CURL])
def test_origins_without_a_proxy(text: str, url: str, expected: bool) -> None:
    assert (parse_url(url).origin in Exceptions(text)) is expected


async def test_curl_says_the_same() -> None:
    """A connection without the proxy leads to another server, whatever the name of the host."""
    curl = need_program("curl")
    ok = answering(http_answer(200, b"", "Connection: close"))
    async with ScriptedPeer(ok) as proxy, ScriptedPeer(ok) as direct:

        async def ask(text: str, url: str) -> bool:
            """Return whether curl connects directly."""
            process = await asyncio.create_subprocess_exec(
                curl, "--silent", "--show-error", "--globoff", "--connect-to",
                f"::127.0.0.1:{direct.port}", url,
                env=clean_environment(http_proxy=proxy.base, NO_PROXY=text),
            )  # fmt: skip
            await process.wait()
            was_direct, was_proxied = bool(direct.wires), bool(proxy.wires)
            direct.wires.clear()
            proxy.wires.clear()
            assert was_direct != was_proxied
            return was_direct

        wrong = [row for row in NO_PROXY if await ask(row[0], row[1]) is not row[2]]
    assert wrong == []
