"""One wrong byte from upstream, whatever stands between: no client ends with a wrong file and takes
it for a success.
"""

import json
import random
import re
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launcher, OriginControl, Process
from tests.e2e.balancers import PROXY, SECRET, Balancers, find_port
from tests.e2e.clients import aria2, curl, run
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import run_script, start_origin, upload
from tests.e2e.native import QUICK
from xetserve.xet.compression import Scheme
from xetserve.xet.xorb import CHUNK_HEADER_SIZE, iter_records

REPO = "tester/wide"
WORDS = ["never", "a", "wrong", "byte", "as", "success", "whatever", "stands", "between"]
PACKINGS = {"raw": Scheme.NONE, "lz4": Scheme.LZ4, "bg4": Scheme.BG4_LZ4}
PLACES = ("early", "late")
# Parts of each file that are uploaded together, and so lie in one xorb.
TOGETHER = (
    ("raw early", "raw late"),
    ("lz4 early", "lz4 late"),
    ("bg4 early", "bg4 late"),
    ("end",),
)
NAMES = [f"file-{number}.bin" for number in range(3)]


def make_parts(seed: int) -> dict[str, bytes]:
    """Give what a file is made of, in order: by the scheme that it is packed with, early and late
    in the file.
    """
    source = random.Random(seed)
    parts = {}
    for place in PLACES:
        parts[f"raw {place}"] = source.randbytes(450_000)
        parts[f"lz4 {place}"] = " ".join(source.choices(WORDS, k=90_000)).encode()
        floats = (source.gauss(0, 3) for _ in range(112_000))
        parts[f"bg4 {place}"] = array("f", floats).tobytes()
    return {**parts, "end": source.randbytes(200_000)}


@dataclass
class Wide:
    """An origin with files that lie in several xorbs."""

    origin: Process
    control: OriginControl
    folder: Path
    parts: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def content(self, name: str) -> bytes:
        return b"".join(self.parts[name].values())

    def find(self, name: str, part: str) -> dict[str, Any]:
        """The fault that inverts a byte in the middle of a chunk in a part of a file."""
        scheme, content = PACKINGS[part.partition(" ")[0]], self.parts[name][part]
        for path in sorted((self.folder / "xorbs").iterdir()):
            offset = 0
            for record in iter_records(path.read_bytes() if len(path.name) == 64 else b""):
                header = record.header
                is_fit = header.scheme is scheme and header.decoded_size > 8192
                if is_fit and bytes(record.decode()) in content:
                    at = offset + CHUNK_HEADER_SIZE + header.packed_size // 2
                    return {"xorb": path.name, "offset": at}
                offset += header.record_size
        raise AssertionError(f"no chunk of {part} in {name}")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wide]:
    base = tmp_path_factory.mktemp("wide")
    launched = Launcher(base)
    try:
        origin = start_origin(launched, base / "origin")
        wide = Wide(origin, OriginControl(origin.url), base / "origin")
        wide.parts = {name: make_parts(number) for number, name in enumerate(NAMES)}
        # First the parts; then files of which they are known.
        for number, together in enumerate((*TOGETHER, None)):
            folder = base / f"files-{number}"
            folder.mkdir()
            for name, parts in wide.parts.items():
                if together is None:
                    (folder / name).write_bytes(wide.content(name))
                else:
                    content = b"".join(parts[part] for part in together)
                    (folder / f"{number}-{name}").write_bytes(content)
            upload(sys.executable, origin.url, base / "home", "model", REPO, folder)
        yield wide
    finally:
        launched.stop_all()


@dataclass
class Stand:
    """Servers in front of the origin, and where clients reach them."""

    wide: Wide
    servers: list[Process]
    caches: list[Path]
    url: str

    @property
    def log(self) -> str:
        return "".join(server.log for server in self.servers)

    def count(self, metric: str) -> float:
        """The sum of a counter over all servers and labels."""
        line = re.compile(rf"^{metric}\b.* (\S+)$", re.MULTILINE)
        texts = [
            OriginControl(server.url)._call("GET", "/metrics").decode() for server in self.servers
        ]
        return sum(float(value) for text in texts for value in line.findall(text))


Begin = Callable[[str], Stand]


@pytest.fixture
def begin(wide: Wide, balancers: Balancers, tmp_path: Path) -> Iterator[Begin]:
    """Start servers: one, one with workers, or three behind a balancer."""
    launched = Launcher(tmp_path)
    wide.control.set_faults()

    def begin_one(kind: str) -> Stand:
        ports = [find_port() for _ in range(1 if kind in ("one", "workers") else 3)]
        caches = [tmp_path / f"cache-{number}" for number in range(len(ports))]
        servers = []
        for port, cache in zip(ports, caches, strict=True):
            flags = ["--xet-mode", "native", "--port", str(port), "--trusted-proxies", PROXY]
            flags += ["--cache-dir", str(cache), "--cache-min-free", "0"]
            if kind == "workers":
                flags += ["--workers", "3"]
            servers.append(launched.start(*serve_arguments(wide.origin.url, *flags), **SECRET))
        url = servers[0].url
        kind, _, age = kind.partition(" ")
        if kind == "haproxy":
            url = balancers.start_haproxy(ports, make_old if age else str)
        elif kind == "nginx":
            url = balancers.start_nginx(ports, make_old if age else str)
        return Stand(wide, servers, caches, url)

    yield begin_one
    wide.control.set_faults()
    launched.stop_all()
    for server in launched.running:
        assert "Traceback" not in server.log


