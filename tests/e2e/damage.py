"""Chunks in the origin's folder, to be damaged."""

from tests.e2e.conftest import Site
from xetserve.xet.compression import Scheme
from xetserve.xet.xorb import iter_records

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
