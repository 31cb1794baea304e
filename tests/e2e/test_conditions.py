"""Conditional requests, what caches are told, checksums and pages of other sites: on sockets, file
by file.
"""

import subprocess
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path

import pytest

from tests.conftest import Launcher, need_program
from tests.e2e.clients import Connection, Reply, curl, file_url, path_of, run
from tests.e2e.conftest import Site, serve_arguments

FILES = ["five-kilobytes.bin", "config.json"]
GO, PART, SAME, FAIL = 200, 206, 304, 412

# Fields with E for the file's entity-tag and dates around its last change, and the status.
CONDITIONS: list[tuple[dict[str, str], int]] = [
    ({}, GO),
    ({"If-None-Match": "E"}, SAME),
    ({"If-None-Match": "W/E"}, SAME),
    ({"If-None-Match": '"x", E, "y"'}, SAME),
    ({"If-None-Match": "*"}, SAME),
    ({"If-None-Match": '"x"'}, GO),
    ({"If-None-Match": "unquoted"}, GO),
    ({"If-Match": "E"}, GO),
    ({"If-Match": '"x",E'}, GO),
    ({"If-Match": "*"}, GO),
    ({"If-Match": "W/E"}, FAIL),
    ({"If-Match": '"x"'}, FAIL),
    ({"If-Modified-Since": "AT"}, SAME),
    ({"If-Modified-Since": "AFTER"}, SAME),
    ({"If-Modified-Since": "BEFORE"}, GO),
    ({"If-Modified-Since": "RFC850"}, SAME),
    ({"If-Modified-Since": "ASCTIME"}, SAME),
    ({"If-Modified-Since": "nonsense"}, GO),
    ({"If-Unmodified-Since": "AT"}, GO),
    ({"If-Unmodified-Since": "AFTER"}, GO),
    ({"If-Unmodified-Since": "BEFORE"}, FAIL),
    ({"If-Unmodified-Since": "nonsense"}, GO),
    ({"If-Match": "E", "If-Unmodified-Since": "BEFORE"}, GO),
    ({"If-Match": '"x"', "If-None-Match": "E"}, FAIL),
    ({"If-Match": "E", "If-None-Match": "E"}, SAME),
    ({"If-None-Match": '"x"', "If-Modified-Since": "AFTER"}, GO),
    ({"If-None-Match": "E", "If-Modified-Since": "BEFORE"}, SAME),
    ({"If-None-Match": "E", "Range": "bytes=0-1"}, SAME),
    ({"If-Match": '"x"', "Range": "bytes=99999-"}, FAIL),
    ({"If-Match": "E", "Range": "bytes=0-1"}, PART),
    ({"If-Range": "E", "Range": "bytes=0-1"}, PART),
    ({"If-Range": "W/E", "Range": "bytes=0-1"}, GO),
    ({"If-Range": '"x"', "Range": "bytes=0-1"}, GO),
    ({"If-Range": "AT", "Range": "bytes=0-1"}, PART),
    ({"If-Range": "AFTER", "Range": "bytes=0-1"}, GO),
    ({"If-Range": "BEFORE", "Range": "bytes=0-1"}, GO),
    ({"If-Range": '"x"', "Range": "bytes=99999-"}, GO),
    ({"If-Range": "E"}, GO),
]


@pytest.fixture
def connection(site: Site) -> Iterator[Connection]:
    with closing(Connection(site.server.url)) as made:
        yield made


def fill_in(fields: dict[str, str], described: Reply) -> list[tuple[str, str]]:
    """Put a file's own validators into a row of the table."""
    changed = parsedate_to_datetime(described.headers["last-modified"])
    seconds = changed.timestamp()
    words = {
        "E": described.headers["etag"],
        "W/E": "W/" + described.headers["etag"],
        "AT": formatdate(seconds, usegmt=True),
        "AFTER": formatdate(seconds + 1, usegmt=True),
        "BEFORE": formatdate(seconds - 1, usegmt=True),
        "RFC850": changed.strftime("%A, %d-%b-%y %H:%M:%S GMT"),
        "ASCTIME": changed.strftime("%a %b %e %H:%M:%S %Y"),
    }
    filled = []
    for name, value in fields.items():
        parts = [words.get(part.strip(), part.strip()) for part in value.split(",")]
        filled.append((name, words.get(value) or ", ".join(parts)))
    return filled


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("fields", "status"), CONDITIONS, ids=lambda value: str(value))
def test_conditions(
    site: Site, connection: Connection, name: str, method: str, fields: dict[str, str], status: int
) -> None:
    described = connection.ask(path_of(name), method="HEAD")
    site.control.reset_requests()
    answer = connection.ask(path_of(name), fill_in(fields, described), method)
    content = (site.uploaded.folder / name).read_bytes()
    if method == "HEAD" and status == PART:
        status = GO  # there are no parts of nothing
    assert answer.status == status
    if method == "HEAD":
        assert answer.body == b""
    elif status in (GO, PART):
        assert answer.body == (content if status == GO else content[:2])
    if status in (SAME, FAIL) or method == "HEAD":
        # One question to the Hub, and no data.
        assert [request["kind"] for request in site.control.requests()] == ["hub"]
    if status == SAME:
        assert answer.headers["etag"] == described.headers["etag"]
        assert answer.headers["cache-control"] == described.headers["cache-control"]
        assert answer.headers["vary"] == described.headers["vary"]
        assert not {"content-length", "transfer-encoding", "content-type"} & set(answer.headers)


