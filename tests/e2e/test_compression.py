"""zstd on the wire: smaller where data shrinks, the same bytes in the end, and never a
complete-looking failure.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from tests.conftest import Launcher, need_program, sha256_of
from tests.e2e.clients import Connection, curl, file_url, path_of, run
from tests.e2e.conftest import REPO, TOKEN, Site, serve_arguments
from tests.e2e.damage import find_record
from xetserve.http.encoding import decode_content
from xetserve.xet.compression import Scheme

ZSTD = [("Accept-Encoding", "gzip, zstd")]
SHRINKING = ["text/corpus.bin", "damage/lz4.bin"]
OTHERS = ["random.bin", "damage/raw.bin", "one-byte.bin", "empty.bin", "config.json"]


@pytest.fixture
def connection(site: Site) -> Iterator[Connection]:
    with closing(Connection(site.server.url)) as made:
        yield made


def unpack(data: bytes) -> bytes:
    decoder = zstandard.ZstdDecompressor().decompressobj()
    decoded = decoder.decompress(data)
    assert decoder.eof
    assert not decoder.unused_data
    return decoded


@pytest.mark.parametrize("name", SHRINKING)
def test_data_that_shrinks_is_coded(site: Site, connection: Connection, name: str) -> None:
    content = (site.uploaded.folder / name).read_bytes()
    plain = connection.ask(path_of(name), method="HEAD")
    answer = connection.ask(path_of(name), ZSTD)
    assert (answer.status, answer.headers["content-encoding"]) == (200, "zstd")
    assert len(answer.body) < 0.95 * len(content)
    assert unpack(answer.body) == content
    assert answer.headers["etag"] == plain.headers["etag"][:-1] + '-zstd"'
    assert "accept-encoding" in answer.headers["vary"].lower()
    assert answer.headers["x-linked-size"] == str(len(content))
    again = connection.ask(path_of(name), [*ZSTD, ("If-None-Match", answer.headers["etag"])])
    assert (again.status, again.headers["etag"]) == (304, answer.headers["etag"])
    part = connection.ask(path_of(name), [*ZSTD, ("Range", "bytes=5-99")])
    assert (part.status, part.body) == (206, content[5:100])
    resumed = [*ZSTD, ("Range", "bytes=5-"), ("If-Range", answer.headers["etag"])]
    assert unpack(connection.ask(path_of(name), resumed).body) == content


@pytest.mark.parametrize("name", OTHERS)
def test_other_data_is_sent_as_it_is(site: Site, connection: Connection, name: str) -> None:
    answer = connection.ask(path_of(name), ZSTD)
    assert "content-encoding" not in answer.headers
    assert answer.body == (site.uploaded.folder / name).read_bytes()


@pytest.mark.parametrize("name", ["text/corpus.bin", "repeats.bin", "random.bin"])
@pytest.mark.parametrize("by_hash", [False, True], ids=["by path", "by hash"])
def test_curl_decodes_it(site: Site, tmp_path: Path, name: str, by_hash: bool) -> None:
    url, dump = file_url(site, name), tmp_path / "headers"
    if by_hash:
        with closing(Connection(site.server.url)) as connection:
            file_hash = connection.ask(path_of(name), method="HEAD").headers["x-xet-hash"]
        url = f"{site.server.url}/download-hash/{file_hash}"
    done = run(curl(url, tmp_path / "out", "--compressed", "-D", str(dump)))
    assert done.returncode == 0, done.stderr
    assert sha256_of(tmp_path / "out") == site.uploaded.digests[name]
    assert "X-Xet-Verified: " in dump.read_text()
    assert ("Content-Encoding: zstd" in dump.read_text()) == (name == "text/corpus.bin")


def test_damage_never_has_an_end(impatient_site: Site, tmp_path: Path) -> None:
    site, name = impatient_site, "damage/lz4.bin"
    # Other content of the same sizes, which only the hash of the whole file tells from the right
    # one.
    xorb, index, _, _ = find_record(site, Scheme.LZ4, name)
    site.control.set_faults(swap_chunk={"xorb": xorb, "chunk": index})
    raw = run(curl(file_url(site, name), tmp_path / "raw", "-H", "Accept-Encoding: zstd"))
    assert raw.returncode != 0
    decoder = zstandard.ZstdDecompressor().decompressobj()
    if (tmp_path / "raw").exists():
        decoder.decompress((tmp_path / "raw").read_bytes())
        assert not decoder.eof
    assert run(curl(file_url(site, name), tmp_path / "out", "--compressed")).returncode != 0


def test_many_at_once_stay_within_the_memory_that_is_promised(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    server = launcher.start(*serve_arguments(site.origin.url, "--memory-budget", "8MiB"))
    url = f"{server.url}/download/{REPO}/text/corpus.bin"
    command = [need_program("curl"), "-q", "-sS", "-f", "--noproxy", "*", "--compressed", "-Z"]
    command += ["--parallel-max", "40", "-H", f"Authorization: Bearer {TOKEN}"]
    for number in range(40):
        command += ["-o", str(tmp_path / f"out{number}"), url]
    assert run(command).returncode == 0
    digests = {sha256_of(tmp_path / f"out{number}") for number in range(40)}
    assert digests == {site.uploaded.digests["text/corpus.bin"]}
    # Some 38 MiB of base, the budget, and for each of 40 connections a block, its socket and at
    # most a compressor.
    assert server.peak_memory() < 160 * 1024 * 1024


# What a HEAD cannot know before the body is made; and what is new each time.
NOT_OF_HEADS = {"content-encoding", "transfer-encoding", "trailer", "content-length"}
NOT_THE_SAME = {"date", "x-request-id"}
DOCUMENTS = ["/", "/health", "/status", "/v2/", f"/api/models/{REPO}", f"/api/models/{REPO}/refs",
             f"/api/models/{REPO}/tree/main?recursive=True",
             f"/{REPO}/raw/main/config.json"]  # fmt: skip
FILES = [
    prefix + name
    for prefix in (f"/download/{REPO}/", f"/{REPO}/resolve/main/")
    for name in ("text/corpus.bin", "random.bin", "empty.bin", "config.json")
]


@pytest.mark.parametrize("accepted", ["zstd", "gzip", "*", "identity;q=0, *", "zstd;q=0, gzip"])
@pytest.mark.parametrize("path", [*DOCUMENTS, *FILES])
def test_a_head_says_nothing_that_the_whole_does_not(
    connection: Connection, path: str, accepted: str
) -> None:
    fields = [("Accept-Encoding", accepted)]
    head = connection.ask(path, fields, method="HEAD")
    whole = connection.ask(path, fields)
    assert (head.status, head.body) == (whole.status, b"")
    if "content-length" in head.headers:
        assert head.headers["content-length"] == str(len(whole.body))
    is_coded = whole.headers.get("content-encoding") == "zstd"
    coded = {"etag", "accept-ranges", "repr-digest"} if is_coded else set()
    left_out = NOT_OF_HEADS | NOT_THE_SAME | coded
    expected = {name: value for name, value in whole.headers.items() if name not in left_out}
    found = {name: value for name, value in head.headers.items() if name not in left_out}
    assert found == expected


@pytest.mark.parametrize(("accepted", "coding"), [("zstd, gzip", "zstd"), ("gzip, br", "gzip")])
def test_the_page_is_coded_too(connection: Connection, accepted: str, coding: str) -> None:
    plain = connection.ask("/")
    answer = connection.ask("/", [("Accept-Encoding", accepted)])
    assert (answer.headers["content-encoding"], answer.headers["vary"]) == (
        coding,
        "Accept, Accept-Encoding",  # it is text, or a page
    )
    assert len(answer.body) < len(plain.body)
    assert decode_content(coding, answer.body, 100_000) == plain.body
    assert "content-encoding" not in connection.ask("/health", ZSTD).headers


def test_it_may_be_switched_off(site: Site, launcher: Launcher) -> None:
    server = launcher.start(*serve_arguments(site.origin.url, "--compression", "off"))
    with closing(Connection(server.url)) as connection:
        for path in ("/", path_of("text/corpus.bin")):
            answer = connection.ask(path, ZSTD)
            assert "content-encoding" not in answer.headers
            assert "accept-encoding" not in answer.headers.get("vary", "").lower()
