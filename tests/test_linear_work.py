"""What others send costs work in proportion to its length: every pattern, and every reader, with
texts made to be slow.

Nothing is timed. Each text is doubled twice, and the steps that it costs are counted; see steps.py.
"""

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.routes import TABLE
from tests.steps import (
    CountedPattern,
    LineCounter,
    Steps,
    count_patterns,
    deep_calls,
    is_linear,
    make_attacks,
)
from xetserve.app.auth import get_token
from xetserve.app.hub.json_entry_filter import EntryFilter
from xetserve.app.hub.json_filter import MemberFilter, NullFilter
from xetserve.app.hub.json_join import ArrayJoiner
from xetserve.app.hub.llama_cpp import is_llama_cpp
from xetserve.app.hub.paths import (
    find_api_verb,
    find_kept_question,
    is_lasting_question,
    list_api_readings,
)
from xetserve.app.hub.xet_mode import AUTO, XetMode
from xetserve.app.paths import get_revision, split_path
from xetserve.app.status.operator import Operator
from xetserve.app.status.service import wants_html
from xetserve.errors import RequestError, UpstreamBusy, XetserveError
from xetserve.http.conditions import Validators, allows_range, check_conditions
from xetserve.http.cors import add_vary
from xetserve.http.encoding import StreamDecoder
from xetserve.http.head import HeadReader, RequestLimits
from xetserve.http.messages import Headers, Request
from xetserve.http.negotiation import choose_coding
from xetserve.http.protocol import NeedData, ServerProtocol
from xetserve.http.proxy_headers import FORWARDED, X_FORWARDED, Forwarding, TrustedProxies
from xetserve.http.ranges import (
    UnsatisfiableRange,
    is_from_start,
    is_resumption,
    parse_content_range,
    parse_ranges,
)
from xetserve.http.relay import (
    extend_agent,
    extend_via,
    find_link,
    has_passed,
    select_answer_fields,
    select_request_fields,
)
from xetserve.http.response_head import ResponseHeadReader
from xetserve.net.server_connection import _find_request_id
from xetserve.net.url import parse_url
from xetserve.ops.access_log import escape, mask_target
from xetserve.ops.logs import mask_secrets
from xetserve.upstream.answers.backoff import Backoff
from xetserve.upstream.hub.entry import hub_error, make_entry
from xetserve.upstream.requests import parse_retry_after

ROOT = Path(__file__).parents[1] / "xetserve"
ROOMS = ("http", "net", "app", "upstream", "ops")
METHODS = ("match", "fullmatch", "search", "findall", "finditer", "sub", "subn", "split")
# Where re is called otherwise than to compile a pattern of a module, and why that is linear.
ELSEWHERE = {
    "app/hub/json_filter.py": "what may follow a brace or a comma is bounded; tested below",
    "http/proxy_headers.py": "two characters a match, of a value that was matched already",
    "ops/socket_activation.py": "a number of the service manager's",
}
SIZES = (32, 64, 128)  # repetitions, for a pattern
SIZES_READ = (16, 32, 64)  # and for a reader


