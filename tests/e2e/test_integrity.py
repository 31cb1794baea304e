"""A damaged file never looks complete: curl fails, whatever was done to the upstream's data."""

import http.client
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launcher, need_program, sha256_of
from tests.e2e.clients import CLIENTS, CUT, Connection, aria2, curl, file_url, head, run
from tests.e2e.conftest import REPO, TOKEN, Site, serve_arguments
from tests.e2e.damage import FILE_OF, find_record
from tests.waiting import wait_until
from xetserve.xet.compression import Scheme
from xetserve.xet.xorb import CHUNK_HEADER_SIZE


def damages(site: Site) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every way to damage the data: (name, file that must fail, faults)."""
    for scheme, name in FILE_OF.items():
        xorb, index, offset, size = find_record(site, scheme, name)
        middle = offset + CHUNK_HEADER_SIZE + size // 2
        yield f"payload {scheme.name}", name, {"flip_byte": {"xorb": xorb, "offset": middle}}
        for at, field in ((0, "version"), (1, "packed size"), (4, "scheme"), (5, "decoded size")):
            yield (
                f"{field} {scheme.name}",
                name,
                {"flip_byte": {"xorb": xorb, "offset": offset + at}},
            )
        yield f"swapped {scheme.name}", name, {"swap_chunk": {"xorb": xorb, "chunk": index}}
    for delta in (-1, 1):
        yield f"term length {delta:+}", "damage/raw.bin", {"wrong_term_length": delta}
    yield "truncated bodies", "damage/raw.bin", {"short_body_first": 10_000}


DAMAGES = [
    *(
        f"{what} {scheme}"
        for scheme in ("NONE", "LZ4", "BG4_LZ4")
        for what in ("payload", "version", "packed size", "scheme", "decoded size", "swapped")
    ),
    *("term length -1", "term length +1", "truncated bodies"),
]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("route", ["download", "download-hash"])
def test_curl_never_gets_a_complete_looking_file(
    impatient_site: Site, tmp_path: Path, damage: str, route: str
) -> None:
    site = impatient_site
    name, faults = next((name, faults) for what, name, faults in damages(site) if what == damage)
    url = file_url(site, name)
    if route == "download-hash":
        url = f"{site.server.url}/download-hash/{head(site, url)['x-xet-hash']}?repo={REPO}"
    site.control.set_faults(**faults)
    done = run(CLIENTS["curl"](url, tmp_path / "out"))
    assert done.returncode != 0
    size = (tmp_path / "out").stat().st_size if (tmp_path / "out").exists() else 0
    assert size < (site.uploaded.folder / name).stat().st_size
    site.control.set_faults()
    again = run(CLIENTS["curl"](url, tmp_path / "again"))
    assert again.returncode == 0, again.stderr
    assert sha256_of(tmp_path / "again") == site.uploaded.digests[name]


def urllib_get(url: str, target: Path) -> list[str]:
    """Python's own client."""
    code = """import shutil, sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[3]})
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(request) as answer, open(sys.argv[2], "wb") as out:
    shutil.copyfileobj(answer, out)
"""
    return [sys.executable, "-c", code, url, str(target), TOKEN]


def requests_get(url: str, target: Path) -> list[str]:
    """requests, the way its manual streams a file."""
    code = """import requests, sys
headers = {"Authorization": "Bearer " + sys.argv[3]}
with requests.get(sys.argv[1], headers=headers, stream=True) as r:
    r.raise_for_status()
    with open(sys.argv[2], "wb") as out:
        for chunk in r.iter_content(65536):
            out.write(chunk)
"""
    return [sys.executable, "-c", code, url, str(target), TOKEN]


def node_fetch(url: str, target: Path) -> list[str]:
    """Node's fetch."""
    code = """const [url, target, token] = process.argv.slice(1);
fetch(url, { headers: { authorization: "Bearer " + token } })
  .then((r) => r.ok ? r.arrayBuffer() : Promise.reject(new Error(r.status)))
  .then((data) => require("fs").writeFileSync(target, Buffer.from(data)))
  .catch((error) => { console.error(error); process.exit(1); });
"""
    return [need_program("node"), "-e", code, url, str(target), TOKEN]


