"""URLs are cut, never rewritten."""

import pytest

from xetserve.net.url import Origin, Url, parse_url

SIGNED = "/a/b%2Fc;d?X-Sig=a%2Bb+c/d==&x=&y&X-Sig=2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("http://h", Url(Origin("http", "h", 80), "/"), id="no path"),
        pytest.param("https://h/", Url(Origin("https", "h", 443), "/"), id="https port"),
        pytest.param(
            "http://H.Example:81/A", Url(Origin("http", "h.example", 81), "/A"), id="case"
        ),
        pytest.param("HTTPS://h/x", Url(Origin("https", "h", 443), "/x"), id="scheme in capitals"),
        pytest.param("http://h?q=1", Url(Origin("http", "h", 80), "/?q=1"), id="query, no path"),
        pytest.param("http://h/a#b", Url(Origin("http", "h", 80), "/a"), id="fragment"),
        pytest.param("http://h#b/c?d", Url(Origin("http", "h", 80), "/"), id="only a fragment"),
        pytest.param("http://[::1]:8/x", Url(Origin("http", "::1", 8), "/x"), id="IPv6"),
        pytest.param("http://u:p@h/x", Url(Origin("http", "h", 80), "/x"), id="user and password"),
        pytest.param("http://h//a/../b", Url(Origin("http", "h", 80), "//a/../b"), id="odd path"),
        pytest.param("https://h" + SIGNED, Url(Origin("https", "h", 443), SIGNED), id="signed"),
    ],
)
def test_parse_url(text: str, expected: Url) -> None:
    assert parse_url(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "/path", "h/path", "//h/path", "ftp://h/", "file:///etc/passwd", "http:///path", "http://",
     "http:/h/x", "http://h:99999/", "http://h:x/", "http://[::1/", "http://h/a b",
     "http://h/\r\nX: y", "http://h/\x00", "http://h/\x7f", "http://h/ü", "http://hü/",
     " http://h/", "http://h/\t"],
)  # fmt: skip
def test_what_cannot_be_requested_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_url(text)
    assert "pass" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("http://h/", "h"),
        ("http://h:80/", "h"),
        ("http://h:443/", "h:443"),
        ("https://h:443/", "h"),
        ("https://h:8443/", "h:8443"),
        ("http://[::1]/", "[::1]"),
        ("http://[::1]:81/", "[::1]:81"),
    ],
)
def test_the_authority_leaves_out_the_usual_port(url: str, authority: str) -> None:
    assert parse_url(url).origin.authority == authority


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        pytest.param("https://other/x?s=%2B", "https://other/x?s=%2B", id="absolute"),
        pytest.param("//other/x", "http://other/x", id="another host"),
        pytest.param("/x?q", "http://h:81/x?q", id="absolute path"),
        pytest.param("x", "http://h:81/a/x", id="relative path"),
        pytest.param("../x", "http://h:81/x", id="up"),
        pytest.param("?q=2", "http://h:81/a/b?q=2", id="query"),
        pytest.param("", "http://h:81/a/b?q=1", id="empty"),
        pytest.param("http://h:81" + SIGNED, "http://h:81" + SIGNED, id="signed"),
    ],
)
def test_join(reference: str, expected: str) -> None:
    assert parse_url("http://h:81/a/b?q=1").join(reference) == parse_url(expected)


@pytest.mark.parametrize("reference", ["ftp://h/", "http://[", "javascript:alert(1)", "/a b"])
def test_join_refuses_what_cannot_be_requested(reference: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_url("http://h/").join(reference)


def test_text_and_repr_of_a_url_do_not_show_its_signature() -> None:
    url = parse_url("https://user:word@h/path?X-Sig=secret")
    assert str(url) == "https://h/path"
    for text in (str(url), f"{url}", repr(url)):
        assert "secret" not in text
        assert "word" not in text
