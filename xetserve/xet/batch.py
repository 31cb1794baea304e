"""Batch reconstructions: one request to the CAS for several files, and its answer.

The answer lists the terms of each file and one common set of fetch info for their chunks:

    request   [{"prefix": "default", "hash": "<file>"}, ...]
    answer    {"files": {"<file>": [terms]}, "fetch_info": {"<xorb>": [...]}}

Terms and fetch info have the v1 form.

Source: hub-docs xet/api.md; xet-core cas_types, BatchQueryReconstructionResponse.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import FetchInfo, Reconstruction, Term, to_v1

MAX_BATCH_FILES: Final = 100  # files in a request; as query parameters, this many fit in a URL
MAX_BATCH_SIZE: Final = 64 * 1024  # bytes in a request body

FetchInfos = Mapping[bytes, Sequence[FetchInfo]]


def parse_batch(body: bytes | bytearray) -> list[bytes]:
    """Parse the body of a batch request; return each file hash once.

    Raises:
        FormatError: body is not a batch request, or it names more than MAX_BATCH_FILES files.
    """
    try:
        items = parse_json(body)
        names = [item["hash"] for item in items] if isinstance(items, list) else None
    except (FormatError, TypeError, KeyError):
        names = None
    if names is None:
        raise FormatError('a batch request is a list of {"prefix": "default", "hash": ...}')
    return parse_batch_names(names)


def parse_batch_names(names: Iterable[Any]) -> list[bytes]:
    """Parse file hashes in their string form; return each of them once.

    Raises:
        FormatError: a name is not a hash, or there are more than MAX_BATCH_FILES.
    """
    hashes: dict[bytes, None] = {}
    for name in names:
        if not isinstance(name, str):
            raise FormatError("a file hash is a string")
        try:
            hashes[parse_hash(name)] = None
        except ValueError as exc:
            raise FormatError(str(exc)) from None
        if len(hashes) > MAX_BATCH_FILES:
            raise FormatError(f"more than {MAX_BATCH_FILES} files in one batch request")
    return list(hashes)


def merge_fetch_infos(all_infos: Iterable[FetchInfos]) -> dict[bytes, tuple[FetchInfo, ...]]:
    """Merge fetch info of several answers, in ascending chunk order.

    If two entries have the same ranges, the first one is kept.
    """
    merged: dict[bytes, dict[object, FetchInfo]] = {}
    for infos in all_infos:
        for xorb_hash, found in infos.items():
            known = merged.setdefault(xorb_hash, {})
            for info in found:
                known.setdefault((info.chunks, info.byte_range), info)
    return {
        xorb_hash: tuple(sorted(known.values(), key=lambda info: info.chunks))
        for xorb_hash, known in merged.items()
    }


def make_batch_answer(
    files: Mapping[bytes, Sequence[Term]], fetch_info: Mapping[bytes, tuple[FetchInfo, ...]]
) -> dict[str, Any]:
    """Return the JSON value of a batch answer.

    Args:
        files: file hash -> the terms of the whole file.
    """
    return {
        "files": {
            format_hash(file_hash): to_v1(Reconstruction(0, tuple(terms), {}))["terms"]
            for file_hash, terms in files.items()
        },
        "fetch_info": to_v1(Reconstruction(0, (), dict(fetch_info)))["fetch_info"],
    }
