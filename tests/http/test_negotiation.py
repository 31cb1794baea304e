import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.http.messages import Headers
from xetserve.http.negotiation import choose_coding, parse_accept_encoding


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param("", "identity", id="empty"),
        pytest.param("zstd", "zstd", id="one"),
        pytest.param("gzip", "gzip", id="the other"),
        pytest.param("gzip, deflate, br, zstd", "zstd", id="browsers"),
        pytest.param("deflate, gzip, br", "gzip", id="curl without zstd"),
        pytest.param("ZStd", "zstd", id="upper case"),
        pytest.param("x-gzip", "gzip", id="x-gzip"),
        pytest.param("br, deflate", "identity", id="none that we have"),
        pytest.param("identity", "identity", id="identity"),
        pytest.param("gzip;q=1.0, zstd;q=0.5", "gzip", id="the better liked"),
        pytest.param("gzip;q=0.4,zstd;q=0.401", "zstd", id="three decimals"),
        pytest.param("zstd;q=0", "identity", id="ruled out"),
        pytest.param("zstd;q=0.000, gzip", "gzip", id="ruled out, with another"),
        pytest.param("zstd ; q=0.5 , identity;q=0.2", "zstd", id="blanks"),
        pytest.param("zstd;Q=0.5", "zstd", id="Q"),
        pytest.param("identity, zstd;q=0.5", "identity", id="identity is liked better"),
        pytest.param("identity, zstd", "zstd", id="liked as well"),
        pytest.param("*", "identity", id="a star is no wish"),
        pytest.param("gzip;q=0.1, *", "gzip", id="a star beside a wish"),
        pytest.param("*;q=0", "identity", id="nothing at all"),
        pytest.param("identity;q=0, *", "zstd", id="anything but identity"),
        pytest.param("identity;q=0, *, zstd;q=0", "gzip", id="anything but two"),
        pytest.param("identity;q=0", "identity", id="only what there is not"),
        pytest.param("zstd;q=2", "identity", id="a weight above 1"),
        pytest.param("zstd;q=0.1234", "identity", id="four decimals"),
        pytest.param("zstd;q=-1", "identity", id="a weight below 0"),
        pytest.param("zstd;q=", "identity", id="no weight"),
        pytest.param("zstd;level=3", "identity", id="another parameter"),
        pytest.param("zstd gzip", "identity", id="no comma"),
        pytest.param(",, zstd,", "zstd", id="empty items"),
        pytest.param("zst", "identity", id="a prefix"),
    ],
)
def test_choose_coding(value: str, expected: str) -> None:
    headers = Headers([("Accept-Encoding", value)])
    assert choose_coding(headers, ("zstd", "gzip")) == expected


def test_no_field_means_no_coding_and_several_are_one_list() -> None:
    assert choose_coding(Headers(), ("zstd", "gzip")) == "identity"
    several = Headers([("Accept-Encoding", "zstd;q=0.1"), ("accept-encoding", "gzip")])
    assert choose_coding(several, ("zstd", "gzip")) == "gzip"
    assert choose_coding(several, ("zstd",)) == "zstd"


@given(st.text() | st.text("zstdgip;q=01., *"))
def test_any_value_has_weights_from_0_to_1(value: str) -> None:
    assert all(0 <= weight <= 1 for weight in parse_accept_encoding(value).values())
    assert choose_coding(Headers([("Accept-Encoding", value)]), ("zstd",)) in ("zstd", "identity")
