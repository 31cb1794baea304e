"""JSON values that another version may have sealed with our key."""

from typing import Any

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=8),
    max_leaves=20,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Give a value of which some part is something else, or missing, or there twice."""
    if not isinstance(value, list) or not value or draw(st.booleans()):
        return draw(JSON)
    at = draw(st.integers(0, len(value) - 1))
    middle = draw(st.sampled_from([[], [value[at]] * 2]) | changed(value[at]).map(lambda it: [it]))
    return [*value[:at], *middle, *value[at + 1 :]]
