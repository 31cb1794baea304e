"""What a grant holds, and nothing else is one."""

from typing import Any

from hypothesis import given, settings

from tests.sealed import changed
from xetserve.net.url import parse_url
from xetserve.xet.grants import PURPOSE, open_grant, seal_grant
from xetserve.xet.signing import Sealer

SEALER = Sealer(b"k" * 32)

SEALED = [
    "78" * 32,
    "66" * 32,
    9,
    "http://data.test/x",
    1.5,
    2.0,
    "instance",
    [[0, 5, 0, 900, [[0, 5, 7, 300, 400, 2, 500, 1]], "digest"]],
]


def test_the_shape_that_is_changed_below_is_the_one_of_grants() -> None:
    grant = open_grant(SEALER, SEALER.seal(PURPOSE, SEALED))
    assert grant is not None
    assert seal_grant(SEALER, grant) == SEALER.seal(PURPOSE, SEALED)


@settings(max_examples=500)
@given(value=changed(SEALED))
def test_a_grant_of_any_other_shape_is_none(value: Any) -> None:
    grant = open_grant(SEALER, SEALER.seal(PURPOSE, value))
    if grant is not None:  # then all of it is what it should be
        assert open_grant(SEALER, seal_grant(SEALER, grant)) == grant
        assert 0 <= grant.issued < grant.expires + 1e15
        parse_url(grant.url)
        assert all(each.byte_range.size > 0 for each in grant.ranges)
