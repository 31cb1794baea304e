"""Find tokens for the CAS in the Hub's answers: clients would read past this server.

The routes of tokens answer with a sealed token of our own, or with 404. This is for all other
answers, whatever their paths are. Clients take a token from header fields, or from the members of
the answer itself. Whatever lies deeper may be anybody's text, such as the front matter of a model
card, so names there say nothing.
"""

import re
from typing import Final

from xetserve.errors import UpstreamRefused
from xetserve.http.messages import Headers

_FIELDS: Final = ("x-xet-access-token", "x-xet-cas-url")
_NAME: Final = b"casUrl"
_MAX_OPEN: Final = 64  # bytes of a string without its end that are held
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_BETWEEN: Final = re.compile(rb"[^][{},:!]++")  # "!" is no JSON: it stands for the name
_LEAD: Final = b"\xef\xbb\xbf \t\r\n"


class TokenGuard:
    """Looks through the pieces of a JSON text, in bounded memory and linear time."""

    def __init__(self) -> None:
        self._held = b""  # a string whose end has not come
        self._depth = 0
        self._last = b""  # the last of []{},: so far
        self._is_object: bool | None = None  # None: nothing but blanks so far

    def finds_token(self, piece: bytes) -> bool:
        """Return whether the text is an object with the URL of a CAS, which a token comes with."""
        if self._is_object is None:
            piece = piece.lstrip(_LEAD)
            if not piece:
                return False
            self._is_object = piece.startswith(b"{")
        if not self._is_object:
            return False  # clients read no token from a list
        text = self._held + piece
        if b"\\" in text:
            text = _ESCAPE.sub(b"?", text)
        parts = text.split(b'"')  # between and within strings, in turn
        self._held = b'"' + _shorten(parts.pop()) if len(parts) % 2 == 0 else b""
        parts[1::2] = [b"!" if part == _NAME else b"" for part in parts[1::2]]
        return self._follow(_BETWEEN.sub(b"", b"".join(parts)))

    def check(self, piece: bytes) -> None:
        """Check the next piece of the text.

        Raises:
            UpstreamRefused: see finds_token.
        """
        if self.finds_token(piece):
            raise _refuse()

    def _follow(self, marks: bytes) -> bool:
        """Follow the brackets; return whether a "!" among them is a member of the object itself."""
        before = self._last
        while (at := marks.find(b"!")) >= 0:
            self._depth += _count_depth(marks[:at])
            # A colon stands before a value.
            if self._depth == 1 and (marks[at - 1 : at] or before) in (b"{", b","):
                return True
            before, marks = marks[at - 1 : at] or before, marks[at + 1 :]
        self._depth += _count_depth(marks)
        self._last = marks[-1:] or before
        return False


def check_fields(headers: Headers) -> None:
    """Check the fields of an answer.

    Raises:
        UpstreamRefused: they hold a token for the CAS, or its URL.
    """
    if has_token_fields(headers):
        raise _refuse()


def has_token_fields(headers: Headers) -> bool:
    """Return whether the fields of an answer hold a token for the CAS, or its URL."""
    return any(name in headers for name in _FIELDS)


def may_be_json(headers: Headers) -> bool:
    """Return whether a body may be JSON; a refusal may have no body, and so no type."""
    return "json" in (headers.get("content-type") or "json").lower()


def _count_depth(marks: bytes) -> int:
    ups = marks.count(b"{") + marks.count(b"[")
    return ups - marks.count(b"}") - marks.count(b"]")


def _shorten(opened: bytes) -> bytes:
    """Return the begin of a string, or a stand-in that is no begin of the name if it is long."""
    if len(opened) <= _MAX_OPEN:
        return opened
    return b"?" + opened[-1:]  # an escape may have begun


def _refuse() -> UpstreamRefused:
    return UpstreamRefused("the Hub's answer has a token for the CAS, which is not passed on")