def test_a_file_by_its_hash_has_conditions_too(site: Site, connection: Connection) -> None:
    file_hash = connection.ask(path_of("random.bin"), method="HEAD").headers["x-xet-hash"]
    path = f"/download-hash/{file_hash}"
    site.control.reset_requests()
    for fields, status in (
        ([("If-None-Match", f'"{file_hash}"')], SAME),
        ([("If-None-Match", '"x"'), ("If-Match", '"x"')], FAIL),
        ([("If-Match", f'"{file_hash}"'), ("Range", "bytes=0-1")], PART),
    ):
        assert connection.ask(path, fields).status == status
    answer = connection.ask(path, method="HEAD")
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert connection.ask("/download-hash/" + "ab" * 32, [("If-None-Match", "*")]).status == 404


@pytest.mark.parametrize("name", FILES)
def test_what_caches_are_told(site: Site, connection: Connection, name: str) -> None:
    branch = connection.ask(path_of(name), method="HEAD")
    assert branch.headers["cache-control"] == "private, no-cache"
    assert branch.headers["vary"] == "Authorization, Accept-Encoding"
    commit = branch.headers["x-repo-commit"]
    for method in ("HEAD", "GET"):
        fixed = connection.ask(f"{path_of(name)}?revision={commit}", method=method)
        assert fixed.headers["cache-control"] == "private, max-age=31536000, immutable"
    error = connection.ask(f"{path_of(name)}x")
    assert (error.status, error.headers["cache-control"]) == (404, "no-store")


# Digests


@pytest.mark.parametrize("fields", [[], [("Range", "bytes=5-9")], [("Range", "bytes=0-0,9-9")]])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_digest_is_that_of_the_whole_file(
    site: Site, connection: Connection, method: str, fields: list[tuple[str, str]]
) -> None:
    digest = b64encode(bytes.fromhex(site.uploaded.digests["random.bin"])).decode()
    answer = connection.ask(path_of("random.bin"), fields, method)
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert "repr-digest" not in connection.ask(path_of("config.json")).headers


def test_a_verified_file_says_so_behind_its_body(site: Site, tmp_path: Path) -> None:
    dump = tmp_path / "headers"
    url = file_url(site, "random.bin")
    assert run(curl(url, tmp_path / "out", "-D", str(dump))).returncode == 0
    lines = dict(line.split(": ", 1) for line in dump.read_text().splitlines() if ": " in line)
    assert lines["Trailer"] == "X-Xet-Verified"
    assert lines["X-Xet-Verified"] == lines["X-Xet-Hash"]
    # Of a part nothing was verified.
    assert run(curl(url, tmp_path / "out", "-D", str(dump), "-r", "0-9")).returncode == 0
    assert "X-Xet-Verified" not in dump.read_text()


@pytest.mark.parametrize("name", ["random.bin", "odd/größe-大きさ.bin", "config.json", "empty.bin"])
def test_sha256sum_checks_a_download(site: Site, tmp_path: Path, name: str) -> None:
    target = tmp_path / Path(name).name
    assert run(curl(file_url(site, name), target)).returncode == 0
    sums = tmp_path / "sums"
    assert run(curl(file_url(site, name) + "?checksum=sha256", sums)).returncode == 0
    command = [need_program("sha256sum"), "--strict", "-c", "sums"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    target.write_bytes(target.read_bytes() + b"x")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize(
    ("query", "status"), [("?checksum=md5", 400), ("?checksum=", 400), ("?checksum=sha256", 200)]
)
def test_checksums_that_there_are(connection: Connection, query: str, status: int) -> None:
    answer = connection.ask(path_of("random.bin") + query)
    assert answer.status == status
    assert connection.ask(f"/download-hash/{'ab' * 32}{query}").status == (
        404 if status == 200 else 400
    )


# Pages of other sites


@pytest.mark.parametrize(
    "path",
    ["/", "/health", path_of("config.json"), path_of("random.bin"), path_of("x"), "/nothing"],
)
def test_a_page_may_read_every_answer(connection: Connection, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = connection.ask(path, [("Origin", "https://page.test")], method)
        assert answer.headers["access-control-allow-origin"] == "*"
        exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
        assert {"etag", "content-range", "x-repo-commit", "x-request-id"} < set(exposed)


@pytest.mark.parametrize("path", [path_of("random.bin"), "/download-hash/x", "/", "*"])
def test_a_preflight_needs_no_token(site: Site, connection: Connection, path: str) -> None:
    site.control.reset_requests()
    asked = [
        ("Origin", "https://page.test"),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", "authorization, range"),
    ]
    answer = connection.ask(path, asked, "OPTIONS")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == "*"
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "range", "if-range"} < set(allowed)
    plain = connection.ask(path, method="OPTIONS")
    assert (plain.status, plain.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert site.control.requests() == []


def test_an_operator_may_say_which_pages(site: Site, launcher: Launcher) -> None:
    flags = ("--cors", "https://page.test", "--compression", "off", "--allow-anonymous")
    server = launcher.start(*serve_arguments(site.origin.url, *flags))
    with closing(Connection(server.url)) as connection:
        for origin, allowed in (
            ("https://page.test", "https://page.test"),
            ("https://b.test", None),
        ):
            answer = connection.ask(path_of("random.bin"), [("Origin", origin)], "HEAD")
            assert answer.headers.get("access-control-allow-origin") == allowed
            assert answer.headers["vary"] == "Authorization, Origin"
