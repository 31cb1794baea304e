"""A large JSON text, read value by value, so that a reader can pause between them.

    cursor = Cursor(b'{"terms": [{"a": 1}, {"a": 2}], "other": 3}')
    for key in cursor.members():           # "terms", then "other"
        if key == "terms":
            for _ in cursor.items():
                cursor.take()              # {"a": 1}, then {"a": 2}
        else:
            cursor.take()                  # 3

json.loads would hold the interpreter for as long as the whole text takes, in a thread too. Here
one step costs what one value costs, and a value has at most MAX_VALUE_SIZE characters.
"""

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder, detect_encoding
from typing import Any, Final

from xetserve.errors import FormatError

MAX_VALUE_SIZE: Final = 256 * 1024  # characters; 500 ranges with their URL take some 60,000
_SPACE: Final = re.compile(r"[ \t\n\r]*+")
_DECODE: Final = JSONDecoder().raw_decode


class Cursor:
    """A position in a JSON text.

    Every method raises FormatError where the text is not JSON, or not of the kind that is asked
    for.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._text = data.decode(detect_encoding(data), "surrogatepass")
        except UnicodeDecodeError:
            raise _not_json() from None
        self._at = 0
        self._base = 0  # where the window starts
        self._window = ""  # a copy to decode out of, which bounds the work that one value can be

    def members(self) -> Iterator[str]:
        """Iterate over the keys of an object; the caller reads each value before it goes on."""
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
        """Step through an array; the caller reads each value before it goes on."""
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
        """Return the value that comes next."""
        self._peek()
        while True:
            try:
                value, end = _DECODE(self._window, self._at - self._base)
            except (JSONDecodeError, RecursionError):
                end = len(self._window)
            except ValueError:  # a number of thousands of digits
                raise _not_json() from None
            # What reaches the end of the window may go on behind it.
            if end < len(self._window):
                self._at = self._base + end
                return value
            if self._base == self._at and self._window:
                break
            self._base = self._at
            # With a blank behind the text, a number at its end has an end.
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
        """Check that nothing is left."""
        if self._peek():
            raise _not_json()

    def _peek(self) -> str:
        """Return the next character that is no blank; "" at the end."""
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
    return FormatError("not such JSON")
