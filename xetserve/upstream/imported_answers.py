"""Imported answers: which of them may be stored, for use offline or while the upstream fails.

An archive says whatever its maker wrote. So an imported answer must be one that this server could
have stored itself: at its path, of a known kind, readable, given in the past, and without a URL
that leads off the Hub.
"""

import re
from typing import Final

from xetserve.errors import FormatError, UpstreamError, UpstreamMissing
from xetserve.net.url import Origin, parse_url
from xetserve.upstream.answers.folder import PLANS
from xetserve.upstream.answers.question import (
    HOLDER,
    MAX_SKEW,
    PERMISSIONS,
    REFUSAL,
    Answer,
    Question,
    Subject,
    make_path,
    make_refusal,
    read_stored,
)
from xetserve.upstream.answers.scope import ANONYMOUS
from xetserve.upstream.answers.stored_file import Stored, pack_file
from xetserve.upstream.cas.reconstruction_archive import (
    STORED_URL,
    make_plan_folder,
    parse_end_name,
    parse_plan_name,
)
from xetserve.upstream.hub.cached_api import unpack_api
from xetserve.upstream.hub.cached_entries import unpack_entry, unpack_holder
from xetserve.upstream.hub.link import PUBLIC_HUB
from xetserve.xet.hashes import parse_hash
from xetserve.xet.reconstruction import parse_reconstruction

_SCOPE: Final = re.compile(r"[0-9a-f]{32}")
_BETWEEN: Final = re.compile(r"[\s<>\"',;]+")  # what separates URLs in a field


class Unwanted(FormatError):
    """An answer that must not be imported."""


def check_answer(path: str, stored: Stored, now: float) -> Question | None:
    """Check an answer and return the question that it answers; None: it is a reconstruction.

    Args:
        path: below the folder; unpack_file has checked it.
        now: Unix seconds.

    Raises:
        Unwanted: the answer must not be imported.
    """
    if not stored.answered_at <= now + MAX_SKEW:
        raise Unwanted("its date is in the future")
    if path.startswith(f"{PLANS}/"):
        _check_plan(path, stored.body)
        return None
    scope = path.partition("/")[0]
    subject = Subject.parse(stored.about)
    if subject is None or (scope != ANONYMOUS and not _SCOPE.fullmatch(scope)):
        raise Unwanted("it is not an answer of the Hub")
    question = Question(scope, *subject[1:])
    if make_path(question, subject.realm) != path:
        raise Unwanted("it answers another question than its path says")
    if subject.kind == "file":
        _check_entry(read_stored(stored), subject.realm)
    elif subject.kind == "api":
        _check_api(read_stored(stored), subject.realm)
    elif subject.kind == HOLDER:
        _check_holder(stored)
    elif subject.kind not in (REFUSAL, *PERMISSIONS):
        raise Unwanted("its kind is unknown")
    return question


def make_mark(question: Question, realm: str) -> tuple[str, bytes]:
    """Return the path and content of the mark for a scope that has answers about a repository."""
    note = make_refusal(question)
    path = make_path(note, realm)
    return path, pack_file(path, Stored(0.0, b"", note.describe(realm)))


def _check_plan(path: str, body: bytes) -> None:
    try:
        _, _, digest, name = path.split("/")
        file_hash = parse_hash(digest)
    except ValueError:
        raise Unwanted("it is not a reconstruction") from None
    covered = parse_plan_name(name)
    if path != f"{make_plan_folder(file_hash)}/{name}":
        raise Unwanted("its path is not that of a reconstruction")
    if covered is None:
        if parse_end_name(name) is None or body:
            raise Unwanted("it is not a reconstruction")
        return
    try:
        plan = parse_reconstruction(body)
    except FormatError as exc:
        raise Unwanted(f"it is not a reconstruction: {exc}") from None
    if covered.start + plan.decoded_size != covered.end:
        raise Unwanted("its reconstruction is of another range than its path says")
    if any(info.url != STORED_URL for infos in plan.fetch_info.values() for info in infos):
        raise Unwanted("its reconstruction has URLs")


def _check_entry(answer: Answer, realm: str) -> None:
    try:
        entry = unpack_entry(answer)
    except UpstreamMissing:
        return
    except UpstreamError as exc:
        raise Unwanted(str(exc)) from None
    if not isinstance(entry.url.target, str) or not entry.url.target.startswith("/"):
        raise Unwanted("it names a malformed URL")
    origins = _list_origins(realm)
    if entry.url.origin not in origins:
        raise Unwanted("it names a URL that is not the Hub's")
    if entry.token_url is not None:
        _check_urls(entry.token_url, origins)


def _check_holder(stored: Stored) -> None:
    try:
        unpack_holder(read_stored(stored).data)
    except FormatError as exc:
        raise Unwanted(str(exc)) from None


def _check_api(answer: Answer, realm: str) -> None:
    """Check the header fields; the body goes to the client unread, as that of any Hub would."""
    try:
        headers = unpack_api(answer).headers
    except UpstreamError as exc:
        raise Unwanted(str(exc)) from None
    origins = _list_origins(realm)
    for name, value in headers:
        if name.lower() in ("link", "location", "content-location"):
            _check_urls(value, origins)


def _check_urls(text: str, origins: tuple[Origin, ...]) -> None:
    for found in _BETWEEN.split(text):
        if "//" not in found:
            continue
        try:
            is_hub = parse_url(found).origin in origins
        except ValueError:
            is_hub = False
        if not is_hub:
            raise Unwanted("it names a URL that is not the Hub's")


def _list_origins(realm: str) -> tuple[Origin, ...]:
    try:
        return (PUBLIC_HUB, parse_url(realm).origin)
    except ValueError:
        raise Unwanted("the URL of its Hub is malformed") from None
