"""The Hub's answers as they are passed on. They are made in net, which app does not know."""

from typing import Protocol

from xetserve.http.messages import Headers


class BlobSource(Protocol):
    """Where a body is received from."""

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        """Receive body bytes; 0 at the end."""
        ...


class HubAnswer(BlobSource, Protocol):
    """An answer whose head has come."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Headers:
        """The fields."""
        ...
