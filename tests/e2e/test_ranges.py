"""Parts of files, byte for byte: a table over raw requests, and the clients that resume and
split.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process, need_program, sha256_of
from tests.e2e.clients import TIMEOUT, Connection, aria2, curl, file_url, path_of, run, wget
from tests.e2e.conftest import TOKEN, Site, environment_without_home, serve_arguments
from tests.e2e.dataset import MIB
from tests.multiparts import read_parts
from tests.waiting import wait_until

MANY = [(at, at + 1) for at in range(0, 20, 2)]  # ten bytes with gaps between them

Spans = list[tuple[int, int]]
# For a file of n bytes: what is asked for, and the parts [start, end) that come, or the status.
RANGES: dict[str, Callable[[int], tuple[str, Spans | int]]] = {
    "first byte": lambda n: ("0-0", [(0, 1)]),
    "first ten": lambda n: ("0-9", [(0, 10)]),
    "inner": lambda n: ("5-20", [(5, 21)]),
    "last byte": lambda n: (f"{n - 1}-{n - 1}", [(n - 1, n)]),
    "last byte, as a suffix": lambda n: ("-1", [(n - 1, n)]),
    "last ten": lambda n: ("-10", [(n - 10, n)]),
    "open": lambda n: (f"{n // 2}-", [(n // 2, n)]),
    "all, open": lambda n: ("0-", [(0, n)]),
    "all, closed": lambda n: (f"0-{n - 1}", [(0, n)]),
    "all, as a suffix": lambda n: (f"-{n}", [(0, n)]),
    "more than all, as a suffix": lambda n: (f"-{n + 5}", [(0, n)]),
    "end past the end": lambda n: (f"{n - 3}-{n + 99}", [(n - 3, n)]),
    "end of 40 digits": lambda n: (f"{n // 2}-{'9' * 40}", [(n // 2, n)]),
    "zeros in front": lambda n: (f"{'0' * 40}5-7", [(5, 8)]),
    "two": lambda n: (f"0-1,{n // 2}-{n // 2 + 9}", [(0, 2), (n // 2, n // 2 + 10)]),
    "three, backwards": lambda n: (
        f"-1,{n // 2}-{n // 2},0-0",
        [(n - 1, n), (n // 2, n // 2 + 1), (0, 1)],
    ),
    "ten": lambda n: (",".join(f"{start}-{start}" for start, _ in MANY), MANY),
    "overlapping": lambda n: ("0-9,5-14", [(0, 15)]),
    "touching": lambda n: ("0-9,10-14", [(0, 15)]),
    "two of three touch": lambda n: (
        f"{n // 2}-{n // 2 + 4},0-1,{n // 2 + 5}-{n // 2 + 6}",
        [(n // 2, n // 2 + 7), (0, 2)],
    ),
    "many that touch": lambda n: (",".join(f"{at}-{at}" for at in range(22)), [(0, 22)]),
    "one past the end of two": lambda n: (f"0-1,{n}-", [(0, 2)]),
    "empty items": lambda n: (",0-1,,4-5,", [(0, 2), (4, 6)]),
    "starts at the end": lambda n: (f"{n}-", 416),
    "past the end": lambda n: (f"{n + 5}-{n + 6}", 416),
    "start of 40 digits": lambda n: (f"{'9' * 40}-", 416),
    "last none": lambda n: ("-0", 416),
    "two past the end": lambda n: (f"{n}-,{n + 5}-", 416),
    "backwards": lambda n: ("5-4", 200),
    "no number": lambda n: ("-", 200),
    "nothing": lambda n: ("", 200),
    "nonsense beside a range": lambda n: ("0-1,x", 200),
    "signs": lambda n: ("+0-+5", 200),
}
# Fields that ask for no part, whatever the file.
IGNORED: dict[str, list[str]] = {
    "another unit": ["lines=0-1"],
    "no unit": ["0-1"],
    "two fields": ["bytes=0-1", "bytes=4-5"],
}


@pytest.fixture(scope="module")
def warm_server(_running_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with a disk cache that has the files."""
    folder = tmp_path_factory.mktemp("warm")
    launched = Launcher(folder)
    cache = ("--cache-dir", str(folder / "cache"), "--cache-min-free", "0")
    server = launched.start(*serve_arguments(_running_site.origin.url, *cache))
    connection = Connection(server.url)
    for name in ("text/corpus.bin", "big.bin", "random.bin"):
        assert connection.ask(path_of(name)).status == 200
    connection.close()
    yield server
    launched.stop_all()


