"""A damaged file never looks complete: curl fails, whatever was done to the upstream's data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import sha256_of
from tests.e2e.clients import CLIENTS, run
from tests.e2e.conftest import REPO, Site
from tests.e2e.test_downloads import file_url, head
from xetserve.xet.compression import Scheme
from xetserve.xet.xorb import CHUNK_HEADER_SIZE, iter_records

# A file whose chunks are mostly of the scheme, and are its own.
FILE_OF = {
    Scheme.NONE: "damage/raw.bin",
    Scheme.LZ4: "damage/lz4.bin",
    Scheme.BG4_LZ4: "damage/bg4.bin",
}


def find_record(site: Site, scheme: Scheme, name: str) -> tuple[str, int, int, int]:
    """Find a chunk of a file: (xorb, chunk index, offset of its record, packed size)."""
    content = (site.uploaded.folder / name).read_bytes()
    for path in sorted((site.uploaded.origin_folder / "xorbs").iterdir()):
        if len(path.name) != 64:
            continue
        offset = 0
        for index, record in enumerate(iter_records(path.read_bytes())):
            header = record.header
            is_large = header.decoded_size >= 8192
            if is_large and header.scheme is scheme and bytes(record.decode()) in content:
                return path.name, index, offset, header.packed_size
            offset += header.record_size
    raise AssertionError(f"no {scheme.name} chunk of {name}")


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
