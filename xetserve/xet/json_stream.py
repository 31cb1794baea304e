"""Incremental JSON: read a large text value by value, so that the caller can pause in between.

    cursor = Cursor(b'{"terms": [{"a": 1}, {"a": 2}], "other": 3}')
    for key in cursor.members():           # "terms", then "other"
        if key == "terms":
            for _ in cursor.items():
                cursor.take()              # {"a": 1}, then {"a": 2}
        else:
            cursor.take()                  # 3

json.loads holds the interpreter lock until it has parsed the whole text, even in a thread. Here one
step parses one value, and a value has at most MAX_VALUE_SIZE characters.
"""

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder, detect_encoding
from typing import Any, Final

from xetserve.errors import FormatError

MAX_VALUE_SIZE: Final = 256 * 1024  # characters; 500 ranges with their URL take about 60,000
_SPACE: Final = re.compile(r"[ \t\n\r]*+")
_DECODE: Final = JSONDecoder().raw_decode


class Cursor:
    """A position in a JSON text.

    Every method raises FormatError if the text is not JSON, or if the next value has another type
    than the method expects.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._text = data.decode(detect_encoding(data), "surrogatepass")
        except UnicodeDecodeError:
            raise _not_json() from None
        self._at = 0
        self._base = 0  # where the window starts
        self._window = ""  # the copy that is decoded; its size bounds the work for one value

    def members(self) -> Iterator[str]:
        """Yield the keys of an object; the caller must read each value before the next key."""
        if not self.opens("{"):
            raise FormatError("an object is expected")
        self._at += 1
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            key = self.take()
            if not isinstance(key, str):
                raise _not_json()
            self._expect(":")
            yield key
            if self._expect(",}") == "}":
                return

    def items(self) -> Iterator[None]:
        """Yield once for each value of an array; the caller must then read that value."""
        if not self.opens("["):
            raise FormatError("a list is expected")
        self._at += 1
        if self._peek() == "]":
            self._at += 1
            return
        while True:
            yield
            if self._expect(",]") == "]":
                return

    def take(self) -> Any:
        """Parse and return the next value."""
        self._peek()
        while True:
            try:
                value, end = _DECODE(self._window, self._at - self._base)
            except (JSONDecodeError, RecursionError):
                end = len(self._window)
            except ValueError:  # a number of thousands of digits
                raise _not_json() from None
            # A value that reaches the end of the window may continue behind it.
            if end < len(self._window):
                self._at = self._base + end
                return value
            if self._base == self._at and self._window:
                break
            self._base = self._at
            # The space marks the end of a number at the end of the text.
            self._window = self._text[self._at : self._at + MAX_VALUE_SIZE]
            if self._at + MAX_VALUE_SIZE >= len(self._text):
                self._window += " "
        if self._at + MAX_VALUE_SIZE < len(self._text):
            raise FormatError(f"damaged JSON, or a value of more than {MAX_VALUE_SIZE} characters")
        raise _not_json()

    def opens(self, bracket: str) -> bool:
        """Return whether an object or an array comes next."""
        return self._peek() == bracket

    def finish(self) -> None:
        """Check that only white space is left."""
        if self._peek():
            raise _not_json()

    def _peek(self) -> str:
        """Return the next character that is not white space; "" at the end."""
        match = _SPACE.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at : self._at + 1]

    def _expect(self, chars: str) -> str:
        char = self._peek()
        if not char or char not in chars:
            raise _not_json()
        self._at += 1
        return char


def _not_json() -> FormatError:
    return FormatError("malformed JSON, or a value of another type than expected")