@pytest.fixture(params=["cold", "warm"])
def served(request: pytest.FixtureRequest, site: Site, warm_server: Process) -> Site:
    """The site with a server that has nothing, or one that has all of the data on its disk."""
    return site if request.param == "cold" else replace(site, server=warm_server)


@pytest.fixture
def plain_connection(site: Site) -> Iterator[Connection]:
    made = Connection(site.server.url)
    yield made
    made.close()


@pytest.fixture
def connection(served: Site) -> Iterator[Connection]:
    made = Connection(served.server.url)
    yield made
    made.close()


def check_answer(content: bytes, connection: Connection, path: str, row: str) -> None:
    size = len(content)
    wanted, expected = RANGES[row](size)
    answer = connection.ask(path, [("Range", f"bytes={wanted}")])
    if isinstance(expected, int):
        assert answer.status == expected
        assert answer.headers.get("content-range") == (
            f"bytes */{size}" if expected == 416 else None
        )
        assert expected == 416 or answer.body == content
        return
    assert answer.status == 206
    assert int(answer.headers["content-length"]) == len(answer.body)
    parts = [(f"bytes {start}-{end - 1}/{size}", content[start:end]) for start, end in expected]
    if len(parts) == 1:
        assert [(answer.headers["content-range"], answer.body)] == parts
    else:
        assert "content-range" not in answer.headers
        assert read_parts(answer.headers["content-type"], answer.body) == parts


@pytest.mark.parametrize("row", RANGES)
@pytest.mark.parametrize("name", ["text/corpus.bin", "big.bin"])
def test_ranges_of_a_xet_file(served: Site, connection: Connection, name: str, row: str) -> None:
    content = (served.uploaded.folder / name).read_bytes()
    _, expected = RANGES[row](len(content))
    if name == "big.bin" and (expected == 200 or expected == [(0, len(content))]):
        name = "random.bin"  # the whole of the large one is for other tests
        content = (served.uploaded.folder / name).read_bytes()
    check_answer(content, connection, path_of(name), row)


@pytest.mark.parametrize("row", RANGES)
def test_ranges_of_a_plain_file(site: Site, plain_connection: Connection, row: str) -> None:
    content = (site.uploaded.folder / "config.json").read_bytes()
    check_answer(content, plain_connection, path_of("config.json"), row)


@pytest.mark.parametrize("row", RANGES)
def test_ranges_of_a_file_by_its_hash(served: Site, connection: Connection, row: str) -> None:
    name = "odd/name with spaces.bin"
    file_hash = connection.ask(path_of(name), method="HEAD").headers["x-xet-hash"]
    content = (served.uploaded.folder / name).read_bytes()
    check_answer(content, connection, f"/download-hash/{file_hash}", row)


@pytest.mark.parametrize("row", IGNORED)
@pytest.mark.parametrize("name", ["five-kilobytes.bin", "config.json"])
def test_what_is_no_range_gives_the_whole(
    site: Site, plain_connection: Connection, name: str, row: str
) -> None:
    answer = plain_connection.ask(path_of(name), [("Range", value) for value in IGNORED[row]])
    assert (answer.status, answer.body) == (200, (site.uploaded.folder / name).read_bytes())


def test_17_parts_are_too_many(site: Site, plain_connection: Connection) -> None:
    field = "bytes=" + ",".join(f"{at}-{at}" for at in range(0, 34, 2))
    answer = plain_connection.ask(path_of("five-kilobytes.bin"), [("Range", field)])
    content = (site.uploaded.folder / "five-kilobytes.bin").read_bytes()
    assert (answer.status, answer.body) == (200, content)


@pytest.mark.parametrize(("value", "status"), [("bytes=0-", 416), ("bytes=-5", 416), ("x=1", 200)])
def test_of_nothing_there_is_no_part(
    site: Site, plain_connection: Connection, value: str, status: int
) -> None:
    answer = plain_connection.ask(path_of("empty.bin"), [("Range", value)])
    assert answer.status == status
    assert answer.headers.get("content-range") == ("bytes */0" if status == 416 else None)


def test_a_part_costs_what_it_needs(site: Site, plain_connection: Connection) -> None:
    answer = plain_connection.ask(path_of("big.bin"), [("Range", "bytes=9-9,50000000-50000999")])
    assert answer.status == 206
    asked = [request for request in site.control.requests() if request["kind"] == "data"]
    ends = [request["range"].removeprefix("bytes=").split("-") for request in asked]
    assert 0 < sum(int(last) - int(first) + 1 for first, last in ends) < 1_000_000