LIBRARIES: dict[str, Callable[..., list[str]]] = {
    "urllib": urllib_get,
    "requests": requests_get,
    "node": node_fetch,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_report_the_failure_and_the_success(
    site: Site, tmp_path: Path, library: str
) -> None:
    name = "damage/raw.bin"
    command = LIBRARIES[library](file_url(site, name), tmp_path / "out")
    assert run(command).returncode == 0
    assert sha256_of(tmp_path / "out") == site.uploaded.digests[name]
    # Other content of the same sizes: all but the end of the file arrives.
    xorb, index, _, _ = find_record(site, Scheme.NONE, name)
    site.empty_cache()
    site.control.set_faults(swap_chunk={"xorb": xorb, "chunk": index})
    assert run(command).returncode != 0


@pytest.mark.parametrize("client", CLIENTS)
def test_every_client_reports_the_failure(site: Site, tmp_path: Path, client: str) -> None:
    name = "damage/raw.bin"
    xorb, _, offset, size = find_record(site, Scheme.NONE, name)
    site.control.set_faults(flip_byte={"xorb": xorb, "offset": offset + 8 + size // 2})
    assert run(CLIENTS[client](file_url(site, name), tmp_path / "out")).returncode != 0


def test_an_old_client_sees_the_failure_too(site: Site, tmp_path: Path) -> None:
    """Without chunked coding or a length, only a reset tells an HTTP/1.0 client."""
    name = "damage/raw.bin"
    file_hash = head(site, file_url(site, name))["x-xet-hash"]
    xorb, _, offset, size = find_record(site, Scheme.NONE, name)
    site.control.set_faults(flip_byte={"xorb": xorb, "offset": offset + 8 + size // 2})
    url = f"{site.server.url}/download-hash/{file_hash}?repo={REPO}"
    assert run(CLIENTS["curl"](url, tmp_path / "out", "--http1.0")).returncode != 0


@pytest.mark.parametrize("client", ["curl", "wget"])
def test_what_was_cut_is_not_completed_with_the_rest(
    site: Site, launcher: Launcher, tmp_path: Path, client: str
) -> None:
    # A server of its own, that has seen nothing of the file.
    site = replace(site, server=launcher.start(*serve_arguments(site.origin.url)))
    name = "damage/raw.bin"
    resume = {"curl": ("-C", "-"), "wget": ("-c",)}[client]
    xorb, _, offset, size = find_record(site, Scheme.NONE, name)
    site.control.set_faults(flip_byte={"xorb": xorb, "offset": offset + size // 2})
    assert run(CLIENTS[client](file_url(site, name), tmp_path / "out")).returncode != 0
    part = (tmp_path / "out").read_bytes()
    content = (site.uploaded.folder / name).read_bytes()
    assert 0 < len(part) < len(content)
    assert part != content[: len(part)]  # most of it has arrived, damage included
    site.control.set_faults()
    done = run(CLIENTS[client](file_url(site, name), tmp_path / "out", *resume))
    assert done.returncode != 0
    assert "409" in done.stderr + done.stdout
    # Whole, it is sound; but a part may be what somebody else goes on with, at first.
    assert run(CLIENTS[client](file_url(site, name), tmp_path / "again")).returncode == 0
    assert (tmp_path / "again").read_bytes() == content
    ranged = run(curl(file_url(site, name), tmp_path / "part", "-r", "100-199"))
    assert ranged.returncode == 22
    assert "409" in ranged.stderr


def ask_part(site: Site, name: str, source: str = "127.0.0.1") -> tuple[str, str, bytes]:
    """The status, the Retry-After and the body of a request for a part, from an address."""
    with closing(Connection(site.server.url, source=source)) as connection:
        reply = connection.ask(f"/download/{REPO}/{name}", [("Range", "bytes=100-199")])
    return str(reply.status), reply.headers.get("retry-after", ""), reply.body


# Parts are refused for two seconds in place of a minute.
SHORT_MINUTE = """
from xetserve.pipeline.verify import ledgers
ledgers.SUSPECT_SECONDS = 2.0
"""


@pytest.mark.parametrize("workers", ["1", "3"])
def test_after_a_cut_the_server_proves_the_file_by_itself(
    site: Site, launcher: Launcher, tmp_path: Path, workers: str
) -> None:
    """One wrong byte in one response does not shut out those who read by ranges."""
    arguments = serve_arguments(site.origin.url, "--workers", workers)
    site = replace(site, server=launcher.start(*arguments, code=SHORT_MINUTE))
    name = "damage/raw.bin"
    content = (site.uploaded.folder / name).read_bytes()
    xorb, _, offset, size = find_record(site, Scheme.NONE, name)
    flip = {"xorb": xorb, "offset": offset + size // 2, "first": 1}
    site.control.set_faults(flip_byte=flip)
    other = ("--interface", "127.0.0.2")
    assert run(curl(file_url(site, name), tmp_path / "out", *other)).returncode in CUT
    status, wait, _ = ask_part(site, name)
    assert (status, wait) in [("409", "1"), ("409", "2")]
    wait_until(lambda: ask_part(site, name) == ("206", "", content[100:200]))
    # Whoever asks just then is answered before the prover logs.
    wait_until(lambda: " is proven again after " in site.server.log)
    # Several connections have it, too; but a client that has the damaged part must not go on.
    target = tmp_path / "many"
    done = run(aria2(file_url(site, name), target, "-x4", "-s4", "-k1M"))
    assert (done.returncode, target.read_bytes()) == (0, content)
    resumed = run(curl(file_url(site, name), tmp_path / "out", "-C", "-", *other))
    assert "409" in resumed.stderr
    with closing(Connection(site.server.url)) as connection:
        metrics = connection.ask("/metrics").body.decode()
    assert re.search(r'xetserve_proofs_total\{result="proven"\} [1-3]\n', metrics)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_a_client_that_was_cut_goes_on_with_no_part(
    site: Site, launcher: Launcher, tmp_path: Path, workers: str
) -> None:
    """aria2 goes on with whatever is there, and asks for the missing bytes as a part."""
    arguments = serve_arguments(site.origin.url, "--workers", workers)
    site = replace(site, server=launcher.start(*arguments, code=SHORT_MINUTE))
    name = "large-noise.bin"
    content = (site.uploaded.folder / name).read_bytes()
    xorb, _, offset, size = find_record(site, Scheme.NONE, name)
    site.control.set_faults(flip_byte={"xorb": xorb, "offset": offset + size // 2, "first": 1})
    target = tmp_path / "out"
    assert run(curl(file_url(site, name), target)).returncode in CUT
    assert target.read_bytes() != content[: target.stat().st_size]
    assert ask_part(site, name)[:2] == ("409", "")  # to wait is no help
    wait_until(lambda: ask_part(site, name, "127.0.0.2") == ("206", "", content[100:200]))
    options = ("-c", "-x4", "-s4", "-k1M", "--allow-overwrite=false")
    assert run(aria2(file_url(site, name), target, *options)).returncode != 0
    assert run(curl(file_url(site, name), tmp_path / "whole")).returncode == 0
    assert (tmp_path / "whole").read_bytes() == content
    assert ask_part(site, name) == ("206", "", content[100:200])


def test_parts_stay_refused_for_a_minute_though_the_file_is_proven(
    site: Site, launcher: Launcher
) -> None:
    """Clients that have damaged parts ask for others, maybe from another address."""
    site = replace(site, server=launcher.start(*serve_arguments(site.origin.url)))
    name = "damage/raw.bin"
    size = site.uploaded.folder.joinpath(name).stat().st_size
    xorb, _, offset, length = find_record(site, Scheme.NONE, name)
    site.control.set_faults(flip_byte={"xorb": xorb, "offset": offset + length // 2, "first": 1})
    middle = size // 2
    path = f"/download/{REPO}/{name}"
    with closing(Connection(site.server.url)) as connection:
        assert connection.ask(path, [("Range", f"bytes=0-{middle - 1}")]).status == 206
        with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
            connection.ask(path, [("Range", f"bytes={middle}-{size - 1}")])
    assert ask_part(site, name, "127.0.0.2")[0] == "409"
    wait_until(lambda: " is proven again after " in site.server.log)
    status, wait, _ = ask_part(site, name, "127.0.0.2")
    assert status == "409"
    assert 30 < int(wait) <= 60


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_server_that_proves_a_file_stops_at_once(
    site: Site, launcher: Launcher, tmp_path: Path, workers: str
) -> None:
    arguments = serve_arguments(site.origin.url, "--workers", workers)
    site = replace(site, server=launcher.start(*arguments))
    name = "damage/raw.bin"
    xorb, _, offset, size = find_record(site, Scheme.NONE, name)
    site.control.set_faults(flip_byte={"xorb": xorb, "offset": offset + size // 2, "first": 1})
    assert run(curl(file_url(site, name), tmp_path / "out")).returncode in CUT
    site.control.set_faults(bandwidth=10_000)  # the proof would take two minutes
    assert ask_part(site, name)[0] == "409"
    wait_until(lambda: "proving file" in site.server.log)
    assert site.server.stop() == 0
    assert "is proven again" not in site.server.log
    assert "Traceback" not in site.server.log
    assert "never retrieved" not in site.server.log
