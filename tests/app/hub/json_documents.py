"""JSON documents with and without the members that filters take out."""

from typing import Any

from hypothesis import strategies as st

NAMES = ("xetHash", "xetEnabled")
HASH = "0123456789abcdef" * 4


def without(value: Any) -> Any:
    """Return the value without members of those names, at any depth."""
    if isinstance(value, dict):
        return {key: without(each) for key, each in value.items() if key not in NAMES}
    return [without(each) for each in value] if isinstance(value, list) else value


ODD = ("xetHash", '"xetHash":', ',"xetHash":1', '{"xetHash": "x"}', "\\", '\\"', "{", ",", "ü")
KEYS = st.sampled_from((*ODD, "path", "xetHash2")) | st.text(max_size=8)
SCALARS = (
    st.sampled_from((*ODD, HASH)) | st.none() | st.booleans() | st.integers() | st.text(max_size=9)
)
DROPPED = st.sampled_from((HASH, None, True, False, 0, -1.5e-7, ""))


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> dict[str, Any]:
    members: list[tuple[str, Any]] = draw(
        st.lists(st.tuples(KEYS.filter(lambda key: key not in NAMES), values), max_size=4)
    )
    for name in draw(st.sets(st.sampled_from(NAMES))):
        members.insert(draw(st.integers(0, len(members))), (name, draw(DROPPED)))
    return dict(members)


DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | objects(inner), max_leaves=20
)
# What parsing and writing would change.
DELICATE = (
    b'{"a": 1e400, "b": 1.10, "c": -0.0, "d": %b, "e": 1, "e": 2, "f": NaN, '
    b'"g": "\\/\\ud800\xc3\xbc"}' % (b"9" * 5000)
)