FETCH = """
    from pathlib import Path
    results = []
    for _ in range(int(sys.argv[3])):
        folder = f"{sys.argv[2]}/{len(list(filter(None, results)))}"
        try:
            path = Path(hf_hub_download(sys.argv[1], sys.argv[4], local_dir=folder))
            results.append(str(path))
        except Exception as exc:
            results.append(None)
            print(repr(exc), file=sys.stderr)
    print(json.dumps(results))
"""


def make_old(text: str) -> str:
    """Undo, in a balancer's configuration, that data URLs are hashed by the file that they name."""
    kept = [line for line in text.splitlines() if "url_param(file)" not in line]
    old = "\n".join(line for line in kept if "$arg_file" not in line) + "\n"
    assert old.count("reconstructions|files)") == 1
    return old.replace("reconstructions|files)", "reconstructions|files|xorbs)")


def fetch(stand: Stand, home: Path, name: str, times: int) -> list[bytes | None]:
    """Download a file with hf-xet a few times; gives what it has got, None where it has failed.

    A download goes on in the folder in which the one before has failed.
    """
    arguments = (REPO, str(home / "out"), str(times), name)
    found = run_script(sys.executable, stand.url, home, FETCH, *arguments, **QUICK)
    paths = json.loads(found.splitlines()[-1])
    return [None if path is None else Path(path).read_bytes() for path in paths]


def fetch_natively(stand: Stand, folder: Path, name: str) -> bytes | None:
    """Download with hf-xet, with nothing kept from before."""
    return fetch(stand, folder, name, 1)[0]


def fetch_in_parallel(stand: Stand, folder: Path, name: str) -> bytes | None:
    """Download with aria2, with eight connections."""
    options = ("-x8", "-s8", "-k1M", "--min-split-size=1M", "--retry-wait=0")
    url = f"{stand.url}/{REPO}/resolve/main/{name}"
    folder.mkdir()
    done = run(aria2(url, folder / "out", *options))
    return (folder / "out").read_bytes() if done.returncode == 0 else None


def fetch_in_ranges(stand: Stand, folder: Path, name: str) -> bytes | None:
    """Download with curl, part by part."""
    size = len(stand.wide.content(name))
    url = f"{stand.url}/{REPO}/resolve/main/{name}"
    folder.mkdir()
    found = b""
    for start in range(0, size, size // 4):
        end = min(size, start + size // 4)
        if run(curl(url, folder / "out", "-r", f"{start}-{end - 1}")).returncode:
            return None
        found += (folder / "out").read_bytes()
    return found


CLIENTS = {"hf-xet": fetch_natively, "aria2": fetch_in_parallel, "curl": fetch_in_ranges}
KINDS = ("one", "workers", "haproxy", "nginx", "haproxy old", "nginx old")
FAULTS = list(product(PACKINGS, PLACES, ("once", "for a while")))
# Of the whole product (216) those that have every client at every kind of servers, and among them
# every fault once at least: what finds a wrong byte is the same for all packings and places, as the
# tests of the pipeline show one by one.
CASES = {
    kind: [
        (client, FAULTS[(5 * (number + column * len(KINDS))) % len(FAULTS)])
        for column, client in enumerate(CLIENTS)
    ]
    for number, kind in enumerate(KINDS)
}
assert {fault for cases in CASES.values() for _, fault in cases} == set(FAULTS)


@pytest.mark.parametrize("kind", KINDS)
def test_no_wrong_file_ends_as_a_success(
    begin: Begin, wide: Wide, tmp_path: Path, kind: str
) -> None:
    stand = begin(kind)
    for name, (client, (packing, place, duration)) in zip(NAMES, CASES[kind], strict=True):
        right = wide.content(name)
        first = {"first": 1} if duration == "once" else {}
        wide.control.set_faults(flip_byte={**wide.find(name, f"{packing} {place}"), **first})
        folder = tmp_path / client
        folder.mkdir()
        for number in range(2):
            if number:
                wide.control.set_faults()
            assert CLIENTS[client](stand, folder / str(number), name) in (None, right), client
        # Nothing wrong is left anywhere: a whole read that fails removes what it has found.
        for server in stand.servers:
            url = f"{server.url}/{REPO}/resolve/main/{name}"
            codes = [run(curl(url, folder / "whole")).returncode for _ in range(2)]
            assert codes[1] == 0, codes
            assert (folder / "whole").read_bytes() == right
        assert CLIENTS["hf-xet"](stand, folder / "last", name) == right


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
def test_a_byte_that_is_wrong_once_fails_one_native_download(
    begin: Begin, wide: Wide, tmp_path: Path, kind: str
) -> None:
    stand = begin(kind)
    wide.control.set_faults(flip_byte={**wide.find(NAMES[0], "raw early"), "first": 1})
    assert fetch(stand, tmp_path / "home", NAMES[0], 3) == [None, *[wide.content(NAMES[0])] * 2]
    assert stand.count("xetserve_integrity_failures_total") >= 1


@pytest.mark.parametrize("kind", ["haproxy old", "nginx old"])
def test_a_balancer_that_spreads_a_file_is_named(
    begin: Begin, wide: Wide, tmp_path: Path, kind: str
) -> None:
    """Nobody sees the whole, so nobody gives it out."""
    stand = begin(kind)
    for name in NAMES:
        wide.control.set_faults(flip_byte={**wide.find(name, "raw late"), "first": 1})
        got = fetch(stand, tmp_path / name, name, 2)
        assert set(got) <= {None, wide.content(name)}
    # Where the xorbs of a file happen to go to one instance, it is served.
    assert stand.count("xetserve_strange_grants_total") >= 1
    assert "hash /xorbs/ by the parameter `file`, as scale/haproxy.cfg" in stand.log
