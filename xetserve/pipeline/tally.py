"""Where the packed bytes of a response came from."""

from dataclasses import dataclass


@dataclass(slots=True)
class Tally:
    """Where the packed bytes came from that were fetched for one response; those it shared are
    another's.

    cache_hits: fetch ranges that were stored, at least their beginning.
    """

    upstream_bytes: int = 0
    cache_bytes: int = 0
    cache_hits: int = 0
