"""Mark a file as Xet for Hub clients, with URLs of this server for its token and reconstruction.

Source: huggingface_hub utils/_xet.py; huggingface.js file-download-info.ts.
"""

from dataclasses import replace
from typing import Final

from xetserve.app.download.representation import Fields, Representation
from xetserve.http.messages import Request, Response, json_response
from xetserve.upstream.hub.client import FileEntry, RepoRef
from xetserve.xet.hashes import format_hash

# Clients that want a description of the file instead of its bytes accept this; huggingface.js does.
FILE_INFO: Final = "application/vnd.xet-fileinfo+json"
_OF_THE_FILE: Final = ("Content-Type", "Content-Disposition", "Accept-Ranges", "ETag",
                       "Repr-Digest", "Last-Modified", "Cache-Control")  # fmt: skip


def wants_file_info(request: Request) -> bool:
    """Return whether a client accepts a description of a Xet file instead of its bytes."""
    return FILE_INFO in (request.headers.get("accept") or "")


def offer_xet(
    request: Request, file: Representation, repo: RepoRef, entry: FileEntry, revision: str
) -> Representation:
    """Return a representation with the fields that lead a Xet client to token and reconstruction.

    A file that is not Xet is returned unchanged.
    """
    if entry.file_hash is None:
        return file
    token_url, info_url = _make_urls(request, repo, entry, revision)
    links = f'<{token_url}>; rel="xet-auth", <{info_url}>; rel="xet-reconstruction-info"'
    fields = (("Link", links), ("X-Xet-Refresh-Route", token_url))
    return replace(file, hides_xet=False, xet_fields=fields)


def answer_file_info(
    request: Request, file: Representation, repo: RepoRef, entry: FileEntry, revision: str
) -> Response:
    """Answer with the JSON description of a Xet file instead of its bytes."""
    assert entry.file_hash is not None
    token_url, info_url = _make_urls(request, repo, entry, revision)
    value = {
        "hash": format_hash(entry.file_hash),
        "refreshUrl": token_url,
        "reconstructionUrl": info_url,
    }
    fields: Fields = [field for field in file.make_fields() if field[0] not in _OF_THE_FILE]
    response = json_response(200, value, [*fields, ("Cache-Control", "no-store")])
    response.headers[0] = ("Content-Type", FILE_INFO)
    return response


def _make_urls(request: Request, repo: RepoRef, entry: FileEntry, revision: str) -> tuple[str, str]:
    """Return the URLs of the token and of the reconstruction; clients need absolute ones."""
    assert entry.file_hash is not None
    base = request.base_url
    return (
        base + repo.make_token_path(entry.commit or revision),
        f"{base}/v1/reconstructions/{format_hash(entry.file_hash)}",
    )