def iter_modules() -> Iterator[tuple[str, ast.Module]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def find_methods() -> dict[str, set[str]]:
    """How each pattern is used, by its name, which may be that of several."""
    found: dict[str, set[str]] = {}
    for _, tree in iter_modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                name = node.value.id if isinstance(node.value, ast.Name) else ""
                found.setdefault(name, set()).add(node.attr)
    return found


def collect_patterns() -> dict[str, tuple[re.Pattern[Any], set[str]]]:
    methods = find_methods()
    found = {}
    for name, _ in iter_modules():
        module = importlib.import_module(f"xetserve.{name[:-3].replace('/', '.')}")
        for attribute, value in vars(module).items():
            values = value if isinstance(value, tuple) else (value,)
            for number, each in enumerate(values):
                if isinstance(each, re.Pattern):
                    uses = methods.get(attribute) or methods.get(attribute.lower()[1:-1])
                    found[f"{name}:{attribute}:{number}"] = each, uses or {"finditer"}
    names = re.compile(MemberFilter(("xetHash", "xetEnabled"))._pattern.pattern)
    found["app/hub/json_filter.py:_pattern"] = names, {"finditer"}
    nulls = re.compile(NullFilter(("xetHash",))._pattern.pattern)
    found["app/hub/json_filter.py:_pattern:null"] = nulls, {"finditer"}
    return found


PATTERNS = collect_patterns()


def test_patterns_are_where_they_are_looked_for() -> None:
    """Those made elsewhere would not be tested here."""
    for name, tree in iter_modules():
        if name in ELSEWHERE:
            continue
        assigned = [
            node
            for statement in tree.body
            if isinstance(statement, ast.Assign | ast.AnnAssign)
            for node in ast.walk(statement)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("re."):
                assert ast.unparse(node.func) == "re.compile", f"{name}: {ast.unparse(node)}"
                assert node in assigned, f"{name}: {ast.unparse(node)} is not of the module"
    assert len(PATTERNS) > 40


def find_slow(pattern: re.Pattern[Any], methods: set[str]) -> list[str]:
    """List the texts that cost out of proportion, with the steps at each size."""
    counted = CountedPattern(pattern, Steps())
    found = []
    for method in methods:
        for texts in make_attacks(counted, SIZES):
            first, second, third = (counted.count_all(text, method) for text in texts)
            # Where a part is bounded the steps grow by leaps, but stay few for each character.
            if not is_linear((first, second, third)) and third > 12 * len(texts[2]):
                found.append(f"{method} of {texts[0]!r}...: {first}, {second}, {third} steps")
    return found


@pytest.mark.parametrize("name", PATTERNS)
def test_no_text_is_slow_to_match(name: str) -> None:
    assert find_slow(*PATTERNS[name]) == []


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        pytest.param(r"[^\s,]+[ \t]+([^\s,]+)", "finditer", id="Via, once"),
        pytest.param(r"[ \t]*(?:([a-z]+)=([a-z]+))?[ \t]*([;,]|$)", "match", id="Forwarded, once"),
        pytest.param(r"\s*(\d*)\s*-\s*(\d*)\s*", "fullmatch", id="Range, once"),
        pytest.param(r"\s+$", "search", id="strip"),
        pytest.param(r"a*+b", "search", id="possessive, from everywhere"),
    ],
)
def test_what_is_slow_is_found(pattern: str, method: str) -> None:
    assert find_slow(re.compile(pattern), {method}) != []


@pytest.mark.parametrize("name", PATTERNS)
def test_the_counting_engine_finds_what_the_real_one_finds(name: str) -> None:
    pattern, _ = PATTERNS[name]
    counted = CountedPattern(pattern, Steps())
    for (text,) in list(make_attacks(counted, (3,)))[:300]:
        given = text if isinstance(pattern.pattern, str) else text.encode("latin-1")
        for method in ("fullmatch", "match", "search"):
            real = getattr(pattern, method)(given)
            assert counted._count(given, method) == (None if real is None else real.end()), text


# Readers


def read_head(value: str, field: str) -> None:
    """What is read of a request's head before and while it is answered."""
    protocol = ServerProtocol(RequestLimits(max_url_size=10**6, max_head_size=10**6))
    name, _, before = field.partition(" ")
    head = f"GET /download/a/b/c?revision=x HTTP/1.1\r\nhost: h\r\n{name}: {before}{value}\r\n\r\n"
    protocol.receive_data(head.encode("latin-1"))
    request = protocol.next_request()
    if isinstance(request, NeedData):
        return
    headers = request.headers
    has_passed(headers, "me")
    extend_via(headers, "me")
    extend_agent("us", headers)
    select_request_fields(headers)
    choose_coding(headers, ("zstd", "gzip"))
    check_conditions(headers, Validators(('"e"',), 5), 10.0)
    allows_range(headers, '"e"', 5, 10.0)
    wants_html(headers)
    is_llama_cpp(headers)
    XetMode(AUTO).find_limit(request)
    Operator("secret").is_operator(request)
    _find_request_id(request)
    for text in headers.get_all("range"):
        is_from_start(text)
        is_resumption(text)
        parse_ranges(text, 1000)
    for kind in (FORWARDED, X_FORWARDED):
        request.peer = "10.0.0.1"
        Forwarding(TrustedProxies("10.0.0.0/8"), kind).apply(request)
    get_token(request, required=False, takes_basic=True)


