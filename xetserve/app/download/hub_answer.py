"""Interfaces of the Hub's answers; net implements them, and app does not import net."""

from typing import Protocol

from xetserve.http.messages import Headers


class BlobSource(Protocol):
    """A body that is received piece by piece."""

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive body bytes into view; return how many, 0 at the end."""
        ...


class HubAnswer(BlobSource, Protocol):
    """An answer whose head has arrived."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def content_length(self) -> int | None:
        """Bytes of the body; None: unknown."""
        ...

    @property
    def headers(self) -> Headers:
        """The header fields."""
        ...
