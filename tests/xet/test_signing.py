"""Sealed values come back as they were, or not at all."""

import zlib
from base64 import urlsafe_b64encode
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.xet.signing import KEY_SIZE, MAX_VALUE_SIZE, Sealer, _sign, derive_key

KEY = b"k" * KEY_SIZE
SEALER = Sealer(KEY)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(value=VALUES.filter(lambda value: value is not None))
def test_what_goes_in_comes_out(value: Any) -> None:
    text = SEALER.seal("token", value)
    assert SEALER.unseal("token", text) == value
    assert text.isascii()
    assert set(text) & set("+/=%&?# ") == set()


@given(text=st.text(max_size=200) | st.binary(max_size=100).map(lambda data: data.hex()))
def test_what_was_not_sealed_is_nothing(text: str) -> None:
    assert SEALER.unseal("token", text) is None


@given(at=st.integers(0, 10_000), char=st.sampled_from("Aa0_-. =é"))
def test_no_character_can_be_changed(at: int, char: str) -> None:
    text = SEALER.seal("token", ["https://cas.example", "secret", 1.5])
    at %= len(text) - 1  # some bits of the last one stand for nothing
    changed = text[:at] + char + text[at + 1 :]
    assert changed == text or SEALER.unseal("token", changed) is None


def test_the_first_key_seals_and_all_unseal() -> None:
    """What an operator does to change the key of several servers: add, put first, remove."""
    old, new = derive_key("old"), derive_key("new")
    servers = [Sealer(old), Sealer(old, new), Sealer(new, old), Sealer(new)]
    for before, after in pairwise(servers):
        assert after.unseal("token", before.seal("token", 1)) == 1
        assert before.unseal("token", after.seal("token", 1)) == 1
    assert servers[-1].unseal("token", servers[0].seal("token", 1)) is None
    assert servers[0].unseal("token", servers[-1].seal("token", 1)) is None


@pytest.mark.parametrize(
    ("sealer", "purpose"),
    [
        pytest.param(SEALER, "data", id="another purpose"),
        pytest.param(Sealer(derive_key("other")), "token", id="another key"),
    ],
)
def test_it_is_for_one_purpose_and_one_key(sealer: Sealer, purpose: str) -> None:
    assert sealer.unseal(purpose, SEALER.seal("token", 1)) is None


def test_a_secret_gives_one_key() -> None:
    assert derive_key("same") == derive_key("same") != derive_key("other")
    assert len(derive_key("")) >= KEY_SIZE


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"not deflated", id="not deflated"),
        pytest.param(zlib.compress(b"{"), id="no JSON"),
        pytest.param(zlib.compress(b"\xff"), id="no UTF-8"),
        pytest.param(zlib.compress(b"[" * 100_000), id="deep"),
        pytest.param(zlib.compress(b"1" * 10_000), id="too long a number"),
        pytest.param(zlib.compress(b" " * MAX_VALUE_SIZE + b"1"), id="too long"),
    ],
)
def test_what_others_sealed_with_our_key_may_be_nothing(data: bytes) -> None:
    text = urlsafe_b64encode(_sign(KEY, "token", data) + data).decode().rstrip("=")
    assert SEALER.unseal("token", text) is None
