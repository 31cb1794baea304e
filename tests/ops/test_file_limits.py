"""Files are divided so that what is admitted can be done."""

import sys

import pytest

from xetserve.errors import ConfigError
from xetserve.ops.file_limits import MAX_PASSING, RESERVED, share_files


@pytest.mark.parametrize(
    ("max_files", "max_connections", "connections"),
    [
        pytest.param(128, 10_000, 64, id="few files"),
        pytest.param(1024, 0, 512, id="as many clients as can be"),
        pytest.param(8192, 1024, 1024, id="fewer clients than files"),
        pytest.param(20_000, 10_000, 10_000, id="half are clients"),
        pytest.param(sys.maxsize, 10_000, 10_000, id="no limit"),
    ],
)
def test_all_together_are_no_more_than_there_are(
    max_files: int, max_connections: int, connections: int
) -> None:
    shares = share_files(max_files, max_connections)
    assert shares.connections == connections
    assert shares.requests >= 1
    passing = min(max_files // 8, MAX_PASSING)
    assert shares.connections + shares.requests + passing + RESERVED == max_files


def test_too_few_files_stop_the_start() -> None:
    with pytest.raises(ConfigError, match="may open 64 files"):
        share_files(64, 10_000)