def read_route(path: str) -> None:
    route, matched = TABLE.match(path)
    route.read(matched)


def read_target(value: str, start: str) -> None:
    """What is read of a request's target."""
    request = Request("GET", f"{start}{value}", Headers())
    mask_target(request.target)
    escape(request.target)
    path = request.raw_path
    readers: tuple[Callable[[str], object], ...] = (
        split_path, list_api_readings, find_api_verb, find_kept_question, is_lasting_question,
        read_route,
    )  # fmt: skip
    for reader in readers:
        try:
            reader(path)
        except RequestError:
            continue
    get_revision(request)


def read_answer_head(value: str, field: str) -> None:
    """What is read of an upstream's head."""
    reader = ResponseHeadReader(10**6)
    name, _, before = field.partition(" ")
    fields = f"{name}: {before}{value}\r\n"
    inbox = bytearray(f"HTTP/1.1 200 OK\r\n{fields}\r\n".encode("latin-1"))
    reader.take(inbox)
    headers = Headers([(name, before + value)])
    select_answer_fields(headers, ("http://hub.test",), "http://us.test")
    for text in headers.get_all("link"):
        find_link(text, "next")
    url = parse_url("http://hub.test/a/b")
    make_entry(url, headers, 5)
    hub_error(404, headers)
    parse_retry_after(headers.get("retry-after"))
    parse_content_range(headers.get("content-range") or "")
    busy = UpstreamBusy("busy", status=429, retry_after=None, headers=list(headers))
    Backoff(1.0, lambda: 0.0).note_busy("scope", "kind", busy)
    vary: list[tuple[str, str]] = []
    add_vary(vary, *(part.strip() for part in (headers.get("vary") or "").split(",")))
    add_vary(vary, *(part.strip() for part in (headers.get("vary") or "").split(",")))
    url.join(headers.get("location") or "")
    StreamDecoder(headers.get("content-encoding"))


def read_log_text(value: str, start: str) -> None:
    escape(mask_secrets(start + value))


def in_bytes(make: Callable[[], Callable[[bytes], object]]) -> Callable[[str, str], None]:
    """A reader of bodies that come byte by byte."""

    def read(value: str, start: str) -> None:
        feed = make()
        for byte in (start + value).encode("latin-1"):
            feed(bytes([byte]))

    return read


def make_head_feed() -> Callable[[bytes], object]:
    reader, inbox = HeadReader(RequestLimits(max_url_size=10**6, max_head_size=10**6)), bytearray()

    def feed(data: bytes) -> object:
        inbox.extend(data)
        return reader.take(inbox)

    return feed


