"""Only the members of an answer itself are a token; see the module."""

import json

import pytest

from xetserve.upstream.hub.token_guard import TokenGuard

TOKEN = {"casUrl": "https://cas.test", "accessToken": "t", "exp": 1}
LONG = 'x"\\' * 100


def finds(text: bytes, size: int) -> bool:
    guard = TokenGuard()
    found = [guard.finds_token(text[at : at + size]) for at in range(0, len(text), size)]
    return any(found)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
class TestTokenGuard:
    @pytest.mark.parametrize("indent", [None, 70])
    @pytest.mark.parametrize(
        "value",
        [
            TOKEN,
            {"casUrl": "https://cas.test"},
            {"a": [{"b": {"c": [LONG]}}, {}], LONG: "}{", "d": ["]"]} | TOKEN,
            {"card": {"casUrl": "hi"}, "n": "casUrl"} | TOKEN,
        ],
    )
    def test_a_token_is_found(self, value: object, indent: int | None, size: int) -> None:
        text = json.dumps(value, indent=indent).encode()
        for lead in (b"", b"\r\n\t ", b"\xef\xbb\xbf"):
            assert finds(lead + text, size)

    @pytest.mark.parametrize("indent", [None, 70])
    @pytest.mark.parametrize(
        "value",
        [
            "casUrl",
            [{"id": "a/b", "cardData": {"casUrl": "hi"}}],
            [{"id": "a/b", "cardData": TOKEN}, TOKEN],
            {"id": "a/b", "cardData": TOKEN, "rows": [{"row": TOKEN}]},
            {"name": "casUrl", "names": ["casUrl", "casUrl"]},
            {"text": f'{{"casUrl": 1, {LONG}', "b": '"casUrl":', "\\": {"casUrl": 1}},
            {"auth": {"accessToken": {"role": "read"}}, "accessToken": "of another kind"},
            {"xcasUrl": 1, "casurl": 2, '"casUrl"': 3, "!": "!", LONG: {}},
        ],
    )
    def test_other_texts_pass(self, value: object, indent: int | None, size: int) -> None:
        assert not finds(json.dumps(value, indent=indent).encode(), size)
