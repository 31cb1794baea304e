"""Accept-Encoding (RFC 9110, 12.5.3): which content coding to use."""

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
    """Read the weights of codings, by lower-case name; malformed items are left out."""
    weights: dict[str, float] = {}
    for item in value.split(","):
        match = _ITEM.fullmatch(item)
        if match is not None:
            name = match[1].lower()
            weights[_ALIASES.get(name, name)] = float(match[2] or 1)
    return weights


def choose_coding(headers: Headers, supported: Sequence[str]) -> str:
    """Choose a content coding out of those supported, the first ones preferred; or "identity".

    A coding is used for a client that names it and does not like identity better. "*" alone is no
    such wish: what sends it may not be able to decode; it counts only where identity is ruled out.
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
