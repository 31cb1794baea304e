"""Questions to the CAS about several files, and the answer to them: the terms of each, and one list
of where their chunks are.

    [{"prefix": "default", "hash": "<file>"}, ...]                                          the question
    {"files": {"<file>": [terms]}, "fetch_info": {"<xorb>": [...]}}    the answer, terms and fetch info as in v1

Source: hub-docs xet/api.md; xet-core cas_types, BatchQueryReconstructionResponse.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import FetchInfo, Reconstruction, Term, to_v1

MAX_BATCH_FILES: Final = 100  # of one question; as query parameters, that is what fits in a URL
MAX_BATCH_SIZE: Final = 64 * 1024  # bytes of a question

FetchInfos = Mapping[bytes, Sequence[FetchInfo]]


def parse_batch(body: bytes | bytearray) -> list[bytes]:
    """Read the body of a question; gives each file hash once.

    Raises:
        FormatError: it is none, or names too many files.
    """
    try:
        items = parse_json(body)
        names = [item["hash"] for item in items] if isinstance(items, list) else None
    except (FormatError, TypeError, KeyError):
        names = None
    if names is None:
        raise FormatError('a question is a list of {"prefix": "default", "hash": ...}')
    return parse_batch_names(names)


def parse_batch_names(names: Iterable[Any]) -> list[bytes]:
    """Read file hashes as text; gives each of them once.

    Raises:
        FormatError: one is none, or there are too many.
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
            raise FormatError(f"more than {MAX_BATCH_FILES} files in one question")
    return list(hashes)


def merge_fetch_infos(all_infos: Iterable[FetchInfos]) -> dict[bytes, tuple[FetchInfo, ...]]:
    """Join what says where chunks are, in ascending order; of equal ranges, the first one stays."""
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
    """Return the JSON value of an answer.

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
