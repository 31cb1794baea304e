import pytest

from xetserve.http.cors import CorsPolicy, add_vary
from xetserve.http.messages import Headers, Request, Response

PAGE = "https://page.test"
PREFLIGHT = (("Access-Control-Request-Method", "GET"),)


def ask(policy: CorsPolicy, *fields: tuple[str, str], method: str = "GET") -> dict[str, str]:
    """The fields that an answer has."""
    request = Request(method, "/x", Headers(fields))
    response = policy.answer_options(request) if method == "OPTIONS" else Response(200)
    policy.add_to(response, request)
    assert len(dict(response.headers)) == len(response.headers)
    assert method != "OPTIONS" or response.status == 204
    return dict(response.headers)


@pytest.mark.parametrize("fields", [(), (("Origin", PAGE),), (("Origin", "null"),)])
def test_all_pages_may_read(fields: tuple[tuple[str, str], ...]) -> None:
    answer = ask(CorsPolicy(), *fields)
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert "Vary" not in answer
    exposed = answer["Access-Control-Expose-Headers"].split(", ")
    assert {"ETag", "Content-Range", "X-Xet-Hash", "Repr-Digest", "X-Request-Id"} < set(exposed)


def test_only_some_pages_may_read() -> None:
    policy = CorsPolicy((PAGE, "http://localhost:3000"))
    answer = ask(policy, ("Origin", PAGE))
    assert (answer["Access-Control-Allow-Origin"], answer["Vary"]) == (PAGE, "Origin")
    for fields in ((), (("Origin", "https://other.test"),), (("Origin", PAGE + ".evil.test"),)):
        assert ask(policy, *fields) == {"Vary": "Origin"}
        assert "Access-Control-Allow-Methods" not in ask(
            policy, *fields, *PREFLIGHT, method="OPTIONS"
        )


def test_no_page_may_read() -> None:
    assert ask(CorsPolicy(()), ("Origin", PAGE)) == {}
    answer = ask(CorsPolicy(()), ("Origin", PAGE), *PREFLIGHT, method="OPTIONS")
    assert answer == {"Allow": "GET, HEAD, OPTIONS"}


def test_a_preflight_hears_what_it_may_send() -> None:
    answer = ask(CorsPolicy(), ("Origin", PAGE), *PREFLIGHT, method="OPTIONS")
    assert answer["Access-Control-Allow-Origin"] == "*"
    assert answer["Access-Control-Allow-Methods"] == "GET, HEAD, OPTIONS"
    # "*" would not stand for Authorization.
    assert {"Authorization", "Range", "If-Range"} < set(
        answer["Access-Control-Allow-Headers"].split(", ")
    )
    assert int(answer["Access-Control-Max-Age"]) > 0


@pytest.mark.parametrize("fields", [(), PREFLIGHT, (("Origin", PAGE),)])
def test_other_options_hear_of_the_methods_only(fields: tuple[tuple[str, str], ...]) -> None:
    answer = ask(CorsPolicy(), *fields, method="OPTIONS")
    assert answer["Allow"] == "GET, HEAD, OPTIONS"
    assert "Access-Control-Allow-Methods" not in answer


def test_vary_stays_one_field_without_repeats() -> None:
    headers = [("Vary", "Authorization"), ("ETag", '"a"')]
    add_vary(headers, "Accept-Encoding", "authorization")
    add_vary(headers, "Origin")
    add_vary(headers, "origin")
    assert headers == [("ETag", '"a"'), ("Vary", "Authorization, Accept-Encoding, Origin")]


def test_a_policy_is_read_from_a_setting() -> None:
    assert CorsPolicy.parse("*") == CorsPolicy()
    assert CorsPolicy.parse("off") == CorsPolicy(())
    assert CorsPolicy.parse(f"{PAGE},http://a") == CorsPolicy((PAGE, "http://a"))
