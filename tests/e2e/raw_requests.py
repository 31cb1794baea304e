"""Raw requests, valid, ambiguous and hostile, and what becomes of each: one row a request.

Statuses of 500 and above are by design: 501 for methods and codings that are not there, 505 for
versions.
"""

from dataclasses import dataclass
from enum import Enum, auto

from tests.e2e.conftest import REPO, TOKEN

SECRET = "hf_n3v3rL0g"  # in what is malformed; must come out nowhere
HEALTH = b"/health"
FILES = f"/download/{REPO}/".encode()
RESOLVED = f"/{REPO}/resolve/main/"  # what the Hub is asked for


class Fate(Enum):
    """What becomes of the connection."""

    KEPT = auto()
    CLOSED = auto()
    SILENT = auto()  # closed without any answer


@dataclass(frozen=True)
class Row:
    """One row.

    statuses: of the answers, in order; several where it does not matter which.
    heads: which of the answers are to HEAD.
    ends: the client ends its side behind the request.
    asked: what the Hub is asked for, if that is to be looked at; "" is nothing.
    body: what a body may start with that is not the answer to GET /health.
    """

    name: str
    raw: bytes
    statuses: tuple[frozenset[int], ...]
    fate: Fate
    heads: frozenset[int]
    ends: bool
    asked: str | None
    body: bytes | None

    def __str__(self) -> str:
        return self.name


def row(
    name: str,
    raw: bytes,
    *statuses: int | tuple[int, ...],
    fate: Fate = Fate.KEPT,
    heads: tuple[int, ...] = (),
    ends: bool = False,
    asked: str | None = None,
    body: bytes | None = None,
) -> Row:
    """Make a row; an answer to a request that starts with HEAD has no body."""
    if raw.lstrip(b"\r\n").startswith(b"HEAD "):
        heads = (0, *heads)
    sets = tuple(frozenset((s,) if isinstance(s, int) else s) for s in statuses)
    return Row(name, raw, sets, fate, frozenset(heads), ends, asked, body)


def request(
    line: bytes = b"GET /health HTTP/1.1",
    *fields: bytes,
    host: bytes = b"Host: h",
    body: bytes = b"",
) -> bytes:
    """Write a request with a Host field."""
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", body])


def refused(name: str, raw: bytes, status: int = 400, *, ends: bool = False) -> Row:
    return row(name, raw, status, fate=Fate.CLOSED, ends=ends)


def bad_line(name: str, line: bytes, status: int = 400) -> Row:
    """A request line that ends the connection."""
    return refused(
        f"line: {name}", request(line, b"Authorization: Bearer " + SECRET.encode()), status
    )


def bad_field(name: str, *fields: bytes, status: int = 400) -> Row:
    """Fields that end the connection; a token stands before them."""
    token = b"Authorization: Bearer " + SECRET.encode()
    return refused(f"field: {name}", request(b"GET /health HTTP/1.1", token, *fields), status)


def bad_host(name: str, *hosts: bytes, line: bytes = b"GET /health HTTP/1.1") -> Row:
    fields = [b"Host: " + host for host in hosts]
    return refused(f"host: {name}", request(line, *fields, host=b""))


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return request(b"POST /health HTTP/1.1", *fields, body=body)


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


def bad_framing(name: str, *fields: bytes, body: bytes = b"", status: int = 400) -> Row:
    """Fields that leave it open where the body ends; what follows looks like a request, and is
    none.
    """
    smuggled = body + request(b"GET /smuggled HTTP/1.1")
    return refused(f"framing: {name}", post(*fields, body=smuggled), status)


def bad_chunks(name: str, body: bytes) -> Row:
    """Chunks that break off the reading of a body nobody asked for; the answer has left already."""
    return row(
        f"chunks: {name}",
        chunked(body + request(b"GET /smuggled HTTP/1.1")),
        405,
        fate=Fate.CLOSED,
    )


def path(
    name: str, tail: bytes, status: int, asked: str = "", *, whole: bool = False
) -> Row:  # fmt: skip
    """A file's path; asked is how it reaches the Hub. whole: tail is the whole target."""
    target = tail if whole else FILES + tail
    raw = request(b"GET " + target + b" HTTP/1.1", b"Authorization: Bearer " + TOKEN.encode())
    sought = RESOLVED + asked if asked and not asked.startswith("/") else asked
    return row(f"path: {name}", raw, status, asked=sought, body=b"")


def bad_path(name: str, tail: bytes, *, status: int = 400) -> Row:
    """A target that no request line can have."""
    raw = request(b"GET " + FILES + tail + b" HTTP/1.1", b"Authorization: Bearer " + TOKEN.encode())
    return row(f"path: {name}", raw, status, fate=Fate.CLOSED, asked="")


