"""Accept-Encoding (RFC 9110, 12.5.3): choose the content coding of a response."""

import re
from collections.abc import Sequence
from typing import Final

from xetserve.http.messages import Headers

_ITEM: Final = re.compile(
    r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*"
    r"(?:;[ \t]*[qQ][ \t]*=[ \t]*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)[ \t]*)?",
    re.ASCII,
)
_ALIASES: Final = {"x-gzip": "gzip"}
IDENTITY: Final = "identity"


def parse_accept_encoding(value: str) -> dict[str, float]:
    """Parse the field into lower-case coding -> weight; ignore malformed items."""
    weights: dict[str, float] = {}
    for item in value.split(","):
        match = _ITEM.fullmatch(item)
        if match is not None:
            name = match[1].lower()
            weights[_ALIASES.get(name, name)] = float(match[2] or 1)
    return weights


def choose_coding(headers: Headers, supported: Sequence[str]) -> str:
    """Return the best supported content coding, or "identity"; the first supported one wins a tie.

    A coding is chosen only if the client names it with at least the weight of identity. "*" counts
    only if the client excludes identity: some clients send "*" but cannot decode every coding.
    """
    values = headers.get_all("accept-encoding")
    if not values:
        return IDENTITY
    weights = parse_accept_encoding(",".join(values))
    others = weights.get("*")
    identity = weights.get(IDENTITY, others)
    best, best_weight = IDENTITY, 0.0
    for coding in supported:
        weight = weights.get(coding, (others or 0.0) if identity == 0 else 0.0)
        if weight > best_weight:
            best, best_weight = coding, weight
    return best if best_weight >= weights.get(IDENTITY, 0.0) else IDENTITY