NAMES = ("xetHash", "xetEnabled")
FIELD_PUMPS = (
    " ", ",", "a", "0", '"', "\\a", '\\"', "=", "%20", "<", "<>", '<">', "-", "a ", "a,", " ,",
    '"a",', "a=b;", 'a="b",', ', "', 'W/"a",', "0-0,", ";q=0,", ":", "1:", "[:", "bearer ", ";rel=",
    "<a>;rel=", '<a>;rel="', "; t=", "1.1 a,", "for=1,", "\x85", "\xff",
)  # fmt: skip
TARGET_PUMPS = (
    "a", "/", "%", "%20", "%2f", "//a", "?", "a&", "a=b&", "a/../", ":", "hf_", "hf_a", "bearer ",
    "bearer%20", "basic ", "access_token ", "access_token=", "/tree/", "/resolve/", "\\",
)  # fmt: skip
BODY_PUMPS = (
    " ", ",", "a", '"', "\\", '\\"', "{", "[", "]", '{"a":1},', "[1,", ', "a": "',
    '{"xetHash":"a",', ',"xetHash":', ',"xetHash" ', '"xetHash":1,"xetHash":1', "\r\na:", "\r\n a",
)  # fmt: skip
ENDS = ("", "!")
READERS: dict[str, tuple[Callable[[str, str], None], tuple[str, ...], tuple[str, ...]]] = {
    "head": (
        read_head,
        FIELD_PUMPS,
        (
            "via", "via 1.1", "forwarded", 'forwarded for="', "forwarded for=1", "forwarded for=1,",
            "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "range", "range bytes=",
            "range bytes=0", "if-none-match", 'if-none-match "', "if-match W/", "if-range",
            "if-modified-since", "accept", "accept text/html", "accept text/html;",
            "accept-encoding", "accept-encoding gzip", "accept-language", "authorization",
            "authorization bearer", "authorization basic", "cookie", "expect", "transfer-encoding",
            "connection", "user-agent", "content-type", "x-request-id", "content-length",
        ),
    ),
    "target": (
        read_target,
        TARGET_PUMPS,
        ("/", "/api/models/", "/api/models/a/b/tree/", "/a/b/resolve/", "/a/b/resolve/main/",
         "/?revision=", "/?", "/a.git/info/lfs/objects/", "/v2/", "/download/a/b/", "http://h/"),
    ),
    "answer": (
        read_answer_head,
        FIELD_PUMPS,
        ("link", "link <a>", 'link <a>; rel="', "link <", "vary", "connection", "location", "etag",
         "x-linked-etag", "content-range", "retry-after", "ratelimit", "ratelimit ;",
         "content-encoding", "x-error-message", "via"),
    ),
    "log": (read_log_text, TARGET_PUMPS, ("", "bearer ", "access_token", "//", "hf_", "?")),
    "members, byte by byte": (
        in_bytes(lambda: MemberFilter(NAMES).feed), BODY_PUMPS, ("", "{", '{"xetHash":"', ",")
    ),
    "entries, byte by byte": (
        in_bytes(lambda: EntryFilter(NAMES, 5).feed), BODY_PUMPS,
        ("", "[", '["', '[{"', '[{"a":"', "[[")
    ),
    "arrays, byte by byte": (
        in_bytes(lambda: ArrayJoiner().feed), BODY_PUMPS, ("", "[", "[1", "[]")
    ),
    "heads, byte by byte": (
        in_bytes(make_head_feed), BODY_PUMPS,
        ("", "G", "GET /", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\na:")
    ),
}  # fmt: skip
FIELDS = [(name, start) for name, (_, _, starts) in READERS.items() for start in starts]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    counted = Steps()
    count_patterns(monkeypatch, counted, ROOMS)
    return counted


@pytest.fixture(autouse=True)
def deep() -> Iterator[None]:
    with deep_calls():
        yield


def cost(steps: Steps, read: Callable[[str, str], None], value: str, start: str) -> int:
    before = steps.count
    with LineCounter(steps).counting(), suppress(XetserveError, UnsatisfiableRange, ValueError):
        read(value, start)
    return steps.count - before


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("name", "start"), FIELDS)
def test_no_field_is_slow_to_read(steps: Steps, name: str, start: str) -> None:
    read, pumps, _ = READERS[name]
    for pump in pumps:
        for end in ENDS:
            first, second, third = (
                cost(steps, read, pump * size + end, start) for size in SIZES_READ
            )
            assert is_linear((first, second, third)), (
                f"{start!r} and {pump!r} again and again, then {end!r}: {first}, {second}, {third}"
            )
