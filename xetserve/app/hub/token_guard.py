"""Keep tokens for the CAS out of the Hub's answers: clients would read past this server.

The routes of tokens answer with a sealed token of our own, or with 404. This is for all other
answers, whatever their paths are.
"""

import re
from typing import Final

from xetserve.errors import UpstreamRefused
from xetserve.http.messages import Headers

_FIELDS: Final = ("x-xet-access-token", "x-xet-cas-url")
_BLANKS: Final = 64
# A quote within a string is escaped, so this is the name of a member.
_MEMBER: Final = re.compile(rb'[{, \t\r\n]"casUrl"[ \t\r\n]{0,%d}:' % _BLANKS)
_MAX_MATCH: Final = len(b'{"casUrl":') + _BLANKS


class TokenGuard:
    """Checks the pieces of a JSON text, in bounded memory."""

    def __init__(self) -> None:
        self._end = b""  # of the text so far; a member may have begun in it

    def check(self, piece: bytes) -> None:
        """Check the next piece of the text.

        Raises:
            UpstreamRefused: the text has the URL of a CAS, which a token comes with.
        """
        text = self._end + piece
        if _MEMBER.search(text):
            raise _refuse()
        self._end = text[-_MAX_MATCH:]


def check_fields(headers: Headers) -> None:
    """Check the fields of an answer.

    Raises:
        UpstreamRefused: they hold a token for the CAS, or its URL.
    """
    if any(name in headers for name in _FIELDS):
        raise _refuse()


def _refuse() -> UpstreamRefused:
    return UpstreamRefused("the Hub's answer has a token for the CAS, which is not passed on")
