"""URLs for clients: the origin to connect to, and the target for the request line."""

from typing import NamedTuple
from urllib.parse import urljoin, urlsplit


class Origin(NamedTuple):
    """Scheme ("http" or "https"), lower-case host, port."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Return the value of the Host field, without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port == default else f"{host}:{self.port}"


class Url(NamedTuple):
    """An absolute URL, split in two. target is path and query exactly as written."""

    origin: Origin
    target: str

    def join(self, reference: str) -> "Url":
        """Resolve a Location against this URL.

        Raises:
            ValueError: the result is not an http(s) URL.
        """
        return parse_url(
            urljoin(f"{self.origin.scheme}://{self.origin.authority}{self.target}", reference)
        )

    def __str__(self) -> str:
        # The query is left out: it may be a signature.
        path = self.target.partition("?")[0]
        return f"{self.origin.scheme}://{self.origin.authority}{path}"

    def __repr__(self) -> str:
        return f"Url({self})"


def parse_url(text: str) -> Url:
    """Parse an absolute URL without re-encoding or reordering: a signature may depend on both.

    Raises:
        ValueError: text is not an absolute http(s) URL, or has characters that are not allowed in a
            request line.
    """
    if not text.isascii() or any(char <= " " or char == "\x7f" for char in text):
        raise ValueError("a URL must have only printable ASCII characters")
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an absolute http(s) URL")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    start = text.index("//") + 2
    ends = [at for char in "/?#" if (at := text.find(char, start)) >= 0]
    target = text[min(ends) :] if ends else "/"
    target = target.partition("#")[0]
    if not target.startswith("/"):
        target = "/" + target
    return Url(Origin(parts.scheme, parts.hostname, port), target)
