"""Several workers are as safe as one: of a damaged file none gives out the last part, whoever has
given out the others.
"""

import http.client
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import Launcher
from tests.e2e.clients import Connection, Reply, aria2, curl, run
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import TOKEN, XET_FILE, upload
from tests.e2e.native import (
    MULTIRANGE,
    REPO,
    Place,
    Site,
    count_packed,
    download,
    download_failing,
    find_flip,
    running_place,
)
from tests.waiting import wait_until

NUM_WORKERS = 3
NAME = "patched.bin"
STEP, PATCH = 250_000, 30_000
FIRST = 100_000  # byte of the first patch
URL = f"/{REPO}/resolve/main/{NAME}"
READY = re.compile(r"worker (\d+) \(pid (\d+)\) is ready")
SERVED = re.compile(r"\[worker (\d+)\] xetserve.access: .* verified=yes ")


def make_patched(content: bytes) -> bytes:
    """Content with many patches, and more behind it: clients need many ranges of two xorbs."""
    source = random.Random(8)
    patched = bytearray(content + source.randbytes(8_000_000))
    for at in range(FIRST, 1_900_000, STEP):
        patched[at : at + PATCH] = source.randbytes(PATCH)
    return bytes(patched)


# In a patch, in what was there before, and in what is behind.
PLACES = (FIRST + PATCH // 2, FIRST + 4 * STEP - STEP // 3, 9_000_000)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with running_place(tmp_path_factory.mktemp("native")) as running:
        yield running


@pytest.fixture(scope="module")
def patched(place: Place) -> Place:
    """The place, with such a file."""
    folder = place.base / "patched"
    folder.mkdir()
    place.files[NAME] = make_patched(place.files[XET_FILE])
    (folder / NAME).write_bytes(place.files[NAME])
    upload(sys.executable, place.origin.url, place.base / "home", "model", REPO, folder)
    return place


Start = Callable[..., Site]


@pytest.fixture
def start(patched: Place, tmp_path: Path) -> Iterator[Start]:
    """Start servers with several workers."""
    launched = Launcher(tmp_path)
    patched.control.set_faults()
    patched.control.reset_requests()

    def start_one(*, has_cache: bool = False) -> Site:
        cache = tmp_path / f"cache-{len(launched.running)}"
        flags = ["--workers", str(NUM_WORKERS), "--xet-mode", "native"]
        if has_cache:
            flags += ["--cache-dir", str(cache), "--cache-min-free", "0"]
        server = launched.start(*serve_arguments(patched.origin.url, *flags))
        return Site(patched, server, cache)

    yield start_one
    patched.control.set_faults()
    launched.stop_all()
    for server in launched.running:
        assert "Traceback" not in server.log
        assert "starting it again" not in server.log.replace("SIGKILL; starting it again", "")


def flip(site: Site, at: int) -> None:
    """Have the origin invert a byte of the file, for good."""
    site.control.set_faults(**find_flip(site.place, NAME, at))


def ask_all(site: Site, *fields: tuple[str, str], target: str = URL) -> list[Reply]:
    """Ask several workers, mostly all: who has the fewest connections takes the next one, and all
    are kept open.
    """
    connections = [Connection(site.server.url) for _ in range(NUM_WORKERS)]
    replies = [connection.ask(target, fields) for connection in connections]
    for connection in connections:
        connection.close()
    return replies


def served_by(site: Site, line: re.Pattern[str]) -> set[str]:
    return set(line.findall(site.server.log))


@pytest.mark.parametrize("has_cache", [True, False], ids=["cache", "no cache"])
def test_hf_xet_never_ends_with_a_wrong_file(start: Start, tmp_path: Path, has_cache: bool) -> None:
    site = start(has_cache=has_cache)
    for number, at in enumerate(PLACES):
        flip(site, at)
        site.control.reset_requests()
        download_failing(site, tmp_path / str(number), NAME)
    # It was for several workers to find out. hf-xet may have as few connections as it likes, so one
    # of the workers may have got none.
    assert len(served_by(site, re.compile(r'\[worker (\d+)\].* "GET /xorbs/'))) > 1
    assert re.search("all parts together are not file|two different chunks", site.server.log)
    # Nothing wrong is left anywhere: who begins anew has the right file, and so has everybody.
    site.control.set_faults()
    assert download(site, tmp_path / "right", NAME) == site.place.files[NAME]
    assert download(site, tmp_path / "again", NAME, **MULTIRANGE) == site.place.files[NAME]


@pytest.mark.parametrize("at", PLACES)
def test_aria2_never_ends_with_a_wrong_file(start: Start, tmp_path: Path, at: int) -> None:
    site = start()
    flip(site, at)
    out = tmp_path / "out"
    many = ("-x8", "-s8", "-k1M", "--max-tries=5")
    done = run(aria2(site.server.url + URL, out, *many))
    assert done.returncode != 0
    # Nor when it is called again to go on. Who takes the whole has it.
    site.control.set_faults()
    done = run(aria2(site.server.url + URL, out, *many))
    assert done.returncode != 0 or out.read_bytes() == site.place.files[NAME]
    assert run(curl(site.server.url + URL, tmp_path / "whole")).returncode == 0
    assert (tmp_path / "whole").read_bytes() == site.place.files[NAME]


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "plain"])
def test_a_proven_file_is_proven_for_all(start: Start, tmp_path: Path, is_native: bool) -> None:
    site = start()
    content = site.place.files[NAME]
    if is_native:
        assert download(site, tmp_path / "home", NAME) == content
    else:
        cuts = [0, 700_000, 1_500_000, len(content)]
        for first, end in pairwise(cuts):
            (reply, *_) = ask_all(site, ("Range", f"bytes={first}-{end - 1}"))
            assert (reply.status, reply.body) == (206, content[first:end])
    at = PLACES[0]

    def is_known_to_all() -> bool:
        for reply in ask_all(site, ("Range", f"bytes={at}-{at + 9}")):
            assert (reply.status, reply.body) == (206, content[at : at + 10])
        return served_by(site, SERVED) == {"1", "2", "3"}

    wait_until(is_known_to_all)
    # From now on damage is found in the part that has it, by whoever gives it out.
    flip(site, at)
    for reply in ask_all(site, ("Range", f"bytes={at}-{at + 9}")):
        assert reply.status == 502
    site.control.set_faults()
    for reply in ask_all(site, ("Range", f"bytes={at}-{at + 9}")):
        assert (reply.status, reply.body) == (206, content[at : at + 10])