GET = request()
HEAD = request(b"HEAD /health HTTP/1.1")
OLD = b"GET /health HTTP/1.0\r\n"
CONFIG = b'{"model_type": "test"}\n'
USAGE = b"xetserve "

VALID = [
    row("GET", GET, 200),
    row("HEAD", HEAD, 200),
    row("an empty line before it", b"\r\n" + GET, 200),
    row("eight empty lines before it", b"\r\n" * 8 + GET, 200),
    row("an empty line behind it", GET + b"\r\n", 200),
    row("names of fields in any case", request(b"GET /health HTTP/1.1", host=b"hOsT: h"), 200),
    row("no blank behind the colon", request(b"GET /health HTTP/1.1", host=b"Host:h"), 200),
    row("tabs around a value", request(b"GET /health HTTP/1.1", host=b"Host:\t h \t"), 200),
    row("empty value", request(b"GET /health HTTP/1.1", b"X-A:"), 200),
    row("value in Latin-1", request(b"GET /health HTTP/1.1", b"X-A: caf\xe9"), 200),
    row("value in UTF-8", request(b"GET /health HTTP/1.1", "X-A: größe".encode()), 200),
    row("odd but legal name", request(b"GET /health HTTP/1.1", b"!#$%&'*+-.^_`|~: x"), 200),
    row("the same field often", request(b"GET /health HTTP/1.1", *[b"X-A: b"] * 50), 200),
    row("thirty thousand blanks", request(b"GET /health HTTP/1.1", b"X-A:" + b" " * 30_000), 200),
    row("query", request(b"GET /health?a=b&c=%20&%zz HTTP/1.1"), 200),
    row("query with odd characters", request(b"GET /health?a=[b]|{c}\"<>^`\\ HTTP/1.1"), 200),
    row("HTTP/1.2 is read as 1.1", request(b"GET /health HTTP/1.2"), 200),
    row("HTTP/1.9 is read as 1.1", request(b"GET /health HTTP/1.9"), 200),
    row("unknown path", request(b"GET /nothing HTTP/1.1"), 404),
    row("Cookie and odd fields", request(b"GET /health HTTP/1.1", b"Cookie: a=b; c", b"DNT: 1"),
        200),
    row("Upgrade to h2c", request(b"GET /health HTTP/1.1", b"Upgrade: h2c",
                                  b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AA"),
        200),
    row("Upgrade to websocket", request(b"GET /health HTTP/1.1", b"Upgrade: websocket",
                                        b"Connection: Upgrade", b"Sec-WebSocket-Version: 13"), 200),
    row("TE: trailers", request(b"GET /health HTTP/1.1", b"TE: trailers", b"Connection: TE"), 200),
    row("Connection names nothing", request(b"GET /health HTTP/1.1", b"Connection: x, ,"), 200),
    row("Connection: keep-alive", request(b"GET /health HTTP/1.1", b"Connection: keep-alive"), 200),
    row("a file", request(b"GET " + FILES + b"config.json HTTP/1.1",
                          b"Authorization: Bearer " + TOKEN.encode()), 200, body=CONFIG),
    row("a file without a token", request(b"GET " + FILES + b"config.json HTTP/1.1"), 401),
]  # fmt: skip

FORMS = [
    row("absolute form", request(b"GET http://x/health HTTP/1.1"), 200),
    row("absolute form, https", request(b"GET https://x:443/health?a HTTP/1.1"), 200),
    row("absolute form, capitals", request(b"GET HTTP://X.Example/health HTTP/1.1"), 200),
    row("absolute form, IPv6", request(b"GET http://[::1]:80/health HTTP/1.1"), 200),
    row("absolute form, no path", request(b"GET http://x HTTP/1.1"), 200, body=USAGE),
    row("absolute form, query only", request(b"GET http://x?a HTTP/1.1"), 200, body=USAGE),
    row("absolute form, HEAD", request(b"HEAD http://x/health HTTP/1.1"), 200),
    row("absolute form, file", request(b"GET http://x" + FILES + b"config.json HTTP/1.1",
        b"Authorization: Bearer " + TOKEN.encode()), 200, asked=RESOLVED + "config.json",
        body=CONFIG),
    refused("absolute form without Host", b"GET http://x/health HTTP/1.1\r\n\r\n"),
    refused("absolute form, no host", request(b"GET http:///health HTTP/1.1")),
    refused("absolute form, port only", request(b"GET http://:80/health HTTP/1.1")),
    refused("absolute form, user", request(b"GET http://u:%b@x/ HTTP/1.1" % SECRET.encode())),
    refused("absolute form, bad port", request(b"GET http://x:port/ HTTP/1.1")),
    refused("absolute form, ftp", request(b"GET ftp://x/health HTTP/1.1")),
    refused("absolute form, one slash", request(b"GET http:/health HTTP/1.1")),
    refused("absolute form, fragment", request(b"GET http://x/health#a HTTP/1.1")),
    refused("absolute form, bad Host", request(b"GET http://x/health HTTP/1.1", host=b"Host: a b")),
    refused("authority form", request(b"GET x:80 HTTP/1.1")),
    refused("CONNECT", request(b"CONNECT x:80 HTTP/1.1"), 501),
    refused("CONNECT to a path", request(b"CONNECT /health HTTP/1.1"), 501),
    row("OPTIONS *", request(b"OPTIONS * HTTP/1.1"), (204, 405)),
    row("OPTIONS, absolute, no path", request(b"OPTIONS http://x HTTP/1.1"), (204, 405)),
    row("OPTIONS", request(b"OPTIONS /health HTTP/1.1"), (204, 405)),
    refused("GET *", request(b"GET * HTTP/1.1")),
    refused("relative path", request(b"GET health HTTP/1.1")),
    refused("fragment", request(b"GET /health#a HTTP/1.1")),
    refused("question mark only", request(b"GET ?a HTTP/1.1")),
]  # fmt: skip

METHODS = [
    *(row(f"{name} is not allowed", request(name.encode() + b" /health HTTP/1.1"), 405)
      for name in ("POST", "PUT", "DELETE", "PATCH", "TRACE")),
    *(row(f"{name} is no method", request(name.encode() + b" /health HTTP/1.1"), 501)
      for name in ("get", "Get", "head", "FOO", "PROPFIND", "M-SEARCH", "G" * 32,
                   "!#$%&'*+-.^_`|~")),
    refused("a method of 33 characters", request(b"G" * 33 + b" /health HTTP/1.1"), 501),
    refused("a method of 9000 characters", request(b"G" * 9000 + b" /health HTTP/1.1"), 501),
    refused("an endless method", b"G" * 100_000, 501),
]  # fmt: skip

VERSIONS = [
    row("HTTP/1.0", OLD + b"\r\n", 200, fate=Fate.CLOSED),
    row("HTTP/1.0 with Host", OLD + b"Host: h\r\n\r\n", 200, fate=Fate.CLOSED),
    row("HTTP/1.0 is not kept", OLD + b"Connection: keep-alive\r\n\r\n", 200, fate=Fate.CLOSED),
    row("HTTP/1.0, HEAD", b"HEAD /health HTTP/1.0\r\n\r\n", 200, fate=Fate.CLOSED),
    row("HTTP/1.0 cannot expect", OLD + b"Expect: x\r\n\r\n", 200, fate=Fate.CLOSED),
    row("HTTP/1.0, Upgrade", OLD + b"Upgrade: h2c\r\n\r\n", 200, fate=Fate.CLOSED),
    row("HTTP/1.0, absolute", b"GET http://x/health HTTP/1.0\r\n\r\n", 200, fate=Fate.CLOSED),
    row("HTTP/1.0, pipelined", (OLD + b"\r\n") * 2, 200, fate=Fate.CLOSED),
    refused("HTTP/1.0, two Hosts", OLD + b"Host: h\r\nHost: h\r\n\r\n"),
    refused("HTTP/1.0, chunked", OLD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    refused("HTTP/0.9", b"GET /health\r\n"),
    refused("HTTP/0.9 and more", b"GET /health\r\n\r\n"),
    *(bad_line(f"HTTP/{text}", b"GET /health HTTP/" + text.encode(), 505)
      for text in ("0.0", "0.9", "2.0", "3.0", "9.9")),
    *(bad_line(f"HTTP/{text}", b"GET /health HTTP/" + text.encode())
      for text in ("1", "1.", ".1", "1.1.1", "1.10", "11.1", "01.1", "1,1", "-1.1", "1.1x", "x",
                   "")),
    bad_line("http/1.1", b"GET /health http/1.1"),
    bad_line("HTTPS/1.1", b"GET /health HTTPS/1.1"),
    bad_line("no protocol", b"GET /health 1.1"),
    refused("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 505),
]  # fmt: skip

LINES = [
    bad_line("one word", b"nonsense"),
    bad_line("two blanks", b"GET  /health HTTP/1.1"),
    bad_line("two blanks before the version", b"GET /health  HTTP/1.1"),
    bad_line("blank at the end", b"GET /health HTTP/1.1 "),
    bad_line("tab", b"GET\t/health HTTP/1.1"),
    bad_line("vertical tab", b"GET\x0b/health HTTP/1.1"),
    bad_line("blank before it", b" GET /health HTTP/1.1"),
    bad_line("blank in the target", b"GET /he alth HTTP/1.1"),
    bad_line("token in the target", b"GET /a?token=%b x HTTP/1.1" % SECRET.encode()),
    bad_line("NUL in the method", b"G\0T /health HTTP/1.1"),
    bad_line("NUL in the target", b"GET /\0health HTTP/1.1"),
    bad_line("method is no token", b"G(T /health HTTP/1.1"),
    bad_line("method not ASCII", b"G\xc9T /health HTTP/1.1"),
    bad_line("carriage return in it", b"GET /health\r HTTP/1.1"),
    bad_line("two carriage returns", b"GET /health HTTP/1.1\r"),
    bad_line("empty", b"\0"),
    refused("line: line feeds only", GET.replace(b"\r\n", b"\n")),
    refused("line: carriage returns only", GET.replace(b"\r\n", b"\r"), ends=True),
    refused("line: a line feed before it", b"\n" + GET),
    refused("line: a carriage return before it", b"\r" + GET),
    refused("line: nine empty lines before it", b"\r\n" * 9 + GET),
    refused("line: byte order mark", b"\xef\xbb\xbf" + GET),
    refused("line: end of line behind NUL", b"GET /health HTTP/1.1\0\r\nHost: h\r\n\r\n"),
]

OTHER_PROTOCOLS = [
    refused("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x5a" * 32),
    refused("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
    refused("SMTP", b"EHLO example.org\r\n"),
    refused("SOCKS 5", b"\x05\x01\x00"),
    refused("SOCKS 4", b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00"),
    refused("Redis", b"*1\r\n$4\r\nPING\r\n"),
    refused("memcached", b"get key\r\n"),
    refused("RTSP", b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n"),
    refused("SIP", b"OPTIONS sip:a@b SIP/2.0\r\n\r\n"),
    refused("PROXY, version 1", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + GET),
    refused("PROXY, version 2", b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + b"\1" * 12 + GET),
    refused("a response", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    refused("JSON", b'{"method": "GET"}\r\n\r\n'),
    refused("zeros", b"\0" * 5000),
    refused("gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\3"),
]

FIELDS = [
    bad_field("blank before the colon", b"X-A : b"),
    bad_field("tab before the colon", b"X-A\t: b"),
    bad_field("token behind a blank", b"Authorization : Bearer " + SECRET.encode()),
    bad_field("empty name", b": b"),
    bad_field("no colon", b"X-A"),
    bad_field("no colon, a token", b"Authorization Bearer " + SECRET.encode()),
    bad_field("name not ASCII", b"X-\xc3\xa4: b"),
    bad_field("blank in the name", b"X A: b"),
    bad_field("name is no token", b"X(A): b"),
    bad_field("NUL in the name", b"X\0A: b"),
    bad_field("NUL in a value", b"X-A: b\0c"),
    bad_field("token and NUL", b"Authorization: Bearer " + SECRET.encode() + b"\0"),
    bad_field("carriage return in a value", b"X-A: b\rX-B: c"),
    bad_field("line feed in a value", b"X-A: b\nX-B: c"),
    bad_field("line end of two carriage returns", b"X-A: b\r"),
    bad_field("escape in a value", b"X-A: \x1b[2J"),
    bad_field("DEL in a value", b"X-A: \x7f"),
    bad_field("folded", b"X-A: b", b" c"),
    bad_field("folded with a tab", b"X-A: b", b"\tc"),
    bad_field("folded framing", b"Transfer-Encoding:", b" chunked"),
    bad_field("a line of blanks", b"X-A: b", b"   "),
    bad_field("Expect", b"Expect: 200-ok", status=417),
    bad_field("Expect, a list", b"Expect: 100-continue, x", status=417),
    refused("field: folded first line", request(b"GET /health HTTP/1.1", host=b" Host: h")),
    refused("field: end by line feeds", b"GET /health HTTP/1.1\r\nHost: h\r\n\n"),
    refused("field: HEAD gets no body", request(b"HEAD /health HTTP/1.1", b"X A: b")),
]

HOSTS = [
    *(row(f"host: {host.decode() or 'empty'}",
          request(b"GET /health HTTP/1.1", host=b"Host: " + host), 200)
      for host in (b"", b"h.example:8080", b"h:", b"127.0.0.1:80", b"[::1]:80", b"[fe80::1%25eth0]",
                   b"a_b", b"a%2Db", b"xn--bcher-kva.example", b"h" * 253)),
    bad_host("none"),
    bad_host("two", b"h", b"h"),
    bad_host("two that differ", b"h", b"evil"),
    bad_host("a list", b"h, evil"),
    bad_host("blank", b"h evil"),
    bad_host("path", b"h/x"),
    bad_host("user", b"u:" + SECRET.encode() + b"@h"),
    bad_host("two ports", b"h:80:80"),
    bad_host("port of letters", b"h:http"),
    bad_host("negative port", b"h:-1"),
    bad_host("port too high", b"h:65536"),
    bad_host("port too long", b"h:0000000080"),
    bad_host("IPv6 without brackets", b"::1"),
    bad_host("open bracket", b"[::1"),
    bad_host("no address in brackets", b"[h]"),
    bad_host("behind the bracket", b"[::1]h"),
    bad_host("query", b"h?x"),
    bad_host("fragment", b"h#x"),
    bad_host("HTML", b"<script>"),
    bad_host("quote", b'h"'),
    bad_host("backslash", b"h\\x"),
    bad_host("bad escape", b"h%zz"),
    bad_host("not ASCII", "größe.example".encode()),
    bad_host("URL", b"http://h"),
]  # fmt: skip

FRAMING = [
    row("POST with a length", post(b"Content-Length: 5", body=b"hello"), 405),
    row("POST with a length of 0", post(b"Content-Length: 0"), 405),
    row("POST with zeros before its length", post(b"Content-Length: 0005", body=b"hello"), 405),
    row("POST with line ends as data", post(b"Content-Length: 4", body=b"\r\n\r\n"), 405),
    row("GET with a length", request(b"GET /health HTTP/1.1", b"Content-Length: 5", body=b"hello"),
        200),
    row("GET with chunks", request(b"GET /health HTTP/1.1", b"Transfer-Encoding: chunked",
                                   body=b"5\r\nhello\r\n0\r\n\r\n"), 200),
    row("HEAD with a length",
        request(b"HEAD /health HTTP/1.1", b"Content-Length: 5", body=b"hello"), 200),
    row("a body that looks like a request", post(b"Content-Length: %d" % len(GET), body=GET), 405),
    row("a chunk that looks like a request", chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(GET), GET)),
        405),
    bad_framing("both", b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    bad_framing("both, the other way", b"Transfer-Encoding: chunked", b"Content-Length: 5",
                body=b"0\r\n\r\n"),
    bad_framing("both, empty", b"Content-Length: 0", b"Transfer-Encoding:"),
    *(bad_framing(f"length {text!r}", b"Content-Length: " + text.encode("latin-1"))
      for text in ("", "+5", "-5", "5, 5", "5,6", "5 5", "5;", "0x5", "5.0", "1e3", "five", "\xb2",
                   "\xa05", "9" * 19, "9" * 400, '"5"')),
    bad_framing("the same length twice", b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    bad_framing("two lengths", b"Content-Length: 5", b"Content-Length: 6", body=b"hello"),
    bad_framing("length is a token", b"Content-Length: " + SECRET.encode()),
    *(bad_framing(f"coding {text!r}", b"Transfer-Encoding: " + text.encode("latin-1"),
                  body=b"0\r\n\r\n")
      for text in ("", "identity", "gzip", "xchunked", "chunkedx", "chunked, gzip",
                   "chunked, chunked", "chunked,", "chunked;a=b", '"chunked"', "\xa0chunked",
                   "chunked\x85", "chunk\ted")),
    bad_framing("gzip, chunked", b"Transfer-Encoding: gzip, chunked", status=501),
    bad_framing("gzip, then chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked",
                status=501),
    bad_framing("chunked twice", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    bad_framing("chunked behind a line feed", b"X: y\nTransfer-Encoding: chunked"),
    bad_framing("chunked behind a blank name", b"Transfer-Encoding : chunked"),
    bad_framing("chunked behind a vertical tab", b"Transfer-Encoding:\x0bchunked"),
    bad_framing("chunked behind NUL", b"Transfer-Encoding: \0chunked"),
    row("coding behind a tab", post(b"Transfer-Encoding:\tchunked", body=b"0\r\n\r\n"), 405),
    row("coding in capitals", post(b"TRANSFER-ENCODING: CHUNKED", body=b"0\r\n\r\n"), 405),
]  # fmt: skip

CHUNKS = [
    row("chunks: none", chunked(b"0\r\n\r\n"), 405),
    row("chunks: two", chunked(b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n"), 405),
    row("chunks: zeros before a size", chunked(b"0005\r\nhello\r\n000\r\n\r\n"), 405),
    row("chunks: extensions", chunked(b'5;a;b=c;d="e;\\""\r\nhello\r\n0;x\r\n\r\n'), 405),
    row("chunks: trailers", chunked(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-B:\r\n\r\n"), 405),
    row("chunks: framing among the trailers", chunked(b"0\r\nContent-Length: 5\r\n\r\n"), 405),
    row("chunks: pipelined", chunked(b"5\r\nhello\r\n0\r\n\r\n") + GET, 405, 200),
    bad_chunks("no size", b"\r\n"),
    bad_chunks("not hex", b"xyz\r\n"),
    bad_chunks("negative", b"-1\r\n"),
    bad_chunks("sign", b"+5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("prefix", b"0x5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("underscore", b"0_5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("blank before", b" 5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("blank behind", b"5 \r\nhello\r\n0\r\n\r\n"),
    bad_chunks("overflow", b"f" * 16 + b"\r\n"),
    bad_chunks("overflow of 32 bits and 64", b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("many digits", b"0" * 300 + b"5\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("longer than said", b"5\r\nhello!\r\n0\r\n\r\n"),
    bad_chunks("shorter than said", b"6\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("line feeds", b"5\nhello\n0\n\n"),
    bad_chunks("line feed behind the size", b"5\nhello\r\n0\r\n\r\n"),
    bad_chunks("carriage return in an extension", b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("line feed in an extension", b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("empty extension", b"5;\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("long extension", b"5;" + b"a" * 300 + b"\r\nhello\r\n0\r\n\r\n"),
    bad_chunks("endless extension", b"5;" + b"a" * 100_000),
    bad_chunks("many extensions", (b"1;" + b"a" * 200 + b"\r\nx\r\n") * 100 + b"0\r\n\r\n"),
    bad_chunks("bad trailer", b"0\r\nX A: b\r\n\r\n"),
    bad_chunks("folded trailer", b"0\r\nX-A: b\r\n c\r\n\r\n"),
    bad_chunks("too many trailers", b"0\r\n" + b"X-A: b\r\n" * 101 + b"\r\n"),
    bad_chunks("endless trailer", b"0\r\nX-A: " + b"b" * 10_000),
    bad_chunks("token for a size", SECRET.encode() + b"\r\n"),
    bad_chunks("more than is read for nothing", b"20000\r\n" + b"x" * 0x20000 + b"\r\n0\r\n\r\n"),
]

EXPECT = [
    row("Expect and a body at once",
        post(b"Expect: 100-continue", b"Content-Length: 5", body=b"hello"), 405, fate=Fate.CLOSED),
    row("Expect without the body", post(b"Expect: 100-continue", b"Content-Length: 5"),
        405, fate=Fate.CLOSED),
    row("Expect without any body", request(b"GET /health HTTP/1.1", b"Expect: 100-continue"), 200),
    row("Expect in capitals, a file", request(b"GET /health HTTP/1.1", b"EXPECT: 100-CONTINUE",
        b"Content-Length: 3"), 200, fate=Fate.CLOSED),
]  # fmt: skip

CONNECTION = [
    row("Connection: close", request(b"GET /health HTTP/1.1", b"Connection: close"), 200,
        fate=Fate.CLOSED),
    row("Connection: Close among others", request(b"GET /health HTTP/1.1", b"Connection: x, Close"),
        200, fate=Fate.CLOSED),
    row("Connection in two fields", request(b"GET /health HTTP/1.1", b"Connection: keep-alive",
        b"Connection: close"), 200, fate=Fate.CLOSED),
    row("nothing behind close", request(b"GET /health HTTP/1.1", b"Connection: close") + GET, 200,
        fate=Fate.CLOSED),
    row("two", GET + GET, 200, 200),
    row("twenty", GET * 20, *[200] * 20),
    row("GET, HEAD, GET", GET + HEAD + GET, 200, 200, 200, heads=(1,)),
    row("an empty line between two", GET + b"\r\n" + GET, 200, 200),
    row("a body between two", GET + post(b"Content-Length: 5", body=b"hello") + GET, 200, 405, 200),
    row("a file between two", GET + request(b"GET " + FILES + b"one-byte.bin HTTP/1.1",
        b"Authorization: Bearer " + TOKEN.encode()) + GET, 200, 200, 200, body=b"x"),
    row("errors between two", GET + request(b"GET /%zz HTTP/1.1") + GET, 200, 400, 200),
    row("nonsense behind one", GET + b"nonsense\r\n\r\n", 200, 400, fate=Fate.CLOSED),
    row("nonsense behind HEAD", HEAD + b"nonsense\r\n\r\n", 200, 400, fate=Fate.CLOSED),
    row("both framings behind one", GET + post(b"Content-Length: 5", b"Transfer-Encoding: chunked",
        body=b"0\r\n\r\n" + GET), 200, 400, fate=Fate.CLOSED),
    row("too short a length", post(b"Content-Length: 3", body=b"hello"), 405, 400, fate=Fate.CLOSED,
        ends=True),
    row("another version behind one", GET + b"PRI * HTTP/2.0\r\n\r\n", 200, 505, fate=Fate.CLOSED),
    row("nothing behind nonsense", b"nonsense\r\n\r\n" + GET, 400, fate=Fate.CLOSED),
    row("end behind one", GET, 200, fate=Fate.CLOSED, ends=True),
    row("end behind two", GET + GET, 200, 200, fate=Fate.CLOSED, ends=True),
    row("end at once", b"", fate=Fate.SILENT, ends=True),
    row("end behind an empty line", b"\r\n", fate=Fate.SILENT, ends=True),
    refused("end in a method", b"GE", ends=True),
    refused("end in a request line", b"GET /health HTTP/1.1", ends=True),
    refused("end in a field", b"GET /health HTTP/1.1\r\nHost: h", ends=True),
    refused("end before the empty line", b"GET /health HTTP/1.1\r\nHost: h\r\n", ends=True),
    row("end in a head behind one", GET + b"GET /he", 200, 400, fate=Fate.CLOSED, ends=True),
    row("end in a body", post(b"Content-Length: 5", body=b"hel"), 405, fate=Fate.CLOSED, ends=True),
    row("end in a chunk", chunked(b"5\r\nhel"), 405, fate=Fate.CLOSED, ends=True),
    row("end before the last chunk", chunked(b"5\r\nhello\r\n"), 405, fate=Fate.CLOSED, ends=True),
]  # fmt: skip

_LONGEST = b"/health?" + b"a" * (8192 - len(b"/health?"))
_HEAD_START = b"GET /health HTTP/1.1\r\nHost: h\r\nX-A: "
_FILL = 32 * 1024 - len(_HEAD_START) - len(b"\r\n\r\n")

SIZES = [
    row("the longest URL", request(b"GET " + _LONGEST + b" HTTP/1.1"), 200),
    refused("a URL one too long", request(b"GET " + _LONGEST + b"a HTTP/1.1"), 414),
    refused("an endless URL", b"GET /" + b"a" * 100_000, 414),
    refused("an endless URL with a token", b"GET /?t=" + SECRET.encode() + b"a" * 10_000, 414),
    row("the largest head", _HEAD_START + b"a" * _FILL + b"\r\n\r\n", 200),
    refused("a head one too large", _HEAD_START + b"a" * (_FILL + 1) + b"\r\n\r\n", 431),
    refused("an endless field", _HEAD_START + b"a" * 100_000, 431),
    refused("an endless name", b"GET /health HTTP/1.1\r\n" + b"a" * 100_000, 431),
    row("as many fields as may be", request(b"GET /health HTTP/1.1", *[b"X-A: b"] * 99), 200),
    refused("one field too many", request(b"GET /health HTTP/1.1", *[b"X-A: b"] * 100), 431),
    refused("endless fields", b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 10_000, 431),
    refused("endless empty lines", b"\r\n" * 10_000),
]

PATHS = [
    path("a file", b"config.json", 200, "config.json"),
    path("encoded letters", b"%63onfig%2ejson", 200, "config.json"),
    path("blanks", b"odd/name%20with%20spaces.bin", 200, "odd/name%20with%20spaces.bin"),
    path("percent and plus", b"odd/100%25%20+%20more.bin", 200, "odd/100%25%20%2B%20more.bin"),
    path("UTF-8", b"odd/gr%c3%b6%C3%9fe-%E5%A4%A7%E3%81%8D%E3%81%95.bin", 200,
         "odd/gr%C3%B6%C3%9Fe-%E5%A4%A7%E3%81%8D%E3%81%95.bin"),
    path("no file", b"absent.bin", 404, "absent.bin"),
    path("..", b"../config.json", 400),
    path(".. further down", b"a/../config.json", 400),
    path(".. at the end", b"a/..", 400),
    path("many ..", b"../" * 50 + b"etc/passwd", 400),
    path("%2e%2e", b"%2e%2e/config.json", 400),
    path(".%2E", b".%2E/config.json", 400),
    path(".", b"./config.json", 400),
    path("%2e", b"a/%2e/config.json", 400),
    path("encoded slash", b"a%2fb", 400),
    path("encoded slash and ..", b"..%2f..%2fetc%2fpasswd", 400),
    path("... is a name", b".../a", 404, ".../a"),
    path("escaped twice", b"%252e%252e/a", 404, "%252e%252e/a"),
    path("slash escaped twice", b"a%252fb", 404, "a%252fb"),
    path("backslashes", b"..\\..\\config.json", 404, "..%5C..%5Cconfig.json"),
    path("encoded backslashes", b"..%5c..%5cconfig.json", 404, "..%5C..%5Cconfig.json"),
    path(".. and parameters", b"..;/config.json", 404, "..%3B/config.json"),
    path("parameters", b"config.json;v=1", 404, "config.json%3Bv%3D1"),
    path("encoded question mark", b"config.json%3frevision=x", 404, "config.json%3Frevision%3Dx"),
    path("encoded hash", b"config.json%23x", 404, "config.json%23x"),
    path("reserved characters", b"a:b@c!d$e&f'g(h)i*j,k=l~", 404,
         "a%3Ab%40c%21d%24e%26f%27g%28h%29i%2Aj%2Ck%3Dl~"),
    path("what URLs should not have", b'a"b<c>d[e]f^g`h{i}j|k', 404,
         "a%22b%3Cc%3Ed%5Be%5Df%5Eg%60h%7Bi%7Dj%7Ck"),
    path("NUL", b"config.json%00", 400),
    path("NUL and a suffix", b"config.json%00.txt", 400),
    path("line end", b"a%0d%0aX-Evil:%20b", 400),
    path("escape sequence", b"%1b[2J", 400),
    path("DEL", b"%7f", 400),
    path("overlong dots", b"%c0%ae%c0%ae/a", 400),
    path("overlong slash", b"a%c0%afb", 400),
    path("overlong in three bytes", b"%e0%80%ae", 400),
    path("surrogate", b"%ed%a0%80", 400),
    path("not UTF-8", b"%ff%fe", 400),
    path("Latin-1", b"gr%f6%dfe", 400),
    path("cut UTF-8", b"%c3", 400),
    path("%zz", b"%zz", 400),
    path("% at the end", b"a%", 400),
    path("%2 at the end", b"a%2", 400),
    path("%u002e", b"%u002e%u002e/a", 400),
    path("%%32e", b"%%32e", 400),
    path("empty segment", b"a//b", 404),
    path("slash before it", b"/config.json", 404),
    path("slash behind it", b"config.json/", 404),
    path("nothing", b"", 404),
    path("a thousand segments", b"a/" * 1000 + b"b", 404, "a/" * 1000 + "b"),
    path("four thousand segments", b"a/" * 4000 + b"b", 414),
    path("a long name", b"a" * 5000, 414),
    path("a name that trebles", b"|" * 2000, 414),
    bad_path("raw UTF-8", "größe.bin".encode()),
    bad_path("raw blank", b"a b"),
    bad_path("raw NUL", b"a\0b"),
    bad_path("raw tab", b"a\tb"),
    bad_path("fragment", b"config.json#a"),
    bad_path("fragment behind a query", b"config.json?a#b"),
    path("revision", b"config.json?revision=main", 200, "config.json"),
    path("revision with a slash", b"a?revision=refs%2Fpr%2F9", 404,
         f"/{REPO}/resolve/refs%2Fpr%2F9/a"),
    path("the last revision counts", b"a?revision=..&revision=main", 404, "a"),
    path("revision ..", b"config.json?revision=..", 400),
    path("revision with ..", b"config.json?revision=a%2f..%2fb", 400),
    path("revision and NUL", b"config.json?revision=main%00", 400),
    path("revision and a line end", b"config.json?revision=main%0d%0a", 400),
    path("revision not UTF-8", b"config.json?revision=%ff", 400),
    path("revision %zz", b"config.json?revision=%zz", 400),
    path("revision of a slash", b"config.json?revision=/main", 400),
    path("another type", b"config.json?type=../models", 400),
    path("owner ..", b"/download/../everything/config.json", 400, whole=True),
    path("owner with a slash", b"/download/te%2fster/everything/config.json", 400, whole=True),
    path("owner with a dollar", b"/download/te$ter/everything/config.json", 400, whole=True),
    path("no owner", b"/download//everything/config.json", 400, whole=True),
    path("a query in the name", b"/download/tester/every%3Fthing/config.json", 400, whole=True),
    path("no path", b"/download/tester/everything", 404, whole=True),
    path("capitals", b"/DOWNLOAD/tester/everything/config.json", 404, whole=True),
    path("two slashes", b"//download/tester/everything/config.json", 404, whole=True),
    path("a dot first", b"/./download/tester/everything/config.json", 400, whole=True),
    path("encoded slash first", b"/download%2ftester/everything/config.json", 400, whole=True),
    path("two slashes and a host", b"//evil.example/%2e%2e", 400, whole=True),
    path("hash too short", b"/download-hash/abc", 400, whole=True),
    path("hash with a suffix", b"/download-hash/" + b"a" * 64 + b"/..", 400, whole=True),
    path("hash of another repository", b"/download-hash/" + b"a" * 64 + b"?repo=../x", 400,
         whole=True),
    path("slashes only", b"/" * 3000, 404, whole=True),
]  # fmt: skip

TABLE = [
    *VALID, *FORMS, *METHODS, *VERSIONS, *LINES, *OTHER_PROTOCOLS, *FIELDS, *HOSTS, *FRAMING,
    *CHUNKS, *EXPECT, *CONNECTION, *SIZES, *PATHS,
]  # fmt: skip