def test_a_part_of_the_cached_file_costs_nothing(site: Site, warm_server: Process) -> None:
    with closing(Connection(warm_server.url)) as connection:
        answer = connection.ask(path_of("big.bin"), [("Range", "bytes=9-9,50000000-50000999")])
    assert answer.status == 206
    assert not [request for request in site.control.requests() if request["kind"] == "data"]


# The clients


def test_curl_resumes_after_a_cut(impatient_site: Site, tmp_path: Path) -> None:
    site, target = impatient_site, tmp_path / "out"
    url = file_url(site, "big.bin")
    site.control.set_faults(bandwidth=20_000_000)
    client = subprocess.Popen(
        curl(url, target), env=environment_without_home(), stderr=subprocess.DEVNULL
    )
    wait_until(lambda: target.exists() and target.stat().st_size > MIB)
    site.control.set_faults(data_status_burst={"status": 500, "count": 10_000})
    assert client.wait(timeout=TIMEOUT) in (18, 56)
    site.control.set_faults()
    assert 0 < target.stat().st_size < (site.uploaded.folder / "big.bin").stat().st_size
    done = run(curl(url, target, "-C", "-"))
    assert done.returncode == 0, done.stderr
    assert sha256_of(target) == site.uploaded.digests["big.bin"]


@pytest.mark.parametrize(
    ("name", "client"),
    [
        *((name, client) for name in ("random.bin", "config.json") for client in ("curl", "wget")),
        ("random.bin", "aria2"),  # it goes on at whole MiB
    ],
)
def test_a_part_that_is_here_is_not_fetched_again(
    site: Site, tmp_path: Path, name: str, client: str
) -> None:
    url, target = file_url(site, name), tmp_path / "out"
    content = (site.uploaded.folder / name).read_bytes()
    here = min(MIB, len(content) // 3)
    target.write_bytes(bytes(here))  # not what is in the file: it would not stay
    commands = {
        "curl": curl(url, target, "-C", "-"),
        "wget": wget(url, target, "-c"),
        "aria2": aria2(url, target, "-c", "--use-head=true"),
    }
    done = run(commands[client])
    assert done.returncode == 0, done.stderr
    assert target.read_bytes() == bytes(here) + content[here:]


def test_a_download_that_is_complete_is_left_alone(site: Site, tmp_path: Path) -> None:
    target = tmp_path / "out"
    content = (site.uploaded.folder / "random.bin").read_bytes()
    target.write_bytes(content)
    for command in (curl(file_url(site, "random.bin"), target, "-C", "-"),
                    wget(file_url(site, "random.bin"), target, "-c")):  # fmt: skip
        run(command)  # curl calls a 416 an error with -f
        assert target.read_bytes() == content


def test_aria2_splits_a_file(site: Site, tmp_path: Path) -> None:
    split = ("--use-head=true", "-x16", "-s16", "-k1M", "--min-split-size=1M")
    done = run(aria2(file_url(site, "big.bin"), tmp_path / "out", *split))
    assert done.returncode == 0, done.stdout
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["big.bin"]
    assert len([r for r in site.control.requests() if "/resolve/" in r["path"]]) > 8


def axel(url: str, target: Path) -> list[str]:
    """axel, in several pieces."""
    header = f"Authorization: Bearer {TOKEN}"
    return [need_program("axel"), "-q", "-n", "8", "-H", header, "-o", str(target), url]


def test_axel_splits_a_file(site: Site, tmp_path: Path) -> None:
    done = run(axel(file_url(site, "random.bin"), tmp_path / "out"))
    assert done.returncode == 0, done.stdout
    assert sha256_of(tmp_path / "out") == site.uploaded.digests["random.bin"]


def test_head_ignores_ranges_and_says_what_get_says(
    site: Site, plain_connection: Connection
) -> None:
    for name in ("random.bin", "config.json", "one-byte.bin", "empty.bin"):
        answers = [
            plain_connection.ask(path_of(name), [("Range", "bytes=0-0")], method="HEAD"),
            plain_connection.ask(path_of(name), method="HEAD"),
            plain_connection.ask(path_of(name)),
        ]
        content = (site.uploaded.folder / name).read_bytes()
        assert [answer.status for answer in answers] == [200] * 3
        assert answers[0].headers["content-length"] == str(len(content))
        framing = ("transfer-encoding", "trailer", "content-length", "x-request-id", "date")
        fields = [
            {k: v for k, v in answer.headers.items() if k not in framing} for answer in answers
        ]
        assert fields[0] == fields[1] == fields[2]