def test_who_has_a_part_of_what_was_cut_is_refused_by_all(start: Start, tmp_path: Path) -> None:
    site = start()
    flip(site, PLACES[1])
    assert run(curl(site.server.url + URL, tmp_path / "out")).returncode in (18, 56)
    site.control.set_faults()
    for wanted in ("bytes=5000000-", "bytes=5-2000"):
        assert [reply.status for reply in ask_all(site, ("Range", wanted))] == [409] * 3
    assert [reply.status for reply in ask_all(site)] == [200] * 3
    # Now it is known to be right; but who goes on has what was not.
    for wanted in ("bytes=5000000-", "bytes=5-2000"):
        assert [reply.status for reply in ask_all(site, ("Range", wanted))] == [409] * 3


def test_a_worker_that_was_killed_has_told_what_it_gave_out(start: Start) -> None:
    site = start()
    flip(site, PLACES[0])
    middle = 1_000_000
    first = Connection(site.server.url)
    reply = first.ask(URL, [("Range", f"bytes=0-{middle - 1}")])
    assert reply.status == 206
    assert reply.body != site.place.files[NAME][:middle]
    wait_until(lambda: " 206 1000000 " in site.server.log)
    (number,) = served_by(site, re.compile(r"\[worker (\d+)\] xetserve.access: .* 206 1000000 "))
    pid = next(int(pid) for worker, pid in READY.findall(site.server.log) if worker == number)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(READY.findall(site.server.log)) == NUM_WORKERS + 1)
    second = Connection(site.server.url)
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        second.ask(URL, [("Range", f"bytes={middle}-{10**7 * 2}")])
    first.close()
    second.close()


def test_what_is_shared_costs_nothing_twice(start: Start, tmp_path: Path) -> None:
    """Other workers hear of chunks, not the data: with a cache it is fetched once all the same."""
    site = start(has_cache=True)
    assert download(site, tmp_path / "first", NAME) == site.place.files[NAME]
    site.wait_for_cache()
    site.control.reset_requests()
    assert download(site, tmp_path / "second", NAME) == site.place.files[NAME]
    assert count_packed(site.asked("data")) == 0
    assert TOKEN not in site.server.log
